"""What a step frees is there for the next one, and goes back to the system when the epoch ends."""

import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import psutil, torch
from contextlib import nullcontext
from biencoder.training.engine.freed_memory import freed_memory_kept

held = psutil.Process().memory_info
with freed_memory_kept() if sys.argv[1] == "kept" else nullcontext():
    for _ in range(12):  # an older glibc takes a few blocks before it finds freed ones again
        torch.ones(2**24)
    faults, before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, held().rss
    for _ in range(10):
        torch.ones(2**24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
print(faults, (before - held().rss) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc of glibc")
def test_pages_are_asked_of_the_system_once() -> None:
    def steps(how: str) -> list[int]:
        done = subprocess.run([sys.executable, "-c", STEPS, how], check=True, capture_output=True, text=True)
        return [int(number) for number in done.stdout.split()]

    (kept, given_back_mib), (usual, _) = steps("kept"), steps("usual")
    assert kept < usual / 5
    assert given_back_mib >= 60  # of the 64 that a tensor had taken
