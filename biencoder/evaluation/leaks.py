"""Which queries of a split were seen in training, whole or in part: debates that share texts across splits.

The corpus lists debates under several themes, takes up debates again in other words, and its splits keep the copies apart
from each other only in part. A query is leak-free if neither its debate has a text, or nearly a text, of a training debate,
nor any debate that it is joined with by such texts. Candidates stay as they are, so that the task is no easier.

P: pairs of a split, N: texts of the dataset.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from biencoder.data import Dataset, Split
from biencoder.data.ids import Ids
from biencoder.data.near_duplicates import near_duplicates
from biencoder.errors import DataError


@dataclass(frozen=True, slots=True)
class LeakFree:
    """What is left of a split without the queries that training may have seen."""

    kept_P: npt.NDArray[np.bool_]
    num_leaked_debates: int
    num_debates: int
    num_near_duplicates: int
    """Distinct texts of the whole dataset that are nearly the same as another one."""
    num_texts: int

    def as_json(self) -> dict[str, int]:
        return {
            "kept_queries": int(self.kept_P.sum()),
            "queries": len(self.kept_P),
            "leaked_debates": self.num_leaked_debates,
            "debates": self.num_debates,
            "near_duplicate_texts": self.num_near_duplicates,
            "texts": self.num_texts,
        }


def leak_free(dataset: Dataset, split: Split) -> LeakFree:
    """
    Raises:
        DataError: there is no training split to compare with, or no query is left.
    """
    training = dataset.splits.get("training")
    if training is None or split.name == "training":
        raise DataError(
            "--leak-free compares a split with the training split: data.root must hold it, and --split name another one"
        )
    same_N = near_duplicates(dataset.texts)
    groups = dict(zip(dataset.splits, debate_groups(list(dataset.splits.values()), same_N), strict=True))
    kept_P = ~np.isin(groups[split.name], groups["training"])
    if not kept_P.any():
        raise DataError(
            f"--leak-free leaves none of the {len(split)} queries: each debate of {split.name} shares a text with training"
        )
    debate_P = _debates(split)
    sizes_N = np.bincount(same_N)
    return LeakFree(
        kept_P,
        num_leaked_debates=len(np.unique(debate_P[~kept_P])),
        num_debates=len(np.unique(debate_P)),
        num_near_duplicates=int(sizes_N[sizes_N > 1].sum()),
        num_texts=len(dataset.texts),
    )


def debate_groups(splits: Sequence[Split], same_N: Ids) -> list[Ids]:
    """For each split the number (P,) of the group of debates that each pair belongs to.

    Debates that share a text are one group, and so is what such debates join. Numbers count through all splits.

    Args:
        same_N: a number for each text of the dataset, equal for texts that count as the same.
    """
    debates, edges, start = [], [], 0
    for split in splits:
        debate_P = start + _debates(split)
        start = int(debate_P.max()) + 1
        debates.append(debate_P)
        edges += [(debate_P, same_N[text_P]) for text_P in (split.point_text_P, split.counter_text_P)]
    debate_E, text_E = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    nodes = start + len(same_N)  # the debates, then the texts
    joined = coo_array((np.ones(len(debate_E), dtype=np.int8), (debate_E, start + text_E)), shape=(nodes, nodes))
    _, group_of_node = connected_components(joined, directed=False)
    return [group_of_node[debate_P].astype(np.int64) for debate_P in debates]


def _debates(split: Split) -> Ids:
    """The number of each pair's debate (P,); where a table names no topics, each pair is one."""
    numbers = split.groups("debates") if any(pair.point.topic for pair in split.pairs) else None
    return np.arange(len(split)) if numbers is None else numbers
