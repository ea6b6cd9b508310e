"""Environment variables: what launchers, Slurm, Weights & Biases and users set. No other module reads or sets them.

Each function reads when it is called: a test or a library may set variables before that.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from biencoder.errors import ConfigError

_RANK_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_TASKS = {
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "FLUX_JOB_SIZE": "FLUX_TASK_RANK",
}
"""How srun and the MPIs tell a process how many it is one of → and which one."""
_THREAD_NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def set_default(name: str, value: str) -> None:
    """Set a variable that a library reads, unless somebody has set it."""
    os.environ.setdefault(name, value)


# Ranks: torchrun, deepspeed, srun, mpirun.


class Place(NamedTuple):
    """Of this process among those of its job."""

    rank: int
    size: int
    local_rank: int
    """Among the processes on its machine."""


@contextmanager
def place_among_ranks() -> Iterator[Place]:
    """Read the process's rank. Where no launcher has set what DeepSpeed reads, it is set within this context: one process
    is a job of one rank, and what comes after in the same process is none.

    Raises:
        ConfigError: variables are missing or contradict each other, or several processes do not know of each other.
    """
    values = {name: os.environ[name] for name in _RANK_NAMES if name in os.environ}
    wrong = [f"{name} is {text!r}" for name, text in values.items() if not text.isdecimal()]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}, expected a whole number")
    if values and len(values) < len(_RANK_NAMES):
        missing = ", ".join(name for name in _RANK_NAMES if name not in values)
        raise ConfigError(f"{', '.join(values)} is set but {missing} is not; start with torchrun or deepspeed, or set all")
    if values:
        _check_ranks(int(values["RANK"]), int(values["WORLD_SIZE"]))
    else:
        _refuse_tasks_without_ranks()
    defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    own = [name for name in defaults if name not in os.environ]
    for name in own:
        os.environ[name] = defaults[name]
    try:
        yield Place(*(int(os.environ[name]) for name in _RANK_NAMES))
    finally:
        for name in own:
            os.environ.pop(name, None)


@contextmanager
def local_rank_for_deepspeed(gpu: int | None) -> Iterator[None]:
    """Within this context LOCAL_RANK is the number of this rank's GPU among those that it sees, as DeepSpeed reads it.

    The two differ where each rank sees only a GPU of its own.

    Args:
        gpu: None on a CPU, where nothing is changed.
    """
    names = [name for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK") if name in os.environ and gpu is not None]
    before = {name: os.environ[name] for name in names}
    os.environ.update(dict.fromkeys(names, str(gpu)))
    try:
        yield
    finally:
        os.environ.update(before)


def main_address() -> str:
    """Name or address of rank 0's machine; within `place_among_ranks`."""
    return os.environ["MASTER_ADDR"]


def has_rank() -> bool:
    """Whether a launcher has given this process a rank."""
    return "RANK" in os.environ


def is_main_rank() -> bool:
    """Whether this process speaks for its job: it is rank 0, or has no rank."""
    return os.environ.get("RANK", "0") == "0"


def is_first_on_machine() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def is_under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def torchrun_restarts() -> int:
    """How often torchrun has started its ranks again."""
    return _count("TORCHELASTIC_RESTART_COUNT")


def thread_settings() -> dict[str, str]:
    """The numbers of threads that the user or a launcher has set for OpenMP and for libraries of linear algebra."""
    return {name: os.environ[name] for name in _THREAD_NAMES if name in os.environ}


def tunes_malloc() -> bool:
    """Whether the user has set how the C library (glibc) gives memory back."""
    return any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"))


def gpus_are_hidden() -> bool:
    """Whether the user wants this process to see no GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def cpu_is_chosen() -> bool:
    """Whether DeepSpeed, and so the whole program, is to compute on the CPU beside a GPU."""
    return os.environ.get("DS_ACCELERATOR") == "cpu"


# Slurm.


def slurm_restarts() -> int:
    """How often Slurm has started this job again."""
    return _count("SLURM_RESTART_COUNT")


def slurm_job() -> str:
    """The number of the job, as JOB_TASK in an array; empty outside of Slurm."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ.get('SLURM_ARRAY_JOB_ID', job)}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return job


# The user, and Weights & Biases.


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/biencoder, or ~/.cache/biencoder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "biencoder"


def wandb_mode() -> str | None:
    """online, offline or disabled where the user has set it, else None."""
    return os.environ.get("WANDB_MODE") or None


def wandb_sweep_run_id() -> str | None:
    """The run's id where the agent of a W&B sweep has started this process, else None."""
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def _count(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 0


def _check_ranks(rank: int, size: int) -> None:
    """Raise a ConfigError where the ranks could not find each other, and would wait."""
    if rank >= size:
        raise ConfigError(
            f"RANK is {rank} but WORLD_SIZE is {size}: ranks are counted from 0; start with torchrun or deepspeed"
        )
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if size > 1 and missing:
        raise ConfigError(
            f"RANK and WORLD_SIZE are set but {' and '.join(missing)} not, so the {size} ranks cannot find each other; "
            "start with torchrun or deepspeed, or set MASTER_ADDR to rank 0's host and MASTER_PORT to a free port there"
        )
    port = os.environ.get("MASTER_PORT", "0")
    if size > 1 and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"MASTER_PORT is {port!r}, expected the number of a free port on rank 0's host, 1 to 65535")


def _refuse_tasks_without_ranks() -> None:
    """Raise a ConfigError where srun or mpirun has started several processes that do not know of each other.

    A batch script, and a shell of salloc, are no step of several tasks: SLURM_NTASKS says what the job may start there.
    """
    for size_name, task_name in _TASKS.items():
        size, task = os.environ.get(size_name, "1"), os.environ.get(task_name, "0")
        if size.isdecimal() and int(size) > 1:
            os.environ["RANK"] = task  # so that only the first one prints the error, see `is_main_rank`
            raise ConfigError(
                f"{size_name} is {size} but RANK is not set: each of the {size} processes would train alone; "
                "start one torchrun on each node, as slurm/train.sh does, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR "
                "and MASTER_PORT for each"
            )
