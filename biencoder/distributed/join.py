"""How a process becomes a rank: it reads what its launcher has set, joins the others, and leaves them cleanly.

with join(config.distributed) as world:
    ...
"""

import datetime
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
import torch.distributed as dist

from biencoder.config import DistributedConfig
from biencoder.distributed.heartbeat import Watch
from biencoder.distributed.world import World
from biencoder.errors import BiencoderError, ConfigError, PeerError

_TASKS = {
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "FLUX_JOB_SIZE": "FLUX_TASK_RANK",
}
"""How srun and the MPIs tell a process how many it is one of → and which one."""


@contextmanager
def join(limits: DistributedConfig) -> Iterator[World]:
    """Join the other ranks (as torchrun, DeepSpeed or nobody has set the environment) and leave them cleanly.

    Raises:
        ConfigError: the launcher's environment is incomplete or asks for a GPU that does not exist.
    """
    rank, size, local_rank = _ranks_from_environment()
    device = _device(local_rank)
    _choose_network()
    limit = datetime.timedelta(seconds=limits.timeout_s)
    backend = "nccl" if device.type == "cuda" else "gloo"
    watch = control = None
    hosts: list[Any] = [socket.gethostname()] * size
    if size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=limit)
    else:
        # torchrun keeps one store over its restarts: under the same names ranks would find where the dead ones listened.
        store, *_ = next(dist.rendezvous("env://", timeout=limit))
        store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        control = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=limits.control_timeout_s))
        dist.all_gather_object(hosts, socket.gethostname(), group=control)
        watch = _start_watch(rank, hosts, control, limits.silence_s)
    try:
        yield World(rank, size, local_rank, device, tuple(hosts), control, watch)
        if watch:
            dist.barrier(group=control)  # without it rank 0 could close the store that a slower rank still beats in
    except PeerError:
        raise  # every rank has it: nobody waits for anybody
    except BaseException as error:
        if watch:
            if _is_broken_collective(error):
                watch.wait_for_verdict()
            if isinstance(error, BiencoderError):  # rank 0 says it, see launcher/entry.py
                watch.fail(f"rank {rank}: {error}", exit_code=error.exit_code, said=rank == 0)
            else:
                watch.fail(f"rank {rank}: {type(error).__name__}: {error}", exit_code=1, said=True)
        raise
    finally:
        if watch:
            watch.close()
        dist.destroy_process_group()


def _ranks_from_environment() -> tuple[int, int, int]:
    """(rank, size, local rank); fills in what DeepSpeed expects to find when no launcher has set it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    unlike = [f"{name} is {text!r}" for name, text in given.items() if not text.isdecimal()]
    if unlike:
        raise ConfigError(f"{', '.join(unlike)}, expected a whole number")
    if given and len(given) < len(names):
        missing = ", ".join(name for name in names if name not in given)
        raise ConfigError(f"{', '.join(given)} is set but {missing} is not; start with torchrun or deepspeed, or set all")
    if given:
        _check_ranks(int(given["RANK"]), int(given["WORLD_SIZE"]))
    else:
        _refuse_tasks_without_ranks()
    defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])


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
            os.environ["RANK"] = task  # the first one says it, see launcher/entry.py
            raise ConfigError(
                f"{size_name} is {size} but RANK is not set: each of the {size} processes would train alone; "
                "start one torchrun on each node, as slurm/train.sh does, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR "
                "and MASTER_PORT for each"
            )


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(f"this machine has {torch.cuda.device_count()} GPUs, but local rank {local_rank} was started")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _choose_network() -> None:
    """Point gloo at the network that leads to rank 0's machine, where this machine's own name means loopback.

    Debian gives a machine's name the address 127.0.1.1; gloo would tell its peers to connect there.
    """
    try:
        own = socket.gethostbyname(socket.gethostname())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((os.environ["MASTER_ADDR"], 9))  # sends nothing: it only chooses a route
            route: str = probe.getsockname()[0]
    except OSError:
        return  # a name that cannot be resolved: the rendezvous will say so
    if own.startswith("127.") and not route.startswith("127."):
        for name, addresses in psutil.net_if_addrs().items():
            if any(address.address == route for address in addresses):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _start_watch(rank: int, hosts: list[str], control: Any, silence_s: float) -> Watch:
    """A store of its own, served by rank 0: a blocking call on the training group's store must not hold up heartbeats."""
    address = os.environ["MASTER_ADDR"]
    server = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    port = [server.port if server else 0]
    dist.broadcast_object_list(port, src=0, group=control)
    store = server or dist.TCPStore(address, port[0], is_master=False)
    return Watch(store, rank=rank, hosts=hosts, silence_s=silence_s)


def _is_broken_collective(error: BaseException) -> bool:
    """Whether a collective failed under this rank because another one went away."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection closed by peer"))
    )
