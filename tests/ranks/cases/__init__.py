"""What the ranks of a test run: each function runs in every process (`tests.launch.run_ranks`)."""

from collections.abc import Sequence

from biencoder.config.schema import DistributedConfig
from biencoder.distributed.join import join
from launcher.entry import run


def in_world(work: object, *, timeout_s: float = 60, silence_s: float = 6) -> None:
    def command(argv: Sequence[str]) -> None:
        with join(DistributedConfig(timeout_s=timeout_s, control_timeout_s=300, silence_s=silence_s)) as ranks:
            work(ranks)  # type: ignore[operator]

    run(command)
