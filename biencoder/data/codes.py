"""Look-ups in sorted integer codes by bisection, in time logarithmic in their number.

R: ranges, X: numbers of all ranges together.
"""

import numpy as np
import numpy.typing as npt

from biencoder.data.ids import Ids


def contains(sorted_codes: Ids, codes: Ids) -> npt.NDArray[np.bool_]:
    """Elementwise: is each of `codes` (any shape) among `sorted_codes` (ascending)?

    `np.isin` would sort the whole table at every call.
    """
    if not len(sorted_codes):
        return np.zeros(np.shape(codes), dtype=np.bool_)
    positions = np.searchsorted(sorted_codes, codes)
    is_contained: npt.NDArray[np.bool_] = sorted_codes[np.minimum(positions, len(sorted_codes) - 1)] == codes
    return is_contained


def expand_ranges(starts_R: Ids, ends_R: Ids) -> tuple[Ids, Ids]:
    """The numbers in these half-open ranges, range by range.

    Returns:
        For each number (X,) its range, and the number itself (X,).
    """
    counts_R = ends_R - starts_R
    range_X = np.repeat(np.arange(len(counts_R)), counts_R)
    nth_X = np.arange(len(range_X)) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)
    return range_X, starts_R[range_X] + nth_X
