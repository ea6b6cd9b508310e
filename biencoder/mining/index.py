"""What mining asks of a nearest-neighbour index, and how it makes all exact ones answer alike.

An index may round distances in its own way. `nearest_allowed` therefore measures what the index returned once more,
exactly, and orders it by (distance, row); it asks for more neighbours while the index's rounding could hide a nearer row.
So any two exact indexes give the same answer, ties included.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

_ROUNDING = 1e-5
"""Relative error that an index's own squared distances may have: float32 by ||x||^2 + ||y||^2 - 2xy, with room to spare."""
_CHUNK_BYTES = 64 * 2**20


class NegativeIndex(Protocol):
    """Nearest rows by Euclidean distance."""

    exact: bool
    """Whether `search` never misses a nearer vector, but for rounding."""

    def search(self, queries_QD: Vectors, k: int) -> Rows:
        """Row numbers (Q, k) of the k nearest vectors; an inexact index may return -1 for "none"."""


class NothingHeld:
    """The index of a rank that holds no candidates: more ranks than batches of texts."""

    def __init__(self, *, exact: bool) -> None:
        self.exact = exact

    def search(self, queries_QD: Vectors, k: int) -> Rows:
        return np.empty((len(queries_QD), 0), dtype=np.int64)


def nearest_allowed(
    index: NegativeIndex,
    vectors_ND: Vectors,
    queries_QD: Vectors,
    allowed: Callable[[Rows, Rows], npt.NDArray[np.bool_]],
    *,
    count: int = 1,
    least_distance_Q: npt.NDArray[np.float64] | None = None,
) -> tuple[Rows, npt.NDArray[np.float64]]:
    """For each query the nearest rows that are allowed, nearest first, ties broken by the lower row, and their distances.

    Args:
        allowed: given query numbers (Q,) and rows (Q, k), which of the rows each query may have (Q, k).
        count: rows wanted for each query.
        least_distance_Q: what is nearer than this is not allowed either.

    Returns:
        Rows (Q, count), -1 where no more are allowed, and exact distances, inf there.
    """
    best_Qc = np.full((len(queries_QD), count), -1, dtype=np.int64)
    distance_Qc = np.full((len(queries_QD), count), np.inf)
    if not len(vectors_ND):
        return best_Qc, distance_Qc
    open_queries, k = np.arange(len(queries_QD)), min(7 + count, len(vectors_ND))
    while len(open_queries):
        undecided = []
        chunk = max(1, _CHUNK_BYTES // (8 * k * vectors_ND.shape[1]))
        for start in range(0, len(open_queries), chunk):
            some = open_queries[start : start + chunk]
            rows_Qk = index.search(queries_QD[some], k)
            exact_Qk = np.where(rows_Qk >= 0, _distances(vectors_ND, queries_QD[some], rows_Qk), np.inf)
            good_Qk = allowed(some, rows_Qk)
            if least_distance_Q is not None:
                good_Qk = good_Qk & (exact_Qk >= least_distance_Q[some][:, None])
            measured_Qk = np.where(good_Qk, exact_Qk, np.inf)
            order_Qc = np.lexsort((rows_Qk, measured_Qk), axis=1)[:, :count]
            near_Qc = np.take_along_axis(measured_Qk, order_Qc, axis=1)
            found_Qc = np.isfinite(near_Qc)
            width = order_Qc.shape[1]
            best_Qc[some, :width] = np.where(found_Qc, np.take_along_axis(rows_Qk, order_Qc, axis=1), -1)
            distance_Qc[some, :width] = near_Qc
            # Settled: everything the index did not return is farther than the last one, its rounding granted.
            last_Q, all_found = near_Qc[:, -1], found_Qc.all(1) & (width == count)
            scale_Q = np.square(queries_QD[some].astype(np.float64)).sum(1) + np.square(exact_Qk).max(1)
            slack_Q = np.sqrt(np.square(last_Q) + _ROUNDING * scale_Q)
            settled = all_found & (not index.exact or exact_Qk.max(axis=1) > slack_Q)
            undecided.append(some[~settled])
        if k == len(vectors_ND):
            break
        open_queries, k = np.concatenate(undecided), min(4 * k, len(vectors_ND))
    return best_Qc, distance_Qc


def _distances(vectors_ND: Vectors, queries_QD: Vectors, rows_Qk: Rows) -> npt.NDArray[np.float64]:
    difference_QkD = vectors_ND[rows_Qk].astype(np.float64) - queries_QD[:, None, :].astype(np.float64)
    distances: npt.NDArray[np.float64] = np.sqrt(np.square(difference_QkD).sum(-1))
    return distances
