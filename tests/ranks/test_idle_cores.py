"""Under a real torchrun: rank 0 has the cores of the rank that waits, for as long as it works alone."""

import ast
import os
import subprocess

import pytest

from tests.commands import BIN
from tests.processes import ROOT, free_port

pytestmark = pytest.mark.ranks

CODE = """
import faiss, torch
from biencoder.config.schema import DistributedConfig
from biencoder.distributed.join import join
from biencoder.distributed.idle_cores import usable_cores

def count(_=None):
    return faiss.omp_get_max_threads(), torch.get_num_threads()

with join(DistributedConfig(timeout_s=60, control_timeout_s=60, silence_s=60)) as ranks:
    counts = [count(), ranks.on_holders(count, sharded=False), count(), ranks.on_holders(count, sharded=True)]
    if ranks.is_main:
        print([usable_cores(), counts])
"""


def test_rank_0_takes_the_cores_that_torchrun_has_kept_from_it() -> None:
    """That it leaves a number of the user's own alone, is in unit/test_idle_cores.py."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [str(BIN / "torchrun"), "--nproc_per_node=2", f"--master_port={free_port()}", "--no-python"]
    done = subprocess.run(
        [*command, str(BIN / "python"), "-c", CODE],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    cores, (before, alone, after, together) = ast.literal_eval(done.stdout.splitlines()[-1])
    assert before == after == together == (1, 1)
    assert alone == (cores, cores)
