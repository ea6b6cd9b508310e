"""Metrics of ranked lists with one right answer each, computed by `ir_measures`.

Q: queries, k: length of the lists.
"""

from functools import cache

import ir_measures
import numpy as np
import numpy.typing as npt
from ir_measures import RR, Success, nDCG

_MEASURES = {
    "accuracy@1": Success @ 1,
    "accuracy@5": Success @ 5,
    "accuracy@10": Success @ 10,
    "mrr@10": RR @ 10,
    "ndcg@10": nDCG @ 10,
}
_DEPTH = 10
"""Below this rank no metric tells answers apart."""
_BINS = 15


def query_metrics(ranked_Qk: npt.NDArray[np.int64], gold_Q: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """accuracy@1, @5, @10, MRR@10 and nDCG@10 of each query (Q,), in 0..1; a right answer outside the list counts 0.

    With one right answer, accuracy@10 is recall@10.

    Args:
        ranked_Qk: candidates, the best first; -1 is none.
    """
    is_gold_Qk = ranked_Qk[:, :_DEPTH] == gold_Q[:, None]
    rank_Q = np.where(is_gold_Qk.any(1), is_gold_Qk.argmax(1) + 1, 0)
    return {name: value_r[rank_Q] for name, value_r in _metrics_by_rank().items()}


@cache
def _metrics_by_rank() -> dict[str, npt.NDArray[np.float64]]:
    """Each metric of a query by the rank of its right answer, from 1 to 10; at 0, of one whose list lacks it.

    With one right answer a metric depends on nothing else, so `ir_measures` is asked once, about a query for each rank.
    """
    qrels = [ir_measures.Qrel(str(rank), "right", 1) for rank in range(_DEPTH + 1)]
    run = [
        ir_measures.ScoredDoc(str(rank), "right" if place == rank else f"wrong {place}", float(-place))
        for rank in range(_DEPTH + 1)
        for place in range(1, _DEPTH + 1)
    ]
    names = {measure: name for name, measure in _MEASURES.items()}
    metrics = {name: np.zeros(_DEPTH + 1) for name in _MEASURES}
    for found in ir_measures.iter_calc(list(names), qrels, run):
        metrics[names[found.measure]][int(found.query_id)] = found.value
    return metrics


def ranking_metrics(ranked_Qk: npt.NDArray[np.int64], gold_Q: npt.NDArray[np.int64]) -> dict[str, float]:
    """The means of `query_metrics`."""
    return {name: float(metric_Q.mean()) for name, metric_Q in query_metrics(ranked_Qk, gold_Q).items()}


def calibration_error(probability_X: npt.NDArray[np.float32], right_X: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error of probabilities, in 0..1: over 15 bins of equal width, how far the mean probability is
    from the share of right ones (Guo, Pleiss, Sun, Weinberger 2017)."""
    bin_X = np.minimum((_BINS * probability_X).astype(np.int64), _BINS - 1)
    gap_b = np.bincount(bin_X, probability_X.astype(np.float64) - right_X)  # of the sums, which the counts cancel out of
    return float(np.abs(gap_b).sum() / len(bin_X))
