"""Run a benchmark's worker in processes of its own, as the ranks of a job or as one process alone."""

import json
import os
import socket
import subprocess
import sys
from typing import Any


def run_ranks(script: str, arguments: list[str], *, size: int = 1, threads: int = 0) -> Any:
    """Start `script` with these arguments on so many ranks, and read the JSON in the last line that rank 0 prints.

    Args:
        threads: of each rank; 0: all cores, shared evenly.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": threads or max(1, (os.cpu_count() or 1) // size),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, script, *arguments],
            env=os.environ | {name: str(value) for name, value in (shared | {"RANK": r, "LOCAL_RANK": r}).items()},  # noqa: TID251 - of a child
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(size)
    ]
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{script} {' '.join(arguments)} failed on {size} ranks")
    return json.loads(said[0].splitlines()[-1])
