"""Which texts belong to the same debate or theme as a sample, or to another debate.

P: pairs of a split, which are its samples.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biencoder.data.codes import contains
from biencoder.data.dataset import Split
from biencoder.data.ids import Ids


@dataclass(frozen=True, slots=True)
class Members:
    """The texts of each group of a split; a text can belong to several groups."""

    group_P: Ids
    """The group of each sample."""
    codes: Ids
    """group * number of texts + text, ascending."""
    num_texts: int
    inside: bool = True
    """Whether the texts of a sample's own group are meant, or all others."""

    @classmethod
    def of(cls, split: Split, kind: str, num_texts: int) -> "Members | None":
        """The members of a split's groups.

        Args:
            kind: `debates`, `themes` or `other_debates`; for any other the result is None, and for the last one where all
                samples are of one debate: it has no others, and its texts may come from anywhere.
        """
        group_P = split.groups(kind)
        if group_P is None or (kind == "other_debates" and not group_P.any()):
            return None
        codes = np.concatenate([group_P * num_texts + texts for texts in (split.point_text_P, split.counter_text_P)])
        return cls(group_P, np.unique(codes), num_texts, inside=kind != "other_debates")

    def include(self, samples: Ids, texts: Ids) -> npt.NDArray[np.bool_]:
        """Elementwise (with broadcasting): do `texts` belong to the samples' groups? Or not, if others are meant."""
        is_inside = contains(self.codes, self.group_P[samples] * self.num_texts + texts)
        return is_inside if self.inside else ~is_inside
