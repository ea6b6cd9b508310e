"""What a run has recorded, read back from its folder: while it trains, after it ended, or after it was killed.

record = read_record(Path("runs/mine"))
record.frame("step")["train/loss"]
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from biencoder.config import Config, load_config
from biencoder.errors import ConfigError
from biencoder.tracking.json_lines import Line, whole_end
from biencoder.tracking.names import RecordKind, accuracy
from biencoder.tracking.numbers import from_json

_LATELY_S = 900


@dataclass(frozen=True, slots=True)
class RunRecord:
    folder: Path
    config: Config
    starts: list[Line]
    """Of run.jsonl, oldest first: what each start ran on, and how it ended."""
    lines: list[Line]
    """Of metrics.jsonl, in the order in which they were written."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def deciding_split(self) -> str:
        """The split that the best model is chosen on."""
        measured = any(accuracy("validation", "embedding") in line for line in self.of("eval"))
        return "validation" if measured else "training"

    @property
    def best(self) -> Line | None:
        """The evaluation, after the first, that is best by `eval.metric` (the earliest such), as the run itself chooses its
        best model; None before there is one."""
        name = f"eval/{self.deciding_split}/{self.config.eval.metric}"
        return max(self.of("eval")[1:], key=lambda line: from_json(line[name]), default=None)

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16, as of the last start."""
        return str(next((line["precision"] for line in reversed(self.starts) if "precision" in line), "fp32"))

    @property
    def state(self) -> Literal["finished", "stopped", "running", "unfinished"]:
        """`stopped`: it was asked to; `running`: it has recorded something lately; `unfinished`: anything else."""
        last = self.starts[-1] if self.starts else {}
        if "finished" in last and (self.folder / "model" / "last").is_dir():
            return "finished"
        if "stopped" in last:
            return "stopped"
        lately = bool(self.lines) and time.time() - self.lines[-1]["time"] < _LATELY_S
        return "running" if lately else "unfinished"

    def of(self, kind: RecordKind, name: str | None = None) -> list[Line]:
        """The lines of one kind; of tables and histograms those with this name, of events those of this event."""
        key = "event" if kind == "event" else "name"
        return [line for line in self.lines if line["kind"] == kind and name in (None, line.get(key))]

    def frame(self, kind: RecordKind) -> pd.DataFrame:
        """The numbers of one kind, a row a record: `step`, `epoch`, `time`, and the metrics of tracking/names.py."""
        frame = pd.DataFrame([{name: _number(name, value) for name, value in line.items()} for line in self.of(kind)])
        return frame.drop(columns="kind", errors="ignore")


def read_record(folder: Path) -> RunRecord:
    """
    Raises:
        ConfigError: the folder holds no run, or one whose configuration or metrics cannot be read.
    """
    for name in ("config.toml", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} is no run's folder: it holds no {name}; give the folder that run.dir named")
    return RunRecord(
        folder,
        load_config(file=(folder / "config.toml").resolve()),
        _read_lines(folder / "run.jsonl"),
        _read_lines(folder / "metrics.jsonl"),
    )


def _read_lines(file: Path) -> list[Line]:
    try:
        content = file.read_bytes()
        return [json.loads(line) for line in content[: whole_end(content)].splitlines()]  # the last may be half written
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None


def _number(name: str, value: Any) -> Any:
    return from_json(value) if "/" in name else value
