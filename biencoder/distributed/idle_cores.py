"""Threads for work that rank 0 does alone: it uses the cores of the ranks that wait on its node.

With several ranks on a node torchrun gives each of them one thread, by setting OMP_NUM_THREADS to 1 where the user has not
set it. Whether the user has is told by the environment that torchrun's agent was started with. A user's own number counts
everywhere; deepspeed sets none, so that each rank has all cores anyway.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from biencoder import environment

_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


@contextmanager
def idle_cores() -> Iterator[None]:
    """In the block, use all cores that the job has on this node, if torchrun has limited this rank to one."""
    if not left_to_torchrun():
        yield
        return
    with _threads(usable_cores()):
        yield


@contextmanager
def own_cores() -> Iterator[None]:
    """In the block, use as many threads as outside `idle_cores`: for results that depend on the number of threads."""
    if not left_to_torchrun():
        yield
        return
    with _threads(1):
        yield


def share_cores(ranks_on_node: int) -> None:
    """Give this rank its part of the node's cores from here on, if torchrun has limited it to one thread.

    For ranks with a GPU, whose processor searches, ranks, and updates what is offloaded. Ranks on CPUs keep one thread:
    with more, sums come in another order.
    """
    if left_to_torchrun():
        count = max(1, usable_cores() // ranks_on_node)
        _load_libraries()
        threadpool_limits(limits=count)  # without a block it stays
        torch.set_num_threads(count)


def left_to_torchrun() -> bool:
    """Whether torchrun, and not the user, has limited this rank to one thread."""
    if not environment.is_under_torchrun() or environment.thread_settings() != {"OMP_NUM_THREADS": "1"}:
        return False
    try:
        given = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")  # as it was when the agent was started
    except OSError:
        return False
    return bool(given) and not any(variable.startswith(b"OMP_NUM_THREADS=") for variable in given)


def usable_cores() -> int:
    """By this process's affinity, which Slurm and containers set, and by the CPU time that its control group may use."""
    cores = len(os.sched_getaffinity(0))
    if _CPU_LIMIT.is_file():
        quota, period = _CPU_LIMIT.read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    _load_libraries()
    before = torch.get_num_threads()
    with threadpool_limits(limits=count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _load_libraries() -> None:
    """Only loaded libraries can be limited."""
    import faiss  # noqa: F401
