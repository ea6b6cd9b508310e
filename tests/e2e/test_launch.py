"""A launcher that is gone takes its ranks with it, the same command goes on, and of two starts one is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.commands import (
    TRAIN,
    Launcher,
    records,
    small_run,
    train,
    training,
    under_way,
    wait_for,
    workers_of,
)
from tests.conftest import WriteCorpus, numbered_corpus

pytestmark = pytest.mark.e2e


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_ranks_end_with_a_killed_launcher_and_a_second_start_is_refused_before(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path, launcher: Launcher
) -> None:
    corpus, run_dir = write_corpus(numbered_corpus(training=67)), tmp_path / "run"
    settings = small_run(tiny_bert, corpus, run_dir, train__epochs=400, checkpoint__every_steps=3)
    with training(*settings, launcher=launcher, env={"OMP_NUM_THREADS": "1"}) as process:
        wait_for(lambda: process.poll() is not None or any(r["step"] >= 9 for r in records(run_dir, "step")))
        assert process.poll() is None, process.communicate()
        pids = workers_of(process)
        second = train(*settings)
        assert second.returncode == 2
        assert second.stderr.startswith(f"error: run.dir {run_dir} is in use by process {pids[0]} on {os.uname().nodename}")
        assert second.stderr.count("\n") == 1
        assert len(alive(list(pids.values()))) == 2
        os.kill(process.pid, signal.SIGKILL)  # of deepspeed it is the first of two launchers
        start = time.monotonic()
        wait_for(lambda: not alive(list(pids.values())), timeout_s=20)
        assert time.monotonic() - start < 10
    done = [record["step"] for record in records(run_dir, "step")][-1]
    again = train(*settings, "--train.epochs", "400", "--train.max_steps", str(done + 5))
    assert again.returncode == 0, again.stderr
    steps = [record["step"] for record in records(run_dir, "step")]
    assert steps == list(range(1, done + 6))
    assert not (run_dir / "lock.json").exists()


def test_a_run_goes_on_without_the_shell_that_started_it(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    corpus, run_dir = write_corpus(numbered_corpus(training=67)), tmp_path / "run"
    settings = small_run(tiny_bert, corpus, run_dir, train__epochs=4)
    command = ["sh", "-c", 'nohup "$@" >/dev/null 2>&1 & sleep 2', "sh", sys.executable, TRAIN, *settings]
    subprocess.run(command, check=True)
    wait_for((run_dir / "model/last").is_dir)


def test_tasks_of_srun_that_know_of_no_ranks_are_refused_once(tmp_path: Path) -> None:
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}
    command = [sys.executable, TRAIN, "--run.dir", str(tmp_path / "run")]
    with (
        under_way(command, env={**step, "SLURM_PROCID": "0"}) as first,
        under_way(command, env={**step, "SLURM_PROCID": "1"}) as second,
    ):
        said = [process.communicate(timeout=60)[1] for process in (first, second)]
        assert [first.returncode, second.returncode] == [2, 2]
    assert said[0].startswith("error: SLURM_STEP_NUM_TASKS is 2 but RANK is not set")
    assert said[1] == ""
    assert not (tmp_path / "run").exists()
