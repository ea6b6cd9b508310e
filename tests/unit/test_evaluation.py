"""The evaluation protocol on vectors made by hand, so that every rank is known beforehand."""

import tracemalloc

import ir_measures
import numpy as np
import numpy.typing as npt
import pytest
import torch
from ir_measures import RR, Success, nDCG

from biencoder.config.schema import ModelConfig
from biencoder.data import Split
from biencoder.distributed.world import World
from biencoder.evaluation import evaluate_split, protocol
from biencoder.evaluation.metrics import calibration_error, query_metrics, ranking_metrics
from biencoder.evaluation.protocol import HeldCandidates, nearest_candidates
from biencoder.model.bi_encoder import PairClassifier, Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.reranking import pair_probability


def make_split(points: list[int], counters: list[int]) -> Split:
    return Split("test", (None,) * len(points), np.array(points), np.array(counters))  # type: ignore[arg-type]


def embed(values: npt.ArrayLike) -> EmbeddedTexts:
    rows = torch.tensor(np.asarray(values, dtype=np.float32).reshape(len(np.asarray(values)), -1))
    vectors = Vectors(rows, rows)
    return EmbeddedTexts.whole(np.arange(len(rows)), vectors, vectors)


class Likeness(PairClassifier):
    """A pair is the likelier the nearer its vectors: what an untrained reader would see."""

    def __init__(self) -> None:
        super().__init__(ModelConfig(), embedding_dim=1, hidden=1)

    def forward(self, u: Vectors, v: Vectors, hubness: torch.Tensor | None = None) -> torch.Tensor:
        likeness = -(u.embedding - v.embedding).norm(dim=-1)
        return torch.stack([torch.zeros_like(likeness), likeness], dim=-1)


