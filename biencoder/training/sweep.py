"""Sweeps: trials drawn at random from a definition in the schema of Weights & Biases, and their ranking.

sweep = read_sweep(Path("configs/sweep.yaml"))
sweep.trials(3, seed=0, base=config)      # [{"train.lr": "3e-06", …}, {"train.lr": "1.8e-06", …}, …]
rank([Path("runs/sweep/trial-000"), Path("runs/sweep/trial-001")])

Trial i depends on (seed, i) and the definition only, so that a sweep can be prolonged. Trial 0 is the base configuration,
the baseline of the others. Trials are ranked on validation alone; test accuracy is only shown.
"""

import csv
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from rich.table import Table

from biencoder.config.keys import nearest_key
from biencoder.config.paths import find_file, typed
from biencoder.config.schema import Config
from biencoder.errors import ConfigError
from biencoder.rng import uniforms
from biencoder.tracking.console import shown
from biencoder.tracking.names import accuracy
from biencoder.tracking.record import best_first, differing_keys, read_record

METRIC = accuracy("validation", "embedding")
FAILED = "failed"
"""A file in the folder of a trial that ended with an error: the exit code and its last words."""

_DOMAINS = (
    "`value`, a list of `values`, or `min` and `max` with a distribution of uniform, int_uniform or log_uniform_values "
    "(YAML wants 1.0e-6: it reads 1e-6 as a text)"
)


@dataclass(frozen=True, slots=True)
class Choice:
    values: tuple[Any, ...]

    def at(self, u: float) -> Any:
        """Args: u: a number in [0, 1)."""
        return self.values[int(u * len(self.values))]


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    high: float
    distribution: Literal["uniform", "int_uniform", "log_uniform_values"]

    def at(self, u: float) -> float:
        """Args: u: a number in [0, 1). Returns: real numbers with four digits, which people can read."""
        if self.distribution == "int_uniform":
            return self.low + int(u * (self.high - self.low + 1))
        if self.distribution == "uniform":
            value = self.low + u * (self.high - self.low)
        else:
            value = self.low * (self.high / self.low) ** u
        return min(max(float(f"{value:.4g}"), self.low), self.high)


@dataclass(frozen=True, slots=True)
class Sweep:
    file: Path
    parameters: Mapping[str, Choice | Range]
    base: list[str]
    """Arguments that every trial gets: what follows the program in the definition's command, but for macros."""

    def trials(self, count: int, *, seed: int, base: Config) -> list[dict[str, str]]:
        """What each trial overrides: dotted key → text. The first one repeats the values of `base`."""
        unknown = next((key for key in self.parameters if key not in base.flat()), None)
        if unknown:
            raise ConfigError(f"unknown key `{unknown}` in {self.file}; the nearest valid one is `{nearest_key(unknown)}`")
        baseline = {key: as_text(base.flat()[key]) for key in self.parameters}
        return [baseline, *(self._draw(trial, seed) for trial in range(1, count))]

    def _draw(self, trial: int, seed: int) -> dict[str, str]:
        drawn = {}
        for key, domain in self.parameters.items():  # a stream for each key: another key in the file moves no other draw
            u = uniforms(seed=seed, purpose=f"sweep {key}", epoch=0, positions_N=np.array([trial]))
            drawn[key] = as_text(domain.at(float(u[0])))
        return drawn


