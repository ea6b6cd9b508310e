"""Clusters of near pairs: a batch made of whole ones holds hard rivals for each of its pairs.

They give without labels a part of what batches of whole debates give. They are found once, before the first step, by
k-means of the pretrained encoder's vectors (topic-aware sampling: Hofstätter et al., SIGIR 2021).

P: pairs of the training split, H: the encoder's hidden size.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from biencoder.data import Split
from biencoder.data.ids import Ids
from biencoder.distributed.world import World
from biencoder.model.bi_encoder import Side
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.rng import stream_seed

PAIRS = 16
"""Of a cluster, on average."""
MOST = 4096
"""Clusters; with more than 65,536 pairs they are larger. A batch of such a cluster is a random part of it."""


class Clusters:
    """The cluster of each training pair, equal on every rank."""

    def __init__(self, split: Split, world: World, *, sharded: bool, seed: int) -> None:
        self._split, self._world, self._sharded, self._seed = split, world, sharded, seed
        self._numbers: torch.Tensor | None = None

    @property
    def number_P(self) -> Ids | None:
        """The cluster of each pair; None before they have been found."""
        return None if self._numbers is None else self._numbers.numpy()

    def find(self, embedded: EmbeddedTexts | None) -> None:
        """Every rank takes part.

        Args:
            embedded: the vectors of the training texts, on the ranks that hold them; None on other ranks.
        """

        def found(holders: World) -> Ids:
            assert embedded is not None
            return clustered(pair_vectors(self._split, embedded, holders), seed=self._seed)

        number_P = self._world.on_holders(found, sharded=self._sharded)
        self._numbers = self._world.broadcast(torch.from_numpy(number_P))

    @property
    def described(self) -> str:
        """How many there are, and a short hash that is equal for equal ones."""
        assert self.number_P is not None
        digest = hashlib.sha256(self.number_P.tobytes()).hexdigest()[:16]
        return f"{len(np.unique(self.number_P))} of {len(self.number_P)} pairs, {digest}"

    def state_dict(self) -> dict[str, Any]:
        return {} if self._numbers is None else {"clusters": self._numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state, which rank 0 has. Every rank takes part."""
        self._numbers = None
        if self._world.on_main(lambda: "clusters" in state):
            empty = torch.empty(len(self._split), dtype=torch.int64)
            self._numbers = self._world.broadcast(state.get("clusters", empty).clone())


def pair_vectors(split: Split, embedded: EmbeddedTexts, world: World) -> torch.Tensor:
    """The mean direction (P, H) of each pair's point and counter, by pooled vectors. Every rank of `world`, the holders of
    the texts, takes part and gets them."""
    sides: tuple[tuple[Side, Ids], ...] = (("query", split.point_text_P), ("candidate", split.counter_text_P))
    sum_PH = torch.zeros(len(split), embedded.query.pooled.shape[1])
    for side, text_P in sides:
        for place, vectors, _ in embedded.blocks(text_P, world, side=side, pooled=True):
            sum_PH[torch.from_numpy(place)] += torch.nn.functional.normalize(vectors.pooled.float(), dim=1)
    return torch.nn.functional.normalize(sum_PH, dim=1)


def clustered(vectors_PH: torch.Tensor, *, seed: int) -> Ids:
    """The number (P,) of each vector's cluster."""
    from biencoder.retrieval.faiss_index import nearest_centroids

    count = max(1, min(len(vectors_PH) // PAIRS, MOST))
    return nearest_centroids(vectors_PH.numpy(), count, seed=stream_seed(seed, "clusters"))
