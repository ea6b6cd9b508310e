"""What the ranks of a test run; each function runs in every process."""

import os
import signal
import time
from collections.abc import Sequence

import numpy as np
import torch

from biencoder.distributed import World, world
from biencoder.errors import DataError
from launcher.entry import run


def _in_world(work: object, *, timeout_s: float = 60, silence_s: float = 6) -> None:
    def command(argv: Sequence[str]) -> None:
        with world(timeout_s=timeout_s, control_timeout_s=300, silence_s=silence_s) as ranks:
            work(ranks)  # type: ignore[operator]

    run(command)


def collectives() -> None:
    """Everything a World offers, with a result that depends on all ranks."""

    def work(ranks: World) -> None:
        ids = np.arange(5) * 7 if ranks.is_main else np.zeros(5, dtype=np.int64)
        gathered = ranks.gather_rows(torch.full((2, 3), float(ranks.rank)))
        found = {
            "together": ranks.together(lambda: ranks.rank),
            "on_main": ranks.on_main(lambda: f"from {ranks.rank}"),
            "ids": ranks.broadcast_ids(ids).tolist(),
            "mean": ranks.mean(torch.tensor([float(ranks.rank)])).item(),
            "gathered": [rows[0, 0].item() for rows in gathered] if gathered else None,
        }
        print(found)

    _in_world(work)


def one_fails_together(rank: int, kind: str) -> None:
    def work(ranks: World) -> None:
        def read() -> None:
            if ranks.rank == rank:
                raise DataError("file x is bad") if kind == "user" else ZeroDivisionError("surprise")

        ranks.together(read)

    _in_world(work)


def main_fails() -> None:
    def work(ranks: World) -> None:
        def search() -> None:
            raise MemoryError("index does not fit")

        ranks.on_main(search)

    _in_world(work)


def one_fails_alone(rank: int) -> None:
    """A rank raises where the others wait in a collective of the training group."""

    def work(ranks: World) -> None:
        ranks.mean(torch.zeros(1))
        if ranks.rank == rank:
            raise ValueError("step went wrong")
        ranks.mean(torch.zeros(1))

    _in_world(work, timeout_s=600)


def one_is_killed(rank: int, where: str) -> None:
    """A rank disappears while the others wait for it: in training, or while rank 0 (or another) mines."""

    def work(ranks: World) -> None:
        ranks.doing(where)
        ranks.mean(torch.zeros(1))
        time.sleep(2.5)
        if ranks.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        if where == "training":
            ranks.mean(torch.zeros(1))
        else:
            ranks.on_main(lambda: time.sleep(60))

    _in_world(work, timeout_s=600)


def one_stops_answering(rank: int) -> None:
    def work(ranks: World) -> None:
        ranks.doing("training step 12")
        ranks.mean(torch.zeros(1))
        time.sleep(2.5)
        if ranks.rank == rank:
            os.kill(os.getpid(), signal.SIGSTOP)
        ranks.mean(torch.zeros(1))

    _in_world(work, timeout_s=600)


def main_works_longer_than_the_training_limit() -> None:
    def work(ranks: World) -> None:
        ranks.mean(torch.zeros(1))
        print(ranks.on_main(lambda: time.sleep(8) or "mined"))

    _in_world(work, timeout_s=3)