def as_text(value: Any) -> str:
    """A setting as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_arguments(settings: Mapping[str, str]) -> list[str]:
    return [part for name, text in settings.items() for part in (f"--{name}", text)]


def read_sweep(file: Path) -> Sweep:
    """
    Raises:
        ConfigError: the file cannot be read, or asks for what is not drawn here: a method but random, another metric, or
            another distribution.
    """
    try:
        definition = yaml.safe_load(find_file(str(file)).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the sweep's file {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the sweep's file {file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(definition, dict) or not isinstance(definition.get("parameters"), dict):
        raise ConfigError(f"the sweep's file {file} has no `parameters`; configs/sweep.yaml shows what is expected")
    if definition.get("method") != "random":
        raise ConfigError(
            f"`method` in {file} is {definition.get('method')}, but here trials are drawn at random: set it to random, "
            "or leave the choice of trials to W&B (wandb sweep)"
        )
    if definition.get("metric") != {"name": METRIC, "goal": "maximize"}:
        raise ConfigError(f"`metric` in {file} is not {METRIC} with goal maximize, which is what trials are ranked by")
    parameters = {str(key): _domain(str(key), spec, file) for key, spec in definition["parameters"].items()}
    command = [str(part) for part in definition.get("command") or ["${program}"]]
    if "${program}" not in command:
        raise ConfigError(f"`command` in {file} has no ${{program}}; what follows it is what all trials share")
    shared = command[command.index("${program}") + 1 :]
    return Sweep(file, parameters, [part for part in shared if not re.fullmatch(r"\$\{\w+\}", part)])


def _domain(key: str, spec: Any, file: Path) -> Choice | Range:
    given = dict(spec) if isinstance(spec, dict) else {}
    distribution = given.pop("distribution", None)
    match given:
        case {"value": value} if len(given) == 1 and distribution in (None, "constant"):
            return Choice((value,))
        case {"values": [_, *_] as values} if len(given) == 1 and distribution in (None, "categorical"):
            return Choice(tuple(values))
        case {"min": int() | float() as low, "max": int() | float() as high} if len(given) == 2 and low <= high:
            whole = isinstance(low, int) and isinstance(high, int)
            kind: Any = distribution or ("int_uniform" if whole else "uniform")
            if kind == "uniform" or (kind == "int_uniform" and whole) or (kind == "log_uniform_values" and low > 0):
                return Range(low, high, kind)
    raise ConfigError(f"`parameters.{key}` in {file} is {json.dumps(spec, default=str)}, expected {_DOMAINS}")


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial as its folder shows it."""

    folder: Path
    state: str
    config: Config | None = None
    """None where it has left no readable record."""
    data: str = ""
    """Fingerprint of the corpus."""
    validation: float | None = None
    """Best accuracy@1 of the embedding ranking after at least one epoch, None before there is one."""
    step: int | None = None
    """When it was measured, and what the test split measured at that moment (None without a test split)."""
    test: float | None = None


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders themselves where they hold a run, else the runs inside of them.

    Raises:
        ConfigError: one of them holds no run.
    """
    found: list[Path] = []
    for folder in folders:
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        runs = [run for run in (folder, *inside) if (run / "config.toml").is_file() or (run / FAILED).is_file()]
        if not runs:
            raise ConfigError(f"{folder} holds no run; give the folders of runs, or a sweep's folder")
        found += runs
    return found


def rank(folders: Sequence[Path]) -> list[Trial]:
    """Best validation first; trials without a value last."""
    trials = [_read_trial(folder) for folder in folders]
    return sorted(trials, key=lambda trial: best_first(trial.validation))


def _read_trial(folder: Path) -> Trial:
    failed = f"failed: {(folder / FAILED).read_text().strip()}" if (folder / FAILED).is_file() else ""
    try:
        record = read_record(folder)
    except ConfigError as error:
        return Trial(folder, failed or f"unreadable: {error}")
    state = failed or record.state
    if record.best is None:
        return Trial(folder, state, record.config, record.fingerprint)
    if METRIC not in record.best:
        return Trial(folder, f"{state}, without a validation split", record.config, record.fingerprint)
    return Trial(
        folder,
        state,
        record.config,
        record.fingerprint,
        validation=record.best_accuracy("validation"),
        step=record.best["step"],
        test=record.best_accuracy("test"),
    )


def command_line(config: Config) -> str:
    """The command that trains with this configuration from anywhere: every setting that is not a default."""
    defaults = Config().flat()
    settings = {key: as_text(value) for key, value in config.flat().items() if value != defaults[key] and key != "run.dir"}
    return shlex.join([*typed("train"), *as_arguments(settings)])


def ranking_table(trials: Sequence[Trial]) -> Table:
    keys = differing_keys([trial.config for trial in trials if trial.config])
    table = Table(
        title="Trials, ranked by their best validation accuracy@1",
        caption="accuracy@1 of the embedding ranking, in %. `test` was measured by the same evaluation; it ranks nothing.",
        title_justify="left",
        caption_justify="left",
        box=None,
    )
    for heading in ("", "validation", "at step", "test"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("run", no_wrap=True)
    for key in keys:
        table.add_column(shown(key.replace(".", ".\n")), justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    for cells in _cells(trials, keys, number=lambda value: f"{100 * value:.1f}", nothing="–"):
        table.add_row(*map(shown, cells))
    return table


def write_ranking(trials: Sequence[Trial], file: Path) -> None:
    """The same as CSV, with accuracies as shares."""
    keys = differing_keys([trial.config for trial in trials if trial.config])
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["rank", "validation", "step", "test", "run", *keys, "state"])
        writer.writerows(_cells(trials, keys, number=str, nothing=""))


def _cells(
    trials: Sequence[Trial], keys: Sequence[str], *, number: Callable[[float], str], nothing: str
) -> Iterator[list[str]]:
    """Rank, validation, step, test, run, a cell for each key, state."""
    for place, trial in enumerate(trials, 1):
        validation, test = (nothing if value is None else number(value) for value in (trial.validation, trial.test))
        yield [
            nothing if trial.validation is None else str(place),
            validation,
            nothing if trial.step is None else str(trial.step),
            test,
            trial.folder.name,
            *(as_text(trial.config.flat()[key]) if trial.config else nothing for key in keys),
            trial.state,
        ]
