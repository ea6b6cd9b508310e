"""Metrics of ranked lists with one right answer each, computed by `ir_measures`.

Q: queries, k: length of the lists.
"""

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


def ranking_metrics(ranked_Qk: npt.NDArray[np.int64], gold_Q: npt.NDArray[np.int64]) -> dict[str, float]:
    """accuracy@1, @5, @10, MRR@10 and nDCG@10 in 0..1; a right answer outside the list counts 0."""
    qrels = [ir_measures.Qrel(str(query), str(gold), 1) for query, gold in enumerate(gold_Q.tolist())]
    run = [
        ir_measures.ScoredDoc(str(query), str(candidate), float(-rank))
        for query, ranked in enumerate(ranked_Qk.tolist())
        for rank, candidate in enumerate(ranked)
    ]
    values = ir_measures.calc_aggregate(list(_MEASURES.values()), qrels, run)
    return {name: float(values[measure]) for name, measure in _MEASURES.items()}
