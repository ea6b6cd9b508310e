"""A run that was stopped, killed or damaged goes on and ends as if nothing had happened."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from biencoder.training.recovery.checkpoint import CheckpointFolder
from tests.commands import records, small_run, train, training, wait_for, workers_of
from tests.conftest import WriteCorpus, numbered_corpus
from tests.runs import same_weights, story

pytestmark = pytest.mark.e2e
EXIT_CODE = 75
SHARDED = ("--checkpoint.placement", "sharded")


def arguments(tiny_bert: Path, corpus: Path, run_dir: Path, **overrides: Any) -> list[str]:
    """Three epochs of eight steps with dropout, so that random streams matter; a checkpoint every third step."""
    settings = {"train__epochs": 3, "model__dropout": 0.1, "checkpoint__every_steps": 3, "train__log_every": 2}
    return small_run(tiny_bert, corpus, run_dir, **(settings | overrides))


@pytest.fixture
def corpus(write_corpus: WriteCorpus) -> Path:
    return write_corpus(numbered_corpus(training=67, validation=9))


def stop_at(run_dir: Path, step: int, *command: str, by: int, rank: int = 0, **how: Any) -> tuple[int, str]:
    """Send a signal to a rank once a step is recorded; exit code and stderr."""
    with training(*command, **how) as process:
        wait_for(lambda: process.poll() is not None or any(r["step"] >= step for r in records(run_dir, "step")))
        assert process.poll() is None, process.communicate()[1]
        os.kill(workers_of(process)[rank] if "launcher" in how else process.pid, by)
        _, err = process.communicate(timeout=60)
        assert process.returncode is not None
        return process.returncode, err


CONTRASTIVE = {
    "loss__contrastive_weight": 0.5,
    "mining__negatives": 2,
    "mining__overlap": "true",
    "model__sides": "heads",
    "train__batches": "clusters",
    "train__pretrained_share": 0.3,
    "train__micro_batch_size": 4,
    "deepspeed_config": "ds_configs/zero3.json",
}


@pytest.mark.parametrize("settings", [{}, CONTRASTIVE], ids=["triplets", "contrastive"])
def test_a_run_stopped_and_killed_ends_as_if_uninterrupted(
    tiny_bert: Path, corpus: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    straight = train(*arguments(tiny_bert, corpus, tmp_path / "straight", **settings))
    assert straight.returncode == 0, straight.stderr
    run_dir = tmp_path / "broken"
    command = arguments(tiny_bert, corpus, run_dir, **settings)
    code, err = stop_at(run_dir, 2, *command, *SHARDED, by=signal.SIGTERM)
    assert (code, err.startswith("stopped: "), err.count("\n")) == (EXIT_CODE, True, 1), err
    code, _ = stop_at(run_dir, 10, *command, by=signal.SIGKILL)
    assert code == -signal.SIGKILL
    last = train(*command)
    assert last.returncode == 0, last.stderr
    assert ", going on from step " in last.stdout
    assert [e["event"] for e in records(run_dir, "event")].count("resumed") == 2
    assert story(run_dir) == story(tmp_path / "straight")
    assert same_weights(run_dir, tmp_path / "straight")

    again = train(*command)
    assert (again.returncode, again.stdout.count("\n")) == (0, 1)  # finished: it says where the model is
    assert story(run_dir) == story(tmp_path / "straight")


def test_ranks_stopped_by_a_signal_to_one_go_on_on_other_numbers_of_ranks(
    tiny_bert: Path, corpus: Path, tmp_path: Path
) -> None:
    """2 ranks to 1 and 1 to 2; without dropout, whose masks depend on the rank.

    Sums in another order differ by 1e-7 in a step; Adam amplifies that over 99 steps, the less the lower its rate.
    """
    settings = {"model__dropout": 0.0, "train__log_every": 1, "train__global_batch_size": 2, "train__lr": 1e-4}
    train(*arguments(tiny_bert, corpus, tmp_path / "straight", **settings))
    run_dir = tmp_path / "broken"
    command = arguments(tiny_bert, corpus, run_dir, **settings)
    _, err = stop_at(run_dir, 2, *command, *SHARDED, by=signal.SIGUSR1, rank=1, launcher="ranks", ranks=2)
    assert "stopped: after step " in err
    code, _ = stop_at(run_dir, 50, *command, by=signal.SIGUSR1)
    assert code == EXIT_CODE
    last = train(*command, *SHARDED, launcher="ranks", ranks=2)
    assert last.returncode == 0, last.stderr
    checkpoint = run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()
    assert [file.name for file in sorted(checkpoint.glob("part-*"))] == [
        "part-00000-000.safetensors",
        "part-00001-000.safetensors",
    ]
    for mine, theirs in zip(story(run_dir), story(tmp_path / "straight"), strict=True):
        assert mine.keys() == theirs.keys()
        if mine["kind"] in ("table", "histogram") or mine.get("event") == "mined from":
            continue  # a text more or less in a bin, and another last bit of an embedding, are no difference
        for key, value in theirs.items():
            assert mine[key] == (pytest.approx(value, rel=5e-3, abs=1e-4) if isinstance(value, float) else value), key


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_every_kind_of_damage_is_named_and_the_checkpoint_before_is_used(
    tiny_bert: Path, corpus: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    command = arguments(tiny_bert, corpus, run_dir, train__epochs=1)
    assert train(*command).returncode == 0
    before = story(run_dir)
    folders = sorted((run_dir / "checkpoints").glob("step-*"))
    assert [folder.name for folder in folders] == ["step-00000006", "step-00000008"]
    newest = folders[-1]
    for file in sorted(newest.iterdir()):
        for how in ("truncated", "flipped", "missing"):
            copy = tmp_path / "copy"
            shutil.copytree(newest, copy)
            damage(newest / file.name, how)
            found, complaints = CheckpointFolder(run_dir / "checkpoints", keep=2).newest()
            assert found is not None
            assert found.step == 6, (file.name, how)
            assert len(complaints) == 1
            assert "step-00000008 is damaged" in complaints[0]
            shutil.rmtree(newest)
            shutil.move(copy, newest)
    damage(newest / "model.safetensors", "flipped")
    shutil.rmtree(run_dir / "model")
    last = train(*command)
    assert last.returncode == 0, last.stderr
    assert "step-00000008 is damaged (model.safetensors is not what was written)" in last.stderr
    assert "going on from step 6" in last.stdout
    assert story(run_dir) == before


def test_other_settings_are_refused_with_the_keys_that_differ(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert train(*arguments(tiny_bert, corpus, run_dir, train__epochs=1)).returncode == 0
    other = train(*arguments(tiny_bert, corpus, run_dir, train__epochs=2, train__lr=0.1, run__seed=3))
    assert other.returncode == 2
    assert "train.lr was 0.001 and is 0.1" in other.stderr
    assert "run.seed was 0 and is 3" in other.stderr
    never = train(*arguments(tiny_bert, corpus, run_dir, run__resume="never"))
    assert (never.returncode, "holds a run already" in never.stderr) == (2, True)
    longer = train(*arguments(tiny_bert, corpus, run_dir, train__epochs=2))  # a constant schedule can be prolonged
    assert longer.returncode == 0, longer.stderr
    assert [r["step"] for r in records(run_dir, "eval")] == [0, 8, 16]


def fill(file: Path) -> None:
    """Write until the filesystem is full."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as sink:
        while sink.write(b"0" * 4096):
            pass


