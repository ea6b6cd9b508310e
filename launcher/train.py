"""Train a counter-argument bi-encoder.

python launcher/train.py --config configs/quickstart.toml
torchrun --nproc_per_node=2 launcher/train.py --config configs/quickstart.toml --train.lr 1e-5
deepspeed launcher/train.py --deepspeed_config ds_configs/zero2.json --train.precision bf16 --data.root DIR
With --preflight added, the same command checks the job instead of running it.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from biencoder.distributed.launcher_watch import end_with_launcher
from biencoder.errors import OutOfMemory, tell
from launcher.entry import heavy_imports, parse_run
from launcher.entry import run as run_command

if TYPE_CHECKING:
    from biencoder.config.schema import Config
    from biencoder.distributed.world import World


def main(argv: Sequence[str]) -> None:
    end_with_launcher()
    arguments = parse_run(
        argv,
        prog="train.py",
        description="Train a counter-argument bi-encoder.",
        example="--config configs/quickstart.toml",
    )
    # Heavy imports come after the arguments: `--help` and a misspelt key answer at once.
    with heavy_imports():
        from biencoder.distributed.join import join

    with join(arguments.config.distributed) as world:
        if arguments.preflight:
            check(arguments.config, world)
        else:
            train(arguments.config, world)


def train(config: "Config", world: "World") -> None:
    """See `biencoder.training.run.train`. A process without other ranks starts again by itself if it ran out of memory."""
    with heavy_imports():
        from biencoder.training.run import train

    try:
        train(config, world)
    except OutOfMemory as error:
        if world.size == 1 and error.folder:
            tell(f"{error.kind}: {error}")
            start_again(error.folder)
        raise


def start_again(folder: Path) -> NoReturn:
    """Replace this process by a new start of the same run: whatever it held on the GPU is free then."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "--run.dir", str(folder)])


def check(config: "Config", world: "World") -> None:
    """Try out what `train` would need, and print one table. Nothing is trained, and no folder is made."""
    from biencoder.tracking.terminal import Terminal
    from biencoder.training.opening import checks_table
    from biencoder.training.preflight.checks import preflight, raise_failed

    rows = preflight(config, world)
    Terminal(is_main=world.is_main).show(checks_table("Preflight: nothing was trained", rows))
    world.together(lambda: raise_failed(rows))


def command() -> None:
    run_command(main)


if __name__ == "__main__":
    command()
