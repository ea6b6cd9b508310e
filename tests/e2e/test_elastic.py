"""torchrun starts a run again by itself after a rank has died, and the run ends as if nothing had happened.

One that dies again and again is given up, whoever starts it again.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.commands import BIN, records, small_run, train, training, wait_for, workers_of
from tests.conftest import WriteCorpus, numbered_corpus
from tests.processes import ROOT, Forked
from tests.runs import story

pytestmark = pytest.mark.e2e


def starts(run_dir: Path) -> list[int]:
    """The step from which each start went on."""
    file = run_dir / "run.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line["from_step"] for line in lines if "started" in line]


def has_stepped(run_dir: Path, *, start: int) -> bool:
    """Whether the newest start is this one, counted from 1, and has taken three steps."""
    if len(starts(run_dir)) != start:
        return False
    since = (run_dir / "run.jsonl").stat().st_mtime
    return any(record["step"] == 3 and record["time"] > since for record in records(run_dir, "step"))


@contextmanager
def elastic(log: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run of one rank under way, which torchrun may start again three times; what is left of it at the end is killed."""
    command = [
        str(BIN / "torchrun"),
        "--standalone",
        "--nproc_per_node=1",
        "--max-restarts=3",
        "launcher/train.py",
        *arguments,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, text=True
        )
    try:
        yield process
    finally:
        workers = workers_of(process) if process.poll() is None else {}
        for group in (process.pid, *workers.values()):  # torchrun gives each rank a process group of its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        process.wait()


def test_a_killed_rank_is_started_again_and_the_run_ends_as_if_uninterrupted(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    corpus, settings = write_corpus(numbered_corpus(training=67, validation=9)), {"train__global_batch_size": 2}
    run_dir, log = tmp_path / "run", tmp_path / "log"
    straight = train(*small_run(tiny_bert, corpus, tmp_path / "straight", **settings))
    assert straight.returncode == 0, straight.stderr
    with elastic(log, *small_run(tiny_bert, corpus, run_dir, **settings, checkpoint__every_steps=5)) as process:
        wait_for(lambda: process.poll() is not None or any(r["step"] >= 20 for r in records(run_dir, "step")))
        assert process.poll() is None, log.read_text()
        os.kill(workers_of(process)[0], signal.SIGKILL)
        assert process.wait(120) == 0, log.read_text()
    assert [e["event"] for e in records(run_dir, "event")].count("resumed") == 1
    first, second = starts(run_dir)
    assert first == 0
    assert second >= 10  # the checkpoint of step 15 may still have been on its way to the disk
    assert story(run_dir) == story(tmp_path / "straight")


def started_again(start: int) -> dict[str, str]:
    """What torchrun tells its ranks of the starts before this one."""
    return {"TORCHELASTIC_RESTART_COUNT": str(start - 1)}


def ended_or_stepped(process: Forked | subprocess.Popen[str], run_dir: Path, start: int) -> bool:
    return process.poll() is not None or has_stepped(run_dir, start=start)


def test_a_run_that_dies_again_and_again_is_given_up_with_a_sentence(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    corpus, run_dir = write_corpus(numbered_corpus(training=300)), tmp_path / "run"
    # 150 steps to the end of the first epoch, where the first checkpoint would be.
    command = small_run(tiny_bert, corpus, run_dir, train__global_batch_size=2)
    for start in (1, 2, 3):
        with training(*command, launcher="ranks", env=started_again(start)) as process:
            wait_for(partial(ended_or_stepped, process, run_dir, start))
            assert process.poll() is None, process.communicate()
            os.kill(workers_of(process)[1], signal.SIGKILL)
            process.communicate(timeout=60)
            assert process.returncode == 128 + signal.SIGKILL
    given_up = train(*command, launcher="ranks", env=started_again(4))
    assert given_up.returncode == 2
    assert f"error: 3 starts from step 0 of {run_dir} have ended before the next checkpoint" in given_up.stderr
    assert starts(run_dir) == [0, 0, 0]
