"""The folder that a run leaves.

config.toml      every setting of the last start as resolved, readable by --config
run.jsonl        a line for each start (versions, dataset fingerprint, ranks, command, time), and one for how it ended
metrics.jsonl    one JSON object a line, see tracking/names.py
lock.json        who works there now (see run_lock.py)
model/best       the model that was best on validation, model/last the last one (see export.py)
checkpoints/     what a start goes on from (see checkpoint.py)
wandb/           the offline run, where W&B was not logged in
"""

import dataclasses
import itertools
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from biencoder import __version__, environment
from biencoder.config.paths import IS_CHECKOUT, PROJECT_ROOT, user_path
from biencoder.config.schema import Config
from biencoder.data import Dataset
from biencoder.errors import ConfigError, tell
from biencoder.tracking.json_lines import append_json_line, read_json_lines
from biencoder.tracking.whole_file import replace_file

MAX_STARTS = 3
"""Starts from one checkpoint, by torchrun or Slurm, that may fail before the next one."""
MAX_STOPPED_STARTS = 10
"""The same, where they may have been asked to stop."""
_TIME = "%Y-%m-%dT%H:%M:%S%z"
_PACKAGES = ("torch", "transformers", "deepspeed", "faiss-cpu", "scikit-learn", "numpy", "wandb")


def run_folder(config: Config) -> Path:
    """Where the run lives; nothing is made.

    Raises:
        ConfigError: the folder holds a run that this one must not touch.
    """
    folder = user_path(config.run.dir or _default_folder())
    check_folder(folder, config)
    return folder


def check_folder(folder: Path, config: Config) -> None:
    """
    Raises:
        ConfigError: the folder holds a run that this one must not touch.
    """
    if (folder / "metrics.jsonl").exists():
        if config.run.resume == "never":
            raise ConfigError(f"run.dir {folder} holds a run already; choose another folder, or set run.resume = auto")
        if (folder / "model" / "last").exists() and not (folder / "checkpoints").exists():
            raise ConfigError(f"run.dir {folder} holds a finished run without checkpoints; choose another folder")


def record_start(
    folder: Path, config: Config, dataset: Dataset, *, precision: str, world_size: int, from_step: int
) -> dict[str, Any]:
    """Make the folder, or write into it that the run was started again; what was written about this start.

    Raises:
        ConfigError: the folder cannot be written, or this is one more restart by a machine that leads nowhere.
    """
    earlier = read_lines(folder)
    by_torchrun, by_slurm = environment.torchrun_restarts() > 0, environment.slurm_restarts() > 0
    if by_torchrun:  # it asks the other ranks to stop when one has died, and never starts again what a person has stopped
        earlier = [line for line in earlier if "stopped" not in line]
    in_vain = list(itertools.takewhile(lambda line: line.get("from_step") == from_step, reversed(earlier)))
    # Starts that were asked to stop before their first step count too, in the end: a time limit can be too short for them.
    stopped = list(itertools.takewhile(lambda line: line.get("from_step", from_step) == from_step, reversed(earlier)))
    tried = sum("from_step" in line for line in stopped)
    if (by_torchrun or by_slurm) and (len(in_vain) >= MAX_STARTS or tried >= MAX_STOPPED_STARTS):
        raise ConfigError(
            f"{tried} starts from step {from_step} of {folder} have ended before the next checkpoint; read their "
            "messages, mend the cause, and start the run by hand"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "config.toml", tomli_w.dumps(dataclasses.asdict(config)))
        facts = _facts(dataset, world_size) | {"precision": precision, "from_step": from_step}
        append_json_line(folder / "run.jsonl", facts)
    except OSError as error:
        raise ConfigError(f"run.dir {folder} cannot be written: {error.strerror}") from None
    return facts


def record_stop(folder: Path) -> None:
    """Write that the run was asked to stop: its next start is no failed one."""
    append_line(folder, {"stopped": time.strftime(_TIME)})


def record_end(folder: Path, *, step: int) -> None:
    """Write that the run has made its last step and left its models."""
    append_line(folder, {"finished": time.strftime(_TIME), "step": step})


def finished_at(folder: Path) -> int | None:
    """The last step of the run that has finished in this folder; None where none has since it was last started."""
    last = (read_lines(folder) or [{}])[-1]
    return int(last["step"]) if "finished" in last and (folder / "model" / "last").is_dir() else None


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """What earlier starts have written into `run.jsonl`."""
    return read_json_lines(folder / "run.jsonl")


def append_line(folder: Path, line: dict[str, Any]) -> None:
    """Write into `run.jsonl` how a start ended. On a full disk that is a warning: the end is what it is."""
    try:
        append_json_line(folder / "run.jsonl", line)
    except OSError as error:
        tell(f"warning: {folder / 'run.jsonl'} cannot be written: {error.strerror}")


def _default_folder() -> str:
    """runs/<date>-<time>-<host>-<process>, with the job's number on Slurm: no two processes get the same.

    Under torchrun time and process are those of its agent, so that its restarts find the same folder.
    """
    by_torchrun = environment.is_under_torchrun()
    pid = os.getppid() if by_torchrun else os.getpid()
    started = time.localtime(psutil.Process(pid).create_time() if by_torchrun else time.time())
    job = environment.slurm_job()
    parts = [time.strftime("%Y%m%d-%H%M%S", started), *([f"slurm-{job}"] if job else []), platform.node(), str(pid)]
    return f"runs/{'-'.join(parts)}"


def _facts(dataset: Dataset, world_size: int) -> dict[str, Any]:
    return {
        "started": time.strftime(_TIME),
        "command": " ".join(sys.argv),
        "host": platform.node(),
        "ranks": world_size,
        "python": platform.python_version(),
        "packages": {"biencoder": __version__} | {name: version(name) for name in _PACKAGES},
        "commit": _commit(),
        "data": {
            "fingerprint": dataset.fingerprint,
            "pairs": {name: len(split) for name, split in dataset.splits.items()},
            "distinct_texts": len(dataset.texts),
            "oddities": dict(dataset.findings.counts),
        },
    }


def _commit() -> str | None:
    """The code's git commit, with a + where files differ from it; None outside a checkout."""
    if not IS_CHECKOUT:  # git could find one of something else around it
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(PROJECT_ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
