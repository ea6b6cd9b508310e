"""The comparison's own arithmetic: it agrees with training's evaluation, its intervals, and who is measured on what."""

import numpy as np
import pytest
import torch

from biencoder.config.schema import ModelConfig
from biencoder.data import Dataset, load_dataset
from biencoder.distributed.world import World
from biencoder.evaluation import evaluate_split
from biencoder.evaluation.comparison import Comparison, System, measure
from biencoder.evaluation.intervals import figures
from biencoder.evaluation.rankers import EmbeddingRanker
from biencoder.evaluation.tasks import TASKS
from biencoder.model.bi_encoder import PairClassifier, Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from tests.conftest import WriteCorpus


def corpus_with_copies(write_corpus: WriteCorpus) -> Dataset:
    """60 pairs in 12 debates of 3 themes; every tenth debate's texts are those of the one before."""
    rng = np.random.default_rng(0)
    arguments = {
        ("validation", f"theme-{debate % 3}", f"debate-{debate}", ("pro", "con")[number % 2], number, kind): (
            f"{kind} {rng.integers(20) if kind == 'point' else number + 5 * debate}"
        )
        for debate in range(12)
        for number in range(5)
        for kind in ("point", "counter")
    }
    return load_dataset(str(write_corpus(arguments)), clean=True, needs_training=False)


def ranker_of(dataset: Dataset, *, classifier: bool) -> EmbeddingRanker:
    """Random vectors, with each counter's near that of a point it answers."""
    generator, split = torch.Generator().manual_seed(0), dataset.splits["validation"]
    size = len(dataset.texts)
    embedding, pooled = torch.randn(size, 8, generator=generator), torch.randn(size, 4, generator=generator)
    embedding[split.counter_text_P] = 0.6 * embedding[split.counter_text_P] + embedding[split.point_text_P]
    vectors = Vectors(embedding, pooled)
    torch.manual_seed(0)
    judge = PairClassifier(ModelConfig(), embedding_dim=8, hidden=4) if classifier else None
    return EmbeddingRanker(EmbeddedTexts.whole(np.arange(size), vectors, vectors), judge)


@pytest.mark.parametrize("top_k", [3, 10, 25])
def test_epa_is_what_training_measures(write_corpus: WriteCorpus, top_k: int) -> None:
    dataset = corpus_with_copies(write_corpus)
    split = dataset.splits["validation"]
    ranker = ranker_of(dataset, classifier=True)
    training = evaluate_split(split, ranker.embedded, ranker.classifier, top_k=top_k, world=World.alone())
    assert 0 < training.metrics["embedding/accuracy@1"] < training.metrics["embedding/accuracy@1_text"] < 1
    here = measure(ranker, TASKS["epa"], split, len(dataset.texts), top_k=top_k)
    for name, value in training.metrics.items():
        ranking, metric = name.split("/")
        if metric.startswith("calibration_error"):
            continue  # of probabilities, and no figure of a query
        assert here[ranking][metric].mean() == value, name
    system = System("model", "", lambda: ranker)
    whole = Comparison.of(dataset, split, [TASKS["epa"]], [system], top_k=top_k, kept_P=np.full(len(split), True))
    assert whole.mean_candidates["epa"] == training.num_candidates
    assert [row.name for row in whole.rows] == ["model", "model, re-ranked"]


def test_reranking_reaches_no_farther_than_the_top_k(write_corpus: WriteCorpus) -> None:
    dataset = corpus_with_copies(write_corpus)
    split = dataset.splits["validation"]
    ranker = ranker_of(dataset, classifier=True)
    found = measure(ranker, TASKS["epc"], split, len(dataset.texts), top_k=5)
    for name in ("accuracy@5", "accuracy@10", "accuracy@10_text"):
        assert found["rerank"][name].tolist() == found["embedding"][name].tolist()
    assert found["rerank"]["mrr@10"].tolist() != found["embedding"]["mrr@10"].tolist()
    assert set(measure(ranker_of(dataset, classifier=False), TASKS["epc"], split, 80, top_k=5)) == {"embedding"}


def test_only_kept_queries_count_and_candidates_stay(write_corpus: WriteCorpus) -> None:
    dataset = corpus_with_copies(write_corpus)
    split = dataset.splits["validation"]
    ranker = ranker_of(dataset, classifier=False)
    kept_P = np.arange(len(split)) % 3 == 0
    system = System("model", "about it", lambda: ranker)
    part = Comparison.of(dataset, split, list(TASKS.values()), [system], top_k=10, kept_P=kept_P)
    assert part.num_queries == 20
    for task in TASKS.values():
        every = measure(ranker, task, split, len(dataset.texts), top_k=10)["embedding"]["mrr@10"]
        assert part.rows[0].figures[task.name]["mrr@10"].value == pytest.approx(every[kept_P].mean())
    assert part.mean_candidates["epa"] == 2 * len(split) - 1
    told = part.as_json()
    assert told["rows"][0]["figures"]["epa"]["mrr@10"][0] == part.rows[0].figures["epa"]["mrr@10"].value
    assert told["tasks"]["sdoc"]["mean_candidates"] == part.mean_candidates["sdoc"]


def test_intervals_are_those_of_the_mean_of_groups() -> None:
    rng = np.random.default_rng(0)
    group_Q, single_Q = np.repeat(np.arange(200), 5), np.arange(1000)
    metric_Q = rng.normal(size=200)[group_Q]  # queries of a group succeed and fail together
    grouped, single = (figures({"m": metric_Q}, groups)["m"] for groups in (group_Q, single_Q))
    error = metric_Q[::5].std() / np.sqrt(200)
    assert (grouped.high - grouped.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)
    assert (grouped.high - grouped.low) / (single.high - single.low) == pytest.approx(np.sqrt(5), rel=0.1)
    assert [grouped.value, single.value] == pytest.approx([metric_Q.mean()] * 2)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        chance_G = rng.beta(3, 7, size=60)  # of success, 0.3 on average, in groups of unequal size
        group_Q = np.repeat(np.arange(60), rng.integers(1, 12, size=60))
        found = figures({"m": (rng.random(len(group_Q)) < chance_G[group_Q]).astype(float)}, group_Q)["m"]
        covered += found.low <= 0.3 <= found.high
    assert 88 <= covered <= 99


def test_intervals_are_seeded_and_resample_all_metrics_alike() -> None:
    rng = np.random.default_rng(0)
    group_Q, one_Q, other_Q = rng.integers(30, size=200), rng.random(200), rng.random(200)
    together = figures({"one": one_Q, "other": other_Q}, group_Q)
    np.random.seed(5)
    assert figures({"one": one_Q, "other": other_Q}, group_Q) == together
    alone = figures({"other": other_Q}, group_Q + 7)["other"]
    assert (alone.low, alone.high) == pytest.approx((together["other"].low, together["other"].high), rel=1e-12)
    assert together["one"].low < together["one"].value < together["one"].high


def test_one_group_has_no_interval() -> None:
    alone = figures({"m": np.array([0.0, 1.0])}, np.array([3, 3]))["m"]
    assert alone.value == 0.5
    assert np.isnan([alone.low, alone.high]).all()
