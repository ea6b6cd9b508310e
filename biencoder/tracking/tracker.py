"""One place that writes: metrics.jsonl first, then Weights & Biases; on ranks other than 0 a tracker that does nothing.

No network, no account or a server that does not answer never stops or slows a run: W&B then records offline in run.dir,
and `wandb sync` uploads it later.
"""

import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from biencoder.config import TrackingConfig
from biencoder.tracking.names import Kind, Metrics

_INIT_TIMEOUT_S = 20


class Tracker(Protocol):
    def log(self, kind: Kind, *, step: int, epoch: int, metrics: Metrics) -> None:
        """Record numbers under their names."""

    def event(self, name: str, *, step: int, epoch: int, detail: str) -> None:
        """Record that something happened."""

    def close(self) -> None: ...


class Silent:
    """The tracker of every rank but 0."""

    def log(self, kind: Kind, *, step: int, epoch: int, metrics: Metrics) -> None:
        pass

    def event(self, name: str, *, step: int, epoch: int, detail: str) -> None:
        pass

    def close(self) -> None:
        pass


class FileAndWandb:
    def __init__(self, file: TextIO, run: Any) -> None:
        self._file, self._run = file, run

    def log(self, kind: Kind, *, step: int, epoch: int, metrics: Metrics) -> None:
        self._write(kind, step, epoch, {name: _json_number(value) for name, value in metrics.items()})
        if self._run:
            self._run.log({**metrics, "step": step, "epoch": epoch})

    def event(self, name: str, *, step: int, epoch: int, detail: str) -> None:
        self._write("event", step, epoch, {"event": name, "detail": detail})

    def close(self) -> None:
        self._file.close()
        if self._run:
            self._run.finish()

    def _write(self, kind: Kind, step: int, epoch: int, fields: Mapping[str, Any]) -> None:
        line = {"kind": kind, "step": step, "epoch": epoch, "time": round(time.time(), 3), **fields}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def open_tracker(config: TrackingConfig, run_dir: Path, settings: Mapping[str, Any], *, is_main: bool) -> Tracker:
    """The tracker of this rank; `settings` (flat, no secrets) become the W&B run's configuration."""
    if not is_main:
        return Silent()
    file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
    return FileAndWandb(file, _start_wandb(config, run_dir, settings))


def _start_wandb(config: TrackingConfig, run_dir: Path, settings: Mapping[str, Any]) -> Any:
    mode = os.environ.get("WANDB_MODE") or config.wandb
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wandb
    if mode == "auto":
        mode = "online" if wandb.login(prompt=False) else "offline"

    def start(how: str) -> Any:
        run = wandb.init(
            project=config.project,
            name=run_dir.name,
            dir=run_dir,
            config=dict(settings),
            mode=how,  # type: ignore[arg-type]  # one of its literals
            settings=wandb.Settings(init_timeout=_INIT_TIMEOUT_S, console="off", silent=True),
        )
        run.define_metric("*", step_metric="step")
        return run

    try:
        return start(mode)
    except (wandb.errors.CommError, wandb.errors.UsageError):
        return start("offline")


def _json_number(value: float) -> float | str | None:
    """JSON has no NaN or infinity: NaN becomes null, infinity the text that float() reads back."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)
