"""Mining across the ranks: the holders of the embeddings search and select, and all ranks receive the same negatives.

With `mining.overlap` rank 0 searches in a thread while all ranks train. The search for an epoch's negatives starts with the
epoch before it, uses the embeddings of that moment, and is collected when the epoch starts. The time at which the search
ends has no influence on training.

P: samples (pairs of the training split), K: negatives of each, Q: samples that are searched for, k: their nearest texts.
"""

import hashlib
import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from biencoder.config.schema import MiningConfig
from biencoder.data import Forbidden, Members, Split
from biencoder.data.ids import Ids
from biencoder.distributed.world import World
from biencoder.errors import BiencoderError
from biencoder.mining.audit import Audit, audit, churn
from biencoder.mining.given import need_given, usable_given
from biencoder.mining.selection import (
    Limits,
    chosen_ranks,
    draws_random,
    least_distances,
    nearest_negatives,
    no_negative,
    random_negatives,
    recall,
    resting,
)
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.build import build_index
from biencoder.retrieval.embedding import EmbeddedTexts

_FP64_TEXTS = 20_000
"""The largest number of texts among which a search in fp64 answers a few queries in a second."""


@dataclass(frozen=True, slots=True)
class Search:
    """The metrics of a search for near negatives."""

    nearest_share: float = 0.0
    """Share of all negatives that the search found; the others are random, or were kept."""
    nearest_distance: float = math.nan
    """Mean distance from a point to such a negative; NaN if all are random."""
    recall: float = math.nan
    """Share of the truly nearest texts that the index found, measured on a sample; NaN if all negatives are random."""
    shortfalls: int = 0
    """Negatives that are random because the search found no allowed text for them."""
    reference_agreement: float = math.nan
    """Share of the texts nearest in fp64, which the ball tree finds, that the index found; NaN if it was not measured."""
    index_s: float = 0.0
    """Seconds in which the index was built."""
    search_s: float = 0.0
    """Seconds of the search itself."""


@dataclass(frozen=True, slots=True)
class Mined:
    """The negatives of one epoch, equal on every rank."""

    negative_text_PK: Ids
    random_rate: float
    staleness: int
    """Age, in epochs, of the embeddings that were searched."""
    wait_s: float
    """Seconds in which training waited for the negatives."""
    churn: float
    """Share of negatives that their sample did not have in the epoch before."""
    given_share: float
    """Share of negatives that the data gives; NaN if it gives none."""
    search: Search
    audit: Audit

    @property
    def digest(self) -> str:
        """A short hash, equal for equal negatives, by which runs or indexes can be compared."""
        return hashlib.sha256(self.negative_text_PK.tobytes()).hexdigest()[:16]


