"""`launcher/train.py` with a trouble that no setting makes, or several runs in one process."""

import errno
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from biencoder import environment
from biencoder.config.schema import CheckpointConfig, Config
from biencoder.distributed.stop_requests import StopRequests
from biencoder.distributed.world import World
from biencoder.model.batch import triplet_batch
from biencoder.model.bi_encoder import Scores, TripletBatch
from biencoder.training import objective
from biencoder.training import run as run_module
from biencoder.training import step as step_module
from biencoder.training.engine.engine import Engine
from biencoder.training.engine.state import Part
from biencoder.training.loop import Trainer
from biencoder.training.loss import combined_loss
from biencoder.training.progress import Progress
from biencoder.training.recovery import resume, run_lock
from launcher.entry import run
from tests.ranks.cases import in_world
from tests.ranks.cases.steps import let_any_cpu_compute_fp16


def poisoned_run(arguments: list[str], poisoned: list[int], healed_by_lr: float, unwritable: Sequence[int] = ()) -> None:
    """`launcher/train.py` where the loss of some steps is NaN on the last rank, until the learning rate is low enough.

    Args:
        unwritable: steps whose checkpoint fails two seconds after it was begun, the first time.
    """
    from biencoder.training.recovery.checkpoint import CheckpointFolder
    from launcher import train

    clean = combined_loss
    steps, failing, write = iter(range(10**6)), set(unwritable), CheckpointFolder._write

    def fail(self: CheckpointFolder, checkpoint: Any, also_keep: int) -> None:
        if checkpoint.step in failing:
            failing.remove(checkpoint.step)
            time.sleep(2)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, checkpoint, also_keep)

    CheckpointFolder._write = fail  # type: ignore[method-assign]

    def command(argv: Sequence[str]) -> None:
        fit = Trainer.fit

        def watched(self: Trainer) -> None:
            def poison(*scores: Any, **more: Any) -> Any:
                loss = clean(*scores, **more)
                step, world = next(steps), self.world
                bad = step in poisoned and self.step.engine.lr_factor > healed_by_lr and world.rank == world.size - 1
                return loss._replace(total=loss.total * float("nan")) if bad else loss

            cast(Any, objective).combined_loss = poison
            fit(self)

        Trainer.fit = watched  # type: ignore[method-assign]
        train.main(argv)

    import sys

    sys.argv = ["train.py", *arguments]
    run(command)


def run_on_a_small_gpu(arguments: list[str], room: int) -> None:
    """`launcher/train.py` where the last rank's memory holds so many triplets in training."""
    import sys

    from biencoder.training.engine.engine import Engine
    from launcher import train

    score = Engine.score

    def limited(self: Engine, batch: Any) -> Any:
        if len(batch.point_row_B) > room and self._world.rank == self._world.size - 1:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate much")
        return score(self, batch)

    Engine.score = limited  # type: ignore[method-assign]
    sys.argv = ["train.py", *arguments]
    run(train.main)


def in_turn(commands: list[list[str]]) -> None:
    """What `launcher/train.py` does with each of these command lines, in one process."""
    from launcher.entry import parse_run
    from launcher.train import train

    def work(ranks: World) -> None:
        for command in commands:
            train(parse_run(command, prog="", description="").config, ranks)

    in_world(work, silence_s=120)


def stopped_where_an_epoch_ends(arguments: list[str]) -> None:
    """`launcher/train.py` where the last rank is asked to stop as it hands in its part of an epoch's last checkpoint, and
    rank 0 takes four seconds to put the parts together."""
    import sys

    from launcher import train

    leave = Trainer._leave_epoch

    def slow(self: Trainer, *, whole: bool) -> None:
        if self.world.is_main:
            checkpoints: Any = self.recovery._checkpoints
            write = checkpoints.write

            def late(*parts: Any, **more: Any) -> None:
                time.sleep(4)
                write(*parts, **more)

            checkpoints.write = late
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        leave(self, whole=whole)

    Trainer._leave_epoch = slow  # type: ignore[method-assign]
    sys.argv = ["train.py", *arguments]
    run(train.main)


