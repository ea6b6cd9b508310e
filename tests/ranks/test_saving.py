"""When checkpoints are made: once for each wish, and at an epoch's end whatever else happens there."""

import json
from pathlib import Path

import pytest

from biencoder.training.recovery.checkpoint import CheckpointFolder
from biencoder.training.recovery.parts import SavedParts
from tests.commands import records, small_run
from tests.conftest import WriteCorpus, numbered_corpus
from tests.launch import run_ranks

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("epoch_steps", "expected"), [(100, [5, 11, 17, 23, 29, 35]), (8, [5, 8, 14, 16, 22, 24, 30, 32, 38, 40])]
)
def test_a_timed_checkpoint_is_made_once(size: int, epoch_steps: int, expected: list[int]) -> None:
    """By the rank whose time is up first, one step after it is; an epoch's end counts as one."""
    ends, _ = run_ranks("runs.timed_checkpoints", size, epoch_steps=epoch_steps)
    assert [end.code for end in ends] == [0] * size, ends[0].stderr[-2000:]
    if size == 1:  # this rank's time is up one step later than that of rank 1 above
        expected = [6, 12, 18, 24, 30, 36] if epoch_steps == 100 else [6, *expected[1:]]
    assert [json.loads(end.stdout) for end in ends] == [expected] * size


def test_a_part_that_one_rank_cannot_write_fails_the_checkpoint_on_all(tmp_path: Path) -> None:
    ends, _ = run_ranks("runs.a_part_that_cannot_be_written", 2, folder=str(tmp_path))
    assert [end.code for end in ends] == [0, 0], ends[0].stderr[-2000:]
    assert [json.loads(end.stdout) for end in ends] == [[None, "No space left on device", None]] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001", "step-00000003"]
    found, _ = CheckpointFolder(tmp_path, keep=5).newest()
    assert found is not None
    assert SavedParts(found.parts, found.state["shapes"]).whole("w").tolist() == [30.0, 30.0, 31.0, 31.0]


def test_ranks_that_do_not_share_the_folder_are_refused_before_they_train(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    corpus, run_dir = write_corpus(numbered_corpus(training=20, validation=5)), tmp_path / "run"
    run = small_run(tiny_bert, corpus, run_dir, checkpoint__placement="sharded")
    ends, _ = run_ranks("runs.troubled_run", 2, arguments=run, trouble="blind rank")
    assert [end.code for end in ends] == [2, 2], ends[0].stderr[-2000:]
    said = [line for end in ends for line in end.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "error: rank 1 on " in said[0]
    assert f"does not see what rank 0 writes in run.dir {run_dir}, as checkpoint.placement = sharded needs" in said[0]
    assert list(run_dir.iterdir()) == []


def test_a_rank_asked_to_stop_at_an_epochs_end_leaves_rank_0_its_checkpoint(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    corpus, run_dir = write_corpus(numbered_corpus(training=67, validation=9)), tmp_path / "run"
    ends, _ = run_ranks("runs.stopped_where_an_epoch_ends", 2, arguments=small_run(tiny_bert, corpus, run_dir))
    assert [end.code for end in ends] == [75, 75], ends[0].stderr[-2000:]
    assert [folder.name for folder in (run_dir / "checkpoints").glob("step-*")] == ["step-00000008"]
    assert len(records(run_dir, "mine")) == 1
