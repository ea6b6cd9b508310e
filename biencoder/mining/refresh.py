"""Mining as one collective act: the holders of the fresh embeddings search and select, every rank receives the same ids.

With `mining.overlap` rank 0 searches in a thread while all ranks train: the negatives of an epoch are searched from the
moment the epoch before begins, with the embeddings of that moment, and taken over where the epoch starts. When the search
ends has no influence on what is trained.
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

from biencoder.config import MiningConfig
from biencoder.data import Forbidden, Members, Split
from biencoder.data.ids import Ids
from biencoder.distributed.world import World
from biencoder.errors import BiencoderError
from biencoder.mining.audit import Audit, audit, churn
from biencoder.mining.selection import (
    Limits,
    chosen_ranks,
    draws_random,
    least_distances,
    nearest_negatives,
    no_negative,
    random_negatives,
    recall,
)
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.build import build_index
from biencoder.retrieval.embedding import EmbeddedTexts

_BALL_TREE_TEXTS = 20_000
"""Up to which the ball tree answers a few queries in a second."""


@dataclass(frozen=True, slots=True)
class Search:
    """What a search took and found."""

    nearest_share: float = 0.0
    """Share of negatives that are near texts rather than random ones."""
    nearest_distance: float = math.nan
    """Mean distance from a point to such a negative; NaN where all are random."""
    recall: float = math.nan
    """Share of the truly nearest texts that were found, measured on a part of them; NaN where all are random."""
    shortfalls: int = 0
    """Negatives for which nothing near was found that is allowed, and which are random texts instead."""
    reference_agreement: float = math.nan
    """Share of these texts that the ball tree, the reference, finds as well; NaN where that was not looked at."""
    index_s: float = 0.0
    search_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Mined:
    """The negatives of one epoch, equal on every rank."""

    negative_text_PK: Ids
    random_rate: float
    staleness: int
    """Age, in epochs, of the embeddings that were searched."""
    wait_s: float
    """Seconds in which training stood still for them."""
    churn: float
    """Share of them that their sample did not have in the epoch before."""
    search: Search
    audit: Audit

    @property
    def digest(self) -> str:
        """Equal for equal negatives: two runs or two indexes that mined the same print the same."""
        return hashlib.sha256(self.negative_text_PK.tobytes()).hexdigest()[:16]


class Miner:
    """Selects a negative for every sample of the training split, epoch by epoch."""

    def __init__(
        self, split: Split, forbidden: Forbidden, world: World, config: MiningConfig, *, seed: int, num_epochs: int
    ) -> None:
        self._split, self._world, self._config, self._seed = split, world, config, seed
        self._num_epochs = num_epochs
        self._forbidden = forbidden
        self._members = Members.of(split, config.focus, forbidden.num_texts)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mining")
        self._ahead: tuple[int, Future[tuple[Ids, Search, Audit]] | None] | None = None
        """The epoch that is searched in the background, known to all ranks, and on rank 0 the search."""
        self._searched: EmbeddedTexts | None = None
        """What that search looks at."""
        self._newest: Ids | None = None
        """The newest negatives (P, K)."""
        self._in_use = False
        """Whether they belong to the epoch that is being trained."""

    @property
    def current(self) -> Ids | None:
        """Text ids of each sample's negatives in this epoch (P, K); None where it has yet to be mined for."""
        return self._newest if self._in_use else None

    def leave_epoch(self) -> None:
        """The epoch is whole: the next one needs negatives of its own."""
        self._in_use = False

    def mine_nothing(self) -> None:
        """An epoch without negatives begins."""
        self._newest, self._in_use = np.empty((len(self._split), 0), dtype=np.int64), True

    def mine(self, epoch: int, embedded: EmbeddedTexts | None) -> Mined:
        """Find the `current` negatives of an epoch, given embeddings of the moment it starts. Every rank takes part.

        Args:
            embedded: on the ranks that hold embeddings; None elsewhere.
        """
        self._world.doing(f"mining negatives for epoch {epoch}")
        start = time.perf_counter()
        ahead, self._ahead = self._ahead, None
        stale = ahead is not None and ahead[0] == epoch
        negative_text_PK = np.empty((len(self._split), self._config.negatives), dtype=np.int64)

        def select(holders: World) -> tuple[Search, Audit]:
            if stale and ahead and ahead[1]:
                negative_text_PK[:], search, found = ahead[1].result()
            else:
                assert embedded is not None
                negative_text_PK[:], search, found = self._select(epoch, embedded, holders)
            return search, found

        search, found = self._world.on_holders(select, sharded=self._config.sharded)
        self._world.broadcast(torch.from_numpy(negative_text_PK))
        before, self._newest, self._in_use = self._newest, negative_text_PK, True
        wait_s = time.perf_counter() - start
        if self._config.overlap:
            self.search_ahead(epoch + 1, embedded)
        return Mined(
            negative_text_PK,
            self._config.random_rate_at(epoch),
            int(stale),
            wait_s,
            churn(negative_text_PK, before),
            search,
            found,
        )

    def search_ahead(self, epoch: int, embedded: EmbeddedTexts | None) -> None:
        """Start the search for an epoch's negatives in the background. Every rank calls it; only rank 0 has embeddings.

        After the run's last epoch there is nothing to search for, but a longer run that goes on from here would have
        searched: the embeddings are kept for it.
        """
        future = None
        if embedded and epoch < self._num_epochs:
            future = self._thread.submit(self._select, epoch, embedded, World.alone())
        self._ahead, self._searched = (epoch, future), embedded

    def state_dict(self) -> dict[str, Any]:
        """The negatives, and what a background search looks at. No other rank takes part."""
        state: dict[str, Any] = {"epoch_is_mined": self._in_use, "ahead": self._ahead[0] if self._ahead else None}
        if self._newest is not None:
            state["negatives"] = torch.from_numpy(self._newest)
        if self._ahead and self._searched:
            state["ahead_query"] = self._searched.query.embedding.contiguous()
            state["ahead_candidate"] = self._searched.candidate.embedding.clone()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that rank 0 has; the others have its numbers only. Every rank takes part."""
        self._newest, self._in_use, self._ahead = None, bool(state["epoch_is_mined"]), None
        if self._world.on_main(lambda: "negatives" in state):
            empty = torch.empty(len(self._split), self._config.negatives, dtype=torch.int64)
            self._newest = self._world.broadcast(state.get("negatives", empty).clone()).numpy()
        if state["ahead"] is not None:
            self.search_ahead(int(state["ahead"]), self._embedded(state) if "ahead_query" in state else None)

    def _embedded(self, state: Mapping[str, Any]) -> EmbeddedTexts:
        """What a background search looks at; its pooled vectors were not needed and not kept."""
        query, candidate = (
            Vectors(rows, rows.new_empty(len(rows), 0)) for rows in (state["ahead_query"], state["ahead_candidate"])
        )
        return EmbeddedTexts.whole(self._split.text_ids, query, candidate)

    def raise_failure(self) -> None:
        """Raise, on rank 0 alone, what a search in the background has failed with, rather than train on for nothing."""
        future = self._ahead[1] if self._ahead else None
        if future and future.done() and (error := future.exception()):
            raise BiencoderError(f"mining in the background: {error}") from None

    def _select(self, epoch: int, embedded: EmbeddedTexts, holders: World) -> tuple[Ids, Search, Audit]:
        """The negatives (P, K) of an epoch and what they are like, on every rank of `holders`, all of which take part."""
        split, seed, K = self._split, self._seed, self._config.negatives
        rate = self._config.random_rate_at(epoch)
        is_random_PK = draws_random(seed=seed, epoch=epoch, num_samples=len(split), count=K, random_rate=rate)
        negative_text_PK, search = np.full((len(split), K), -1, dtype=np.int64), Search()
        searched = np.flatnonzero(~is_random_PK.all(1))
        if len(searched):
            found_QK, search = self._search(searched, ~is_random_PK[searched], epoch, embedded, holders)
            negative_text_PK[searched] = found_QK
        for number in range(K):
            left = np.flatnonzero(negative_text_PK[:, number] < 0)
            negative_text_PK[left, number] = random_negatives(
                left, negative_text_PK[left], split, self._forbidden, seed=seed, epoch=epoch, number=number
            )
        return negative_text_PK, search, audit(split, negative_text_PK, self._forbidden, embedded, holders)

    def _search(
        self, samples: Ids, wanted_QK: npt.NDArray[np.bool_], epoch: int, embedded: EmbeddedTexts, holders: World
    ) -> tuple[Ids, Search]:
        """Near allowed texts of these samples (-1: none found) where they are wanted."""
        start = time.perf_counter()
        split, config = self._split, self._config
        index = holders.together(lambda: build_index(embedded.candidate.embedding.numpy(), config))
        indexed = time.perf_counter()
        limits = Limits(self._forbidden, self._members)
        if config.keeps_distance:
            pair_P = embedded.distances("query", split.point_text_P, split.counter_text_P, holders)
            limits = replace(limits, least_distance_P=least_distances(pair_P, config))
        near_Qk, distance_Qk = nearest_negatives(
            samples, split, limits, embedded, index, holders, count=config.num_neighbours
        )
        # The first wanted one gets the first rank, wherever random ones stand between them.
        nth_QK = np.maximum(0, np.cumsum(wanted_QK, axis=1) - 1)
        ranks_QK = np.take_along_axis(chosen_ranks(samples, config, seed=self._seed, epoch=epoch), nth_QK, axis=1)
        mined_QK = np.take_along_axis(near_Qk, ranks_QK, axis=1)
        distance_QK = np.take_along_axis(distance_Qk, ranks_QK, axis=1)

        def check() -> None:
            if index.exact and not limits.optional and (near_Qk[:, 0] < 0).any():
                raise no_negative(split, samples[int(np.argmax(near_Qk[:, 0] < 0))])

        holders.together(check)
        mined_QK = np.where(wanted_QK, mined_QK, -1)
        found_QK, searched = mined_QK >= 0, time.perf_counter()

        def found_again(reference: MiningConfig) -> float:
            return recall(near_Qk, samples, split, limits, embedded, holders, reference)

        small = config.index != "balltree" and len(embedded.all_text_ids_M) <= _BALL_TREE_TEXTS
        return mined_QK, Search(
            nearest_share=float(found_QK.sum() / (len(split) * config.negatives)),
            nearest_distance=float(distance_QK[found_QK].mean()) if found_QK.any() else math.nan,
            recall=1.0 if index.exact else found_again(MiningConfig()),
            reference_agreement=found_again(MiningConfig(index="balltree")) if small else math.nan,
            shortfalls=int((wanted_QK & ~found_QK).sum()),
            index_s=indexed - start,
            search_s=searched - indexed,
        )
