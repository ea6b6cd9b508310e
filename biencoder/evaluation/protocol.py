"""The evaluation protocol, leak-free by construction: a query is a point's vectors, and the gold text is only a candidate.

For each point of a split, or of a very large one for some of them, the candidates are all counters and all points of the
split, without the point itself. They are ranked by the distance of their similarity embeddings (`embedding`); the pair
classifier then orders the top k by the probability that (point, candidate) is a pair (`rerank`); the calibration error is
that of these probabilities.

The same text can stand in a corpus under several ids. The strict figure accepts the point's own counter only, and ranks
copies as rivals of each other. The `_text` figure ranks distinct texts: a copy of the counter is the counter, and copies
of the point are the point.

Q: queries, C: candidates, c: those whose texts this rank holds, k: top, D, H: dimensions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from biencoder.data import Split
from biencoder.data.codes import contains
from biencoder.data.ids import Ids
from biencoder.distributed.world import World
from biencoder.evaluation.metrics import calibration_error, ranking_metrics
from biencoder.model.bi_encoder import PairClassifier, Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.reranking import pair_probability

_CHUNK_BYTES = 256 * 2**20


_EXAMPLES, _SHOWN = 5, 3


@dataclass(frozen=True, slots=True)
class Example:
    """A point, and what was retrieved for it among distinct texts. All are text ids."""

    point_text: int
    gold_text: int
    gold_rank: int | None
    """Of the own counter, from 1; None beyond the ranks that are kept."""
    retrieved: list[tuple[int, float, float]]
    """Text, Euclidean distance of the embeddings, the pair classifier's probability (NaN without one); nearest first."""


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Figures of one split; metric names as in `metrics.jsonl` without their `eval/{split}/` prefix."""

    split: str
    num_queries: int
    num_candidates: int
    metrics: dict[str, float]
    examples: list[Example]
    """The same few points at every evaluation."""


def evaluate_split(
    split: Split,
    embedded: EmbeddedTexts,
    classifier: PairClassifier | None,
    *,
    top_k: int,
    world: World,
    max_queries: int = 0,
) -> SplitResult:
    """Rank all candidates of a split for its points. Every rank of `world`, the holders of `embedded`, takes part.

    Args:
        classifier: None for no re-ranking (nothing is trained yet).
        max_queries: take so many points as queries, evenly spread, where there are more; 0: all.
    """
    P = len(split)
    sample_Q = spread_over(P, max_queries or P)
    metrics: dict[str, float] = {}
    examples: list[Example] = []
    listed = {
        # Candidate c < P is the counter of pair c, candidate P + p the point of pair p.
        "": (np.concatenate([split.counter_text_P, split.point_text_P]), sample_Q, P + sample_Q),
        "_text": (
            split.text_ids,
            *(np.searchsorted(split.text_ids, ids_P[sample_Q]) for ids_P in (split.counter_text_P, split.point_text_P)),
        ),
    }
    for suffix, (candidate_text_C, gold_Q, self_Q) in listed.items():
        ranking = rank_candidates(
            split.point_text_P[sample_Q], candidate_text_C, self_Q, embedded, classifier, k=max(10, top_k), world=world
        )

        def measure(ranking: Ranking = ranking, gold_Q: Ids = gold_Q, suffix: str = suffix) -> dict[str, float]:
            found = ranking_metrics(ranking.candidate_Qk, gold_Q)
            metrics = {f"embedding/{name}{suffix}": value for name, value in found.items()}
            if classifier is not None:
                metrics[f"rerank/accuracy@1{suffix}"] = float((ranking.reranked(top_k)[:, 0] == gold_Q).mean())
                candidate_Qk, probability_Qk = ranking.candidate_Qk[:, :top_k], ranking.probability_Qk[:, :top_k]
                right_Qk, there_Qk = candidate_Qk == gold_Q[:, None], candidate_Qk >= 0
                error = calibration_error(probability_Qk[there_Qk], right_Qk[there_Qk])
                metrics[f"rerank/calibration_error{suffix}"] = error
            return metrics

        metrics |= world.on_main(measure)
        if suffix == "_text":
            examples = world.on_main(lambda ranking=ranking: example_retrievals(split, sample_Q, ranking))  # type: ignore[misc]
    return SplitResult(split.name, len(sample_Q), 2 * P - 1, metrics, examples)


def spread_over(size: int, count: int) -> Ids:
    """So many positions of a list, or all of a shorter one, evenly spread."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).astype(np.int64))


