"""95 % confidence intervals of means over queries, by a bootstrap that resamples whole groups of debates.

Queries of one debate succeed and fail together, so resampling single queries would give intervals that are too narrow
(Field and Welsh 2007 on the cluster bootstrap). The draws depend on the groups alone, so all figures of a split share them.

Q: queries, G: groups, M: metrics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

from biencoder.rng import stream_seed

_RESAMPLES = 2000
_BATCH_NUMBERS = 2**22


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over queries and the ends of its interval, which are NaN if there is only one group."""

    value: float
    low: float
    high: float


def figures(metrics: Mapping[str, npt.NDArray[np.float64]], group_Q: npt.NDArray[np.int64]) -> dict[str, Figure]:
    """The mean of each metric (Q,) and its interval by the percentile bootstrap (2,000 draws, seeded)."""
    group_of_Q = np.unique(group_Q, return_inverse=True)[1]
    total_MG = np.stack([np.bincount(group_of_Q, weights=metric_Q) for metric_Q in metrics.values()])
    count_MG = np.broadcast_to(np.bincount(group_of_Q).astype(np.float64), total_MG.shape)
    mean_M = _mean(total_MG, count_MG, axis=-1)
    low_M = high_M = np.full(len(mean_M), np.nan)
    if total_MG.shape[1] > 1:
        low_M, high_M = bootstrap(
            (total_MG, count_MG),
            _mean,
            paired=True,
            vectorized=True,
            axis=-1,
            method="percentile",
            n_resamples=_RESAMPLES,
            batch=max(1, _BATCH_NUMBERS // total_MG.size),
            rng=np.random.Generator(np.random.Philox(stream_seed(0, "bootstrap"))),
        ).confidence_interval
    return {
        name: Figure(float(mean), float(low), float(high))
        for name, mean, low, high in zip(metrics, mean_M, low_M, high_M, strict=True)
    }


def _mean(total: npt.NDArray[Any], count: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    """Mean over all queries of the groups along an axis; groups can differ in size."""
    mean: npt.NDArray[Any] = total.sum(axis) / count.sum(axis)
    return mean
