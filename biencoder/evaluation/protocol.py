"""The evaluation protocol, leak-free by construction: a query is a point's vectors, and the gold text is only a candidate.

For each point of a split the candidates are all counters and all points of the split, without the point itself. They are
ranked by the distance of their similarity embeddings (`embedding`); the pair classifier then orders the top k by the
probability that (point, candidate) is a pair (`rerank`).

The same text can stand in a corpus under several ids. The strict figure accepts the point's own counter only, and ranks
copies as rivals of each other. The `_text` figure ranks distinct texts: a copy of the counter is the counter, and copies
of the point are the point.

Q: queries, C: candidates, k: top, D, H: dimensions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from biencoder.data import Split
from biencoder.embedding import EmbeddedTexts
from biencoder.evaluation.metrics import ranking_metrics
from biencoder.model import PairClassifier, Vectors

Ids = npt.NDArray[np.int64]
_CHUNK_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Figures of one split; metric names as in `metrics.jsonl` without their `eval/{split}/` prefix."""

    split: str
    num_queries: int
    num_candidates: int
    metrics: dict[str, float]


def evaluate_split(split: Split, embedded: EmbeddedTexts, classifier: PairClassifier | None, *, top_k: int) -> SplitResult:
    """Rank all candidates of a split for all its points. `classifier` None: no re-ranking (nothing is trained yet)."""
    queries = embedded.queries(split.point_text_P)
    P = len(split)
    metrics: dict[str, float] = {}
    listed = {
        # Candidate c < P is the counter of pair c, candidate P + p the point of pair p.
        "": (np.concatenate([split.counter_text_P, split.point_text_P]), np.arange(P), P + np.arange(P)),
        "_text": (
            split.text_ids,
            *(np.searchsorted(split.text_ids, t) for t in (split.counter_text_P, split.point_text_P)),
        ),
    }
    for suffix, (candidate_text_C, gold_Q, self_Q) in listed.items():
        ranked_Qk = nearest_candidates(queries, embedded, candidate_text_C, self_Q, k=max(10, top_k))
        found = ranking_metrics(ranked_Qk, gold_Q)
        metrics |= {f"embedding/{name}{suffix}": value for name, value in found.items()}
        if classifier is not None:
            best_Q = rerank(queries, embedded.candidates(candidate_text_C), ranked_Qk[:, :top_k], classifier)[:, 0]
            metrics[f"rerank/accuracy@1{suffix}"] = float((best_Q == gold_Q).mean())
    return SplitResult(split.name, P, 2 * P - 1, metrics)


def nearest_candidates(
    queries: Vectors, embedded: EmbeddedTexts, candidate_text_C: Ids, excluded_Q: Ids | None, *, k: int
) -> Ids:
    """Positions (Q, k) of the nearest candidates, nearest first; equal distances keep the order of the candidates.

    Args:
        candidate_text_C: text id of each candidate; distances are computed once per distinct text, so that copies tie.
        excluded_Q: for each query a candidate that it may not get (itself).
    """
    texts_N, column_C = np.unique(candidate_text_C, return_inverse=True)
    vectors_ND = embedded.candidates(texts_N).embedding
    column = torch.from_numpy(column_C)
    k = min(k, len(candidate_text_C) - (excluded_Q is not None))
    chunk = max(1, _CHUNK_BYTES // (4 * len(candidate_text_C)))
    ranked = []
    for start in range(0, len(queries.embedding), chunk):
        part_qD = queries.embedding[start : start + chunk]
        # |q - v|^2 = |q|^2 + |v|^2 - 2 q.v, and |q|^2 changes no order.
        distance_qN = torch.addmm(vectors_ND.square().sum(1), part_qD, vectors_ND.T, alpha=-2)
        distance_qC = distance_qN[:, column]
        if excluded_Q is not None:
            here = torch.from_numpy(excluded_Q[start : start + chunk])
            distance_qC[torch.arange(len(part_qD)), here] = torch.inf
        ranked.append(_smallest(distance_qC, k))
    return torch.cat(ranked).numpy()


def _smallest(values_qC: torch.Tensor, k: int) -> torch.Tensor:
    """Positions (q, k) of the k smallest values, ascending, equal ones in the order of their positions."""
    wide = min(values_qC.shape[1], k + 32)
    values, positions = values_qC.topk(wide, dim=1, largest=False)
    by_position = positions.argsort(dim=1)
    values, positions = values.gather(1, by_position), positions.gather(1, by_position)
    order = values.argsort(dim=1, stable=True)
    smallest = positions.gather(1, order)[:, :k]
    values = values.gather(1, order)
    cut_in_a_tie = (values[:, k - 1] == values[:, -1]) & (wide < values_qC.shape[1])
    smallest[cut_in_a_tie] = values_qC[cut_in_a_tie].argsort(dim=1, stable=True)[:, :k]
    return smallest


@torch.no_grad()
def rerank(queries: Vectors, candidates: Vectors, ranked_Qk: Ids, classifier: PairClassifier) -> Ids:
    """The same candidates ordered by the classifier's probability that (query, candidate) is a pair, highest first."""
    probability_Qk = pair_probability(queries, candidates, ranked_Qk, classifier)
    order_Qk = np.argsort(-probability_Qk, axis=1, kind="stable")
    return np.take_along_axis(ranked_Qk, order_Qk, axis=1)


@torch.no_grad()
def pair_probability(
    queries: Vectors, candidates: Vectors, ranked_Qk: Ids, classifier: PairClassifier
) -> npt.NDArray[np.float32]:
    """Probability (Q, k) that candidate ranked_Qk[q, i] answers query q."""
    probabilities = []
    for ranked_k, embedding_D, pooled_H in zip(ranked_Qk, queries.embedding, queries.pooled, strict=True):
        v = candidates.rows(torch.from_numpy(ranked_k))
        u = Vectors(embedding_D.expand_as(v.embedding), pooled_H.expand_as(v.pooled))
        probabilities.append(classifier(u, v).softmax(dim=-1)[:, 1])
    return torch.stack(probabilities).numpy()
