"""Metrics of ranked lists with one right answer each, or with several that have grades, computed by `ir_measures`.

Q: queries, C: candidates, A: answers of all queries, k: length of the lists.
"""

from dataclasses import dataclass
from functools import cache

import ir_measures
import numpy as np
import numpy.typing as npt
from ir_measures import AP, RR, R, Success, nDCG

from biencoder.data.codes import contains
from biencoder.data.ids import Ids

_MEASURES = {
    "accuracy@1": Success @ 1,
    "accuracy@5": Success @ 5,
    "accuracy@10": Success @ 10,
    "mrr@10": RR @ 10,
    "ndcg@10": nDCG @ 10,
}
_JUDGED_MEASURES = {**_MEASURES, "recall@10": R @ 10, "recall@100": R @ 100, "map@100": AP @ 100}
JUDGED_DEPTH = 100
"""What `judged_metrics` looks at of a list."""
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


@dataclass(frozen=True, slots=True)
class Answers:
    """The right answers of queries among candidates; each query has at least one."""

    code_A: Ids
    """query * number of candidates + candidate, ascending."""
    grade_A: Ids
    num_candidates: int

    @classmethod
    def of(cls, query_A: Ids, candidate_A: Ids, grade_A: Ids, num_candidates: int) -> "Answers":
        """Of an answer that is there twice the higher grade counts."""
        code_A = query_A * num_candidates + candidate_A
        order_A = np.lexsort((-grade_A, code_A))
        code_A, first_A = np.unique(code_A[order_A], return_index=True)
        return cls(code_A, grade_A[order_A][first_A], num_candidates)

    def grades(self, ranked_Qk: Ids) -> Ids:
        """The grade of each entry of the lists (Q, k); 0 for what is no answer."""
        code_Qk = np.arange(len(ranked_Qk))[:, None] * self.num_candidates + ranked_Qk
        is_answer_Qk = (ranked_Qk >= 0) & contains(self.code_A, code_Qk)
        grade_Qk = np.zeros_like(ranked_Qk)
        grade_Qk[is_answer_Qk] = self.grade_A[np.searchsorted(self.code_A, code_Qk[is_answer_Qk])]
        return grade_Qk

    def ideal_grades(self) -> Ids:
        """The grades of each query's answers, the highest first, filled up with 0."""
        query_A = self.code_A // self.num_candidates
        order_A = np.lexsort((-self.grade_A, query_A))
        count_Q = np.bincount(query_A)
        nth_A = np.arange(len(query_A)) - np.repeat(np.cumsum(count_Q) - count_Q, count_Q)
        grade_Qa = np.zeros((len(count_Q), count_Q.max()), dtype=np.int64)
        grade_Qa[query_A[order_A], nth_A] = self.grade_A[order_A]
        return grade_Qa


def judged_metrics(ranked_Qk: Ids, answers: Answers) -> dict[str, npt.NDArray[np.float64]]:
    """accuracy@1, @5, @10, MRR@10, nDCG@10, recall@10, recall@100 and MAP@100 of each query (Q,), in 0..1.

    accuracy@k: whether an answer is among the first k. nDCG has the grades as its gains. The others count all grades alike.
    """
    grade_Qk = answers.grades(ranked_Qk[:, :JUDGED_DEPTH])
    k = grade_Qk.shape[1]
    # A query's metrics depend on these grades alone, so `ir_measures` is asked once for all queries that share them.
    pattern_UX, pattern_Q = np.unique(
        np.concatenate([grade_Qk, answers.ideal_grades()], axis=1), axis=0, return_inverse=True
    )
    qrels, run = [], []
    for number, grades in enumerate(pattern_UX.tolist()):
        right = [name for name in _names(grades[k:]) if name]
        qrels += [ir_measures.Qrel(str(number), name, int(name.split()[0])) for name in right]
        run += [
            ir_measures.ScoredDoc(str(number), name or f"wrong {rank}", float(-rank))
            for rank, name in enumerate(_names(grades[:k]))
        ]
    names = {measure: name for name, measure in _JUDGED_MEASURES.items()}
    metrics = {name: np.zeros(len(pattern_UX)) for name in _JUDGED_MEASURES}
    for found in ir_measures.iter_calc(list(names), qrels, run):
        metrics[names[found.measure]][int(found.query_id)] = found.value
    return {name: value_U[pattern_Q.ravel()] for name, value_U in metrics.items()}


def _names(grades: list[int]) -> list[str]:
    """A name for each of these answers, `grade nth of this grade`; empty for what is no answer."""
    seen: dict[int, int] = {}
    names = []
    for grade in grades:
        seen[grade] = seen.get(grade, 0) + 1
        names.append(f"{grade} {seen[grade]}" if grade else "")
    return names


def calibration_error(probability_X: npt.NDArray[np.float32], right_X: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error of probabilities, in 0..1: over 15 bins of equal width, how far the mean probability is
    from the share of right ones (Guo, Pleiss, Sun, Weinberger 2017)."""
    bin_X = np.minimum((_BINS * probability_X).astype(np.int64), _BINS - 1)
    gap_b = np.bincount(bin_X, probability_X.astype(np.float64) - right_X)  # of the sums, which the counts cancel out of
    return float(np.abs(gap_b).sum() / len(bin_X))
