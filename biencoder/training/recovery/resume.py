"""What a run goes on from: collected on all ranks and written by rank 0, read by rank 0 and handed to all.

Each part of a run owns its state (`state_dict`, `load_state_dict`); `Recovery` puts them together. Random draws and data
order are functions of (seed, epoch), dropout's masks of (seed, step, rank, micro-batch), so no generator's state is kept.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from biencoder.config.schema import Config, OnResume, resume_rules
from biencoder.distributed.stop_requests import AfterStep, StopRequests
from biencoder.distributed.world import World
from biencoder.errors import CheckpointError, ConfigError, Stopped, tell
from biencoder.tracking.tracker import Tracker
from biencoder.training.best_model import BestModel
from biencoder.training.engine.engine import Engine
from biencoder.training.engine.state import FromMain, SavedTensors, Shapes
from biencoder.training.progress import Progress
from biencoder.training.recovery.checkpoint import Checkpoint, CheckpointFolder
from biencoder.training.recovery.parts import SavedParts

_BEFORE = {"model.query_prompt": "", "model.document_prompt": ""}
"""What runs have computed with before these keys existed, whose defaults are others."""
_FORMAT = 2
"""Of what a checkpoint holds; another one's counters and names mean something else."""
_FACTS = {"fingerprint": "the corpus's fingerprint", "precision": "the precision", "start": "the pretrained weights' hash"}
"""What must be as it was beside settings, and how it is named to users."""


class Stateful(Protocol):
    """A part of a run that a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values, and tensors on rank 0. Every rank takes part."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; only rank 0 has the tensors. Every rank takes part."""


