"""Probabilities are brought onto the right scale, and exported with the model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import expit

from biencoder.config.schema import ModelConfig
from biencoder.data import Split
from biencoder.distributed.world import World
from biencoder.evaluation import evaluate_split, protocol
from biencoder.evaluation.calibration import fit_calibration
from biencoder.evaluation.metrics import calibration_error
from biencoder.evaluation.protocol import Ranking, measure_hubness
from biencoder.evaluation.rankers import EmbeddingRanker
from biencoder.model.bi_encoder import PairClassifier, Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.hubness import Hubness
from biencoder.retrieval.saved_index import SearchIndex
from biencoder.training.reranking import calibrated_classifier
from tests.models import export


def test_the_fit_finds_the_scale_on_which_answers_were_drawn() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(-2.0, 1.5, 20_000)
    right = rng.random(20_000) < expit(odds)
    wrong_scale = expit(4 * odds + 3).astype(np.float32)
    fitted = fit_calibration(wrong_scale.reshape(-1, 10), right.reshape(-1, 10))
    assert fitted is not None
    assert fitted.scale == pytest.approx(1 / 4, rel=0.05)
    assert fitted.shift == pytest.approx(-3 / 4, rel=0.1)
    assert calibration_error(wrong_scale, right) > 0.1
    assert calibration_error(expit(fitted.scale * (4 * odds + 3) + fitted.shift).astype(np.float32), right) < 0.01


def test_what_separates_right_from_wrong_gets_a_finite_scale_and_what_orders_them_wrongly_none() -> None:
    probability = np.array([[0.0, 0.1, 0.2, 0.9, 1.0]], dtype=np.float32)
    right = probability > 0.5
    fitted = fit_calibration(probability, right)
    assert fitted is not None
    assert 0 < fitted.scale < 100
    assert np.isfinite(fitted.shift)
    for none in (~right, np.zeros_like(right), np.ones_like(right)):
        assert fit_calibration(probability, none) is None
    assert fit_calibration(np.full((1, 5), 0.3, np.float32), right) is None


def test_the_fit_finds_what_hubness_takes_off() -> None:
    rng = np.random.default_rng(0)
    odds, hubness = rng.normal(0.0, 1.5, (3_000, 10)), rng.normal(-0.3, 0.1, (3_000, 10))
    query_hubness = np.repeat(rng.normal(-0.3, 0.1, (3_000, 1)), 10, axis=1)
    right = rng.random(odds.shape) < expit(odds - 3 - 10 * hubness + 5 * query_hubness)
    hubness_Qk2 = np.stack([hubness, query_hubness], axis=-1).astype(np.float32)
    fitted = fit_calibration(expit(2 * odds).astype(np.float32), right, hubness_Qk2)
    assert fitted == pytest.approx((0.5, -3, -10, 5), rel=0.15)


def test_what_orders_the_candidates_of_a_query_is_not_what_tells_queries_apart() -> None:
    """Hubness that differs between queries, and lies with the difficulty of a query, does not count in the order."""
    rng = np.random.default_rng(0)
    easy = rng.random((3_000, 1)) < 0.5
    near = rng.normal(0.0, 0.3, (3_000, 10))
    near[:, 0] += np.where(easy[:, 0], 1.0, 0.3)
    right = np.arange(10) == np.where(easy | (rng.random((3_000, 1)) < 0.3), 0, 9)
    hubness_Qk2 = np.zeros((3_000, 10, 2), dtype=np.float32)
    hubness_Qk2[..., 0] = np.where(easy, 0.5, -0.5)
    fitted = fit_calibration(expit(near).astype(np.float32), right, hubness_Qk2)
    assert fitted is not None
    assert fitted.scale > 0.5
    assert fitted.hubness == pytest.approx(0, abs=1e-6)


def test_where_no_query_has_a_right_and_a_wrong_candidate_the_scale_is_fitted_alone() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(0.0, 1.5, (5_000, 1))
    right, hubness_Qk2 = rng.random(odds.shape) < expit(odds), rng.normal(size=(5_000, 1, 2)).astype(np.float32)
    fitted = fit_calibration(expit(2 * odds).astype(np.float32), right, hubness_Qk2)
    assert fitted is not None
    assert fitted.scale == pytest.approx(0.5, rel=0.1)
    assert fitted.hubness == 0


def test_places_without_a_candidate_are_no_wrong_answers() -> None:
    """Points 0 and 1 are queries, and of the few passages one is point 0 itself, which it may not get."""
    asked: list[npt.NDArray[np.float32]] = []
    ranking = Ranking(np.array([[1, 2, -1], [0, 1, 2]]), np.ones((2, 3), np.float32), np.full((2, 3), 0.5, np.float32))
    candidates: Any = SimpleNamespace(answers=SimpleNamespace(grades=lambda place_Qk: place_Qk == 1))
    hubness = Hubness(np.zeros(2, np.float32), np.zeros(3, np.float32))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(protocol, "fit_calibration", lambda probability_Qk, *_: asked.append(probability_Qk))
        protocol._calibration(ranking, candidates, hubness, 3)
    assert np.isnan(asked[0]).tolist() == [[False, False, True], [False, False, False]]


def test_where_there_is_no_candidate_nothing_is_fitted() -> None:
    rng = np.random.default_rng(0)
    odds, right = rng.normal(0.0, 1.0, (200, 4)), np.arange(4) == rng.integers(0, 4, (200, 1))
    odds[right] += 1
    probability = expit(odds).astype(np.float32)
    some = fit_calibration(probability, right)
    padded = np.pad(probability, ((0, 3), (0, 2)), constant_values=np.nan)
    assert some is not None
    assert fit_calibration(padded, np.pad(right, ((0, 3), (0, 2)), constant_values=True)) == pytest.approx(some)


def residual(dim: int, *, seed: int = 0) -> PairClassifier:
    torch.manual_seed(seed)
    classifier = PairClassifier(ModelConfig(classifier="residual", normalize=True), embedding_dim=dim, hidden=dim)
    torch.nn.init.normal_(classifier.layers[-1].weight)  # type: ignore[arg-type]
    return classifier


def test_a_calibrated_classifier_has_log_odds_on_the_other_scale() -> None:
    classifier = residual(4)
    u, v = Vectors(torch.randn(6, 4), torch.randn(6, 4)), Vectors(torch.randn(6, 4), torch.randn(6, 4))
    before = classifier(u, v)
    classifier.calibrate(0.25, -3.0, -2.0, 1.0)
    torch.testing.assert_close(classifier(u, v)[:, 1], 0.25 * before[:, 1] - 3.0)
    hubness_62 = torch.stack([torch.arange(6.0), torch.ones(6)], dim=1)
    torch.testing.assert_close(classifier(u, v, hubness_62)[:, 1], 0.25 * before[:, 1] - 2.0 - 2.0 * torch.arange(6.0))
    assert classifier(u, v)[:, 0].count_nonzero() == 0


def test_an_evaluation_says_how_to_calibrate_and_is_right_afterwards() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(400, 8, generator=generator), dim=1)
    rows[200:] = torch.nn.functional.normalize(rows[:200] + 0.4 * rows[200:], dim=1)
    embedded = EmbeddedTexts.whole(np.arange(400), Vectors(rows, rows), Vectors(rows, rows))
    split = Split("validation", (None,) * 200, np.arange(200), np.arange(200, 400))  # type: ignore[arg-type]
    classifier = PairClassifier(ModelConfig(classifier="residual", normalize=True), embedding_dim=8, hidden=8)
    first = evaluate_split(split, embedded, classifier, top_k=10, world=World.alone())
    assert first.metrics["rerank/accuracy@1"] == first.metrics["embedding/accuracy@1"]
    assert first.calibration is not None
    classifier.calibrate(*first.calibration)
    second = evaluate_split(split, embedded, classifier, top_k=10, world=World.alone())
    assert second.metrics["rerank/calibration_error"] < 0.05 < first.metrics["rerank/calibration_error"]
    assert second.calibration is not None
    assert second.calibration.scale == pytest.approx(1, abs=0.1)
    classifier.calibrate(*second.calibration)
    third = evaluate_split(split, embedded, classifier, top_k=10, world=World.alone())
    assert third.metrics == pytest.approx(second.metrics, abs=0.01)
    linear = PairClassifier(ModelConfig(), embedding_dim=8, hidden=8)
    assert evaluate_split(split, embedded, linear, top_k=10, world=World.alone()).calibration is None


def test_what_is_near_to_everything_is_put_behind_what_is_near_to_the_query_alone() -> None:
    """The points of a subject are near to each other; a counter is near to its own point, and to no other text."""
    generator = torch.Generator().manual_seed(0)
    own = torch.nn.functional.normalize(torch.randn(100, 64, generator=generator), dim=1)
    subjects = torch.nn.functional.normalize(torch.randn(10, 64, generator=generator), dim=1).repeat(10, 1)
    rows = torch.nn.functional.normalize(torch.cat([0.7 * own + subjects, own + 0.2 * subjects]), dim=1)
    vectors, texts = Vectors(rows, rows[:, :0]), [f"text {number}" for number in range(200)]
    split = Split("validation", (None,) * 100, np.arange(100), np.arange(100, 200))  # type: ignore[arg-type]
    embedded = EmbeddedTexts.whole(np.arange(200), vectors, vectors)
    config = ModelConfig(classifier="residual", classifier_features="embedding", normalize=True)
    classifier = PairClassifier(config, embedding_dim=64, hidden=64)
    first = evaluate_split(split, embedded, classifier, top_k=10, world=World.alone())
    assert first.calibration is not None
    classifier.calibrate(*first.calibration)
    assert classifier.uses_hubness
    second = evaluate_split(split, embedded, classifier, top_k=10, world=World.alone())
    gain = second.metrics["rerank/accuracy@1"] - second.metrics["embedding/accuracy@1"]
    assert gain > 0.2
    of_search = SearchIndex.in_memory(texts, vectors, clean=False).hubness(np.arange(200))
    ranker, own_Q = EmbeddingRanker(embedded, classifier), np.arange(100)
    of_evaluation = measure_hubness(own_Q, np.arange(200), own_Q, embedded, World.alone()).candidate_C
    np.testing.assert_allclose(of_search, of_evaluation, atol=1e-5)
    ranked = ranker.rank(own_Q, np.arange(200), own_Q, k=10).reranked(10)[:, 0]
    assert (ranked == np.arange(100, 200)).mean() == second.metrics["rerank/accuracy@1"]


def test_the_exported_classifier_is_the_calibrated_one(tiny_bert: Path, tmp_path: Path) -> None:
    model = export(tiny_bert, tmp_path / "model", classifier="residual")
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    fitted = {"eval/calibration_scale": 0.5, "eval/calibration_shift": -1.0, "eval/calibration_hubness": 0.0}
    fitted["eval/calibration_query_hubness"] = 0.0
    calibrated = calibrated_classifier(model, weights, fitted)
    assert calibrated.keys() == {name for name in weights if name.startswith("classifier.")}
    vectors = Vectors(torch.randn(6, 8), torch.randn(6, 32))
    before = model.classifier(vectors, vectors.rows(torch.arange(5, -1, -1)))[:, 1]
    model.load_state_dict({**weights, **calibrated})
    after = model.classifier(vectors, vectors.rows(torch.arange(5, -1, -1)))[:, 1]
    torch.testing.assert_close(after, 0.5 * before - 1.0)
    assert calibrated_classifier(model, weights, {}).keys() == calibrated.keys()
