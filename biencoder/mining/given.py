"""Given negatives: which of them may be used, and how the data check says what becomes of them."""

import numpy as np

from biencoder.config.schema import MiningConfig
from biencoder.data import Dataset, Forbidden, Split
from biencoder.data.given import Given
from biencoder.errors import DataError


def usable_given(split: Split, forbidden: Forbidden) -> Given | None:
    """The split's given negatives but for those that count as the same as a right answer; None if it has none."""
    given = split.given
    return given.where(forbidden.allows(split.point_text_P[given.pair_X], given.text_X)) if given else None


def need_given(split: Split, given: Given | None) -> None:
    """Raise a DataError if a pair of the split has no given negative.

    Args:
        given: those that can be used.
    """
    without_P = np.flatnonzero(given.counts_P == 0) if given else np.arange(len(split))
    if len(without_P):
        raise DataError(
            f"{split.pairs[without_P[0]].point.source} has no given negative that can be used, as {len(without_P)} of "
            f"{len(split)} training pairs, but mining.given is only; give each pair one, or set mining.given = first to "
            "mine what is missing"
        )


def check_given(dataset: Dataset, config: MiningConfig) -> None:
    """Count the given negatives of the training split in the data check, and say how they will be used.

    Raises:
        DataError: nothing is to be mined, and a pair has no given negative.
    """
    split, K = dataset.splits["training"], config.negatives
    if config.given == "only":
        need_given(split, split.given)
    if split.given is None:
        return
    use = {"first": f"they take the first of {K} places, mined ones the rest", "only": f"{K} a pair, nothing is mined"}
    how = use[config.given] if K else "not used: mining.negatives is 0"
    example = split.pairs[int(split.given.pair_X[0])].point.source
    dataset.findings.add(f"given negative ({how})", example, count=len(split.given.text_X))
