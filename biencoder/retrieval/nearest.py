"""The nearest allowed rows by an index, with one exact answer whatever exact index is used.

An index may round distances in its own way. `nearest_allowed` therefore computes the distances of the returned rows again,
exactly, and orders the rows by (distance, row). It asks for more neighbours while the index's rounding could hide a nearer
row. So any two exact indexes give the same answer, ties included. A query that has too few allowed rows among its 2,048
nearest is compared with every vector, in blocks of bounded size; only for such a query is the mask evaluated for all rows.

Q: queries, q: a block of them, k: rows that an index returns, K: answers of all ranks, c: rows that the caller asks for,
N: vectors, n: a block of them, D: dimension, X: pairs of a query and a row.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from biencoder.distributed.world import World

Rows = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]

_ROUNDING = 1e-5
"""Upper bound of the relative error of an index's squared distances, computed in float32 as ||x||^2 + ||y||^2 - 2xy."""
_CHUNK_BYTES = 64 * 2**20
MOST_ROWS = 2048
"""The most rows that a search asks an index for, which is the limit of FAISS on a GPU."""
_SEARCHED_QUERIES = 1024
"""The fewest queries of one search, if there are as many: FAISS takes fewer than 20 one by one."""
_SCANNED_QUERIES, _SCANNED_PAIRS = 64, 2**20
"""Queries, and pairs of a query and a vector, in a block of the comparison with every vector."""

Allowed = Callable[[Rows, Rows], npt.NDArray[np.bool_]]
Distances = npt.NDArray[np.float64]


class NegativeIndex(Protocol):
    """An index over vectors that finds the nearest rows by Euclidean distance."""

    exact: bool
    """Whether `search` finds all nearest vectors, up to rounding."""

    def search(self, queries_QD: Embeddings, k: int) -> Rows:
        """Row numbers (Q, k) of the k nearest vectors; fewer columns if k is above 2,048.

        An inexact index may return -1 for "none".
        """


class NothingHeld:
    """The index of a rank that holds no candidates, because there are more ranks than batches of texts."""

    def __init__(self, *, exact: bool) -> None:
        self.exact = exact

    def search(self, queries_QD: Embeddings, k: int) -> Rows:
        return np.empty((len(queries_QD), 0), dtype=np.int64)


