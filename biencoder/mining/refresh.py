"""Mining as one collective act: the holders of the fresh embeddings search and select, every rank receives the same ids.

With `mining.overlap` rank 0 searches in a thread while all ranks train: the negatives of an epoch are searched from the
moment the epoch before begins, with the embeddings of that moment, and taken over where the epoch starts. When the search
ends has no influence on what is trained.
"""

import hashlib
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.config import MiningConfig
from biencoder.data import Split
from biencoder.distributed import World
from biencoder.embedding import EmbeddedTexts
from biencoder.errors import BiencoderError
from biencoder.mining.audit import Audit, audit
from biencoder.mining.build import build_index
from biencoder.mining.selection import Forbidden, draws_random, nearest_negatives, random_negatives, recall

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Search:
    """What a search took and found."""

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


@dataclass(frozen=True, slots=True)
class Mined:
    """The negatives of one epoch, equal on every rank."""

    negative_text_P: Ids
    random_rate: float
    staleness: int
    """Age, in epochs, of the embeddings that were searched."""
    wait_s: float
    """Seconds in which training stood still for them."""
    search: Search
    audit: Audit

    @property
    def digest(self) -> str:
        """Equal for equal negatives: two runs or two indexes that mined the same print the same."""
        return hashlib.sha256(self.negative_text_P.tobytes()).hexdigest()[:16]


class Miner:
    """Selects a negative for every sample of the training split, epoch by epoch."""

    def __init__(
        self, split: Split, num_texts: int, world: World, config: MiningConfig, *, seed: int, num_epochs: int
    ) -> None:
        self._split, self._num_texts, self._world, self._config, self._seed = split, num_texts, world, config, seed
        self._num_epochs = num_epochs
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mining")
        self._ahead: tuple[int, Future[tuple[Ids, Search, Audit]] | None] | None = None
        """The epoch that is searched in the background, known to all ranks, and on rank 0 the search."""
        self._searched: EmbeddedTexts | None = None
        """What that search looks at."""

    def negatives(self, epoch: int, embedded: EmbeddedTexts | None) -> Mined:
        """The negatives of an epoch, given embeddings of the moment it starts. Every rank takes part.

        Args:
            embedded: on the ranks that hold embeddings; None elsewhere.
        """
        self._world.doing(f"mining negatives for epoch {epoch}")
        start = time.perf_counter()
        ahead, self._ahead = self._ahead, None
        stale = ahead is not None and ahead[0] == epoch
        negative_text_P = np.empty(len(self._split), dtype=np.int64)

        def select(holders: World) -> tuple[Search, Audit]:
            if stale and ahead and ahead[1]:
                negative_text_P[:], search, found = ahead[1].result()
            else:
                assert embedded is not None
                negative_text_P[:], search, found = self._select(epoch, embedded, holders)
            return search, found

        search, found = self._world.on_holders(select, sharded=self._config.sharded)
        self._world.broadcast_ids(negative_text_P)
        wait_s = time.perf_counter() - start
        if self._config.overlap and epoch + 1 < self._num_epochs:
            self.search_ahead(epoch + 1, embedded)
        return Mined(negative_text_P, self._config.random_rate_at(epoch), int(stale), wait_s, search, found)

    def search_ahead(self, epoch: int, embedded: EmbeddedTexts | None) -> None:
        """Start the search for an epoch's negatives in the background. Every rank calls it; only rank 0 has embeddings."""
        future = self._thread.submit(self._select, epoch, embedded, World.alone()) if embedded else None
        self._ahead, self._searched = (epoch, future), embedded

    @property
    def ahead(self) -> tuple[int, EmbeddedTexts | None] | None:
        """The epoch that is searched in the background, and on rank 0 what is searched."""
        return (self._ahead[0], self._searched) if self._ahead else None

    def raise_failure(self) -> None:
        """Raise, on rank 0 alone, what a search in the background has failed with, rather than train on for nothing."""
        future = self._ahead[1] if self._ahead else None
        if future and future.done() and (error := future.exception()):
            raise BiencoderError(f"mining in the background: {error}") from None

    def _select(self, epoch: int, embedded: EmbeddedTexts, holders: World) -> tuple[Ids, Search, Audit]:
        """The negatives (P,) of an epoch and what they are like, on every rank of `holders`, all of which take part."""
        split, seed = self._split, self._seed
        forbidden = Forbidden.of(split, self._num_texts)
        rate = self._config.random_rate_at(epoch)
        is_random_P = draws_random(seed=seed, epoch=epoch, num_samples=len(split), random_rate=rate)
        by_distance = np.flatnonzero(~is_random_P)
        negative_text_P, search = np.empty(len(split), dtype=np.int64), Search()
        if len(by_distance):
            negative_text_P[by_distance], search = self._search(by_distance, forbidden, embedded, holders)
            is_random_P[by_distance] = negative_text_P[by_distance] < 0
        at_random = np.flatnonzero(is_random_P)
        negative_text_P[at_random] = random_negatives(at_random, split, forbidden, seed=seed, epoch=epoch)
        return negative_text_P, search, audit(split, negative_text_P, embedded, holders)

    def _search(self, samples: Ids, forbidden: Forbidden, embedded: EmbeddedTexts, holders: World) -> tuple[Ids, Search]:
        """The nearest allowed text of each of these samples (-1: none found)."""
        start = time.perf_counter()
        index = holders.together(lambda: build_index(embedded.candidate.embedding.numpy(), self._config))
        indexed = time.perf_counter()
        mined, distance_Q = nearest_negatives(samples, self._split, forbidden, embedded, index, holders)
        searched = time.perf_counter()
        found = mined >= 0
        return mined, Search(
            nearest_share=float(found.sum() / len(self._split)),
            nearest_distance=float(distance_Q[found].mean()) if found.any() else math.nan,
            recall=1.0 if index.exact else recall(mined, samples, self._split, forbidden, embedded, holders),
            shortfalls=int((~found).sum()),
            index_s=indexed - start,
            search_s=searched - indexed,
        )
