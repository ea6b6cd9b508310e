"""The evaluation protocol, leak-free by construction: a query is a point's vectors, and the gold text is only a candidate.

For each point of a split, or of a very large one for some of them, the candidates are all counters and all points of the
split, without the point itself. They are ranked by the distance of their similarity embeddings (`embedding`); the pair
classifier then orders the top k by the probability that (point, candidate) is a pair (`rerank`); the calibration error is
that of these probabilities.

The same text can stand in a corpus under several ids. The strict figure accepts the point's own counter only, and ranks
copies as rivals of each other. The `_text` figure ranks distinct texts: a copy of the counter is the counter, and copies
of the point are the point.

Where the split's pairs are the answers of queries over a corpus, its queries are ranked once each, whatever the number of
their answers, and the candidates are the passages of the corpus. A passage with the text of the query is left out.

Q: queries, C: candidates, c: those whose texts this rank holds, k: top, D, H: dimensions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from biencoder.data import Split
from biencoder.data.codes import contains
from biencoder.data.ids import Ids, spread_over
from biencoder.distributed.world import World
from biencoder.evaluation.calibration import Calibration, fit_calibration
from biencoder.evaluation.metrics import JUDGED_DEPTH, Answers, calibration_error, judged_metrics, ranking_metrics
from biencoder.model.bi_encoder import PairClassifier, Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.hubness import MOST_TEXTS, NEIGHBOURS, Hubness, hubness_of
from biencoder.retrieval.reranking import pair_probability

_CHUNK_BYTES = 256 * 2**20


_EXAMPLES, _SHOWN = 5, 3


@dataclass(frozen=True, slots=True)
class Example:
    """A point, and what was retrieved for it among distinct texts. All are text ids."""

    point_text: int
    gold_text: int
    gold_rank: int | None
    """Of the own counter, or the nearest of several answers, from 1; None beyond the ranks that are kept."""
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
    calibration: Calibration | None
    """What would make probabilities of the residual pair classifier's log-odds, among distinct texts; None without one."""


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
    pair_Q = query_pairs(split, max_queries)
    metrics: dict[str, float] = {}
    examples: list[Example] = []
    calibration: Calibration | None = None
    k = max(JUDGED_DEPTH if split.judgements else 10, top_k)
    for suffix in ("", "_text"):
        candidates = Candidates.of(split, pair_Q, distinct=bool(suffix))
        query_text_Q = split.point_text_P[pair_Q]
        hubness = None
        if classifier is not None and classifier.residual:
            hubness = measure_hubness(query_text_Q, candidates.text_C, candidates.own_Q, embedded, world)
        ranking = rank_candidates(
            query_text_Q, candidates.text_C, candidates.own_Q, embedded, classifier, hubness, k=k, world=world
        )

        def measure(ranking: Ranking = ranking, candidates: Candidates = candidates) -> dict[str, float]:
            return _metrics(ranking, candidates, judged=split.judgements is not None, top_k=top_k if classifier else 0)

        metrics |= {f"{name}{suffix}": value for name, value in world.on_main(measure).items()}
        if suffix:
            examples = world.on_main(
                lambda ranking=ranking, candidates=candidates: example_retrievals(split, pair_Q, ranking, candidates)  # type: ignore[misc]
            )
            if hubness is not None:
                calibration = world.on_main(
                    lambda ranking=ranking, candidates=candidates, hubness=hubness: _calibration(
                        ranking, candidates, hubness, top_k
                    )  # type: ignore[misc]
                )
    num_candidates = len(split.candidate_text_C) - (split.judgements is None)
    return SplitResult(split.name, len(pair_Q), num_candidates, metrics, examples, calibration)


def query_pairs(split: Split, max_queries: int = 0) -> Ids:
    """A pair (Q,) of each query that is ranked: every pair, or, of queries over a corpus, the first pair of each query.

    Args:
        max_queries: take so many queries, evenly spread, where there are more; 0: all.
    """
    pair_Q = np.arange(len(split))
    if split.judgements:
        pair_Q = np.unique(split.judgements.query_P, return_index=True)[1]
    return pair_Q[spread_over(len(pair_Q), max_queries or len(pair_Q))]


