"""Hubness: how near the other candidates are to a candidate.

Some texts are near to every text of their subject, and so to every query about it; they push the one right answer to the
second place. A candidate's hubness is its mean nearness, -|v - w|^2 / 2, to the candidates around it. What is near to a
query and to little else is more likely its answer (Radovanovic, Nanopoulos, Ivanovic 2010 on such hubs; Conneau et al. 2018
subtract a similar mean). The residual pair classifier counts it with a weight that is fitted on validation.

A query's hubness is its mean nearness to the first candidates. It changes no order, but says how much a distance means.

N: texts, k: neighbours of each, Q: queries, C: candidates, q: a block of queries.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 3
"""Texts around a candidate that count."""
MOST_TEXTS = 50_000
"""Candidates up to which an evaluation measures hubness, for which it searches the neighbours of each."""


def hubness_of(distance_Nk: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """The hubness (N,) of texts, from the distances of their nearest others; inf where there are no more."""
    found_Nk = np.isfinite(distance_Nk)
    squared_N = np.square(np.where(found_Nk, distance_Nk, 0)).sum(axis=1)
    hubness_N: npt.NDArray[np.float32] = (squared_N / np.maximum(1, found_Nk.sum(axis=1)) / -2).astype(np.float32)
    return hubness_N


class Hubness(NamedTuple):
    """The hubness of the queries and the candidates of a ranking."""

    query_Q: npt.NDArray[np.float32]
    candidate_C: npt.NDArray[np.float32]

    def of_pairs(self, query_q: npt.NDArray[np.int64], candidate_qk: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Of each candidate and its query (q, k, 2)."""
        candidate = self.candidate_C[candidate_qk]
        return np.stack([candidate, np.broadcast_to(self.query_Q[query_q][:, None], candidate.shape)], axis=-1)
