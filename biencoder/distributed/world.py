"""All knowledge of ranks: one frozen `World`, built by the launcher, passed to whoever needs it, identity on one process.

Two groups of processes stand behind it. The training group (nccl on GPUs, gloo on CPUs) has a short time limit, so that a
real hang is found. The control group (gloo) has a long one: the other ranks wait on it while rank 0 mines, evaluates or
saves. No other module imports torch.distributed.
"""

import datetime
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import psutil
import torch
import torch.distributed as dist

from biencoder.distributed.heartbeat import Watch
from biencoder.distributed.idle_cores import idle_cores
from biencoder.errors import BiencoderError, ConfigError, PeerError

T = TypeVar("T")

_TASKS = {
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "FLUX_JOB_SIZE": "FLUX_TASK_RANK",
}
"""How srun and the MPIs tell a process how many it is one of → and which one."""


@dataclass(frozen=True, slots=True)
class World:
    rank: int
    size: int
    local_rank: int
    device: torch.device
    hosts: tuple[str, ...] = ("localhost",)
    """Of each rank."""
    _control: Any = None
    _watch: Watch | None = None

    @classmethod
    def alone(cls) -> "World":
        """A world of this process only: what takes a world runs without any communication."""
        return cls(0, 1, 0, torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def ranks_on_this_host(self) -> int:
        return self.hosts.count(self.hosts[self.rank])

    def doing(self, phase: str) -> None:
        """Name the work at hand, for the message that the others get should this rank fall silent."""
        if self._watch:
            self._watch.doing(phase)

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank; if it fails on any, every rank raises that rank's error. Every rank takes part."""
        result, failure = _attempt(work, self.rank)
        if self.size == 1:
            if failure:
                raise failure
            return result  # type: ignore[return-value]  # no failure: work returned
        failures: list[Any] = [None] * self.size
        dist.all_gather_object(failures, failure, group=self._control)
        first = next((f for f in failures if f), None)
        if first:
            raise first
        return result  # type: ignore[return-value]

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and hand its (small) result to every rank, or its error. Every rank takes part."""
        outcome: list[Any] = [None, None]
        if self.is_main:
            outcome = list(_attempt(work, self.rank))
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0, group=self._control)
        result, failure = outcome
        if failure:
            raise failure
        return result  # type: ignore[no-any-return]

    def before_end(self, work: Callable[[int], None]) -> None:
        """Have `work(exit code)` done should another rank end this process."""
        if self._watch:
            self._watch.before_end = work

    def end_all(self, message: str, *, exit_code: int) -> None:
        """End every other rank, wherever it is, with this exit code; this one has told the message."""
        if self._watch:
            self._watch.fail(message, exit_code=exit_code, said=True)

    def max_later(self, value: int) -> Callable[[], int]:
        """The largest of the ranks' values, when it is asked for. Every rank takes part, also in the asking."""
        if self.size == 1:
            return lambda: value
        largest = torch.tensor([value])
        work = dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._control, async_op=True)

        def wait() -> int:
            work.wait()
            return int(largest.item())

        return wait

    def on_holders(self, work: Callable[["World"], T], *, sharded: bool) -> T:
        """Run `work(world)` where the data is: on all ranks with this world, or on rank 0 with a world of its own, whose
        (small) result every rank gets. Alone, it has the cores of the ranks that wait. Every rank takes part."""
        if sharded:
            return work(self)

        def alone() -> T:
            with idle_cores():
                return work(World.alone())

        return self.on_main(alone)

    def broadcast_ids(self, ids_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rank 0's ids on every rank; the others pass an array of the same length to fill. Every rank takes part."""
        if self.size > 1 and ids_N.size:
            dist.broadcast(torch.from_numpy(ids_N), src=0, group=self._control)
        return ids_N

    def share_rows(self, rows_QD: torch.Tensor, *, source: int) -> torch.Tensor:
        """The source rank's rows on every rank; the others pass rows of the same shape to fill. Every rank takes part."""
        if self.size > 1:
            rows_QD = rows_QD.contiguous()
            dist.broadcast(rows_QD, src=source, group=self._control)
        return rows_QD

    def nearest(
        self, ids_Qk: npt.NDArray[np.int64], distance_Qk: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """For each query the k nearest of the ranks' answers (ids, distances), ties to the lower id, nearest first. Every
        rank takes part."""
        if self.size == 1:
            return ids_Qk, distance_Qk
        columns: list[list[torch.Tensor]] = []
        for part in (torch.from_numpy(ids_Qk), torch.from_numpy(distance_Qk)):
            columns.append([torch.empty_like(part) for _ in range(self.size)])
            dist.all_gather(columns[-1], part.contiguous(), group=self._control)
        all_ids, all_distances = (torch.cat(parts, dim=1).numpy() for parts in columns)
        order_Qk = np.lexsort((all_ids, all_distances), axis=1)[:, : ids_Qk.shape[1]]
        return np.take_along_axis(all_ids, order_Qk, axis=1), np.take_along_axis(all_distances, order_Qk, axis=1)

    def all_rows(self, rows_RD: torch.Tensor) -> torch.Tensor:
        """Every rank's rows (equal shapes) on every rank, in rank order, with gradient: what all ranks want of them is
        summed. Every rank takes part, also in the backward pass."""
        if self.size == 1:
            return rows_RD
        gathered: torch.Tensor = _AllRows.apply(rows_RD, self.rank, self.size)  # type: ignore[no-untyped-call]
        return gathered

    def gather_rows(self, rows_RD: torch.Tensor) -> list[torch.Tensor] | None:
        """Every rank's rows (equal shapes) on rank 0, in rank order; None elsewhere. Every rank takes part."""
        rows_RD = rows_RD.cpu()
        if self.size == 1:
            return [rows_RD]
        gathered = [torch.empty_like(rows_RD) for _ in range(self.size)] if self.is_main else None
        dist.gather(rows_RD, gathered, dst=0, group=self._control)
        return gathered

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's (small) value on every rank, in rank order. Every rank takes part."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def time_sum(self, num_bytes: int, *, repeats: int, control: bool) -> list[float]:
        """Seconds that each sum of `num_bytes` of fp32 over the ranks took here; the first, which connects, is left out.

        It runs on the training group, or on the control group where `control` is set. Nothing is timed on one rank.
        Every rank takes part.

        Raises:
            RuntimeError: a sum is wrong, or a rank did not answer in time.
        """
        if self.size == 1:
            return []
        device = torch.device("cpu") if control else self.device
        values = torch.empty(num_bytes // 4, device=device)
        seconds, wrong = [], ""
        for _ in range(1 + repeats):
            values.fill_(1)
            _finish(device)
            start = time.perf_counter()
            dist.all_reduce(values, group=self._control if control else None)
            _finish(device)
            seconds.append(time.perf_counter() - start)
            if not bool((values == self.size).all()):
                wrong = f"a sum of ones over {self.size} ranks is {values.min():g} to {values.max():g}"
        if wrong:  # said at the end: the other ranks count on this one for every sum
            raise RuntimeError(wrong)
        return seconds[1:]

    def mean(self, values_K: torch.Tensor) -> torch.Tensor:
        """Mean over ranks. Every rank takes part."""
        if self.size > 1:
            dist.all_reduce(values_K)
            values_K /= self.size
        return values_K


@contextmanager
def world(*, timeout_s: float, control_timeout_s: float, silence_s: float) -> Iterator[World]:
    """Join the other ranks (as torchrun, DeepSpeed or nobody has set the environment) and leave them cleanly.

    Raises:
        ConfigError: the launcher's environment is incomplete or asks for a GPU that does not exist.
    """
    rank, size, local_rank = _ranks_from_environment()
    device = _device(local_rank)
    _choose_network()
    limit = datetime.timedelta(seconds=timeout_s)
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
        control = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=control_timeout_s))
        dist.all_gather_object(hosts, socket.gethostname(), group=control)
        watch = _start_watch(rank, hosts, control, silence_s)
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


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        ctx.rank, ctx.size = rank, size
        parts = [torch.empty_like(rows_RD) for _ in range(size)]
        dist.all_gather(parts, rows_RD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        summed = gradients[0].contiguous()
        dist.all_reduce(summed)
        return summed.chunk(ctx.size)[ctx.rank], None, None


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


def _finish(device: torch.device) -> None:
    """Wait for the work that a GPU was given; on a CPU it is done when the call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _attempt(work: Callable[[], T], rank: int) -> tuple[T | None, PeerError | None]:
    try:
        return work(), None
    except BiencoderError as error:
        return None, PeerError(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
        traceback.print_exc()
        sys.stderr.flush()
        return None, PeerError(f"rank {rank}: {type(error).__name__}: {error}")


def _is_broken_collective(error: BaseException) -> bool:
    """Whether a collective failed under this rank because another one went away."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection closed by peer"))
    )
