"""Re-ranking and probabilities are shown where validation said that they are worth it."""

from pathlib import Path

import pytest

from biencoder.model.folder import Reranking, load_model, measured_reranking
from biencoder.retrieval.trained_model import TrainedModel
from biencoder.tracking.names import Metrics
from biencoder.training.reranking import judge_reranking
from launcher import search
from tests.conftest import WriteCorpus, numbered_corpus
from tests.models import export


def metrics_of(*, embedding: float, rerank: float, error: float) -> Metrics:
    return {
        **{f"eval/validation/embedding/accuracy@1{suffix}": embedding for suffix in ("", "_text")},
        **{f"eval/validation/rerank/accuracy@1{suffix}": rerank for suffix in ("", "_text")},
        **{f"eval/validation/rerank/calibration_error{suffix}": error for suffix in ("", "_text")},
    }


@pytest.mark.parametrize(
    ("rerank", "error", "expected"),
    [(0.6, 0.05, (True, True)), (0.6, 0.3, (True, False)), (0.5, 0.05, (False, True)), (0.4, 0.05, (False, False))],
)
def test_reranking_is_judged_by_what_validation_gained(rerank: float, error: float, expected: tuple[bool, bool]) -> None:
    assert judge_reranking(metrics_of(embedding=0.5, rerank=rerank, error=error), "validation") == expected
    assert judge_reranking({"eval/validation/embedding/accuracy@1": 0.5}, "validation") is None


@pytest.mark.parametrize(
    ("reranking", "reranks", "shows"),
    [
        (None, False, True),
        (Reranking(helps=True, probable=True), True, True),
        (Reranking(helps=False, probable=True), False, True),
        (Reranking(helps=False, probable=False), False, False),
    ],
)
def test_search_does_what_validation_said_unless_told_otherwise(
    tiny_bert: Path,
    write_corpus: WriteCorpus,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    reranking: Reranking | None,
    reranks: bool,
    shows: bool,
) -> None:
    corpus, model = str(write_corpus(numbered_corpus(training=6))), tmp_path / "model"
    export(tiny_bert, model, reranking=reranking)
    assert measured_reranking(model) == TrainedModel.load(model).reranking == reranking
    assert load_model(model)[2].embedding_dim == 8  # what is no setting does not disturb
    command = ["--model", model.as_posix(), "--data.root", corpus, "--top-k", "6", "fox taxes point 3"]

    def answers(*options: str) -> str:
        search.main([*options, *command])
        return capsys.readouterr().out

    default = answers()
    assert ("is a counter" in default) == shows
    assert "is a counter" in answers("--rerank")
    if reranks:
        assert default == answers("--rerank")
    elif shows:
        assert default == answers("--no-rerank")
