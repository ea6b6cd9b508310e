"""Several models and baselines on the same tasks: each ranks every pool of candidates, and all are measured alike.

    comparison = Comparison.of(dataset, split, tasks, systems, top_k=10, kept_P=np.full(len(split), True))

A system with a pair classifier has a second row, in which the classifier has re-ranked the top k of the first.

P: pairs of the split, Q: queries of a pool, k: top.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from biencoder.data import Dataset, Split
from biencoder.evaluation.intervals import Figure, figures
from biencoder.evaluation.leaks import debate_groups
from biencoder.evaluation.metrics import query_metrics
from biencoder.evaluation.protocol import Ranking, joined
from biencoder.evaluation.rankers import Ranker
from biencoder.evaluation.tasks import Task, pools

_DEPTH = 10


@dataclass(frozen=True, slots=True)
class System:
    """What is compared: a model or a baseline."""

    name: str
    about: str
    build: Callable[[], Ranker]
    """Makes it ready to rank: the long part, embedding, is in here."""


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    about: str
    figures: dict[str, dict[str, Figure]]
    """Task → metric → figure. Metrics as in `EVAL` of tracking/names.py: accuracy@1, ..., ndcg@10_text."""


@dataclass(frozen=True, slots=True)
class Comparison:
    split: str
    num_queries: int
    tasks: list[Task]
    mean_candidates: dict[str, float]
    """Task → candidates of a query."""
    rows: list[Row]

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        split: Split,
        tasks: Sequence[Task],
        systems: Iterable[System],
        *,
        top_k: int,
        kept_P: npt.NDArray[np.bool_],
    ) -> "Comparison":
        """
        Args:
            top_k: candidates that a pair classifier re-ranks.
            kept_P: the queries that count.
        """
        num_texts = len(dataset.texts)
        (group_P,) = debate_groups([split], np.arange(num_texts))
        rows = []
        for system in systems:
            ranker = system.build()
            found: dict[str, dict[str, dict[str, Figure]]] = {}
            for task in tasks:
                for ranking, metrics in measure(ranker, task, split, num_texts, top_k=top_k).items():
                    kept = {name: metric_P[kept_P] for name, metric_P in metrics.items()}
                    found.setdefault(ranking, {})[task.name] = figures(kept, group_P[kept_P])
            rows.append(Row(system.name, system.about, found["embedding"]))
            if "rerank" in found:
                about = f"{system.about}; the best {top_k} re-ranked by its pair classifier"
                rows.append(Row(f"{system.name}, re-ranked", about, found["rerank"]))
        sizes = {
            task.name: np.concatenate(
                [pool.num_candidates_Q[kept_P[pool.pair_Q]] for pool in pools(task, split, num_texts)]
            )
            for task in tasks
        }
        mean_candidates = {name: float(size_P.mean()) for name, size_P in sizes.items()}
        return cls(split.name, int(kept_P.sum()), list(tasks), mean_candidates, rows)

    def as_json(self) -> dict[str, Any]:
        """Plain values; figures in 0..1 as [value, low, high]."""
        return {
            "split": self.split,
            "queries": self.num_queries,
            "tasks": {
                task.name: {"title": task.title, "mean_candidates": self.mean_candidates[task.name]} for task in self.tasks
            },
            "rows": [
                {
                    "name": row.name,
                    "about": row.about,
                    "figures": {
                        task: {name: [_plain(number) for number in (f.value, f.low, f.high)] for name, f in found.items()}
                        for task, found in row.figures.items()
                    },
                }
                for row in self.rows
            ],
        }


def measure(
    ranker: Ranker, task: Task, split: Split, num_texts: int, *, top_k: int
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Each metric of each query (P,), strict and with identical texts as one (`_text`), for `embedding` and `rerank`.

    `rerank` is missing where the ranker has no pair classifier.
    """
    k = max(_DEPTH, top_k)
    metrics: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    for suffix in ("", "_text"):
        rankings, golds, pairs = [], [], []
        for pool in pools(task, split, num_texts):
            listed = pool.distinct(split) if suffix else pool
            query_text_Q = split.point_text_P[pool.pair_Q]
            rankings.append(ranker.rank(query_text_Q, listed.candidate_text_C, listed.own_Q, k=k))
            golds.append(listed.gold_Q)
            pairs.append(pool.pair_Q)
        ranking = joined(zip(*rankings, strict=True), axis=0)
        lists = {"embedding": ranking.candidate_Qk}
        if not np.isnan(ranking.probability_Qk).all():
            lists["rerank"] = reranked(ranking, top_k)
        back_P = np.argsort(np.concatenate(pairs))
        for name, ranked_Pk in lists.items():
            values = query_metrics(ranked_Pk, np.concatenate(golds)).items()
            metrics.setdefault(name, {}).update({f"{metric}{suffix}": value_P[back_P] for metric, value_P in values})
    return metrics


def reranked(ranking: Ranking, top_k: int) -> npt.NDArray[np.int64]:
    """All candidates of a ranking, the first `top_k` in the pair classifier's order."""
    return np.concatenate([ranking.reranked(top_k), ranking.candidate_Qk[:, top_k:]], axis=1)


def _plain(number: float) -> float | None:
    """As JSON holds it, which has no NaN."""
    return None if math.isnan(number) else number
