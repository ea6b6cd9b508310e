"""The one writer of the record: metrics.jsonl first, then Weights & Biases. On ranks other than 0 it does nothing.

The health guards see every record; their alerts are recorded too, and shown on the terminal.
Everything but metrics.jsonl is called through a channel: a failure there does not end the training.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from biencoder.config.schema import Config
from biencoder.errors import ConfigError, tell
from biencoder.tracking.channel import Channel
from biencoder.tracking.guards import Alert, Guards
from biencoder.tracking.json_lines import say_cut, whole_end, whole_lines
from biencoder.tracking.live_report import LiveReport
from biencoder.tracking.names import PROVENANCE, Metrics, RecordKind
from biencoder.tracking.numbers import to_json
from biencoder.tracking.wandb_run import CALL_LIMIT_S, FINISH_LIMIT_S, START_LIMIT_S, WandbRun, end_service, start_wandb


class Tracker(Protocol):
    def log(self, kind: RecordKind, *, step: int, epoch: int, metrics: Metrics) -> None:
        """Record numbers under their names."""

    def histogram(self, name: str, *, step: int, epoch: int, edges: list[float], counts: list[int]) -> None:
        """Record how many values lay between each two edges."""

    def table(self, name: str, *, step: int, epoch: int, columns: list[str], rows: list[list[Any]]) -> None:
        """Record a small table of plain values."""

    def event(self, name: str, *, step: int, epoch: int, detail: str) -> None:
        """Record that something happened."""

    def position(self) -> int:
        """The current end of the record, for `rewind`. Everything before it is on the disk when this returns."""

    def rewind(self, position: int) -> None:
        """Delete what was recorded after this position, because it will be recorded again. A torn line before the
        position is deleted too, with a warning."""

    def go_back(self, position: int) -> None:
        """As `rewind`, for steps that will differ when repeated: events after the position stay recorded."""

    def close(self, model: Path | None = None) -> None:
        """End the record. Args: model: the finished run's exported model."""


class Silent:
    """The tracker of every rank but 0."""

    def log(self, kind: RecordKind, *, step: int, epoch: int, metrics: Metrics) -> None:
        pass

    def histogram(self, name: str, *, step: int, epoch: int, edges: list[float], counts: list[int]) -> None:
        pass

    def table(self, name: str, *, step: int, epoch: int, columns: list[str], rows: list[list[Any]]) -> None:
        pass

    def event(self, name: str, *, step: int, epoch: int, detail: str) -> None:
        pass

    def position(self) -> int:
        return 0

    def rewind(self, position: int) -> None:
        pass

    def go_back(self, position: int) -> None:
        pass

    def close(self, model: Path | None = None) -> None:
        pass