class Fp64Index:
    """Brute force in fp64: what the reference's ball tree finds, without scikit-learn, whose import takes seconds."""

    exact = True

    def __init__(self, vectors_ND: Embeddings) -> None:
        self._vectors_ND = vectors_ND

    def search(self, queries_QD: Embeddings, k: int) -> Rows:
        N, D = self._vectors_ND.shape
        queries_QD, found_QK, squared_QK = queries_QD.astype(np.float64), [], []
        for rows_n in _blocks(np.arange(N), max(1, _CHUNK_BYTES // (8 * D))):
            block_nD = self._vectors_ND[rows_n[0] : rows_n[-1] + 1].astype(np.float64)
            squared_Qn = np.square(block_nD).sum(1) - 2 * (queries_QD @ block_nD.T)
            near_Qk = np.argpartition(squared_Qn, min(k, len(rows_n)) - 1, axis=1)[:, :k]
            found_QK.append(rows_n[near_Qk])
            squared_QK.append(np.take_along_axis(squared_Qn, near_Qk, axis=1))
        order_Qk = np.concatenate(squared_QK, axis=1).argsort(axis=1)[:, :k]
        rows_Qk: Rows = np.take_along_axis(np.concatenate(found_QK, axis=1), order_Qk, axis=1)
        return rows_Qk


def nearest_allowed(
    index: NegativeIndex,
    vectors_ND: Embeddings,
    queries_QD: Embeddings,
    allowed: Allowed,
    *,
    count: int = 1,
    least_distance_Q: Distances | None = None,
) -> tuple[Rows, Distances]:
    """For each query the nearest rows that are allowed, nearest first, ties broken by the lower row, and their distances.

    Args:
        allowed: takes query numbers (Q,) and rows (Q, k); returns which of the rows each query may have (Q, k).
        count: rows for each query.
        least_distance_Q: rows nearer than this are not allowed.

    Returns:
        Rows (Q, count), -1 where no more are allowed, and exact distances, inf there.
    """
    best_Qc = np.full((len(queries_QD), count), -1, dtype=np.int64)
    distance_Qc = np.full((len(queries_QD), count), np.inf)
    least_Q = np.zeros(len(queries_QD)) if least_distance_Q is None else least_distance_Q
    N, open_queries, k = len(vectors_ND), np.arange(len(queries_QD)), 7 + count
    while N and len(open_queries):
        k, undecided = min(k, N), []
        compared = max(1, _CHUNK_BYTES // (8 * k * vectors_ND.shape[1]))
        for searched in _blocks(open_queries, max(_SEARCHED_QUERIES, compared)):
            rows_Qk = index.search(queries_QD[searched], k)
            for part in _blocks(np.arange(len(searched)), compared):
                block = searched[part]
                may_have, least_q = partial(allowed, block), least_Q[block]
                best_Qc[block], distance_Qc[block], settled_q = _measured(
                    rows_Qk[part], vectors_ND, queries_QD[block], may_have, least_q, count, is_exact=index.exact
                )
                undecided.append(block[~settled_q])
        open_queries = np.concatenate(undecided)
        if k >= min(MOST_ROWS, N):
            break
        k = min(4 * k, MOST_ROWS)
    for block in _blocks(open_queries if N else open_queries[:0], _SCANNED_QUERIES):
        best_Qc[block], distance_Qc[block] = _scan_all(
            vectors_ND, queries_QD[block], partial(allowed, block), least_Q[block], count
        )
    return best_Qc, distance_Qc


def nearest_of_ranks(ids_Qk: Rows, distance_Qk: Distances, world: World, counts: Sequence[int]) -> tuple[Rows, Distances]:
    """For each query the k nearest of all ranks' answers (ids and distances), nearest first; ties go to the lower id.

    Each rank merges the answers to its own queries, so the bytes that a rank sends and receives do not grow with the number
    of ranks. Every rank takes part and gets all results.

    Args:
        counts: number of each rank's queries; the first are those of rank 0.
    """
    if world.size == 1:
        return ids_Qk, distance_Qk
    ids_QK, distance_QK = (
        np.concatenate(list(world.exchange(torch.from_numpy(part), counts).numpy()), axis=1)
        for part in (ids_Qk, distance_Qk)
    )
    order_Qk = np.lexsort((ids_QK, distance_QK), axis=1)[:, : ids_Qk.shape[1]]
    ids, distances = (
        world.all_gather_rows(torch.from_numpy(np.take_along_axis(part, order_Qk, axis=1)), counts).numpy()
        for part in (ids_QK, distance_QK)
    )
    return ids, distances


def _blocks(positions: Rows, size: int) -> list[Rows]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _measured(
    rows_qk: Rows,
    vectors_ND: Embeddings,
    queries_qD: Embeddings,
    allowed: Callable[[Rows], npt.NDArray[np.bool_]],
    least_q: Distances,
    count: int,
    *,
    is_exact: bool,
) -> tuple[Rows, Distances, npt.NDArray[np.bool_]]:
    """The nearest allowed rows among the k that an index has returned for each query.

    Returns:
        Rows (q, c), their distances (q, c), and whether the answer is final (q,): no other row can be nearer.
    """
    exact_qk = np.where(rows_qk >= 0, _distances(vectors_ND[rows_qk], queries_qD[:, None]), np.inf)
    measured_qk = np.where(allowed(rows_qk) & (exact_qk >= least_q[:, None]), exact_qk, np.inf)
    order_qc = np.lexsort((rows_qk, measured_qk), axis=1)[:, :count]
    near_qc = np.take_along_axis(measured_qk, order_qc, axis=1)
    found_qc = np.isfinite(near_qc)
    missing = ((0, 0), (0, count - order_qc.shape[1]))
    best_qc = np.pad(np.where(found_qc, np.take_along_axis(rows_qk, order_qc, axis=1), -1), missing, constant_values=-1)
    near_qc = np.pad(near_qc, missing, constant_values=np.inf)
    if is_exact and rows_qk.shape[1] == len(vectors_ND):
        return best_qc, near_qc, np.ones(len(rows_qk), dtype=np.bool_)
    # An answer is final if every row that the index did not return is farther than the last one, rounding included.
    scale_q = np.square(queries_qD.astype(np.float64)).sum(1) + np.square(exact_qk).max(1)
    slack_q = np.sqrt(np.square(near_qc[:, -1]) + _ROUNDING * scale_q)
    settled_q = np.isfinite(near_qc[:, -1]) & (not is_exact or exact_qk.max(axis=1) > slack_q)
    return best_qc, near_qc, settled_q


def _scan_all(
    vectors_ND: Embeddings,
    queries_qD: Embeddings,
    allowed: Callable[[Rows], npt.NDArray[np.bool_]],
    least_q: Distances,
    count: int,
) -> tuple[Rows, Distances]:
    """The nearest allowed rows (q, c) among all vectors, and their distances (q, c)."""
    q, best_qc, distance_qc = (
        len(queries_qD),
        np.full((len(queries_qD), count), -1),
        np.full((len(queries_qD), count), np.inf),
    )
    for rows_n in _blocks(np.arange(len(vectors_ND)), max(count, _SCANNED_PAIRS // q)):
        block_nD = np.asarray(vectors_ND[rows_n[0] : rows_n[-1] + 1])
        good_qn = allowed(np.broadcast_to(rows_n, (q, len(rows_n))))
        query_X, nth_X = np.nonzero(
            good_qn & _may_be_nearest(block_nD, queries_qD, good_qn, least_q, distance_qc[:, -1], count)
        )
        exact_X = np.concatenate(
            [np.empty(0)]
            + [
                _distances(block_nD[nth_X[part]], queries_qD[query_X[part]])
                for part in _blocks(np.arange(len(nth_X)), max(1, _CHUNK_BYTES // (8 * block_nD.shape[1])))
            ]
        )
        kept_X = exact_X >= least_q[query_X]
        former = np.nonzero(best_qc >= 0)  # the answers of the blocks before
        query_X = np.concatenate([former[0], query_X[kept_X]])
        row_X = np.concatenate([best_qc[former], rows_n[nth_X[kept_X]]])
        exact_X = np.concatenate([distance_qc[former], exact_X[kept_X]])
        order_X = np.lexsort((row_X, exact_X, query_X))
        query_X = query_X[order_X]
        place_X = np.arange(len(query_X)) - np.searchsorted(query_X, query_X)
        kept_X = place_X < count
        cells, order_X = (query_X[kept_X], place_X[kept_X]), order_X[kept_X]
        best_qc[cells], distance_qc[cells] = row_X[order_X], exact_X[order_X]
    return best_qc, distance_qc


def _may_be_nearest(
    block_nD: Embeddings,
    queries_qD: Embeddings,
    good_qn: npt.NDArray[np.bool_],
    least_q: Distances,
    last_q: Distances,
    count: int,
) -> npt.NDArray[np.bool_]:
    """Which vectors of a block (q, n) can be among each query's `count` nearest good ones, rounding included.

    Args:
        good_qn: whether the query may have the vector.
        last_q: distance of the last of the `count` answers that each query has so far; inf if it has fewer.
    """
    norm_n, norm_q = (np.square(rows.astype(np.float64)).sum(1) for rows in (block_nD, queries_qD))
    squared_qn = norm_n - 2 * (queries_qD @ block_nD.T) + norm_q[:, None]
    slack_q1 = _ROUNDING * (norm_q + norm_n.max())[:, None]
    least_q1 = np.square(least_q)[:, None]
    bound_q1 = np.square(last_q)[:, None]
    if count <= len(block_nD):
        sure_qn = np.where(good_qn & (squared_qn >= least_q1 + slack_q1 * (least_q1 > 0)), squared_qn, np.inf)
        bound_q1 = np.minimum(bound_q1, np.partition(sure_qn, count - 1, axis=1)[:, count - 1 : count] + slack_q1)
    near_qn: npt.NDArray[np.bool_] = (squared_qn <= bound_q1 + slack_q1) & (squared_qn >= least_q1 - slack_q1)
    return near_qn


def _distances(rows_XD: Embeddings, queries_XD: Embeddings) -> Distances:
    """Euclidean distances in fp64 of these vectors, along the last axis."""
    difference_XD = rows_XD.astype(np.float64) - queries_XD.astype(np.float64)
    distances: Distances = np.sqrt(np.square(difference_XD).sum(-1))
    return distances
