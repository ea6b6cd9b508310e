"""What launchers put into the environment: a start that would wait for ever, or train several runs, is refused."""

import os
from pathlib import Path

import pytest

from biencoder import environment
from biencoder.distributed.launcher_watch import find_launchers, program
from biencoder.environment import place_among_ranks
from biencoder.errors import ConfigError

LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
RANK_1 = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}


def ranks(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    for name in (*LAUNCH, *STEP):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that it is put back whatever the code sets
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with place_among_ranks() as place:
        return place


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (RANK_1, ["MASTER_ADDR and MASTER_PORT not", "torchrun"]),
        (RANK_1 | {"MASTER_ADDR": "node1"}, ["but MASTER_PORT not"]),
        (RANK_1 | MEETING | {"MASTER_PORT": "http"}, ["MASTER_PORT is 'http'", "1 to 65535"]),
        (RANK_1 | MEETING | {"RANK": "2"}, ["RANK is 2 but WORLD_SIZE is 2"]),
        (RANK_1 | MEETING | {"WORLD_SIZE": "two"}, ["WORLD_SIZE is 'two'", "whole number"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["LOCAL_RANK is not"]),
        (STEP, ["SLURM_STEP_NUM_TASKS is 4 but RANK is not set", "torchrun on each node"]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, ["OMPI_COMM_WORLD_SIZE is 2"]),
        ({"PMI_SIZE": "3"}, ["PMI_SIZE is 3"]),
    ],
)
def test_a_launch_that_cannot_work_is_one_sentence(
    environment: dict[str, str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as raised:
        ranks(environment, monkeypatch)
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "0"}, (0, 1, 0)),  # a batch script
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, (0, 1, 0)),  # a shell of salloc
        (STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (0, 1, 0)),  # srun --ntasks=1, or its --pty
        (STEP | RANK_1 | MEETING, (1, 2, 1)),  # torchrun within a step of one task a node
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 1, 0)),
        ({"PMI_SIZE": "1"}, (0, 1, 0)),
    ],
)
def test_a_launch_that_can_work_does(
    environment: dict[str, str], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ranks(environment, monkeypatch) == expected


def test_launchers_are_known_by_what_they_run() -> None:
    assert program(["/usr/bin/python3.11", "/venv/bin/torchrun", "--nproc_per_node=2", "launcher/train.py"]) == "torchrun"
    assert program(["python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x"]) == "deepspeed.launcher.launch"
    assert program(["python", "-X", "dev", "launcher/sweep.py"]) == "sweep.py"
    assert program(["slurmstepd: [12.0]"]) == "slurmstepd"
    assert program(["bash", "-c", "torchrun launcher/train.py"]) == "bash"
    assert program([]) == ""


def test_a_shell_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert find_launchers() == []  # pytest has started this process, or a shell pytest


def test_what_slurm_and_torchrun_say_of_a_job_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "SLURM_JOB_ID",
        "SLURM_ARRAY_JOB_ID",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_RESTART_COUNT",
        "TORCHELASTIC_RESTART_COUNT",
    ):
        monkeypatch.delenv(name, raising=False)
    assert (environment.slurm_job(), environment.slurm_restarts(), environment.torchrun_restarts()) == ("", 0, 0)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert environment.slurm_job() == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert (environment.slurm_job(), environment.slurm_restarts(), environment.torchrun_restarts()) == ("11_3", 2, 1)


def test_variables_that_the_user_has_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIENCODER_TEST", raising=False)
    environment.set_default("BIENCODER_TEST", "ours")
    environment.set_default("BIENCODER_TEST", "another")
    assert os.environ.pop("BIENCODER_TEST") == "ours"


def test_the_cache_is_where_the_user_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment.cache_folder() == tmp_path / "biencoder"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment.cache_folder() == tmp_path / ".cache" / "biencoder"