class Recorder:
    """The tracker of rank 0."""

    def __init__(
        self,
        file: FileIO,
        wandb: WandbRun | None,
        new_guards: Callable[[], Guards] | None,
        report: LiveReport | None,
        show: Callable[[Alert, int], None],
    ) -> None:
        """
        Args:
            new_guards: makes guards that have seen nothing yet; None for no guards.
            show: prints an alert and the step at which it was raised.
        """
        self._file, self._wandb, self._report, self._show = file, wandb, report, show
        self._new_guards = new_guards
        self._unwritten = b""
        self._to_wandb = Channel("Weights & Biases", limit_s=CALL_LIMIT_S, on_loss=wandb.abandon if wandb else None)
        self._to_report = Channel("report.html", again=True)
        self._to_guards = Channel("the health guards")
        self._to_person = Channel("an alert", again=True)
        self._guards = self._to_guards.run(new_guards) if new_guards else None
        self._rewound = False

    def log(self, kind: RecordKind, *, step: int, epoch: int, metrics: Metrics) -> None:
        self._write(kind, step, epoch, {name: to_json(value) for name, value in metrics.items()})
        if self._report:
            self._to_report.run(self._report.refresh)

    def histogram(self, name: str, *, step: int, epoch: int, edges: list[float], counts: list[int]) -> None:
        self._write("histogram", step, epoch, {"name": name, "edges": edges, "counts": counts})

    def table(self, name: str, *, step: int, epoch: int, columns: list[str], rows: list[list[Any]]) -> None:
        plain = [[to_json(value) if isinstance(value, float) else value for value in row] for row in rows]
        self._write("table", step, epoch, {"name": name, "columns": columns, "rows": plain})

    def event(self, name: str, *, step: int, epoch: int, detail: str) -> None:
        self._write("event", step, epoch, {"event": name, "detail": detail})

    def position(self) -> int:
        with suppress(OSError):  # a disk that cannot flush will fail to hold the checkpoint as well, which is reported
            os.fsync(self._file.fileno())
        return self._file.tell() + len(self._unwritten)

    def rewind(self, position: int) -> None:
        if self._unwritten:
            self._write_out(b"")
            self._unwritten = b""
        self._file.seek(0)
        held = self._file.read()
        kept = held[: whole_end(held[:position])]
        if len(held) < position:
            tell(
                f"warning: {self._file.name} ends {position - len(held)} bytes before the checkpoint it belongs to; what "
                "was recorded there is lost"
            )
        if len(kept) < min(position, len(held)):
            say_cut(self._file.name, min(position, len(held)) - len(kept))
        self._file.truncate(len(kept))
        self._file.seek(len(kept))
        lines = list(whole_lines(kept, self._file.name))
        if new_guards := self._new_guards:  # they must see the kept records, and none that was deleted
            self._guards = self._to_guards.run(lambda: _after(new_guards(), lines))
        self._go_on_in_wandb(lines)

    def go_back(self, position: int) -> None:
        self._file.seek(0)
        after = (self._file.read() + self._unwritten)[position:].splitlines(keepends=True)
        self.rewind(position)
        for line in after:
            record = json.loads(line)
            if (
                record["kind"] == "event" and record["event"] not in PROVENANCE
            ):  # events happened once; computed numbers come again
                self._write_out(line)
                self._alerts(record)  # the guards must know them; their alerts have been shown

    def _go_on_in_wandb(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """The first call is the start's own; later calls go back to a checkpoint, to train differently from there."""
        first, self._rewound = not self._rewound, True
        if wandb := self._wandb:
            self._to_wandb.run((lambda: wandb.follow(lines)) if first else wandb.repeat)

    def close(self, model: Path | None = None) -> None:
        self._write_out(b"")
        self._file.close()
        if self._report:
            self._to_report.run(self._report.finish)
        if wandb := self._wandb:
            self._to_wandb.run(lambda: wandb.finish(model), limit_s=FINISH_LIMIT_S)

    def _write(self, kind: RecordKind, step: int, epoch: int, fields: Mapping[str, Any]) -> None:
        line = {"kind": kind, "step": step, "epoch": epoch, "time": round(time.time(), 3), **fields}
        self._write_out(json.dumps(line).encode() + b"\n")
        if wandb := self._wandb:
            self._to_wandb.run(lambda: wandb.give(line))
        for alert in self._alerts(line):
            self._to_person.run(lambda alert=alert: self._show(alert, step))  # type: ignore[misc]
            told = {"event": "alert", "guard": alert.guard, "detail": alert.sign, "advice": alert.advice}
            self._write("event", step, epoch, told)

    def _alerts(self, line: Mapping[str, Any]) -> Sequence[Alert]:
        guards = self._guards
        return (self._to_guards.run(lambda: guards.observe(line)) if guards else None) or []

    def _write_out(self, line: bytes) -> None:
        """Append whole lines or nothing. On a full disk the lines wait in memory."""
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
                tell(f"warning: {self._file.name} cannot be written: {reason}; its lines wait in memory")
            self._unwritten = waiting
        else:
            self._unwritten = b""


def _after(guards: Guards, lines: Sequence[Mapping[str, Any]]) -> Guards:
    """The guards, once they have seen these lines of a record."""
    for line in lines:
        guards.observe(line)
    return guards


def open_tracker(
    config: Config,
    run_dir: Path,
    facts: Mapping[str, Any],
    *,
    precision: str,
    show: Callable[[Alert, int], None],
    is_main: bool,
) -> Tracker:
    """The tracker of this rank.

    Args:
        facts: what Weights & Biases is to show of the run beside its configuration; flat, no secrets.

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
    tracking = config.tracking
    return Recorder(
        file,
        Channel("Weights & Biases", limit_s=START_LIMIT_S, on_loss=end_service).run(
            lambda: start_wandb(tracking, run_dir, config.flat(), facts)
        ),
        (lambda: Guards(config, precision=precision)) if tracking.guards else None,
        LiveReport(run_dir) if tracking.report else None,
        show,
    )
