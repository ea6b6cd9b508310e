"""Negatives that the data gives: texts that a table names beside a pair as wrong answers.

P: pairs of a split, K: negatives of a sample, X: given negatives of all pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.data.codes import expand_ranges
from biencoder.data.ids import Ids


@dataclass(frozen=True, slots=True)
class Given:
    """The given negatives of a split's pairs; those of pair p are `text_X[starts_P1[p] : starts_P1[p + 1]]`."""

    text_X: Ids
    starts_P1: Ids

    @classmethod
    def of(cls, text_ids_P: Sequence[Ids]) -> "Given":
        """
        Args:
            text_ids_P: for each pair the text ids of its negatives.
        """
        return cls(np.concatenate(text_ids_P), np.cumsum([0, *map(len, text_ids_P)], dtype=np.int64))

    @property
    def counts_P(self) -> Ids:
        """How many each pair has."""
        counts_P: Ids = np.diff(self.starts_P1)
        return counts_P

    @property
    def pair_X(self) -> Ids:
        """The pair of each of them."""
        return expand_ranges(self.starts_P1[:-1], self.starts_P1[1:])[0]

    def where(self, keep_X: npt.NDArray[np.bool_]) -> "Given":
        """Some of them."""
        kept_1 = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(keep_X)])
        return Given(self.text_X[keep_X], kept_1[self.starts_P1])

    def of_epoch(self, epoch: int, count: int, *, repeated: bool) -> Ids:
        """The given negatives that each pair uses in an epoch (P, K), in its first places; -1 where it has none.

        A pair with more than K takes the next K in each epoch, in the order of the data, and begins again at their end.

        Args:
            count: K.
            repeated: whether a pair with fewer than K takes some of them several times.
        """
        counts_P1, place_K = self.counts_P[:, None], np.arange(count)
        nth_PK = (epoch * count + place_K) % np.maximum(counts_P1, 1)
        there_PK = (counts_P1 > 0) & (repeated | (place_K < counts_P1))
        row_PK = np.where(there_PK, self.starts_P1[:-1, None] + nth_PK, 0)
        return np.where(there_PK, self.text_X[row_PK] if len(self.text_X) else -1, -1)
