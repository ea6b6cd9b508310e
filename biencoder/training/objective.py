"""What a step minimizes: the combined loss of each of its micro-batches, the in-batch contrastive loss over all of them.

GradCache (Gao, Zhang, Han, Callan 2021) lives here: the contrastive loss needs the embeddings of the whole global batch
before any micro-batch goes backward.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch

from biencoder.config.schema import LossConfig
from biencoder.distributed.world import World
from biencoder.model.bi_encoder import Scores, TripletBatch
from biencoder.model.truncation import FULL, Truncation
from biencoder.training.contrastive import CachedGradients, Targets, contrast
from biencoder.training.loss import LossParts, combined_loss

Score = Callable[[int], Scores]
"""Scores the micro-batch of this number, with the same dropout however often it is asked."""


class StepBatch(NamedTuple):
    """What a rank works on in one step."""

    micro_batches: list[TripletBatch]
    targets: Targets | None
    """Of the contrastive loss over the whole step; None where it has no weight."""

    def pinned(self) -> "StepBatch":
        """In memory that a GPU copies from by itself."""
        return StepBatch([batch.pinned() for batch in self.micro_batches], self.targets and self.targets.pinned())


@dataclass(frozen=True, slots=True)
class Objective:
    config: LossConfig
    world: World
    truncation: Truncation = FULL
    """The sizes of embeddings at which triplet and contrastive loss are taken as well."""

    @property
    def contrastive(self) -> bool:
        """Whether the texts of all samples of a step are candidates of each other's points."""
        return self.config.contrastive_weight > 0

    def losses(self, batch: StepBatch, score: Score) -> Iterator[LossParts]:
        """The loss of each micro-batch, one after the other: go backward through one before asking for the next. Every rank
        takes part."""
        cached, only_scores = self._contrast(batch, score)
        for number, gradients in enumerate(cached):
            scores = only_scores or score(number)
            yield combined_loss(scores, self.config, gradients, num_chunks=len(cached), truncation=self.truncation)

    def _contrast(self, batch: StepBatch, score: Score) -> tuple[list[CachedGradients | None], Scores | None]:
        """The contrastive loss's gradient at the embeddings of each micro-batch, and the scores where there is only one.

        The graphs of several micro-batches would not fit: these are scored without graph here, and again for their loss.
        """
        numbers = range(len(batch.micro_batches))
        if batch.targets is None:
            return [None for _ in numbers], None
        alone = len(numbers) == 1
        with nullcontext() if alone else torch.no_grad():
            scores = [score(number) for number in numbers]
        targets = batch.targets.to(self.world.device)
        cached = contrast(scores, targets, self.config, self.world, truncation=self.truncation)
        return list(cached), scores[0] if alone else None
