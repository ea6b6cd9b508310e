"""Leak-free evaluation: without the queries whose debates share texts with the training split.

The corpus lists debates under several themes and repeats debates in other words, and its splits separate such copies only
in part. Debates that share a text, or a near-duplicate of one, form groups. A query is leak-free if its group has no
training debate. All candidates stay, so that the task becomes no easier.

P: pairs of a split, N: texts of the dataset, E: edges between debates and texts.
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
from biencoder.data.pairs import labels_of
from biencoder.errors import DataError


@dataclass(frozen=True, slots=True)
class LeakFree:
    """The leak-free queries of a split, with counts for the report."""

    kept_P: npt.NDArray[np.bool_]
    """Whether a pair's point is a leak-free query."""
    num_leaked_debates: int
    num_debates: int
    num_near_duplicates: int
    """Distinct texts of the whole dataset that are a near-duplicate of another one."""
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
    """The queries of a split that share no text with training, directly or through other debates.

    Raises:
        DataError: there is no training split to compare with, or no query is leak-free.
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
    """For each split the group number (P,) of each pair's debate; the numbers are unique across splits.

    Debates that share a text are in one group, also through other debates (connected components).

    Args:
        same_N: equal for texts that count as the same.
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
    """The number (P,) of each pair's debate; if no pair has a topic, each pair is a debate of its own."""
    numbers = split.groups("debates") if any(labels_of(split.pairs, "topic")[0]) else None
    return np.arange(len(split)) if numbers is None else numbers