def timed_checkpoints(epoch_steps: int) -> None:
    """Steps of 30 s, a checkpoint every two minutes, clocks that differ; each rank prints the steps it saves after."""

    def work(ranks: World) -> None:
        now = [0.0]
        cast(Any, resume).time = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
        progress, saved = Progress(), []
        stop = StopRequests(ranks, before_exit=lambda exit_code: None)
        recovery = cast(Any, resume.Recovery)(
            SimpleNamespace(failed=lambda: None),
            Config(checkpoint=CheckpointConfig(every_minutes=2)),
            {},
            ranks,
            SimpleNamespace(state=lambda: None),
            progress,
            SimpleNamespace(state_dict=dict),
            [],
            SimpleNamespace(log=lambda *parts, **more: None),
            stop,
        )
        recovery.saved_at = -20.0 * ranks.rank
        for step in range(1, 41):
            now[0] += 30
            progress.step = step
            recovery.save_or_stop()
            if step % epoch_steps == 0:
                recovery.save()
            if recovery.saved_step == step:
                saved.append(step)
        stop.close()
        print(json.dumps(saved))

    in_world(work)


def a_part_that_cannot_be_written(folder: str) -> None:
    """Three checkpoints of two ranks, of which the second finds no room on the last rank; each rank prints what failed."""
    from biencoder.training.recovery import checkpoint

    module = cast(Any, checkpoint)
    clean = module.write_parts

    def work(ranks: World) -> None:
        checkpoints, failures = module.CheckpointFolder(Path(folder), keep=5), []
        for step in (1, 2, 3):

            def full(*parts: Any, step: int = step, **more: Any) -> list[Path]:
                files: list[Path] = clean(*parts, **more)
                if step == 2 and ranks.rank == ranks.size - 1:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return files

            module.write_parts = full
            part = Part("w", 2 * ranks.rank, torch.full((2,), 10.0 * step + ranks.rank))
            state = {"shapes": {"w": (2 * ranks.size,)}}
            sharded = module.Checkpoint(step, state, {"window": torch.zeros(1)})
            failure = checkpoints.write_sharded(sharded, [part], ranks, also_keep=-1)
            failures.append(failure and failure.strerror)
        print(json.dumps(failures))

    in_world(work)


def troubled_run(arguments: list[str], trouble: str) -> None:
    """`launcher/train.py` with a trouble that no setting makes."""
    import sys

    from launcher import train

    if trouble == "fp16":
        let_any_cpu_compute_fp16()
    if trouble == "blind rank":

        def has_another_disk(folder: Path, token: str) -> bool:
            return run_lock.has_lock(folder if environment.is_main_rank() else folder / "of-this-node", token)

        cast(Any, run_module).has_lock = has_another_disk
    if trouble == "slow rank":
        score = Engine.score

        def on_a_slow_processor(self: Engine, batch: TripletBatch) -> Scores:
            if self._world.rank == 1:
                with self._forward.running():
                    time.sleep(0.5)
            return score(self, batch)

        Engine.score = on_a_slow_processor  # type: ignore[method-assign]
    if trouble == "slow data":
        quick = triplet_batch

        def slow(*inputs: Any, **more: Any) -> Any:
            time.sleep(0.5)
            return quick(*inputs, **more)

        cast(Any, step_module).triplet_batch = slow
    sys.argv = ["train.py", *arguments]
    run(train.main)


def ranks_that_differ(arguments: list[str], folder: str, wrong: dict[str, str]) -> None:
    """`launcher/train.py` in which the last rank is given other settings, or stands in a folder of its own; then, in the
    same world, with both ranks alike but for what relative paths lead to."""
    from biencoder.errors import ConfigError
    from launcher.entry import parse_run
    from launcher.train import train

    def work(ranks: World) -> None:
        last = ranks.rank == ranks.size - 1
        os.chdir(Path(folder) / str(ranks.rank))
        more = [part for name, value in (wrong if last else {}).items() for part in (f"--{name}", value)]
        for given in ([*arguments, *more], arguments):
            config = parse_run(given, prog="train.py", description="").config
            try:
                train(config, ranks)
            except ConfigError as error:
                print(error)

    in_world(work, silence_s=60)