def example_retrievals(split: Split, sample_Q: Ids, ranking: "Ranking") -> list[Example]:
    """A few of the points that were queries, evenly spread, and their nearest texts.

    Args:
        ranking: for these samples, of the split's distinct texts.
    """
    examples, text_ids = [], split.text_ids
    for query in spread_over(len(sample_Q), _EXAMPLES):
        sample, found_k = sample_Q[query], ranking.candidate_Qk[query]
        text_k = text_ids[found_k[found_k >= 0]]
        is_gold = text_k == split.counter_text_P[sample]
        examples.append(
            Example(
                int(split.point_text_P[sample]),
                int(split.counter_text_P[sample]),
                int(np.argmax(is_gold)) + 1 if is_gold.any() else None,
                [
                    (int(text), float(distance), float(probability))
                    for text, distance, probability in zip(
                        text_k[:_SHOWN], ranking.distance_Qk[query], ranking.probability_Qk[query], strict=False
                    )
                ],
            )
        )
    return examples


class Ranking(NamedTuple):
    """The nearest candidates of each query, nearest first; equal distances keep the order of the candidates."""

    candidate_Qk: Ids
    """Positions in the list of candidates; -1 beyond the last candidate."""
    distance_Qk: npt.NDArray[np.float32]
    """Euclidean distance of the embeddings; inf beyond the last."""
    probability_Qk: npt.NDArray[np.float32]
    """The pair classifier's probability that the candidate answers the query; NaN without a classifier."""

    def reranked(self, top_k: int) -> Ids:
        """The first `top_k` candidates (Q, top_k), ordered by probability, the highest first."""
        order_Qk = np.argsort(-self.probability_Qk[:, :top_k], axis=1, kind="stable")
        return np.take_along_axis(self.candidate_Qk[:, :top_k], order_Qk, axis=1)

    def nearest(self, k: int) -> "Ranking":
        """The k nearest candidates, where the columns are those of several rankings side by side."""
        order_Qk = np.lexsort((self.candidate_Qk, self.distance_Qk), axis=1)[:, :k]
        return join_rankings([[np.take_along_axis(part, order_Qk, axis=1)] for part in self], axis=0)


def join_rankings(parts: Iterable[Sequence[npt.NDArray[Any]]], *, axis: int) -> Ranking:
    """Concatenate rankings, given as all their candidates, all their distances and all their probabilities."""
    candidate, distance, probability = (np.concatenate(arrays, axis=axis) for arrays in parts)
    return Ranking(candidate, distance, probability)


def rank_candidates(
    query_text_Q: Ids,
    candidate_text_C: Ids,
    excluded_Q: Ids,
    embedded: EmbeddedTexts,
    classifier: PairClassifier | None,
    *,
    k: int,
    world: World,
) -> Ranking:
    """The k nearest candidates of each query, on rank 0 of `world` (empty on other ranks). All its ranks take part.

    Each rank ranks the candidates that it holds, and rank 0 merges the rankings.

    Args:
        candidate_text_C: text id of each candidate.
        excluded_Q: for each query a candidate that it may not get (itself).
    """
    k = min(k, len(candidate_text_C) - 1)
    held = HeldCandidates.of(candidate_text_C, embedded)
    order, merged = [], []
    for block, queries in embedded.blocks(query_text_Q, world, pooled=classifier is not None):
        mine = nearest_candidates(queries, held, excluded_Q[block], k=k)
        if classifier is not None and len(held.position_c):
            text_qk = candidate_text_C[np.where(mine.candidate_Qk < 0, held.position_c[0], mine.candidate_Qk)]
            row_qk = np.searchsorted(embedded.text_ids_N, text_qk)
            mine = mine._replace(probability_Qk=pair_probability(queries, embedded.candidate, row_qk, classifier))
        gathered = [world.gather(torch.from_numpy(part)) for part in mine]
        if world.is_main:
            order.append(block)
            nearest = join_rankings([[part.numpy() for part in parts or []] for parts in gathered], axis=1).nearest(k)
            squared_Qk = nearest.distance_Qk + queries.embedding.square().sum(1, keepdim=True).numpy()
            merged.append(nearest._replace(distance_Qk=np.sqrt(np.maximum(squared_Qk, 0))))
    if not world.is_main:
        return empty_ranking(0, k)
    back_Q = np.argsort(np.concatenate(order))
    return join_rankings([[np.concatenate(blocks)[back_Q]] for blocks in zip(*merged, strict=True)], axis=0)


