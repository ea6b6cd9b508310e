"""The best model is written once there is room for it, whatever was measured since."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from biencoder.config import Config
from biencoder.distributed.world import World
from biencoder.errors import ModelError, PeerError
from biencoder.training.loop import keep_best, write_best
from biencoder.training.model_folders import ModelFolders, Weights
from biencoder.training.run import Progress

NAME = f"eval/validation/{Config().eval.metric}"


class Engine:
    """Whose one weight is the step."""

    steps = 0

    def weights(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.tensor(float(self.steps))}


class Disk:
    """Writes the step as a file, unless it is full."""

    full = False

    def write(self, place: Path, weights: Weights, metrics: Any, step: int) -> None:
        if self.full:
            raise ModelError("the model cannot be written: No space left on device")
        place.mkdir(parents=True, exist_ok=True)
        (place / "step").write_text(f"{step} {int(weights['weight'])} {metrics[NAME]}")


@pytest.fixture
def run(tmp_path: Path) -> Any:
    engine, disk, events = Engine(), Disk(), []
    return SimpleNamespace(
        config=Config(),
        dataset=SimpleNamespace(deciding_split="validation"),
        models=ModelFolders(tmp_path, World.alone(), engine, disk.write),  # type: ignore[arg-type]
        tracker=SimpleNamespace(event=lambda name, **_: events.append(name)),
        engine=engine,
        disk=disk,
        events=events,
        best=lambda: (tmp_path / "model/best/step").read_text() if (tmp_path / "model/best").exists() else None,
    )


@pytest.fixture
def measure(run: Any) -> Callable[[float], None]:
    """An epoch, and its evaluation."""

    def measure(value: float) -> None:
        progress.step += 1
        progress.epoch += 1
        run.engine.steps = progress.step
        keep_best(run, progress, {NAME: value})

    progress = run.progress = Progress(torch.device("cpu"))
    return measure


def test_the_best_waits_in_memory_and_is_written_though_later_ones_are_worse(
    run: Any, measure: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    measure(0.3)
    assert run.best() == "1 1 0.3"
    run.disk.full = True
    measure(0.5)
    measure(0.4)
    assert run.best() == "1 1 0.3"  # the old one, whole
    assert (run.progress.best, run.progress.best_step) == (0.3, 1)  # a start from a checkpoint counts on what is there
    assert run.progress.evaluations_since_best == 1
    run.disk.full = False
    measure(0.45)
    assert run.best() == "2 2 0.5"
    assert (run.progress.best, run.progress.best_step, run.progress.evaluations_since_best) == (0.5, 2, 2)
    assert run.events == ["model not written"]
    assert capsys.readouterr().err.count("the best model is kept in memory and tried again") == 2
    measure(0.6)
    assert run.best() == "5 5 0.6"


def test_a_better_one_takes_the_place_of_the_one_that_waits(run: Any, measure: Callable[[float], None]) -> None:
    run.disk.full = True
    measure(0.5)
    measure(0.6)
    run.disk.full = False
    assert write_best(run, run.progress)
    assert run.best() == "2 2 0.6"
    assert write_best(run, run.progress)  # nothing is left to do


def test_at_the_end_models_that_cannot_be_written_are_an_error(run: Any, measure: Callable[[float], None]) -> None:
    run.disk.full = True
    measure(0.5)
    for write in (lambda: write_best(run, run.progress, last_chance=True), lambda: run.models.write_last({NAME: 0.5})):
        with pytest.raises(PeerError, match="No space left on device; make room, and run the same command again") as error:
            write()
        assert error.value.exit_code == 2


def test_what_is_set_aside_returns_where_the_write_fails(run: Any, measure: Callable[[float], None]) -> None:
    """The last evaluation lies within an epoch."""
    measure(0.3)
    run.disk.full = True
    run.progress.negatives = torch.zeros(1).numpy()
    measure(0.5)
    assert run.best() == "1 1 0.3"
    run.disk.full = False
    assert write_best(run, run.progress, last_chance=True)
    assert run.best() == "2 2 0.5"
