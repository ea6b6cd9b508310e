"""Work of rank 0 alone takes the cores of the ranks that wait, and computes the same with any number of threads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from biencoder.config.schema import MiningConfig
from biencoder.distributed import idle_cores
from biencoder.retrieval.build import build_index
from biencoder.retrieval.nearest import nearest_allowed


def threads() -> set[int]:
    """Of OpenMP and BLAS libraries."""
    return {pool["num_threads"] for pool in threadpool_info()} | {torch.get_num_threads()}


def test_all_libraries_take_the_cores_and_give_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    monkeypatch.setattr(idle_cores, "left_to_torchrun", lambda: True)
    monkeypatch.setattr(idle_cores, "usable_cores", lambda: 3)
    before = [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()]
    with idle_cores.idle_cores():
        assert threads() == {3}
        assert faiss.omp_get_max_threads() == 3
        with idle_cores.own_cores():
            assert threads() == {1}
        assert threads() == {3}
    assert [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()] == before


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_neighbours_do_not_depend_on_the_number_of_threads(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_cores, "left_to_torchrun", lambda: True)
    rng = np.random.default_rng(0)
    vectors_ND = rng.standard_normal((3000, 24)).astype(np.float32)
    found = []
    for count in (1, 4, 4):
        monkeypatch.setattr(idle_cores, "usable_cores", lambda count=count: count)
        with idle_cores.idle_cores():
            index = build_index(vectors_ND, MiningConfig(faiss_kind=kind))  # type: ignore[arg-type]
            rows_Qk, distance_Qk = nearest_allowed(
                index, vectors_ND, vectors_ND[:500], lambda queries, rows: rows != queries[:, None], count=5
            )
        found.append((rows_Qk, distance_Qk))
    for rows_Qk, distance_Qk in found[1:]:
        assert np.array_equal(rows_Qk, found[0][0])
        assert np.array_equal(distance_Qk, found[0][1])


@pytest.mark.parametrize(
    ("agent", "rank", "expected"),
    [
        ({}, {"OMP_NUM_THREADS": "1"}, True),
        ({"OMP_NUM_THREADS": "1"}, {}, False),  # the user's own
        ({}, {"OMP_NUM_THREADS": "4"}, False),
        ({}, {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"}, False),
        ({}, {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": ""}, False),  # no torchrun
    ],
)
def test_a_users_own_number_of_threads_counts(agent: dict[str, str], rank: dict[str, str], expected: bool) -> None:
    """A process that starts another with more in its environment, as torchrun's agent does."""
    code = (
        "import os, subprocess, sys\n"
        f"os.environ.update({{'TORCHELASTIC_RUN_ID': 'none', **{rank!r}}})\n"
        "if not os.environ['TORCHELASTIC_RUN_ID']: del os.environ['TORCHELASTIC_RUN_ID']\n"
        # The import of torch, which is not asked here, would take seconds.
        'code = \'import sys, types; sys.modules["torch"] = types.ModuleType("torch"); \'\n'
        "code += 'from biencoder.distributed.idle_cores import left_to_torchrun; print(left_to_torchrun())'\n"
        "subprocess.run([sys.executable, '-c', code], check=True)\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **agent}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected)


def test_a_control_groups_limit_bounds_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    for text, cores in (("max 100000", 12), ("250000 100000", 3), ("1000 100000", 1)):
        (tmp_path / "cpu.max").write_text(text + "\n")
        monkeypatch.setattr(idle_cores, "_CPU_LIMIT", tmp_path / "cpu.max")
        assert idle_cores.usable_cores() == cores
