"""Which texts stand in the same debate or theme as a sample."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.data.codes import found_in
from biencoder.data.dataset import Split
from biencoder.data.ids import Ids


@dataclass(frozen=True, slots=True)
class Members:
    """The texts of each group of a split; a text can stand in several."""

    group_P: Ids
    """Of each sample."""
    codes: Ids
    """group * number of texts + text, sorted."""
    num_texts: int

    @classmethod
    def of(cls, split: Split, kind: str, num_texts: int) -> "Members | None":
        """Args: kind: debates or themes; None for any other."""
        group_P = split.groups(kind)
        if group_P is None:
            return None
        codes = np.concatenate([group_P * num_texts + texts for texts in (split.point_text_P, split.counter_text_P)])
        return cls(group_P, np.unique(codes), num_texts)

    def include(self, samples: Ids, texts: Ids) -> npt.NDArray[np.bool_]:
        """Elementwise (with broadcasting): do `texts` stand in the groups of these samples?"""
        return found_in(self.codes, self.group_P[samples] * self.num_texts + texts)
