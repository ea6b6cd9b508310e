"""What a step frees is there for the next one, and goes back to the system when the epoch ends."""

import os
import platform
import subprocess
import sys

import pytest

NAME, VERSION = platform.libc_ver()
GLIBC = [int(part) for part in VERSION.split(".")] if NAME == "glibc" else []
STEPS = """
import resource, sys
import psutil, torch
from biencoder.training.engine.freed_memory import freed_memory_kept

held = psutil.Process().memory_info
with freed_memory_kept(torch.device(sys.argv[1])):
    for _ in range(12):  # an older glibc takes a few blocks before it finds freed ones again
        torch.ones(2**24)
    faults, before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, held().rss
    for _ in range(10):
        torch.ones(2**24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
print(faults, (before - held().rss) // 2**20)
"""


def steps(device: str, **variables: str) -> tuple[int, int]:
    """Page faults of ten steps, and MiB that went back at their end. On a GPU nothing is kept."""
    command = [sys.executable, "-c", STEPS, device]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | variables)
    faults, given_back_mib = map(int, done.stdout.split())
    return faults, given_back_mib


@pytest.mark.skipif(GLIBC < [2, 36], reason="older ones may keep no large blocks")
def test_pages_are_asked_of_the_system_once() -> None:
    kept, given_back_mib = steps("cpu")
    assert given_back_mib >= 60  # of the 64 that a tensor had taken
    for usual, _ in (steps("cuda"), steps("cpu", MALLOC_TRIM_THRESHOLD_="1000000")):
        assert kept < usual / 5
