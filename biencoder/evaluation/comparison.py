"""Compares models and baselines on the same tasks: each ranks the same pools of candidates, with the same metrics.

    comparison = Comparison.of(dataset, split, tasks, systems, top_k=10, kept_P=np.full(len(split), True))

A system with a pair classifier has a second row, with the top k re-ranked by the classifier.

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
from biencoder.evaluation.protocol import Ranking, join_rankings
from biencoder.evaluation.rankers import Ranker
from biencoder.evaluation.tasks import Task, pools

_DEPTH = 10


@dataclass(frozen=True, slots=True)
class System:
    """A model or a baseline to compare."""

    name: str
    about: str
    build: Callable[[], Ranker]
    """Makes the ranker; embedding, which takes long, happens here."""


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one system."""

    name: str
    about: str
    figures: dict[str, dict[str, Figure]]
    """Task → metric → figure. Metrics have the names of `EVAL` in tracking/names.py: accuracy@1, ..., ndcg@10_text."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The figures of several systems on several tasks of one split."""

    split: str
    num_queries: int
    tasks: list[Task]
    mean_candidates: dict[str, float]
    """Task → mean number of candidates of a query."""
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
        """Measure all systems on all tasks.

        Args:
            top_k: candidates that a pair classifier re-ranks.
            kept_P: the queries whose metrics count.
        """
        num_texts = len(dataset.texts)
        (group_P,) = debate_groups([split], np.arange(num_texts))
        rows = []
        for system in systems:
            ranker = system.build()
            by_ranking: dict[str, dict[str, dict[str, Figure]]] = {}
            for task in tasks:
                for ranking, metrics in measure(ranker, task, split, num_texts, top_k=top_k).items():
                    kept_metrics = {name: metric_P[kept_P] for name, metric_P in metrics.items()}
                    by_ranking.setdefault(ranking, {})[task.name] = figures(kept_metrics, group_P[kept_P])
            rows.append(Row(system.name, system.about, by_ranking["embedding"]))
            if "rerank" in by_ranking:
                about = f"{system.about}; the best {top_k} re-ranked by its pair classifier"
                rows.append(Row(f"{system.name}, re-ranked", about, by_ranking["rerank"]))
        sizes = {
            task.name: np.concatenate(
                [pool.num_candidates_Q[kept_P[pool.pair_Q]] for pool in pools(task, split, num_texts)]
            )
            for task in tasks
        }
        mean_candidates = {name: float(size_P.mean()) for name, size_P in sizes.items()}
        return cls(split.name, int(kept_P.sum()), list(tasks), mean_candidates, rows)

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain values; a figure is [value, low, high] in 0..1."""
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
                        task: {name: [_plain(number) for number in (f.value, f.low, f.high)] for name, f in of_task.items()}
                        for task, of_task in row.figures.items()
                    },
                }
                for row in self.rows
            ],
        }


def measure(
    ranker: Ranker, task: Task, split: Split, num_texts: int, *, top_k: int
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Each metric of each query (P,), strict and on distinct texts (`_text`), for the rankings `embedding` and `rerank`.

    `rerank` is missing if the ranker has no pair classifier.
    """
    k = max(_DEPTH, top_k)
    metrics: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    for suffix in ("", "_text"):
        rankings, golds, pairs = [], [], []
        for pool in pools(task, split, num_texts):
            listing = pool.distinct(split) if suffix else pool
            query_text_Q = split.point_text_P[pool.pair_Q]
            rankings.append(ranker.rank(query_text_Q, listing.candidate_text_C, listing.own_Q, k=k))
            golds.append(listing.gold_Q)
            pairs.append(pool.pair_Q)
        ranking = join_rankings(zip(*rankings, strict=True), axis=0)
        lists = {"embedding": ranking.candidate_Qk}
        if not np.isnan(ranking.probability_Qk).all():
            lists["rerank"] = reranked(ranking, top_k)
        back_P = np.argsort(np.concatenate(pairs))
        for name, ranked_Pk in lists.items():
            values = query_metrics(ranked_Pk, np.concatenate(golds)).items()
            metrics.setdefault(name, {}).update({f"{metric}{suffix}": value_P[back_P] for metric, value_P in values})
    return metrics


def reranked(ranking: Ranking, top_k: int) -> npt.NDArray[np.int64]:
    """All candidates of a ranking, the first `top_k` reordered by the pair classifier."""
    return np.concatenate([ranking.reranked(top_k), ranking.candidate_Qk[:, top_k:]], axis=1)


def _plain(number: float) -> float | None:
    """The number for JSON, which has no NaN."""
    return None if math.isnan(number) else number