class Candidates(NamedTuple):
    """What is ranked for the queries of a split, and what is right."""

    text_C: Ids
    own_Q: Ids
    """Position of the query itself, which is excluded; -1 where it is no candidate."""
    gold_Q: Ids
    """Position of the counter of the query's pair."""
    answers: Answers
    """All answers of each query; of a debate's point only its own counter."""

    @classmethod
    def of(cls, split: Split, pair_Q: Ids, *, distinct: bool) -> "Candidates":
        """
        Args:
            pair_Q: of each query, as `query_pairs` gives them.
            distinct: whether texts that are the same are one candidate.
        """
        text_C, judged = split.candidate_text_C, split.judgements
        distinct_N, first_N = np.unique(text_C, return_index=True)
        if distinct:
            text_C, place_P = distinct_N, np.searchsorted(distinct_N, split.counter_text_P)
        else:
            # Without a corpus candidate c < P is the counter of pair c, candidate P + p the point of pair p.
            place_P = judged.passage_P if judged else np.arange(len(split))
        if judged or distinct:
            point_text_Q = split.point_text_P[pair_Q]
            nth_Q = np.minimum(np.searchsorted(distinct_N, point_text_Q), len(distinct_N) - 1)
            own_Q = np.where(distinct_N[nth_Q] == point_text_Q, nth_Q if distinct else first_N[nth_Q], -1)
        else:
            own_Q = len(split) + pair_Q
        answer_A, query_A, grade_A = pair_Q, np.arange(len(pair_Q)), np.ones_like(pair_Q)
        if judged:
            ranked_Q = judged.query_P[pair_Q]
            answer_A = np.flatnonzero(contains(ranked_Q, judged.query_P))
            query_A, grade_A = np.searchsorted(ranked_Q, judged.query_P[answer_A]), judged.grade_P[answer_A]
        answers = Answers.of(query_A, place_P[answer_A], grade_A, len(text_C))
        return cls(text_C, own_Q, place_P[pair_Q], answers)


def _metrics(ranking: "Ranking", candidates: Candidates, *, judged: bool, top_k: int) -> dict[str, float]:
    """The figures of a ranking.

    Args:
        judged: whether queries may have several answers, with grades.
        top_k: candidates that are re-ranked; 0: there is no pair classifier.
    """
    if judged:
        found = {
            name: float(value_Q.mean())
            for name, value_Q in judged_metrics(ranking.candidate_Qk, candidates.answers).items()
        }
    else:
        found = ranking_metrics(ranking.candidate_Qk, candidates.gold_Q)
    metrics = {f"embedding/{name}": value for name, value in found.items()}
    if top_k:
        metrics["rerank/accuracy@1"] = float((candidates.answers.grades(ranking.reranked(top_k)[:, :1]) > 0).mean())
        metrics["rerank/calibration_error"] = calibration_error(*_judged(ranking, candidates, top_k))
    return metrics


