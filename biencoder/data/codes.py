"""Look-ups in sorted whole numbers by bisection: what one costs grows with the logarithm of the table."""

import numpy as np
import numpy.typing as npt

from biencoder.data.ids import Ids


def found_in(sorted_codes: Ids, wanted: Ids) -> npt.NDArray[np.bool_]:
    """Elementwise: does `wanted`, of any shape, stand among these ascending codes?

    `np.isin` would sort the whole table at every call.
    """
    if not len(sorted_codes):
        return np.zeros(np.shape(wanted), dtype=np.bool_)
    places = np.searchsorted(sorted_codes, wanted)
    found: npt.NDArray[np.bool_] = sorted_codes[np.minimum(places, len(sorted_codes) - 1)] == wanted
    return found


def spelled_out(starts_R: Ids, ends_R: Ids) -> tuple[Ids, Ids]:
    """Every number of these half-open ranges, range by range (X,), and before it the range that each is of (X,)."""
    counts_R = ends_R - starts_R
    range_X = np.repeat(np.arange(len(counts_R)), counts_R)
    nth_X = np.arange(len(range_X)) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)
    return range_X, starts_R[range_X] + nth_X
