"""The best model is written once there is room for it, whatever was measured since."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from biencoder.config.schema import Config
from biencoder.distributed.world import World
from biencoder.errors import ModelError
from biencoder.training.best_model import BestModel
from biencoder.training.model_folders import ModelFolders, Weights

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


class Models(NamedTuple):
    engine: Engine
    disk: Disk
    events: list[str]
    folders: ModelFolders
    best: BestModel
    folder: Path

    def written(self) -> str | None:
        """What model/best holds."""
        file = self.folder / "model/best/step"
        return file.read_text() if file.exists() else None

    def measure(self, value: float, *, regular: bool = True) -> None:
        """An epoch, and its evaluation."""
        self.engine.steps += 1
        self.best.consider({NAME: value}, step=self.engine.steps, epoch=self.engine.steps, regular=regular)


@pytest.fixture
def models(tmp_path: Path) -> Models:
    engine, disk, events = Engine(), Disk(), list[str]()
    folders = ModelFolders(tmp_path, World.alone(), engine, disk.write)  # type: ignore[arg-type]
    tracker: Any = SimpleNamespace(event=lambda name, **_: events.append(name))
    return Models(engine, disk, events, folders, BestModel(folders, tracker, metric=NAME), tmp_path)


def test_the_best_waits_in_memory_and_is_written_though_later_ones_are_worse(
    models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    models.measure(0.3)
    assert models.written() == "1 1 0.3"
    models.disk.full = True
    models.measure(0.5)
    models.measure(0.4)
    assert models.written() == "1 1 0.3"  # the old one, whole
    assert (models.best.value, models.best.step) == (0.3, 1)  # a start from a checkpoint counts on what is there
    assert models.best.evaluations_since == 1
    models.disk.full = False
    models.measure(0.45)
    assert models.written() == "2 2 0.5"
    assert (models.best.value, models.best.step, models.best.evaluations_since) == (0.5, 2, 2)
    assert models.events == ["model not written"]
    assert capsys.readouterr().err.count("the best model is kept in memory and tried again") == 2
    models.measure(0.6)
    assert models.written() == "5 5 0.6"


def test_a_better_one_takes_the_place_of_the_one_that_waits(models: Models) -> None:
    models.disk.full = True
    models.measure(0.5)
    models.measure(0.6)
    models.disk.full = False
    assert models.best.write()
    assert models.written() == "2 2 0.6"
    assert models.best.write()  # nothing is left to do


def test_at_the_end_models_that_cannot_be_written_are_an_error(models: Models) -> None:
    models.disk.full = True
    models.measure(0.5)
    for write in (lambda: models.best.write(last_chance=True), lambda: models.folders.write_last({NAME: 0.5})):
        with pytest.raises(ModelError, match="No space left on device; make room, and run the same command again") as error:
            write()
        assert error.value.exit_code == 2


def test_what_is_set_aside_returns_where_the_write_fails(models: Models) -> None:
    """The last evaluation lies within an epoch."""
    models.measure(0.3)
    models.disk.full = True
    models.measure(0.5, regular=False)
    assert models.written() == "1 1 0.3"
    models.disk.full = False
    assert models.best.write(last_chance=True)
    assert models.written() == "2 2 0.5"


def test_going_back_keeps_a_waiting_model_that_is_older_than_the_checkpoint(models: Models) -> None:
    models.disk.full = True
    models.measure(0.5)
    state = {"step": 1, **models.best.state_dict()}
    models.measure(0.6)
    models.best.load_state_dict(state)  # the model of step 2 has not been trained yet
    models.disk.full = False
    assert models.best.write()
    assert models.written() is None
    models.disk.full = True
    models.measure(0.7)
    models.best.load_state_dict({**state, "step": 3})
    models.disk.full = False
    assert models.best.write()
    assert models.written() == "3 3 0.7"
