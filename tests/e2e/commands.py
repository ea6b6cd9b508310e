"""Run the commands as a user types them, and read what they leave."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil

from tests.ranks.launch import ROOT, free_port

Launcher = Literal["python", "torchrun", "deepspeed"]
BIN = Path(sys.executable).parent


def train(
    *arguments: str,
    launcher: Launcher = "python",
    ranks: int = 2,
    timeout_s: float = 240,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`launcher/train.py` under one of the three launchers; `python` is one process."""
    return run([*launched_by(launcher, ranks), "launcher/train.py", *arguments], timeout_s=timeout_s, env=env)


def launched_by(launcher: Launcher, ranks: int) -> list[str]:
    port = str(free_port())
    return {
        "python": [sys.executable],
        "torchrun": [str(BIN / "torchrun"), f"--nproc_per_node={ranks}", f"--master_port={port}"],
        "deepspeed": [str(BIN / "deepspeed"), f"--num_accelerators={ranks}", f"--master_port={port}"],
    }[launcher]


@contextmanager
def training(
    *arguments: str, launcher: Launcher = "python", ranks: int = 2, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A run under way; whatever is left of it at the end is killed."""
    process = subprocess.Popen(
        [*launched_by(launcher, ranks), "launcher/train.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(true: Callable[[], object], *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def workers_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process id of each rank of a run under a launcher, by rank."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            environment = child.environ()
            if "launcher/train.py" in " ".join(child.cmdline()) and "RANK" in environment:
                found[int(environment["RANK"])] = child.pid
    return found


def run(
    command: list[str], *, timeout_s: float = 240, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command in the project's folder; `env` is added to the environment, empty values are taken out of it."""
    environment = {name: value for name, value in {**os.environ, **(env or {})}.items() if value}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        input=stdin,
        check=False,
    )


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind from a run's metrics.jsonl."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
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
        "mining.random_rate": 0.5,
        "tracking.report": "false",
        **{name.replace("__", "."): value for name, value in overrides.items()},
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]
