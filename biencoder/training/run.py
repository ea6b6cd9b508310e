"""A run from its configuration to the models that it leaves.

with join(config.distributed) as world:
    train(config, world)
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from biencoder.config.schema import Config
from biencoder.distributed.file_server import appears
from biencoder.distributed.stop_requests import StopRequests
from biencoder.distributed.world import World
from biencoder.errors import ConfigError, OutOfMemory, Stopped, tell
from biencoder.model.whole_folder import put_back
from biencoder.tracking.channel import Channel, protected
from biencoder.tracking.terminal import Terminal
from biencoder.tracking.tracker import Tracker
from biencoder.training.build import build
from biencoder.training.loop import Trainer
from biencoder.training.opening import closing_line, opening
from biencoder.training.plan import Plan, make_plan
from biencoder.training.recovery.checkpoint import Checkpoint, CheckpointFolder
from biencoder.training.recovery.out_of_memory import record_bound
from biencoder.training.recovery.resume import find_checkpoint, warn_of_failure
from biencoder.training.recovery.run_folder import check_folder, finished_at, record_end, record_start, record_stop
from biencoder.training.recovery.run_lock import has_lock, take_lock


def train(config: Config, world: World) -> Path:
    """Plan, build, start or resume, fit. Nothing is written before all checks have passed. Every rank takes part.

    Returns:
        The run's folder.

    Raises:
        BiencoderError: on every rank; errors.py says what each kind means.
    """
    terminal = protected(Terminal(is_main=world.is_main), Channel("the terminal", again=True))
    plan = make_plan(config, world)
    checkpoints = CheckpointFolder(plan.folder / "checkpoints", keep=config.checkpoint.keep)
    with ExitStack() as at_end:
        token = world.on_main(lambda: hold_folder(plan, world, at_end))
        if config.checkpoint.sharded:
            world.together(lambda: check_seen(plan, world, token))
        checkpoint, from_step = look_for_checkpoint(checkpoints, plan, world)
        if is_finished(plan, world, from_step):
            terminal.say(closing_line(plan.folder, plan.config))
            return plan.folder
        facts = world.on_main(lambda: write_start(plan, world, from_step))
        ending = Ending(plan, world, checkpoints, at_end)
        world.before_end(ending)
        with StopRequests(world, before_exit=ending) as stop:
            terminal.show(*opening(plan, world, from_step=from_step))
            trainer = build(plan, world, checkpoints=checkpoints, stop=stop, terminal=terminal, facts=facts)
            start_or_resume(trainer, checkpoint, resume=from_step is not None)
            del checkpoint  # it holds all weights and moments
            with ending.written(trainer.tracker):
                trainer.fit()
            close(trainer)
    return plan.folder


def hold_folder(plan: Plan, world: World, at_end: ExitStack) -> str:
    """Have the run's folder for this run alone, until `at_end` is closed; returns the lock's token. For rank 0.

    Raises:
        ConfigError: another run has it.
    """

    def lost(message: str) -> None:
        tell(f"error: {message}")
        world.end_all(message, exit_code=ConfigError.exit_code)
        os._exit(ConfigError.exit_code)  # what it still has to write would go among the files of the other run

    lock = take_lock(plan.folder, lost=lost)
    at_end.callback(lock.release)
    check_folder(plan.folder, plan.config)  # it may have got a run while this one waited
    return lock.token


def check_seen(plan: Plan, world: World, token: str) -> None:
    """
    Args:
        token: of the lock that rank 0 has put into the run's folder.

    Raises:
        ConfigError: this rank does not see the folder.
    """
    if not appears(lambda: has_lock(plan.folder, token)):
        raise ConfigError(
            f"rank {world.rank} on {world.hosts[world.rank]} does not see what rank 0 writes in run.dir {plan.folder}, as "
            "checkpoint.placement = sharded needs; choose a folder that all nodes share, or set it to rank0"
        )


def look_for_checkpoint(checkpoints: CheckpointFolder, plan: Plan, world: World) -> tuple[Checkpoint | None, int | None]:
    """On rank 0 the checkpoint to go on from, on every rank its step; None if there is none. Every rank takes part."""
    checkpoint = world.keep_on_main(lambda: find_checkpoint(checkpoints, plan.config, plan.identity))
    return checkpoint, world.on_main(lambda: checkpoint.step if checkpoint else None)


def is_finished(plan: Plan, world: World, from_step: int | None) -> bool:
    """Whether the run in the folder has made all its steps and left its models. Every rank takes part."""
    if from_step is None or from_step < plan.last_step:
        return False
    return world.on_main(lambda: finished_at(plan.folder)) == from_step


def write_start(plan: Plan, world: World, from_step: int | None) -> dict[str, Any]:
    """Record that the run starts; returns what was recorded. For rank 0."""
    return record_start(
        plan.folder,
        plan.config,
        plan.dataset,
        precision=plan.precision,
        world_size=world.size,
        from_step=from_step or 0,
    )


def start_or_resume(trainer: Trainer, checkpoint: Checkpoint | None, *, resume: bool) -> None:
    """Put the trainer where the run stands, on rank 0's checkpoint if it resumes. Every rank takes part."""
    plan, tracker, progress = trainer.plan, trainer.tracker, trainer.progress
    if resume:
        trainer.recovery.load(checkpoint)
        trainer.world.on_main(lambda: put_back(plan.folder / "model" / "best"))
        tracker.event("resumed", **progress.at, detail=f"on {trainer.world.size} ranks")
    else:
        tracker.rewind(0)
    if plan.config != plan.requested:
        detail = f"of {plan.config.train.micro_batch_size} triplets, as more did not fit"
        tracker.event("smaller micro-batch", **progress.at, detail=detail)


def close(trainer: Trainer) -> None:
    """Record that the run has made its last step, and end what watches and shows it. Every rank takes part."""
    plan = trainer.plan
    trainer.world.on_main(lambda: record_end(plan.folder, step=trainer.step.engine.steps))
    trainer.stop.close()
    best = plan.folder / "model" / "best"
    trainer.tracker.close(model=best if best.is_dir() else None)
    trainer.terminal.say(closing_line(plan.folder, plan.config))


class Ending:
    """What this process does before it ends early, whoever ends it: a signal, another rank, or an error of its own."""

    def __init__(self, plan: Plan, world: World, checkpoints: CheckpointFolder, at_end: ExitStack) -> None:
        self._plan, self._world, self._checkpoints, self._at_end = plan, world, checkpoints, at_end

    def __call__(self, exit_code: int) -> None:
        """Called from any thread, or from the one that trains."""
        if not self._world.is_main:
            return
        if exit_code == Stopped.exit_code:
            record_stop(self._plan.folder)
        if exit_code == OutOfMemory.exit_code:
            record_bound(self._plan.folder, self._plan.config, world_size=self._world.size)
        try:
            self._checkpoints.wait()
        except OSError as error:
            warn_of_failure(error)
        self._at_end.close()

    @contextmanager
    def written(self, tracker: Tracker) -> Iterator[None]:
        """Record the end of a run that goes on when it is started again, and pass the error on."""
        try:
            yield
        except Stopped:
            self._world.on_main(lambda: record_stop(self._plan.folder))
            tracker.close()
            raise
        except OutOfMemory as error:
            self(error.exit_code)
            tracker.close()
            error.folder = self._plan.folder
            raise
