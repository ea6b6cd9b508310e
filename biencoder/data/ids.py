"""Whole numbers that name things: texts by their id, samples, rows and groups by their position."""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


def spread_over(size: int, count: int) -> Ids:
    """So many positions of a list, or all of a shorter one, evenly spread."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).astype(np.int64))