class Recovery:
    """Saves where a run stands, and puts it back there."""

    def __init__(
        self,
        checkpoints: CheckpointFolder,
        config: Config,
        identity: Mapping[str, str],
        world: World,
        engine: Engine,
        progress: Progress,
        best: BestModel,
        others: Sequence[Stateful],
        tracker: Tracker,
        stop: StopRequests,
    ) -> None:
        """
        Args:
            identity: of `Plan`, see `find_checkpoint`.
            others: further parts that have a state.
        """
        self._checkpoints, self._config, self._identity = checkpoints, config, identity
        self._world, self._engine, self._progress, self._best = world, engine, progress, best
        self._owners: Sequence[Stateful] = (progress, best, *others)
        self._tracker, self._stop = tracker, stop
        self.saved_step = -1
        """Step of the newest checkpoint."""
        self.saved_at = time.monotonic()
        """When it was begun."""

    def save(self) -> None:
        """Begin to write where the run stands; the files are finished in the background. Every rank takes part."""
        if self.saved_step == self._progress.step:
            return
        self.saved_step, self.saved_at, start = self._progress.step, time.monotonic(), time.perf_counter()
        error = self._save_sharded() if self._config.checkpoint.sharded else self._save_whole()
        if not self._world.is_main:
            return
        if error:
            self._report(error)
        blocked = {"checkpoint/blocked_s": time.perf_counter() - start}
        self._tracker.log("checkpoint", **self._progress.at, metrics=blocked)

    def _save_whole(self) -> OSError | None:
        """Through rank 0, in the background. Returns what the write before failed with."""
        engine = self._engine.state()
        others = self._state_of_others()
        if engine is None:
            return None
        state, mining = self._state(others, engine.scalars)
        checkpoint = Checkpoint(self._progress.step, state, mining, engine.model, engine.optimizer)
        try:
            self._checkpoints.write(checkpoint, also_keep=self._best.step)
        except OSError as error:
            return error
        return None

    def _save_sharded(self) -> OSError | None:
        """Each rank its part, at once. Returns what it failed with."""
        parts, shapes = self._engine.own_parts()
        state, mining = self._state(self._state_of_others(), self._engine.scalars())
        checkpoint = Checkpoint(self._progress.step, {**state, "shapes": shapes}, mining)
        return self._checkpoints.write_sharded(checkpoint, parts, self._world, also_keep=self._best.step)

    def _state_of_others(self) -> dict[str, Any]:
        """What all but the engine goes on from. Every rank takes part."""
        return {name: value for owner in self._owners for name, value in owner.state_dict().items()}

    def _state(
        self, others: Mapping[str, Any], engine: Mapping[str, float]
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What a checkpoint holds beside parameters and moments: plain values, and tensors.

        Args:
            engine: its scalars.
        """
        tensors = {name: value for name, value in others.items() if isinstance(value, torch.Tensor)}
        state = {
            **{name: value for name, value in others.items() if name not in tensors},
            "format": _FORMAT,
            "engine": engine,
            "metrics_bytes": self._tracker.position(),
            "settings": self._config.flat(),
            **self._identity,
        }
        return state, tensors

    def save_or_stop(self) -> None:
        """After a step: a checkpoint if one is due, the end if some rank was asked to stop. Every rank takes part.

        Raises:
            Stopped: on every rank.
        """
        if error := self._checkpoints.failed():
            self._report(error)
        limits, step = self._config.checkpoint, self._progress.step
        in_time = limits.every_minutes and time.monotonic() - self.saved_at > 60 * limits.every_minutes
        decision = self._stop.agreed(save=bool(in_time))
        # The answer is one step late: a checkpoint made since the ranks wished for one is the one they wished for.
        wished = decision is AfterStep.SAVE and self.saved_step < step - 1
        if wished or decision is AfterStep.STOP or (limits.every_steps and step % limits.every_steps == 0):
            self.save()
        if decision is AfterStep.STOP:
            self._world.on_main(self.finish_writing)
            raise Stopped(f"after step {step}, as asked; the same command with its --run.dir goes on from there")

    def load(self, checkpoint: Checkpoint | None, *, went_back: bool = False) -> None:
        """Put the run where the checkpoint was taken. Every rank takes part; only rank 0 has the checkpoint.

        Args:
            went_back: the steps to come are other ones than those that were made from there.
        """
        state: dict[str, Any]
        state, files = self._world.on_main(lambda: (checkpoint.state, checkpoint.parts) if checkpoint else ({}, ()))
        if files:
            saved: SavedTensors = self._world.together(lambda: _open_parts(files, state["shapes"]))
        else:
            saved = FromMain({**checkpoint.model, **checkpoint.optimizer} if checkpoint else {}, self._world)
        self._engine.load(saved, state["engine"])
        if checkpoint:
            state = {**state, **checkpoint.mining}
        for owner in self._owners:
            owner.load_state_dict(state)
        self.saved_step = self._progress.step
        rewind = self._tracker.go_back if went_back else self._tracker.rewind
        rewind(int(state["metrics_bytes"]))

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, if any. For rank 0."""
        return newest_checkpoint(self._checkpoints)

    def finish_writing(self) -> None:
        """Wait until the last checkpoint is on the disk, or say that it is not. For rank 0."""
        try:
            self._checkpoints.wait()
        except OSError as error:
            self._report(error)

    def _report(self, error: OSError) -> None:
        """A checkpoint could not be written: training goes on, the one before it still stands."""
        self._tracker.event("checkpoint failed", **self._progress.at, detail=warn_of_failure(error))


def _open_parts(files: Sequence[Path], shapes: Shapes) -> SavedParts:
    """
    Raises:
        ConfigError: this rank cannot read them.
    """
    try:
        return SavedParts(files, shapes)
    except CheckpointError as error:
        raise ConfigError(f"{error}; every rank must see the files of checkpoints that all ranks have written") from None


def warn_of_failure(error: OSError) -> str:
    message = f"a checkpoint could not be written ({error.strerror or error}); training goes on, the one before it stands"
    tell(f"warning: {message}")
    return message


def newest_checkpoint(folder: CheckpointFolder) -> Checkpoint | None:
    """The newest whole checkpoint, if any; damaged ones are named on stderr. For rank 0."""
    checkpoint, complaints = folder.newest()
    for complaint in complaints:
        tell(f"warning: {complaint}")
    return checkpoint


def find_checkpoint(folder: CheckpointFolder, config: Config, identity: Mapping[str, str]) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one. For rank 0.

    Args:
        identity: by the names of _FACTS.

    Raises:
        ConfigError: none is whole, or the newest belongs to other settings, data, precision or pretrained weights.
    """
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        if folder.holds_any():
            raise ConfigError(f"no checkpoint in {config.run.dir} is whole; choose another run.dir to start anew")
        return None
    if checkpoint.state.get("format") != _FORMAT:
        raise ConfigError(
            f"the checkpoints in run.dir {config.run.dir} were written by another version of this program; go on with that "
            "version, or choose another run.dir to start anew"
        )
    differing = _differing(checkpoint.state["settings"], config)
    for fact, now in identity.items():
        then = ({"start": now} | checkpoint.state)[fact]  # a run of another share may have none, and is refused for that
        if then != now:
            differing.append(f"{_FACTS[fact]} was {then} and is {now}")
    if differing:
        raise ConfigError(
            f"run.dir {config.run.dir} holds a run with other settings: {'; '.join(differing)}; set them back, or choose "
            "another run.dir"
        )
    return checkpoint


def _differing(then: Mapping[str, Any], config: Config) -> list[str]:
    """Each setting that this resume must not change and that has changed, with its old and new value.

    A key that the run's version did not know had its default in effect: new keys begin with what was done before.
    """
    rules, sentences = resume_rules(), []
    then = Config().flat() | _BEFORE | dict(then)
    for key, value in config.flat().items():
        if then[key] == value or rules[key] is OnResume.FREE:
            continue
        if rules[key] is OnResume.FIXED:
            sentences.append(f"{key} was {then[key]!r} and is {value!r}")
        elif not config.can_be_prolonged:
            sentences.append(
                f"{key} was {then[key]!r} and is {value!r}, which train.schedule = {config.train.schedule} with "
                f"train.warmup_ratio = {config.train.warmup_ratio:g} does not allow"
            )
    return sentences
