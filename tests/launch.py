"""Start a function of `tests.ranks.cases` in several real processes, as a launcher would, and collect how each one ends."""

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from tests.processes import ROOT, free_port, start

__all__ = ["ROOT", "Ended", "free_port", "rank_environment", "run_ranks"]


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    stdout: str
    stderr: str


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**os.environ, **{key: str(value) for key, value in ranks.items()}, "OMP_NUM_THREADS": "1"}


def run_ranks(
    case: str, size: int, *, timeout_s: float = 120, left_behind: int | None = None, fork: bool = True, **arguments: Any
) -> tuple[list[Ended], float]:
    """Every rank's end, in rank order, and the seconds until the last one; `left_behind` is killed after the others.

    Args:
        case: a function and the module of tests/ranks/cases that has it: `world.collectives`.
    """
    port = free_port()
    module, function = case.split(".")
    call = f"import json; from tests.ranks.cases.{module} import {function} as case; "
    call += f"case(**json.loads({json.dumps(json.dumps(arguments))}))"
    begin = time.monotonic()
    processes = [
        start([sys.executable, "-c", call], environment=rank_environment(rank, size, port), fork=fork)
        for rank in range(size)
    ]
    try:
        ends: dict[int, Ended] = {}
        for rank in sorted(range(size), key=lambda rank: rank == left_behind):
            if rank == left_behind:
                processes[rank].kill()
            out, err = processes[rank].communicate(timeout=max(1.0, timeout_s - (time.monotonic() - begin)))
            code = processes[rank].returncode
            assert code is not None
            ends[rank] = Ended(code, out, err)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return [ends[rank] for rank in range(size)], time.monotonic() - begin
