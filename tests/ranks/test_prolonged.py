"""A run that has ended and is prolonged equals one that was longer from its start: record, weights, best model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from biencoder.tracking.record import read_record
from tests.commands import records, small_run
from tests.conftest import WriteCorpus, numbered_corpus
from tests.launch import run_ranks
from tests.runs import same_weights, story

pytestmark = pytest.mark.ranks


def settings(max_steps: int = 0, epochs: int = 9, **more: Any) -> dict[str, Any]:
    """Eight steps an epoch, with dropout so that random streams matter."""
    return {"model__dropout": 0.1, "train__log_every": 3, "train__epochs": epochs, "train__max_steps": max_steps, **more}


LONGER = {
    "cut within epochs": (settings(10), settings(12), settings(20)),
    "cut at an epoch's end": (settings(16), settings(20)),
    "cut before the first evaluation": (settings(5), settings(20)),
    "by an epoch, searching ahead": (
        settings(epochs=1, mining__overlap="true"),
        settings(13, mining__overlap="true"),
        settings(20, mining__overlap="true"),
    ),
    "between two evaluations": (settings(8, eval__every_epochs=2), settings(20, eval__every_epochs=2)),
}


@pytest.mark.parametrize("name", LONGER)
def test_a_prolonged_run_equals_a_longer_one(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path, name: str) -> None:
    corpus, starts = write_corpus(numbered_corpus(training=67, validation=9)), LONGER[name]
    straight, prolonged = tmp_path / "straight", tmp_path / "prolonged"
    commands = [small_run(tiny_bert, corpus, prolonged, **start) for start in starts]
    commands.append(small_run(tiny_bert, corpus, straight, **starts[-1]))
    (end,), _ = run_ranks("runs.in_turn", 1, commands=commands)
    assert end.code == 0, end.stderr[-3000:]
    assert story(prolonged) == story(straight)
    assert [r["step"] for r in records(straight, "step")] == [3, 6, 8, 9, 12, 15, 16, 18, 20]
    for model in ("last", "best"):
        assert same_weights(prolonged, straight, model), model
    one, other = (json.loads((run / "checkpoints/step-00000020/state.json").read_text()) for run in (straight, prolonged))
    assert {key: one[key] for key in ("epoch", "best", "best_step")} == {
        key: other[key] for key in ("epoch", "best", "best_step")
    }
    record = read_record(prolonged)
    assert record.state == "finished"
    assert record.config.train == read_record(straight).config.train


def test_a_run_that_ended_before_its_models_were_written_ends_as_it_would_have(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    """A shorter run's model is not taken for a longer one's, and a run that is past its new end makes no more steps."""
    corpus, run_dir = write_corpus(numbered_corpus(training=67, validation=9)), tmp_path / "run"

    def train_in_turn(*commands: dict[str, Any]) -> None:
        (end,), _ = run_ranks("runs.in_turn", 1, commands=[small_run(tiny_bert, corpus, run_dir, **c) for c in commands])
        assert end.code == 0, end.stderr[-3000:]

    train_in_turn(settings(5))
    shutil.copytree(run_dir / "model", tmp_path / "model of step 5")
    train_in_turn(settings(10))
    told, ended = story(run_dir), (run_dir / "run.jsonl").read_text().splitlines(keepends=True)
    assert "finished" in json.loads(ended[-1])
    (run_dir / "run.jsonl").write_text("".join(ended[:-1]))
    shutil.rmtree(run_dir / "model")
    shutil.copytree(tmp_path / "model of step 5", run_dir / "model")
    assert read_record(run_dir).state != "finished"
    train_in_turn(settings(10))
    assert story(run_dir) == told  # the last record, of one step, with its norm and learning rate
    assert not same_weights(run_dir / "model/last", tmp_path / "model of step 5/last", "")
    shutil.rmtree(run_dir / "model")
    train_in_turn(settings(5))
    assert story(run_dir) == told
