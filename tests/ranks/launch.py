"""Start a function of `tests.ranks.cases` in several real processes, as a launcher would, and collect how each one ends."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    stdout: str
    stderr: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**os.environ, **{key: str(value) for key, value in ranks.items()}, "OMP_NUM_THREADS": "1"}


def run_ranks(
    case: str, size: int, *, timeout_s: float = 120, left_behind: int | None = None, **arguments: Any
) -> tuple[list[Ended], float]:
    """Every rank's end, in rank order, and the seconds until the last one; `left_behind` is killed after the others."""
    port = free_port()
    call = f"from tests.ranks import cases; cases.{case}(**__import__('json').loads({json.dumps(json.dumps(arguments))}))"
    start = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", call],
            cwd=ROOT,
            env=rank_environment(rank, size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        ends: dict[int, Ended] = {}
        for rank in sorted(range(size), key=lambda rank: rank == left_behind):
            if rank == left_behind:
                processes[rank].kill()
            out, err = processes[rank].communicate(timeout=max(1.0, timeout_s - (time.monotonic() - start)))
            ends[rank] = Ended(processes[rank].returncode, out, err)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [ends[rank] for rank in range(size)], time.monotonic() - start
