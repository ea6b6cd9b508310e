"""Gradients that are not finite: recorded with their samples, then the run goes back and slows down, then it gives up."""

from pathlib import Path
from typing import Any

import pytest

from tests.commands import records, small_run
from tests.conftest import WriteCorpus, numbered_corpus
from tests.launch import Ended, run_ranks

pytestmark = pytest.mark.ranks


@pytest.fixture
def arguments(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> list[str]:
    """Two epochs of eight steps, a checkpoint every four."""
    corpus = write_corpus(numbered_corpus(training=67, validation=9))
    return small_run(
        tiny_bert, corpus, tmp_path / "run", checkpoint__every_steps=4, train__max_skipped=3, train__max_rollbacks=1
    )


def poisoned(arguments: list[str], steps: list[int], healed_by_lr: float, **more: Any) -> list[Ended]:
    return run_ranks("runs.poisoned_run", 2, arguments=arguments, poisoned=steps, healed_by_lr=healed_by_lr, **more)[0]


def events(run_dir: Path, name: str) -> list[tuple[int, str]]:
    return [(e["step"], e["detail"]) for e in records(run_dir, "event") if e["event"] == name]


def test_single_steps_are_skipped_and_named(arguments: list[str], tmp_path: Path) -> None:
    ends = poisoned(arguments, [2, 9], 0)
    assert [end.code for end in ends] == [0, 0], ends[0].stderr[-2000:]
    skipped = events(tmp_path / "run", "skipped step")
    assert [step for step, _ in skipped] == [3, 10]
    assert all("a-point.txt" in detail for _, detail in skipped)
    steps = records(tmp_path / "run", "step")
    assert steps[-1]["train/skipped_steps"] == 2
    assert [r["step"] for r in steps if r["train/loss"] is None] == [3, 10]


def test_many_in_a_row_send_the_run_back_with_half_the_learning_rate(arguments: list[str], tmp_path: Path) -> None:
    ends = poisoned(arguments, [5, 6, 7], 0.75)
    assert [end.code for end in ends] == [0, 0], ends[0].stderr[-2000:]
    assert events(tmp_path / "run", "went back") == [(4, "from step 8, with the learning rate x 0.5")]
    steps = records(tmp_path / "run", "step")
    assert [r["step"] for r in steps] == list(range(1, 17))
    assert [r["train/lr"] for r in steps] == pytest.approx([1e-3] * 4 + [5e-4] * 12)


def test_a_return_passes_over_a_checkpoint_that_failed_and_forgets_nothing_that_happened(
    arguments: list[str], tmp_path: Path
) -> None:
    """Three steps without a finite gradient, whose checkpoint after step 6 fails; from step 4 on three more."""
    more = ["--checkpoint.every_steps", "2", "--train.max_rollbacks", "2"]
    ends = poisoned([*arguments, *more], [5, 6, 7, 8, 9, 10], 0.3, unwritable=[6])
    assert [end.code for end in ends] == [0, 0], ends[0].stderr[-2000:]
    run_dir = tmp_path / "run"
    assert [step for step, _ in events(run_dir, "went back")] == [4, 6]
    assert len(events(run_dir, "checkpoint failed")) == 1
    skipped = events(run_dir, "skipped step")
    assert [step for step, _ in skipped] == [6, 7, 8, 5, 6, 7]
    assert all("a-point.txt" in detail for _, detail in skipped)
    alerts = [e for e in records(run_dir, "event") if e["event"] == "alert" and e["guard"] == "non-finite gradient"]
    assert [e["step"] for e in alerts] == [6]  # other guards may speak of a busy machine
    assert [r["step"] for r in records(run_dir, "step")] == list(range(1, 17))
    assert len(records(run_dir, "mine")) == 2


def test_it_gives_up_with_advice_in_one_sentence(arguments: list[str], tmp_path: Path) -> None:
    ends = poisoned(arguments, list(range(5, 1000)), 0)
    assert all(end.code == 2 for end in ends), ends[0].stderr[-2000:]
    errors = [line for end in ends for line in end.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "lower train.lr (0.001)" in errors[0]
    assert "has gone back 1 times already" in errors[0]
    assert not any("Traceback" in end.stderr for end in ends)