def empty_ranking(num_queries: int, k: int) -> Ranking:
    """A ranking (Q, k) without candidates, to be filled in."""
    shape = (num_queries, k)
    return Ranking(np.full(shape, -1), np.full(shape, np.inf, np.float32), np.full(shape, np.nan, np.float32))


class HeldCandidates(NamedTuple):
    """The candidates whose texts this rank holds; made once for all blocks of queries."""

    position_c: Ids
    """Positions in the list of candidates, ascending."""
    column_c: torch.Tensor
    """The distinct text of each candidate. Distances are computed once for each distinct text, so that copies tie."""
    vectors_ND: torch.Tensor
    norm_N: torch.Tensor
    """Squared norms."""

    @classmethod
    def of(cls, candidate_text_C: Ids, embedded: EmbeddedTexts) -> "HeldCandidates":
        here_c = np.flatnonzero(contains(embedded.text_ids_N, candidate_text_C))
        texts_N, column_c = np.unique(candidate_text_C[here_c], return_inverse=True)
        vectors_ND = embedded.candidate.embedding[torch.from_numpy(np.searchsorted(embedded.text_ids_N, texts_N))]
        return cls(here_c, torch.from_numpy(column_c), vectors_ND, vectors_ND.square().sum(1))


def nearest_candidates(queries: Vectors, held: HeldCandidates, excluded_Q: Ids | None, *, k: int) -> Ranking:
    """The nearest candidates among those that this rank holds, for a block of queries, without probabilities.

    The distances are squared distances minus the query's squared norm, which does not change the order.
    """
    Q, here_c = len(queries.embedding), held.position_c
    ranking = empty_ranking(Q, k)
    if not len(here_c):
        return ranking
    depth = min(k, len(here_c))
    chunk = max(1, _CHUNK_BYTES // (4 * len(here_c)))
    for start in range(0, Q, chunk):
        part_qD = queries.embedding[start : start + chunk]
        # |q - v|^2 = |q|^2 + |v|^2 - 2 q.v, and |q|^2 does not change the order.
        distance_qN = torch.addmm(held.norm_N, part_qD, held.vectors_ND.T, alpha=-2)
        distance_qc = distance_qN[:, held.column_c]
        if excluded_Q is not None:
            own_q = np.searchsorted(here_c, excluded_Q[start : start + chunk])
            is_here = (own_q < len(here_c)) & (
                here_c[np.minimum(own_q, len(here_c) - 1)] == excluded_Q[start : start + chunk]
            )
            distance_qc[torch.from_numpy(np.flatnonzero(is_here)), torch.from_numpy(own_q[is_here])] = torch.inf
        nearest_qk = smallest(distance_qc, depth)
        ranking.distance_Qk[start : start + chunk, :depth] = distance_qc.gather(1, nearest_qk).numpy()
        ranking.candidate_Qk[start : start + chunk, :depth] = here_c[nearest_qk.numpy()]
    ranking.candidate_Qk[np.isinf(ranking.distance_Qk)] = -1
    return ranking


def smallest(values_qC: torch.Tensor, k: int) -> torch.Tensor:
    """Positions (q, k) of the k smallest values, ascending; equal values are in the order of their positions."""
    wide = min(values_qC.shape[1], k + 32)
    values, positions = values_qC.topk(wide, dim=1, largest=False)
    by_position = positions.argsort(dim=1)
    values, positions = values.gather(1, by_position), positions.gather(1, by_position)
    order = values.argsort(dim=1, stable=True)
    first_qk = positions.gather(1, order)[:, :k]
    values = values.gather(1, order)
    cut_in_a_tie = (values[:, k - 1] == values[:, -1]) & (wide < values_qC.shape[1])
    first_qk[cut_in_a_tie] = values_qC[cut_in_a_tie].argsort(dim=1, stable=True)[:, :k]
    return first_qk
