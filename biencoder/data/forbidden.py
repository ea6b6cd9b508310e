"""Which texts are no wrong answers to a point, and so may never be its negatives."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.data.dataset import Split

Ids = npt.NDArray[np.int64]


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
        wanted = self.same_N[points] * self.num_texts + self.same_N[texts]
        # By bisection: np.isin would sort the whole table at every call, that is, at every step of the contrastive loss.
        places = np.searchsorted(self.codes, wanted)
        allowed: npt.NDArray[np.bool_] = self.codes[np.minimum(places, len(self.codes) - 1)] != wanted
        return allowed