class Miner:
    """Mines the negatives of every sample of the training split, epoch by epoch."""

    def __init__(
        self, split: Split, forbidden: Forbidden, world: World, config: MiningConfig, *, seed: int, num_epochs: int
    ) -> None:
        self._split, self._world, self._config, self._seed = split, world, config, seed
        self._num_epochs = num_epochs
        self._forbidden = forbidden
        self._given = usable_given(split, forbidden)
        if config.given == "only":
            need_given(split, self._given)
        self._members = Members.of(split, config.focus, forbidden.num_texts)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mining")
        self._ahead: tuple[int, Future[tuple[Ids, Search, Audit]] | None] | None = None
        """The epoch of the background search, on all ranks, and the search itself on rank 0."""
        self._searched: EmbeddedTexts | None = None
        """The embeddings of the background search."""
        self._negatives: torch.Tensor | None = None
        """The newest negatives (P, K)."""
        self._in_use = False
        """Whether the newest negatives belong to the current epoch."""

    @property
    def given_left_out(self) -> int:
        """Given negatives that are left out because they count as the same as a right answer."""
        return len(self._split.given.text_X) - len(self._given.text_X) if self._split.given and self._given else 0

    @property
    def _newest(self) -> Ids | None:
        return None if self._negatives is None else self._negatives.numpy()

    @property
    def current(self) -> Ids | None:
        """Text ids of each sample's negatives in this epoch (P, K); None before they are mined."""
        return self._newest if self._in_use else None

    def leave_epoch(self) -> None:
        """End the epoch: the next one needs new negatives."""
        self._in_use = False

    def due(self, epoch: int) -> bool:
        """Whether an epoch's negatives are to be mined; else it keeps those that there are. The same on every rank."""
        return self._negatives is None or epoch % self._config.every_epochs == 0

    def keep(self) -> None:
        """Begin an epoch with the negatives of the one before."""
        assert self._negatives is not None
        self._in_use = True

    def mine_nothing(self) -> None:
        """Begin an epoch without negatives."""
        self._negatives, self._in_use = torch.empty((len(self._split), 0), dtype=torch.int64), True

    def mine(self, epoch: int, embedded: EmbeddedTexts | None) -> Mined:
        """Mine the negatives of an epoch, which become `current`. Every rank takes part.

        Args:
            embedded: the embeddings at the epoch's start, on the ranks that hold them; None on other ranks.
        """
        self._world.doing(f"mining negatives for epoch {epoch}")
        start = time.perf_counter()
        ahead, self._ahead = self._ahead, None
        stale = ahead is not None and ahead[0] == epoch

        def select(holders: World) -> tuple[Ids, Search, Audit]:
            if stale and ahead and ahead[1]:
                return ahead[1].result()
            assert embedded is not None
            return self._select(epoch, embedded, holders, self._newest)

        negative_text_PK, search, figures = self._world.on_holders(select, sharded=self._config.sharded)
        before, self._negatives, self._in_use = self._newest, torch.from_numpy(negative_text_PK), True
        wait_s = time.perf_counter() - start
        if self._config.overlap:
            self.search_ahead(epoch + self._config.every_epochs, embedded)
        return Mined(
            negative_text_PK,
            self._config.random_rate_at(epoch),
            self._config.every_epochs if stale else 0,
            wait_s,
            churn(negative_text_PK, before),
            float((self._given_text_PK(epoch) >= 0).mean()) if self._split.given else math.nan,
            search,
            figures,
        )

    def search_ahead(self, epoch: int, embedded: EmbeddedTexts | None) -> None:
        """Start the search for an epoch's negatives in the background. Every rank calls it; only rank 0 has embeddings.

        After the run's last epoch no search starts. The embeddings are kept all the same, because a resumed run may be
        longer and must then search with them.
        """
        future = None
        if embedded and epoch < self._num_epochs:
            future = self._thread.submit(self._select, epoch, embedded, World.alone(), self._newest)
        self._ahead, self._searched = (epoch, future), embedded

    def state_dict(self) -> dict[str, Any]:
        """The negatives, and the embeddings of the background search: the same tensors as long as they do not change. Not
        collective."""
        state: dict[str, Any] = {"epoch_is_mined": self._in_use, "ahead": self._ahead[0] if self._ahead else None}
        if self._negatives is not None:
            state["negatives"] = self._negatives
        if self._ahead and self._searched:
            state["ahead_query"] = self._searched.query.embedding
            if self._searched.candidate is not self._searched.query:
                state["ahead_candidate"] = self._searched.candidate.embedding
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state. Rank 0 has all of it, other ranks all but the tensors. Every rank takes part."""
        self._negatives, self._in_use, self._ahead = None, bool(state["epoch_is_mined"]), None
        if self._world.on_main(lambda: "negatives" in state):
            empty = torch.empty(len(self._split), self._config.negatives, dtype=torch.int64)
            self._negatives = self._world.broadcast(state.get("negatives", empty).clone())
        if state["ahead"] is not None:
            self.search_ahead(int(state["ahead"]), self._embedded(state) if "ahead_query" in state else None)

    def _embedded(self, state: Mapping[str, Any]) -> EmbeddedTexts:
        """The embeddings of the background search; it needs no pooled vectors, so the state has none."""
        query = Vectors(state["ahead_query"], torch.empty(len(state["ahead_query"]), 0))
        candidate = query
        if "ahead_candidate" in state:
            candidate = Vectors(state["ahead_candidate"], query.pooled)
        return EmbeddedTexts.whole(self._split.text_ids, query, candidate)

    def raise_failure(self) -> None:
        """Raise the failure of the background search, on rank 0 alone, so that training does not go on in vain."""
        future = self._ahead[1] if self._ahead else None
        if future and future.done() and (error := future.exception()):
            raise BiencoderError(f"mining in the background: {error}") from None

    def _select(
        self, epoch: int, embedded: EmbeddedTexts, holders: World, before_PK: Ids | None
    ) -> tuple[Ids, Search, Audit]:
        """The negatives (P, K) of an epoch, with metrics and audit. Every rank of `holders` takes part and gets them.

        Args:
            before_PK: those of the epoch before.
        """
        split, seed, K = self._split, self._seed, self._config.negatives
        rate = self._config.random_rate_at(epoch)
        is_random_PK = draws_random(seed=seed, epoch=epoch, num_samples=len(split), count=K, random_rate=rate)
        negative_text_PK, search = self._given_text_PK(epoch), Search()
        if before_PK is not None and self._config.queries < 1:
            turn = epoch // self._config.every_epochs
            rests_P = resting(seed=seed, turn=turn, num_samples=len(split), share=self._config.queries)
            negative_text_PK[rests_P] = before_PK[rests_P]
        is_near_PK = (negative_text_PK < 0) & ~is_random_PK
        samples_Q = np.flatnonzero(is_near_PK.any(1))
        if len(samples_Q):
            taken_PK = negative_text_PK.copy() if self._given else None
            mined_QK, search = self._search(samples_Q, is_near_PK[samples_Q], taken_PK, epoch, embedded, holders)
            negative_text_PK[samples_Q] = np.where(is_near_PK[samples_Q], mined_QK, negative_text_PK[samples_Q])
        for number in range(K):
            samples = np.flatnonzero(negative_text_PK[:, number] < 0)
            negative_text_PK[samples, number] = random_negatives(
                samples, negative_text_PK[samples], split, self._forbidden, seed=seed, epoch=epoch, number=number
            )
        trained_PK = None if self._config.overlap else before_PK  # with overlap they are yet to be trained on
        figures = audit(split, negative_text_PK, self._forbidden, embedded, holders, before_PK=trained_PK)
        return negative_text_PK, search, figures

    def _given_text_PK(self, epoch: int) -> Ids:
        """The given negatives of an epoch (P, K) in their places; -1 in those that are left."""
        if self._given is None:
            return np.full((len(self._split), self._config.negatives), -1, dtype=np.int64)
        nth = epoch // self._config.every_epochs
        return self._given.of_epoch(nth, self._config.negatives, repeated=self._config.given == "only")

    def _search(
        self,
        samples: Ids,
        is_near_QK: npt.NDArray[np.bool_],
        taken_PK: Ids | None,
        epoch: int,
        embedded: EmbeddedTexts,
        holders: World,
    ) -> tuple[Ids, Search]:
        """The near negatives of these samples where `is_near_QK` (-1: no allowed text), and the metrics of the search.

        Args:
            taken_PK: negatives that all samples of the split have already (-1: none); None: they have none.
        """
        start = time.perf_counter()
        split, config = self._split, self._config
        index = holders.together(lambda: build_index(embedded.candidate.embedding.numpy(), config))
        indexed = time.perf_counter()
        limits = Limits(self._forbidden, self._members, taken_PK=taken_PK)
        if config.keeps_distance:
            pair_P = embedded.distances("query", split.point_text_P, split.counter_text_P, holders)
            limits = replace(limits, least_distance_P=least_distances(pair_P, config))
        near_Qk, distance_Qk = nearest_negatives(
            samples, split, limits, embedded, index, holders, count=config.num_neighbours
        )
        # The n-th near negative of a sample gets its n-th rank, whatever random ones stand between them.
        nth_QK = np.maximum(0, np.cumsum(is_near_QK, axis=1) - 1)
        ranks_QK = np.take_along_axis(chosen_ranks(samples, config, seed=self._seed, epoch=epoch), nth_QK, axis=1)
        mined_QK = np.take_along_axis(near_Qk, ranks_QK, axis=1)
        distance_QK = np.take_along_axis(distance_Qk, ranks_QK, axis=1)

        def check() -> None:
            if index.exact and not limits.optional and (near_Qk[:, 0] < 0).any():
                raise no_negative(split, samples[int(np.argmax(near_Qk[:, 0] < 0))])

        holders.together(check)
        mined_QK = np.where(is_near_QK, mined_QK, -1)
        is_mined_QK, searched = mined_QK >= 0, time.perf_counter()

        found = (near_Qk, samples, split, limits, embedded, holders)
        small = config.index != "balltree" and len(embedded.all_text_ids_M) <= _FP64_TEXTS
        return mined_QK, Search(
            nearest_share=float(is_mined_QK.sum() / (len(split) * config.negatives)),
            nearest_distance=float(distance_QK[is_mined_QK].mean()) if is_mined_QK.any() else math.nan,
            recall=1.0 if index.exact else recall(*found),
            reference_agreement=recall(*found, fp64=True) if small else math.nan,
            shortfalls=int((is_near_QK & ~is_mined_QK).sum()),
            index_s=indexed - start,
            search_s=searched - indexed,
        )