def _judged(
    ranking: "Ranking", candidates: Candidates, top_k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The probabilities of all candidates that are re-ranked, and whether they are right."""
    candidate_Qk, probability_Qk = ranking.candidate_Qk[:, :top_k], ranking.probability_Qk[:, :top_k]
    right_Qk, there_Qk = candidates.answers.grades(candidate_Qk) > 0, candidate_Qk >= 0
    return probability_Qk[there_Qk], right_Qk[there_Qk]


def _calibration(ranking: "Ranking", candidates: Candidates, hubness: Hubness, top_k: int) -> Calibration | None:
    """The calibration for the candidates that are re-ranked."""
    candidate_Qk = ranking.candidate_Qk[:, :top_k]
    probability_Qk = np.where(candidate_Qk >= 0, ranking.probability_Qk[:, :top_k], np.nan)
    right_Qk = candidates.answers.grades(candidate_Qk) > 0
    return fit_calibration(probability_Qk, right_Qk, hubness.of_pairs(np.arange(len(candidate_Qk)), candidate_Qk))


def example_retrievals(split: Split, pair_Q: Ids, ranking: "Ranking", candidates: Candidates) -> list[Example]:
    """A few of the points that were queries, evenly spread, and their nearest texts.

    Args:
        ranking: of distinct texts.
    """
    examples = []
    grade_Qk = candidates.answers.grades(ranking.candidate_Qk)
    for query in spread_over(len(pair_Q), _EXAMPLES):
        pair, found_k = pair_Q[query], ranking.candidate_Qk[query]
        text_k = candidates.text_C[found_k[found_k >= 0]]
        is_gold = grade_Qk[query] > 0
        first = int(np.argmax(is_gold)) if is_gold.any() else None
        examples.append(
            Example(
                int(split.point_text_P[pair]),
                int(split.counter_text_P[pair] if first is None else text_k[first]),
                None if first is None else first + 1,
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
    hubness: Hubness | None = None,
    *,
    k: int,
    world: World,
) -> Ranking:
    """The k nearest candidates of each query. Every rank of `world` takes part and gets them.

    Each rank ranks the candidates that it holds, and merges the rankings of the queries that it holds.

    Args:
        candidate_text_C: text id of each candidate.
        excluded_Q: for each query a candidate that it may not get (itself); -1 for none.
        hubness: for a residual classifier.
    """
    k = min(k, len(candidate_text_C) - bool((excluded_Q >= 0).all()))
    held = HeldCandidates.of(candidate_text_C, embedded)
    order, merged = [], []
    pooled = classifier is not None and classifier.uses_pooled
    for block, queries, counts in embedded.blocks(query_text_Q, world, pooled=pooled):
        mine = nearest_candidates(queries, held, excluded_Q[block], k=k)
        if classifier is not None and len(held.position_c):
            place_qk = np.where(mine.candidate_Qk < 0, held.position_c[0], mine.candidate_Qk)
            row_qk = np.searchsorted(embedded.text_ids_N, candidate_text_C[place_qk])
            hubness_qk2 = hubness.of_pairs(block, place_qk) if hubness else None
            probability_qk = pair_probability(queries, embedded.candidate, row_qk, classifier, hubness_qk2)
            mine = mine._replace(probability_Qk=probability_qk)
        answers = [list(world.exchange(torch.from_numpy(part), counts).numpy()) for part in mine]
        own = join_rankings(answers, axis=1).nearest(k)
        nearest = Ranking(*(world.all_gather_rows(torch.from_numpy(part), counts).numpy() for part in own))
        squared_Qk = nearest.distance_Qk + queries.embedding.square().sum(1, keepdim=True).numpy()
        merged.append(nearest._replace(distance_Qk=np.sqrt(np.maximum(squared_Qk, 0))))
        order.append(block)
    back_Q = np.argsort(np.concatenate(order))
    return join_rankings([[np.concatenate(blocks)[back_Q]] for blocks in zip(*merged, strict=True)], axis=0)


def measure_hubness(query_text_Q: Ids, candidate_text_C: Ids, own_Q: Ids, embedded: EmbeddedTexts, world: World) -> Hubness:
    """The hubness of queries and candidates: see hubness.py. Every rank of `world`, the holders of the texts, takes part.

    0 for all where there are more than MOST_TEXTS texts, because each is a query here.
    """
    text_N, nth_C = np.unique(candidate_text_C, return_inverse=True)
    if not 1 < len(text_N) <= MOST_TEXTS:
        return Hubness(np.zeros(len(own_Q), dtype=np.float32), np.zeros(len(nth_C), dtype=np.float32))
    around = replace(embedded, query=embedded.candidate)
    of_texts = rank_candidates(text_N, text_N, np.arange(len(text_N)), around, None, k=NEIGHBOURS, world=world)
    of_queries = rank_candidates(query_text_Q, candidate_text_C, own_Q, embedded, None, k=NEIGHBOURS, world=world)
    return Hubness(hubness_of(of_queries.distance_Qk), hubness_of(of_texts.distance_Qk)[nth_C])


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