def test_metrics_of_known_ranks() -> None:
    ranked = np.array([[7, 1, 2], [1, 7, 2], [1, 2, 7], [1, 2, 3]])
    metrics = ranking_metrics(ranked, np.array([7, 7, 7, 7]))
    assert metrics["accuracy@1"] == 0.25
    assert metrics["accuracy@5"] == metrics["accuracy@10"] == 0.75
    assert metrics["mrr@10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / np.log2(3) + 1 / 2) / 4)


@pytest.mark.parametrize("k", [3, 10, 40])
def test_metrics_of_each_query_are_those_of_ir_measures(k: int) -> None:
    rng = np.random.default_rng(k)
    ranked_Qk = np.stack([rng.permutation(60)[:k] for _ in range(200)])
    ranked_Qk[:20, k // 2 :] = -1  # fewer candidates than places
    gold_Q = rng.integers(0, 60, 200)
    qrels = [ir_measures.Qrel(str(query), str(gold), 1) for query, gold in enumerate(gold_Q)]
    run = [
        ir_measures.ScoredDoc(str(query), str(text), -float(rank))
        for query, ranked in enumerate(ranked_Qk)
        for rank, text in enumerate(ranked)
        if text >= 0
    ]
    measures = {"accuracy@1": Success @ 1, "accuracy@5": Success @ 5, "accuracy@10": Success @ 10}
    measures |= {"mrr@10": RR @ 10, "ndcg@10": nDCG @ 10}
    found = query_metrics(ranked_Qk, gold_Q)
    assert set(found) == set(measures)
    for name, measure in measures.items():
        expected = {int(row.query_id): row.value for row in ir_measures.iter_calc([measure], qrels, run)}
        assert found[name].tolist() == [expected.get(query, 0.0) for query in range(200)], name


def test_metrics_make_no_object_for_each_entry_of_the_lists() -> None:
    ranked_Qk = np.tile(np.arange(1000), (200, 1))
    ranking_metrics(ranked_Qk[:1], np.zeros(1, dtype=np.int64))
    tracemalloc.start()
    try:
        ranking_metrics(ranked_Qk, np.arange(200))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < ranked_Qk.nbytes / 4


def test_calibration_error_by_hand() -> None:
    # Of ten at 0.9 nine are right: calibrated. Of ten at 0.3, in another bin, eight are: off by 0.5, in half of all.
    probability = np.repeat(np.array([0.9, 0.3], dtype=np.float32), 10)
    right = np.array([True] * 9 + [False] + [True] * 8 + [False] * 2)
    assert calibration_error(probability[:10], right[:10]) == pytest.approx(0, abs=1e-6)
    assert calibration_error(probability, right) == pytest.approx(0.25)
    assert (
        calibration_error(np.ones(2, dtype=np.float32), np.array([False, False])) == 1.0
    )  # the last bin has its upper edge


def test_the_point_itself_is_no_candidate_but_other_points_are() -> None:
    # Texts on a line: points 0 and 1 are each other's nearest, counters 2 and 3 lie farther off.
    result = evaluate_split(make_split([0, 1], [2, 3]), embed([0.0, 1.0, 2.5, -4.0]), None, top_k=10, world=World.alone())
    assert result.num_candidates == 3
    assert result.metrics["embedding/accuracy@1"] == 0.0
    assert result.metrics["embedding/mrr@10"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert "rerank/accuracy@1" not in result.metrics


def test_the_reranker_sees_the_query_and_not_the_gold_text() -> None:
    """With `Likeness` a reader of the gold text instead of the query would put the gold first every time.

    Each point has a distractor nearer than its counter, so a scorer that sees the point must be wrong on all of them,
    while one that is handed the counter's vector finds distance 0 and is right on all of them.
    """
    points, counters, distractors = np.arange(0, 60, 10), np.arange(0, 60, 10) + 3.0, np.arange(0, 60, 10) - 1.0
    values = np.concatenate([points, counters, distractors, distractors + 0.1])
    split = make_split([*range(6), *range(12, 18)], [*range(6, 12), *range(18, 24)])
    # Pairs 6..11 are (distractor, near copy of it): their counters are nearest, so they are right under both.
    result = evaluate_split(split, embed(values), Likeness(), top_k=10, world=World.alone())
    assert result.metrics["rerank/accuracy@1"] == 0.5
    assert 0 < result.metrics["rerank/calibration_error"] < 0.5
    assert result.metrics["embedding/accuracy@1"] == 0.5


def test_reranking_reorders_only_the_top() -> None:
    class Far(Likeness):
        def forward(self, u: Vectors, v: Vectors, hubness: torch.Tensor | None = None) -> torch.Tensor:
            return -super().forward(u, v)

    # From point 0 the others stand at 1, 2 (its counter), 3; Far prefers what is farthest within the top k.
    split, embedded = make_split([0, 1], [2, 3]), embed([0.0, 1.0, 2.0, 3.0])
    assert evaluate_split(split, embedded, Far(), top_k=2, world=World.alone()).metrics["rerank/accuracy@1"] == 0.5
    assert evaluate_split(split, embedded, Far(), top_k=3, world=World.alone()).metrics["rerank/accuracy@1"] == 0.5
    assert evaluate_split(split, embedded, Far(), top_k=1, world=World.alone()).metrics["rerank/accuracy@1"] == 0.0


def test_identical_texts_are_rivals_in_the_strict_figure_and_one_in_the_other() -> None:
    # Pairs 0 and 1 are the same two texts under two themes; pair 2 has a text to itself.
    split = make_split([0, 0, 3], [1, 1, 2])
    result = evaluate_split(split, embed([0.0, 1.0, 9.0, 10.0]), None, top_k=10, world=World.alone())
    # Strict: the copy of the point comes first for pairs 0 and 1; as one text, counter 1 comes first.
    assert result.metrics["embedding/accuracy@1"] == pytest.approx(1 / 3)
    assert result.metrics["embedding/accuracy@1_text"] == 1.0


@pytest.mark.parametrize("count", [3, 99], ids=["all of them are ranked", "the ranking ends among them"])
def test_ties_keep_the_order_of_the_candidates_however_many(count: int) -> None:
    farther = [2.0 + number for number in range(99 - count)]
    embedded = embed([0.0, *[1.0] * count, *farther])
    held = HeldCandidates.of(np.arange(100), embedded)
    ranking = nearest_candidates(embedded.query.rows(torch.tensor([0])), held, np.array([0]), k=10)
    assert ranking.candidate_Qk.tolist() == [list(range(1, 11))]


def test_ranking_equals_a_plain_sort() -> None:
    rng = np.random.default_rng(0)
    embedded = embed(rng.standard_normal((200, 8)))
    queries = embedded.query.rows(torch.arange(50))
    ranking = nearest_candidates(queries, HeldCandidates.of(np.arange(200), embedded), np.arange(50), k=10)
    exact = torch.cdist(queries.embedding.double(), embedded.candidate.embedding.double())
    exact[torch.arange(50), torch.arange(50)] = torch.inf
    assert ranking.candidate_Qk.tolist() == exact.argsort(dim=1)[:, :10].tolist()


def test_of_many_points_some_are_queries_and_all_texts_candidates() -> None:
    rng = np.random.default_rng(3)
    points = rng.standard_normal((30, 4))
    embedded = embed(np.concatenate([points, points + 0.9 * rng.standard_normal((30, 4))]))
    split = make_split(list(range(30)), list(range(30, 60)))
    result = evaluate_split(split, embedded, None, top_k=10, world=World.alone(), max_queries=7)
    vectors = embedded.query.embedding.double()
    distance = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf)
    asked = [0, 4, 9, 14, 19, 24, 29]
    hits = [int(distance[i].argmin()) == i + 30 for i in asked]
    assert (result.num_queries, result.num_candidates) == (7, 59)
    assert result.metrics["embedding/accuracy@1"] == pytest.approx(sum(hits) / 7)
    assert 0 < sum(hits) < 7
    assert {example.point_text for example in result.examples} <= set(asked)


def test_examples_show_the_point_its_gold_and_what_was_retrieved() -> None:
    # Texts on a line: the nearest to point 0 is point 1, then its counter 2; counter 3 of point 1 comes third.
    split = make_split([0, 1], [2, 3])
    result = evaluate_split(split, embed([0.0, 1.0, 2.5, -4.0]), Likeness(), top_k=10, world=World.alone())
    first, second = result.examples
    assert (first.point_text, first.gold_text, first.gold_rank) == (0, 2, 2)
    assert [text for text, _, _ in first.retrieved] == [1, 2, 3]
    assert [distance for _, distance, _ in first.retrieved] == pytest.approx([1, 2.5, 4])
    assert [p for _, _, p in first.retrieved] == pytest.approx([1 / (1 + np.exp(d)) for d in (1, 2.5, 4)], rel=1e-5)
    assert (second.gold_text, second.gold_rank) == (3, 3)


@pytest.mark.parametrize("features", ["both", "embedding", "pooled"])
def test_pairs_are_judged_in_chunks_as_they_are_one_by_one(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, candidates = (
        Vectors(torch.randn(n, 8, generator=generator), torch.randn(n, 6, generator=generator)) for n in (23, 40)
    )
    config = ModelConfig(classifier_features=features, classifier_norm=True)  # type: ignore[arg-type]
    classifier = PairClassifier(config, embedding_dim=8, hidden=6)
    ranked_Qk = torch.randint(40, (23, 5), generator=generator).numpy()
    one_by_one = [
        [
            classifier(queries.rows(torch.tensor([query])), candidates.rows(torch.tensor([row])))
            .softmax(dim=-1)[0, 1]
            .item()
            for row in ranked_k
        ]
        for query, ranked_k in enumerate(ranked_Qk.tolist())
    ]
    whole = pair_probability(queries, candidates, ranked_Qk, classifier)
    monkeypatch.setattr(protocol, "_CHUNK_BYTES", 12_000)  # five queries at once, and three in the last chunk
    in_chunks = pair_probability(queries, candidates, ranked_Qk, classifier)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, one_by_one, rtol=0, atol=1e-6)
    np.testing.assert_allclose(in_chunks, one_by_one, rtol=0, atol=1e-6)
