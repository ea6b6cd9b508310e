"""One place that writes: metrics.jsonl first, then Weights & Biases; on ranks other than 0 a tracker that does nothing.

No network, no account or a server that does not answer never stops or slows a run: W&B then records offline in run.dir,
and `wandb sync` uploads it later.
"""

import json
import math
import os
import secrets
import sys
import time
import warnings
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from biencoder.config import TrackingConfig
from biencoder.errors import ConfigError
from biencoder.tracking.names import Kind, Metrics

_INIT_TIMEOUT_S = 20


class Tracker(Protocol):
    def log(self, kind: Kind, *, step: int, epoch: int, metrics: Metrics) -> None:
        """Record numbers under their names."""

    def event(self, name: str, *, step: int, epoch: int, detail: str) -> None:
        """Record that something happened."""

    def position(self) -> int:
        """Where the record stands, for `rewind`."""

    def rewind(self, position: int) -> None:
        """Forget what was recorded after this position: it will happen again."""

    def close(self) -> None: ...


class Silent:
    """The tracker of every rank but 0."""

    def log(self, kind: Kind, *, step: int, epoch: int, metrics: Metrics) -> None:
        pass

    def event(self, name: str, *, step: int, epoch: int, detail: str) -> None:
        pass

    def position(self) -> int:
        return 0

    def rewind(self, position: int) -> None:
        pass

    def close(self) -> None:
        pass


class FileAndWandb:
    def __init__(self, file: FileIO, run: Any) -> None:
        self._file, self._run = file, run
        self._unwritten = b""

    def log(self, kind: Kind, *, step: int, epoch: int, metrics: Metrics) -> None:
        self._write(kind, step, epoch, {name: _json_number(value) for name, value in metrics.items()})
        if self._run:
            self._run.log({**metrics, "step": step, "epoch": epoch})

    def event(self, name: str, *, step: int, epoch: int, detail: str) -> None:
        self._write("event", step, epoch, {"event": name, "detail": detail})

    def position(self) -> int:
        return self._file.tell() + len(self._unwritten)

    def rewind(self, position: int) -> None:
        self._unwritten = b""
        end = min(position, os.fstat(self._file.fileno()).st_size)
        self._file.truncate(end)
        self._file.seek(end)

    def close(self) -> None:
        self._write_out(b"")
        self._file.close()
        if self._run:
            self._run.finish()

    def _write(self, kind: Kind, step: int, epoch: int, fields: Mapping[str, Any]) -> None:
        line = {"kind": kind, "step": step, "epoch": epoch, "time": round(time.time(), 3), **fields}
        self._write_out(json.dumps(line).encode() + b"\n")

    def _write_out(self, line: bytes) -> None:
        """Append whole lines or nothing; on a full disk they wait in memory for room."""
        waiting, start = self._unwritten + line, self._file.tell()
        try:
            written = self._file.write(waiting)
        except OSError as error:
            written, reason = 0, error.strerror
        else:
            reason = "No space left on device"
        if written < len(waiting):
            self._file.truncate(start)
            self._file.seek(start)
            if not self._unwritten:
                print(f"warning: {self._file.name} cannot be written: {reason}; its lines wait in memory", file=sys.stderr)
            self._unwritten = waiting
        else:
            self._unwritten = b""


def open_tracker(config: TrackingConfig, run_dir: Path, settings: Mapping[str, Any], *, is_main: bool) -> Tracker:
    """The tracker of this rank; `settings` (flat, no secrets) become the W&B run's configuration.

    Raises:
        ConfigError: the run folder cannot be written.
    """
    if not is_main:
        return Silent()
    try:
        path = run_dir / "metrics.jsonl"
        path.touch()
        file = open(path, "r+b", buffering=0)  # noqa: SIM115 - closed by the tracker
        file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ConfigError(f"run.dir {run_dir} cannot be written: {error.strerror}") from None
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

    # One W&B run, however often the job is started: its id lives in the run folder.
    id_file = run_dir / "wandb-id"
    if not id_file.is_file():
        id_file.write_text(secrets.token_hex(4))

    def start(how: str) -> Any:
        run = wandb.init(
            project=config.project,
            name=run_dir.name,
            id=id_file.read_text(),
            resume="allow",
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