def test_a_full_disk_is_reported_and_training_goes_on_when_there_is_room_again(
    tiny_bert: Path, corpus: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=50m", "none", disk], check=False).returncode:
        pytest.skip("needs the right to mount a filesystem")
    try:
        run_dir = disk / "run"
        command = arguments(tiny_bert, corpus, run_dir, train__global_batch_size=1, checkpoint__every_steps=2)
        with training(*command) as process:
            wait_for(lambda: any(r["step"] >= 10 for r in records(run_dir, "step")) or process.poll() is not None)
            filler = disk / "filler"
            fill(filler)
            good, _ = CheckpointFolder(run_dir / "checkpoints", keep=2).newest()
            assert good is not None
            wait_for(lambda: "checkpoint" in os.read(process.stderr.fileno(), 10_000).decode())  # type: ignore[union-attr]
            still, _ = CheckpointFolder(run_dir / "checkpoints", keep=2).newest()
            assert still is not None
            assert still.step >= good.step
            filler.unlink()
            process.communicate(timeout=120)
            assert process.returncode == 0
        steps = [r["step"] for r in records(run_dir, "step")]
        assert steps == sorted(set(steps))
        assert len(steps) == 102  # every second of 201, and the last of each epoch; none was lost
        assert any("No space left" in e["detail"] for e in records(run_dir, "event") if e["event"] == "checkpoint failed")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
