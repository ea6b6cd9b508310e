"""Collectives, failures and silences of ranks."""

import gc
import os
import signal
import socket
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from biencoder.config.schema import ModelConfig
from biencoder.data import texts
from biencoder.data.texts import Pile, Texts
from biencoder.data.token_cache import cache_folder, cached_tokens
from biencoder.distributed import file_server
from biencoder.distributed.file_server import appears
from biencoder.distributed.world import World
from biencoder.errors import DataError
from biencoder.model.pretrained import load_pretrained
from tests.ranks.cases import in_world


def collectives() -> None:
    """Everything a World offers, with a result that depends on all ranks."""

    def work(ranks: World) -> None:
        ids = np.arange(5) * 7 if ranks.is_main else np.zeros(5, dtype=np.int64)
        gathered = ranks.gather(torch.full((2, 3), float(ranks.rank)))
        found = {
            "together": ranks.together(lambda: ranks.rank),
            "on_main": ranks.on_main(lambda: f"from {ranks.rank}"),
            "ids": ranks.broadcast(torch.from_numpy(ids)).tolist(),
            "mean": ranks.all_reduce_mean(torch.tensor([float(ranks.rank)])).item(),
            "sum": ranks.all_reduce(torch.tensor([float(ranks.rank)]), control=True).item(),
            "kept": ranks.keep_on_main(lambda: f"by {ranks.rank}"),
            "gathered": [rows[0, 0].item() for rows in gathered] if gathered else None,
        }
        print(found)

    in_world(work)


def tokens_shared(cache: str, model: str, shared: bool) -> None:
    """Each rank is the first of a machine of its own; which of them makes the tokens of a text, and what all of them get.

    Args:
        shared: whether the machines share the folder of the cache.
    """

    def work(ranks: World) -> None:
        tokenizer = load_pretrained(ModelConfig(name=model, max_length=16)).tokenizer
        machine = replace(ranks, local_rank=0, hosts=tuple(map(str, range(ranks.size))))
        made: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", cache if shared else f"{cache}/{ranks.rank}")
            patch.setattr(file_server, "appears", partial(appears, within_s=0.5))
            patch.setattr(socket, "gethostname", lambda: str(ranks.rank))
            tokens = cached_tokens(["a quick fox", "votes"], tokenizer, max_length=16, world=machine, advance=made.append)
            ranks.together(lambda: None)
            left = sorted(path.suffix for path in cache_folder().iterdir())
        print([sum(made), tokens.flat_T.tolist(), left])

    in_world(work)


def texts_shared(cache: str, other: bool) -> None:
    """Every rank reads texts into a file; which file it has mapped afterwards, and what it holds.

    Args:
        other: whether the last rank reads another text.
    """

    def work(ranks: World) -> None:
        monkeypatch = pytest.MonkeyPatch()
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        monkeypatch.setattr(texts, "IN_MEMORY", 0)
        pile = Pile()
        pile.add_all(["a", "b", "a", "c" if other and ranks.rank == ranks.size - 1 else "d"])
        found, _ = pile.distinct()
        before = inode(found)
        found.share(ranks)
        gc.collect()
        ranks.together(lambda: None)
        print([before, inode(found), list(found)])

    def inode(found: Texts) -> int:
        assert found._file
        return os.fstat(found._file.fileno()).st_ino

    in_world(work)


def slow_work() -> str:
    time.sleep(8)
    return "mined"


def one_fails_together(rank: int, kind: str) -> None:
    def work(ranks: World) -> None:
        def read() -> None:
            if ranks.rank == rank:
                raise DataError("file x is bad") if kind == "user" else ZeroDivisionError("surprise")

        ranks.together(read)

    in_world(work)


def main_fails() -> None:
    def work(ranks: World) -> None:
        def search() -> None:
            print(time.time(), flush=True)
            raise MemoryError("index does not fit")

        ranks.on_main(search)

    in_world(work)


def one_fails_alone(rank: int) -> None:
    """A rank raises where the others wait in a collective of the training group."""

    def work(ranks: World) -> None:
        ranks.all_reduce_mean(torch.zeros(1))
        if ranks.rank == rank:
            raise ValueError("step went wrong")
        ranks.all_reduce_mean(torch.zeros(1))

    in_world(work, timeout_s=600)


def one_is_killed(rank: int, where: str) -> None:
    """A rank disappears while the others wait for it: in training, or while rank 0 (or another) mines."""

    def work(ranks: World) -> None:
        ranks.doing(where)
        ranks.all_reduce_mean(torch.zeros(1))
        time.sleep(2.5)
        if ranks.rank == rank:
            print(time.time(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if where == "training":
            ranks.all_reduce_mean(torch.zeros(1))
        else:
            ranks.on_main(lambda: time.sleep(60))

    in_world(work, timeout_s=600)


def one_stops_answering(rank: int) -> None:
    def work(ranks: World) -> None:
        ranks.doing("training step 12")
        ranks.all_reduce_mean(torch.zeros(1))
        time.sleep(2.5)
        if ranks.rank == rank:
            os.kill(os.getpid(), signal.SIGSTOP)
        ranks.all_reduce_mean(torch.zeros(1))

    in_world(work, timeout_s=600)


def main_works_longer_than_the_training_limit() -> None:
    def work(ranks: World) -> None:
        ranks.all_reduce_mean(torch.zeros(1))
        print(ranks.on_main(slow_work))

    in_world(work, timeout_s=3)
