"""Mining as one collective act: rank 0 indexes the fresh embeddings and selects, every rank receives the same text ids."""

import hashlib
import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.config import MiningConfig
from biencoder.data import Split
from biencoder.distributed import World
from biencoder.embedding import EmbeddedTexts
from biencoder.mining.build import build_index
from biencoder.mining.selection import Forbidden, draws_random, nearest_negatives, random_negatives, recall


@dataclass(frozen=True, slots=True)
class Mined:
    """The negatives of one epoch, equal on every rank."""

    negative_text_P: npt.NDArray[np.int64]
    random_rate: float
    search: "Search"

    @property
    def digest(self) -> str:
        """Equal for equal negatives: two runs or two indexes that mined the same print the same."""
        return hashlib.sha256(self.negative_text_P.tobytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Search:
    """What rank 0's search took and found."""

    nearest_share: float = 0.0
    """Share of samples whose negative is the nearest text rather than a random one."""
    nearest_distance: float = math.nan
    """Mean distance from a point to its nearest negative; NaN where all are random."""
    recall: float = math.nan
    """Share of nearest negatives that are truly the nearest, measured on a part of them; NaN where all are random."""
    shortfalls: int = 0
    """Samples for which an approximate index found nothing allowed, and which got a random text instead."""
    index_s: float = 0.0
    search_s: float = 0.0


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
    random_rate = config.random_rate_at(epoch)

    def on_rank_0() -> Search:
        assert embedded is not None
        forbidden = Forbidden.of(split, num_texts)
        is_random_P = draws_random(seed=seed, epoch=epoch, num_samples=len(split), random_rate=random_rate)
        by_distance = np.flatnonzero(~is_random_P)
        search = Search()
        if len(by_distance):
            negative_text_P[by_distance], search = _search(embedded, by_distance, split, forbidden, config)
            is_random_P[by_distance] = negative_text_P[by_distance] < 0
        at_random = np.flatnonzero(is_random_P)
        negative_text_P[at_random] = random_negatives(at_random, split, forbidden, seed=seed, epoch=epoch)
        return search

    search = world.on_main(on_rank_0)
    return Mined(world.broadcast_ids(negative_text_P), random_rate, search)


def _search(
    embedded: EmbeddedTexts, samples: npt.NDArray[np.int64], split: Split, forbidden: Forbidden, config: MiningConfig
) -> tuple[npt.NDArray[np.int64], Search]:
    """The nearest allowed text of each of these samples (-1: none found)."""
    start = time.perf_counter()
    vectors_ND = embedded.candidate.embedding.numpy()
    index = build_index(vectors_ND, config)
    indexed = time.perf_counter()
    queries_QD = embedded.queries(split.point_text_P[samples]).embedding.numpy()
    mined, distance_Q = nearest_negatives(samples, split, forbidden, index, embedded.text_ids_N, vectors_ND, queries_QD)
    searched = time.perf_counter()
    found = mined >= 0
    return mined, Search(
        nearest_share=float(found.sum() / len(split)),
        nearest_distance=float(distance_Q[found].mean()) if found.any() else math.nan,
        recall=1.0
        if index.exact
        else recall(mined, samples, split, forbidden, embedded.text_ids_N, vectors_ND, queries_QD),
        shortfalls=int((~found).sum()),
        index_s=indexed - start,
        search_s=searched - indexed,
    )
