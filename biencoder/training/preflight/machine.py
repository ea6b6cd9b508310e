"""What a person would look at first: the machine before a run, and the record after it.

rows = examine_machine()                 # beside those of preflight.py
diagnosis = diagnose(read_record(Path("runs/mine")))
"""

import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from biencoder.tracking.formats import duration
from biencoder.tracking.guards import Alert, Guards
from biencoder.tracking.names import ORDINARY, accuracy
from biencoder.tracking.numbers import from_json
from biencoder.tracking.record import RunRecord
from biencoder.training.preflight.judgements import CheckResult

_ANSWERS_WITHIN_S = 10


def examine_machine() -> list[CheckResult]:
    """What preflight does not look at, because a job without it may be sound: launchers, NCCL, Slurm, W&B."""
    return [_launchers(), _gpus(), _slurm(), _wandb()]


def _launchers() -> CheckResult:
    beside = str(Path(sys.executable).parent)
    missing = [name for name in ("torchrun", "deepspeed") if not (shutil.which(name, path=beside) or shutil.which(name))]
    if missing:
        return CheckResult(
            "launchers", "warn", f"{' and '.join(missing)} not found beside {sys.executable}: install the project there"
        )
    return CheckResult("launchers", "ok", f"torchrun and deepspeed in {beside}")


def _gpus() -> CheckResult:
    if not torch.cuda.is_available():
        return CheckResult("GPUs", "ok", "none that this PyTorch can use; ranks talk by gloo")
    version = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return CheckResult("GPUs", "ok", f"{torch.cuda.device_count()}; CUDA {torch.version.cuda}, NCCL {version}")


def _slurm() -> CheckResult:
    if not shutil.which("sbatch"):
        return CheckResult("slurm", "ok", "not on this machine; only slurm/*.sh need it")
    try:
        answer = subprocess.run(
            ["sinfo", "--noheader", "--format=%P %a %D nodes %t"],
            capture_output=True,
            text=True,
            timeout=_ANSWERS_WITHIN_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        return CheckResult("slurm", "warn", f"sbatch is here, but sinfo fails: {' '.join(error.stderr.split())}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return CheckResult("slurm", "warn", f"sbatch is here, but sinfo does not answer: {error}")
    return CheckResult("slurm", "ok", "; ".join(answer.stdout.splitlines()))


def _wandb() -> CheckResult:
    import wandb

    if wandb.login(prompt=False):
        return CheckResult("W&B", "ok", f"wandb {wandb.__version__}, logged in: runs are sent while they train")
    return CheckResult(
        "W&B",
        "ok",
        f"wandb {wandb.__version__}, not logged in: runs are kept in run.dir, and `wandb sync` sends them later",
    )


@dataclass(frozen=True, slots=True)
class Diagnosis:
    summary: str
    """How far the run came, how it ended, and its best result."""
    alerts: list[tuple[int, Alert]]
    """The step of each, the oldest first."""
    events: list[str]
    """What else happened: starts, stops, skipped steps, returns to a checkpoint."""


def diagnose(record: RunRecord) -> Diagnosis:
    """What the guards see in a record, whether they watched the run or not."""
    guards = Guards(record.config, precision=record.precision)
    alerts = [(line["step"], alert) for line in record.lines for alert in guards.observe(line)]
    counts = Counter(line["event"] for line in record.of("event") if line["event"] not in (*ORDINARY, "alert"))
    starts, stops = (sum(key in line for line in record.starts) for key in ("from_step", "stopped"))
    events = [f"{starts} starts, {stops} of them asked to stop"] if starts > 1 else []
    events += [f"{count} x {name}" for name, count in counts.items() if name != "resumed"]
    return Diagnosis(_summary(record), alerts, events)


def _summary(record: RunRecord) -> str:
    last = record.lines[-1] if record.lines else {"step": 0, "epoch": 0, "time": time.time()}
    sentence = f"{record.folder}: {record.state} at step {last['step']}, epoch {last['epoch']}"
    if record.state == "unfinished":
        sentence += (
            f", silent for {duration(time.time() - last['time'])}; the same command goes on from its last checkpoint"
        )
    name, best, evaluations = accuracy(record.deciding_split, "embedding"), record.best, record.of("eval")
    if not evaluations:
        return f"{sentence}; nothing was measured"
    before = f"{from_json(evaluations[0][name]):.1%} before training"
    if best is None:
        return f"{sentence}; accuracy@1 on {record.deciding_split} {before}"
    value = f"{from_json(best[name]):.1%} at step {best['step']}"
    return f"{sentence}; best accuracy@1 on {record.deciding_split} {value}, {before}"
