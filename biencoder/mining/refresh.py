"""Mining as one collective act: rank 0 indexes the fresh embeddings and selects, every rank receives the same text ids."""

import hashlib
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.config import MiningConfig
from biencoder.data import Split
from biencoder.distributed import World
from biencoder.embedding import EmbeddedTexts
from biencoder.mining.index import build_index
from biencoder.mining.selection import Forbidden, draws_random, nearest_negatives, random_negatives


@dataclass(frozen=True, slots=True)
class Mined:
    """The negatives of one epoch, equal on every rank."""

    negative_text_P: npt.NDArray[np.int64]
    random_rate: float
    nearest_share: float
    """Share of samples whose negative is the nearest text rather than a random one."""
    nearest_distance: float
    """Mean distance from a point to its nearest negative; NaN where all are random."""
    index_s: float
    search_s: float

    @property
    def digest(self) -> str:
        """Equal for equal negatives: two runs or two indexes that mined the same print the same."""
        return hashlib.sha256(self.negative_text_P.tobytes()).hexdigest()[:16]


def mine_negatives(
    embedded: EmbeddedTexts | None,
    split: Split,
    num_texts: int,
    world: World,
    config: MiningConfig,
    *,
    seed: int,
    epoch: int,
) -> Mined:
    """Select a negative for every sample of the training split. Every rank takes part; only rank 0 has embeddings."""
    world.doing(f"mining negatives for epoch {epoch}")
    negative_text_P = np.empty(len(split), dtype=np.int64)

    def on_rank_0() -> tuple[float, float, float, float]:
        assert embedded is not None
        forbidden = Forbidden.of(split, num_texts)
        is_random_P = draws_random(seed=seed, epoch=epoch, num_samples=len(split), random_rate=config.random_rate_at(epoch))
        at_random, by_distance = np.flatnonzero(is_random_P), np.flatnonzero(~is_random_P)
        negative_text_P[at_random] = random_negatives(at_random, split, forbidden, seed=seed, epoch=epoch)
        if not len(by_distance):
            return 0.0, float("nan"), 0.0, 0.0
        start = time.perf_counter()
        vectors_ND = embedded.candidate.embedding.numpy()
        index = build_index(config.index, vectors_ND)
        indexed = time.perf_counter()
        queries_QD = embedded.queries(split.point_text_P[by_distance]).embedding.numpy()
        negative_text_P[by_distance], distance_Q = nearest_negatives(
            by_distance, split, forbidden, index, embedded.text_ids_N, vectors_ND, queries_QD
        )
        share = len(by_distance) / len(split)
        return share, float(distance_Q.mean()), indexed - start, time.perf_counter() - indexed

    share, distance, index_s, search_s = world.on_main(on_rank_0)
    world.broadcast_ids(negative_text_P)
    return Mined(negative_text_P, config.random_rate_at(epoch), share, distance, index_s, search_s)
