"""A real offline W&B run whose process is killed, and whose training is stopped and killed: both records stay right."""

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from biencoder.tracking.names import CLOSEST, HARDNESS, examples
from tests.commands import records, train, training, wait_for
from tests.conftest import WriteCorpus, numbered_corpus
from tests.e2e.test_resume import arguments, stop_at
from tests.processes import ROOT
from tests.runs import same_weights, story
from tests.wandb_file import history

pytestmark = pytest.mark.e2e


def steps_reach(run_dir: Path, step: int) -> bool:
    return any(record["step"] >= step for record in records(run_dir, "step"))


def test_wandb_dies_the_run_is_stopped_and_killed_and_both_records_are_whole(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    """Start 1 loses wandb-core and is stopped, start 2 is killed, start 3 ends: against a run without W&B."""
    corpus, settings = write_corpus(numbered_corpus(training=67, validation=9)), {"train__epochs": 8}
    straight = train(*arguments(tiny_bert, corpus, tmp_path / "straight", **settings))
    assert straight.returncode == 0, straight.stderr
    run_dir, offline = tmp_path / "broken", {"WANDB_MODE": "offline", "HOME": str(tmp_path)}
    command = arguments(tiny_bert, corpus, run_dir, **settings)

    with training(*command, env=offline) as process:
        wait_for(lambda: process.poll() is not None or steps_reach(run_dir, 4))
        children = psutil.Process(process.pid).children(recursive=True)
        (core,) = [child for child in children if child.name() == "wandb-core"]
        core.kill()
        wait_for(lambda: process.poll() is not None or steps_reach(run_dir, 18))
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    warning, stopped = err.splitlines()
    assert warning.startswith("warning: Weights & Biases failed (Connection")
    assert stopped.startswith("stopped: after step ")

    code, err = stop_at(run_dir, 34, *command, by=signal.SIGKILL, env=offline)
    assert (code, err) == (-signal.SIGKILL, "")
    last = train(*command, env=offline)
    (of_lock,) = last.stderr.splitlines()
    assert last.returncode == 0
    assert of_lock.startswith(f"warning: {run_dir} was left by process ")
    assert story(run_dir) == story(tmp_path / "straight")
    assert same_weights(run_dir, tmp_path / "straight")

    logged = history(run_dir)
    for kind in ("step", "mine", "eval", "checkpoint"):
        for record in records(run_dir, kind):
            name = min(name for name in record if "/" in name)
            (entry,) = [line for line in logged if line["step"] == record["step"] and name in line]
            assert entry["epoch"] == record["epoch"]
            if kind == "step":
                assert entry["train/loss"] == record["train/loss"]
    names = Counter(name.split("/_")[0] for line in logged for name in line if "/" in name)
    assert names["train/loss"] == len(records(run_dir, "step")) == 32
    assert sum(has(line, HARDNESS) for line in logged) == 8
    assert sum(has(line, CLOSEST) for line in logged) == 8
    assert sum(has(line, examples("validation")) for line in logged) == 9


def has(line: dict[str, Any], name: str) -> bool:
    return any(key.startswith(name) for key in line)


def test_a_run_whose_every_output_is_full_and_whose_models_have_no_room_ends_as_another(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    """stdout and stderr on a full disk; a file where `model` shall be, until two evaluations have found a best model."""
    corpus, settings = write_corpus(numbered_corpus(training=67, validation=9)), {"train__epochs": 8}
    straight = train(*arguments(tiny_bert, corpus, tmp_path / "straight", **settings))
    assert straight.returncode == 0, straight.stderr
    run_dir = tmp_path / "broken"
    run_dir.mkdir()
    (run_dir / "model").touch()
    command = [sys.executable, "launcher/train.py", *arguments(tiny_bert, corpus, run_dir, **settings)]
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(command, cwd=ROOT, stdout=full, stderr=full, start_new_session=True)
    try:
        wait_for(lambda: process.poll() is not None or len(records(run_dir, "eval")) >= 4)
        (run_dir / "model").unlink()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
    failed = [record for record in records(run_dir, "event") if record["event"] == "model not written"]
    assert failed
    assert "could not be written" in failed[0]["detail"]
    for name in ("best", "last"):
        files = [run / "model" / name / "model.safetensors" for run in (run_dir, tmp_path / "straight")]
        mine, theirs = map(load_file, files)
        assert mine.keys() == theirs.keys()
        assert all(mine[key].equal(theirs[key]) for key in mine)
