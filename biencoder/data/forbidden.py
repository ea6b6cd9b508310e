"""Which texts may never be a negative of a point, because they are no wrong answer to it.

N: texts of the dataset, A: positions in a list of points, B: positions in a list of texts, U: distinct points, X: texts
that are forbidden for these points, Y: positions in the list of texts where one of them stands, Z: forbidden pairs of
positions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.data.codes import contains, expand_ranges
from biencoder.data.dataset import Split
from biencoder.data.ids import Ids


@dataclass(frozen=True, slots=True)
class Forbidden:
    """For each point the texts that may not be its negative: itself, every counter it is paired with, and all texts that
    count as the same as one of these."""

    codes: Ids
    """(point text * number of texts + forbidden text), ascending. Texts that count as the same have one representative."""
    same_N: Ids
    """The representative of each text."""

    @classmethod
    def of(cls, split: Split, num_texts: int, *, same_N: Ids | None = None) -> "Forbidden":
        """The forbidden texts of a split's points. A text that occurs under several themes is forbidden under all of them.

        Args:
            same_N: equal for texts that count as the same (see `near_duplicates`); None: all texts differ.
        """
        same_N = np.arange(num_texts) if same_N is None else same_N
        points, counters = same_N[split.point_text_P], same_N[split.counter_text_P]
        return cls(np.unique(np.concatenate([points * num_texts + other for other in (points, counters)])), same_N)

    @property
    def num_texts(self) -> int:
        return len(self.same_N)

    def allows(self, points: Ids, texts: Ids) -> npt.NDArray[np.bool_]:
        """Elementwise (with broadcasting): may `texts` be negatives of the point texts `points`?"""
        return ~contains(self.codes, self.same_N[points] * self.num_texts + self.same_N[texts])

    def pairs(self, points_A: Ids, texts_B: Ids) -> tuple[Ids, Ids]:
        """The positions (Z,) in `points_A` and in `texts_B` of every pair that `allows` denies, ordered by the first.

        Time and memory grow with A + B + X + Z, not with the product of points and texts.
        """
        order_B = np.argsort(self.same_N[texts_B], kind="stable")
        same_B = self.same_N[texts_B[order_B]]
        point_U, nth_A = np.unique(self.same_N[points_A], return_inverse=True)
        first_U, after_U = (np.searchsorted(self.codes, point_U * self.num_texts + end) for end in (0, self.num_texts))
        point_X, code_X = expand_ranges(first_U, after_U)
        text_X = self.codes[code_X] % self.num_texts
        entry_Y, place_Y = expand_ranges(*(np.searchsorted(same_B, text_X, side) for side in ("left", "right")))
        # The ranges of Y of each distinct point; then those of each position with this point.
        first_U, after_U = (np.searchsorted(point_X[entry_Y], np.arange(len(point_U)), side) for side in ("left", "right"))
        position_Z, nth_Z = expand_ranges(first_U[nth_A], after_U[nth_A])
        return position_Z, order_B[place_Y[nth_Z]]
