"""Reads the record in a run's folder, while the run trains or after it ended in any way.

record = read_record(Path("runs/mine"))
record.frame("step")["train/loss"]
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from biencoder.config.load import load_config
from biencoder.config.schema import Config
from biencoder.errors import ConfigError
from biencoder.tracking.json_lines import Line, parsed_lines
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

    def best_accuracy(self, split: str) -> float | None:
        """accuracy@1 of the embedding ranking on a split, at the evaluation that is `best`; None without one."""
        name = accuracy(split, "embedding")
        return from_json(self.best[name]) if self.best and name in self.best else None

    @property
    def fingerprint(self) -> str:
        """Of the corpus, as of the last start that read one; empty without one."""
        return next((str(start["data"]["fingerprint"]) for start in reversed(self.starts) if "data" in start), "")

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16, as of the last start."""
        return str(next((line["precision"] for line in reversed(self.starts) if "precision" in line), "fp32"))

    @property
    def state(self) -> Literal["finished", "stopped", "running", "unfinished"]:
        """`stopped`: by a signal; `running`: the last record is under 15 minutes old; `unfinished`: anything else."""
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
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    lines: list[Line] = []
    for number, line in parsed_lines(content):
        if line is None:
            raise ConfigError(f"{file} cannot be read: line {number} is no JSON object")
        lines.append(line)
    return lines


def best_first(accuracy: float | None) -> float:
    """A sort key for runs: the highest accuracy first, runs without one last."""
    return math.inf if accuracy is None else -accuracy


def differing_keys(configs: Sequence[Config]) -> list[str]:
    """The settings that are not the same in all runs, but for where a run is kept."""
    settings = [config.flat() for config in configs]
    return [key for key in Config().flat() if key != "run.dir" and len({values[key] for values in settings}) > 1]


def _number(name: str, value: Any) -> Any:
    return from_json(value) if "/" in name else value
