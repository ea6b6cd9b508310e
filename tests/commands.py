"""Run the commands as a user types them, and read what they leave."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil

from tests.processes import Forked, free_port, start

Launcher = Literal["python", "ranks", "torchrun", "deepspeed"]
"""`python` is one process, `ranks` several without a launcher, with the environment that torchrun would give them; both
are forked (see `tests/processes.py`). `torchrun` and `deepspeed` are these programs."""
BIN = Path(sys.executable).parent
TRAIN = "launcher/train.py"


def train(
    *arguments: str,
    launcher: Launcher = "python",
    ranks: int = 2,
    timeout_s: float = 240,
    env: dict[str, str] | None = None,
    fork: bool = True,
) -> subprocess.CompletedProcess[str]:
    """`launcher/train.py` under a launcher; `fork=False`: by a new interpreter."""
    command = [*launched_by(launcher, ranks), TRAIN, *arguments]
    return run(command, timeout_s=timeout_s, env=env, fork=fork, ranks=ranks if launcher == "ranks" else 0)


def launched_by(launcher: Launcher, ranks: int) -> list[str]:
    port = str(free_port())
    return {
        "python": [sys.executable],
        "ranks": [sys.executable],
        "torchrun": [str(BIN / "torchrun"), f"--nproc_per_node={ranks}", f"--master_port={port}"],
        "deepspeed": [str(BIN / "deepspeed"), f"--num_accelerators={ranks}", f"--master_port={port}"],
    }[launcher]


@contextmanager
def training(
    *arguments: str, launcher: Launcher = "python", ranks: int = 2, env: dict[str, str] | None = None, fork: bool = True
) -> Iterator[Forked | subprocess.Popen[str]]:
    """A run under way; whatever is left of it at the end is killed."""
    command = [*launched_by(launcher, ranks), TRAIN, *arguments]
    with under_way(command, env=env, fork=fork, ranks=ranks if launcher == "ranks" else 0) as process:
        yield process


@contextmanager
def under_way(
    command: Sequence[str], *, env: dict[str, str] | None = None, stdin: str = "", fork: bool = True, ranks: int = 0
) -> Iterator[Forked | subprocess.Popen[str]]:
    """A command that has been started; `env` is added to the environment, empty values are taken out of it."""
    environment = {name: value for name, value in {**os.environ, **(env or {})}.items() if value}
    process = start(command, environment=environment, stdin=stdin, fork=fork, ranks=ranks)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(true: Callable[[], object], *, timeout_s: float = 120, every_s: float = 0.05) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(every_s)


def workers_of(process: Forked | subprocess.Popen[str]) -> dict[int, int]:
    """Process id of each rank of a run under a launcher, by rank."""
    if isinstance(process, Forked):
        return process.ranks
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            environment = child.environ()
            if TRAIN in " ".join(child.cmdline()) and "RANK" in environment:
                found[int(environment["RANK"])] = child.pid
    return found


def run(
    command: Sequence[str],
    *,
    timeout_s: float = 240,
    stdin: str = "",
    env: dict[str, str] | None = None,
    fork: bool = True,
    ranks: int = 0,
) -> subprocess.CompletedProcess[str]:
    """A command run to its end; `env` is added to the environment, empty values are taken out of it."""
    with under_way(command, env=env, stdin=stdin, fork=fork, ranks=ranks) as process:
        out, err = process.communicate(timeout=timeout_s)
        assert process.returncode is not None
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind from a run's metrics.jsonl, without a line that is being written."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def small_run(tiny_bert: Path, corpus: Path, run_dir: Path, **overrides: Any) -> list[str]:
    """Arguments of a run of seconds: the tiny BERT without dropout, every step logged."""
    settings = {
        "model.name": tiny_bert,
        "model.max_length": 32,
        "model.embedding_dim": 16,
        "model.dropout": 0.0,
        "data.root": corpus,
        "run.dir": run_dir,
        "train.epochs": 2,
        "train.global_batch_size": 8,
        "train.lr": 1e-3,
        "train.log_every": 1,
        "train.precision": "fp32",
        "mining.random_rate": 0.5,
        "tracking.report": "false",
        **{name.replace("__", "."): value for name, value in overrides.items()},
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]
