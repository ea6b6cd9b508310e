"""One optimizer step: a global batch is divided over ranks and micro-batches, scored, and gone backward through.

G: samples of a global batch, P: training samples, K: negatives of each, R: ranks, A: accumulation, M: samples of a
micro-batch, X: texts of a sample.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from biencoder.data import Forbidden, Split
from biencoder.data.tokens import TokenizedTexts
from biencoder.distributed.world import World
from biencoder.model.batch import triplet_batch
from biencoder.model.bi_encoder import Scores
from biencoder.rng import stream_seed
from biencoder.training.contrastive import targets
from biencoder.training.engine.engine import Engine
from biencoder.training.objective import Objective, StepBatch
from biencoder.training.sampler import shares


@dataclass(frozen=True, slots=True)
class Step:
    engine: Engine
    objective: Objective
    tokens: TokenizedTexts
    split: Split
    """The training split."""
    forbidden: Forbidden
    world: World
    micro_batch_size: int
    seed: int

    def batch(self, batch_G: npt.NDArray[np.int64], negative_text_PK: npt.NDArray[np.int64]) -> StepBatch:
        """This rank's share of a global batch, on the CPU, where a GPU fetches it by itself. No other rank takes part.

        A thread makes it while the step before is under way, so nothing here may wait for the device.
        """
        split, world = self.split, self.world
        texts_XG = np.stack([split.point_text_P[batch_G], split.counter_text_P[batch_G], *negative_text_PK[batch_G].T])
        shares_RAM = shares(
            batch_G,
            self.tokens.lengths(texts_XG).sum(axis=0),
            world_size=world.size,
            micro_batch_size=self.micro_batch_size,
        )
        micro_batches = [
            triplet_batch(
                samples_M,
                split,
                negative_text_PK,
                self.tokens,
                one_encoder=self.engine.model.one_encoder,
                rivals=self.objective.contrastive,
                pass_cost=self.engine.pass_cost,
                packing=self.engine.packing,
            )
            for samples_M in shares_RAM[world.rank]
        ]
        if not self.objective.contrastive:
            return self._pinned(StepBatch(micro_batches, None))
        samples_RS = shares_RAM.reshape(world.size, -1)
        wanted = targets(samples_RS, split, negative_text_PK, self.forbidden, rank=world.rank)
        return self._pinned(StepBatch(micro_batches, wanted))

    def _pinned(self, batch: StepBatch) -> StepBatch:
        return batch.pinned() if self.world.device.type == "cuda" else batch

    def train(self, batch: StepBatch, number: int) -> torch.Tensor:
        """Make step `number`; returns this rank's mean loss parts, on the device, without graph. Every rank takes part."""
        parts = []
        for loss in self.objective.losses(batch, lambda micro: self._score(batch, number, micro)):
            self.engine.backward(loss.total)
            self.engine.step()  # updates at the last micro-batch, accumulates before
            parts.append(loss.detached())
        return torch.stack(parts).mean(0)

    def _score(self, batch: StepBatch, number: int, micro: int) -> Scores:
        """Score a micro-batch, with the same dropout however often it is done.

        The masks depend on the rank and on the micro-batch's number, so only without dropout do losses not depend on how a
        global batch is spread.
        """
        torch.manual_seed(stream_seed(self.seed, "dropout", number, self.world.rank, micro))
        return self.engine.score(batch.micro_batches[micro])
