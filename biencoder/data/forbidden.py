"""Which texts are no wrong answers to a point, and so may never be its negatives."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.data.codes import found_in, spelled_out
from biencoder.data.dataset import Split
from biencoder.data.ids import Ids


@dataclass(frozen=True, slots=True)
class Forbidden:
    """For each text the texts that may not be its negative: itself, every counter it is paired with, and what counts as the
    same."""

    codes: Ids
    """(point text * number of texts + forbidden text), sorted; a text stands for all that are the same."""
    same_N: Ids
    """For each text of the dataset the one that stands for it."""

    @classmethod
    def of(cls, split: Split, num_texts: int, *, same_N: Ids | None = None) -> "Forbidden":
        """Texts are compared, not samples: what stands under several themes is forbidden under all of them.

        Args:
            same_N: equal for texts that are to count as the same (see `near_duplicates`); None: all differ.
        """
        same_N = np.arange(num_texts) if same_N is None else same_N
        points, counters = same_N[split.point_text_P], same_N[split.counter_text_P]
        return cls(np.unique(np.concatenate([points * num_texts + other for other in (points, counters)])), same_N)

    @property
    def num_texts(self) -> int:
        return len(self.same_N)

    def allows(self, points: Ids, texts: Ids) -> npt.NDArray[np.bool_]:
        """Elementwise (with broadcasting): may `texts` be negatives of the point texts `points`?"""
        return ~found_in(self.codes, self.same_N[points] * self.num_texts + self.same_N[texts])

    def pairs(self, points_A: Ids, texts_B: Ids) -> tuple[Ids, Ids]:
        """Every pair of a position in `points_A` and one in `texts_B` that `allows` denies, ordered by the first.

        Time and memory grow with the points, the texts, what is forbidden for the points, and the pairs found, not with the
        product of points and texts.
        """
        order_B = np.argsort(self.same_N[texts_B], kind="stable")
        same_B = self.same_N[texts_B[order_B]]
        point_U, nth_A = np.unique(self.same_N[points_A], return_inverse=True)
        first_U, after_U = (np.searchsorted(self.codes, point_U * self.num_texts + end) for end in (0, self.num_texts))
        point_X, code_X = spelled_out(first_U, after_U)
        text_X = self.codes[code_X] % self.num_texts
        entry_Y, place_Y = spelled_out(*(np.searchsorted(same_B, text_X, side) for side in ("left", "right")))
        # Of each distinct point, then of each position that has this point.
        first_U, after_U = (np.searchsorted(point_X[entry_Y], np.arange(len(point_U)), side) for side in ("left", "right"))
        position_Z, nth_Z = spelled_out(first_U[nth_A], after_U[nth_A])
        return position_Z, order_B[place_Y[nth_Z]]
