"""Which texts are no wrong answers to a point, and so may never be its negatives."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.data.dataset import Split

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Forbidden:
    """For each text the texts that may not be its negative: itself and every counter it is paired with."""

    codes: Ids
    """point text * number of texts + forbidden text, sorted."""
    num_texts: int

    @classmethod
    def of(cls, split: Split, num_texts: int) -> "Forbidden":
        """Texts are compared, not samples: what stands under several themes is forbidden under all of them."""
        pairs = np.concatenate(
            [split.point_text_P * num_texts + other for other in (split.point_text_P, split.counter_text_P)]
        )
        return cls(np.unique(pairs), num_texts)

    def allows(self, points: Ids, texts: Ids) -> npt.NDArray[np.bool_]:
        """Elementwise (with broadcasting): may `texts` be negatives of the point texts `points`?"""
        wanted = points * self.num_texts + texts
        # By bisection: np.isin would sort the whole table at every call, that is, at every step of the contrastive loss.
        places = np.searchsorted(self.codes, wanted)
        allowed: npt.NDArray[np.bool_] = self.codes[np.minimum(places, len(self.codes) - 1)] != wanted
        return allowed
