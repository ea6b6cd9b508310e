"""How a process becomes a rank: it reads what its launcher has set, joins the others, and leaves them cleanly.

with join(config.distributed) as world:
    ...
"""

import datetime
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
import torch.distributed as dist  # noqa: TID251 - this folder knows about ranks

from biencoder import environment
from biencoder.config.schema import DistributedConfig
from biencoder.distributed.heartbeat import Watch
from biencoder.distributed.idle_cores import share_cores
from biencoder.distributed.world import World
from biencoder.errors import BiencoderError, ConfigError, PeerError


@contextmanager
def join(limits: DistributedConfig) -> Iterator[World]:
    """Join the other ranks (as torchrun, DeepSpeed or nobody has set the environment) and leave them cleanly.

    Raises:
        ConfigError: the launcher's environment is incomplete or asks for a GPU that does not exist.
    """
    with environment.place_among_ranks() as (rank, size, local_rank):
        device = _device(local_rank)
        _choose_network()
        hosts, control, watch = _connect(rank, size, device, limits)
        if device.type == "cuda":
            share_cores(hosts.count(hosts[rank]))
        try:
            yield World(rank, size, local_rank, device, tuple(hosts), control, watch)
            if watch:
                dist.barrier(group=control)  # without it rank 0 could close the store that a slower rank still beats in
        except PeerError:
            raise  # every rank has it: nobody waits for anybody
        except BaseException as error:
            if watch:
                _report_failure(watch, rank, error)
            raise
        finally:
            if watch:
                watch.close()
            dist.destroy_process_group()


def _connect(rank: int, size: int, device: torch.device, limits: DistributedConfig) -> tuple[list[str], Any, Watch | None]:
    """Meet the other ranks. Returns the host of each rank, and with several ranks a gloo group and the heartbeats."""
    limit = datetime.timedelta(seconds=limits.timeout_s)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=limit)
        return [socket.gethostname()], None, None
    # torchrun keeps one store over its restarts: under the same names ranks would find where the dead ones listened.
    store, *_ = next(dist.rendezvous("env://", timeout=limit))
    store = dist.PrefixStore(f"start-{environment.torchrun_restarts()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    control = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=limits.control_timeout_s))
    places = [("", "")] * size
    dist.all_gather_object(places, (socket.gethostname(), _identity(device)), group=control)
    hosts, gpus = ([place[part] for place in places] for part in (0, 1))
    _check_own_gpus(hosts, gpus)
    return hosts, control, _start_watch(rank, hosts, control, limits.silence_s)


def _report_failure(watch: Watch, rank: int, error: BaseException) -> None:
    """Tell the other ranks which rank failed first. This process may be ended here, if that was another one."""
    if _is_broken_collective(error):
        watch.wait_for_verdict()
    if isinstance(error, BiencoderError):  # rank 0 says it, see launcher/entry.py
        watch.fail(f"rank {rank}: {error}", exit_code=error.exit_code, said=rank == 0)
    else:
        watch.fail(f"rank {rank}: {type(error).__name__}: {error}", exit_code=1, said=True)


def _device(local_rank: int) -> torch.device:
    """The GPU of this rank's number, or the only one that it sees, as under Slurm's --gpus-per-task; else the CPU."""
    if environment.cpu_is_chosen() or not torch.cuda.is_available():
        return torch.device("cpu")
    # Blocks that grow fit the many shapes of batches. The allocator reads this when it is first used.
    environment.set_default("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    count = torch.cuda.device_count()
    number = 0 if count == 1 else local_rank
    if number >= count:
        raise ConfigError(f"this machine has {count} GPUs, but local rank {local_rank} was started")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _identity(device: torch.device) -> str:
    """Of a GPU, the same for every process that sees it; empty for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def _check_own_gpus(hosts: list[str], gpus: list[str]) -> None:
    """Raise a ConfigError, the same on every rank, where two ranks have the same GPU."""
    for rank, (host, gpu) in enumerate(zip(hosts, gpus, strict=True)):
        other = next(i for i in range(rank + 1) if gpus[i] == gpu)
        if gpu and other != rank:
            raise ConfigError(
                f"ranks {other} and {rank} on {host} would share one GPU; start as many processes as there are GPUs, or "
                "let each see one of its own"
            )


def _choose_network() -> None:
    """Point gloo at the network that leads to rank 0's machine, where this machine's own name means loopback.

    Debian gives a machine's name the address 127.0.1.1; gloo would tell its peers to connect there.
    """
    try:
        own = socket.gethostbyname(socket.gethostname())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((environment.main_address(), 9))  # sends nothing: it only chooses a route
            route: str = probe.getsockname()[0]
    except OSError:
        return  # a name that cannot be resolved: the rendezvous will say so
    if own.startswith("127.") and not route.startswith("127."):
        for name, addresses in psutil.net_if_addrs().items():
            if any(address.address == route for address in addresses):
                environment.set_default("GLOO_SOCKET_IFNAME", name)


def _start_watch(rank: int, hosts: list[str], control: Any, silence_s: float) -> Watch:
    """A store of its own, served by rank 0: a blocking call on the training group's store must not hold up heartbeats."""
    address = environment.main_address()
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
