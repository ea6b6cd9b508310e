"""All knowledge of ranks: one frozen `World`, built by `join`, passed to whoever needs it, identity on one process.

Two groups of processes stand behind it. The training group (nccl on GPUs, gloo on CPUs) has a short time limit, so that a
real hang is found. The control group (gloo) has a long one: the other ranks wait on it while rank 0 mines, evaluates or
saves. Only this module and join.py import torch.distributed.

R: rows, D: dimension.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist  # noqa: TID251 - this folder knows about ranks

from biencoder.distributed.heartbeat import Watch
from biencoder.distributed.idle_cores import idle_cores
from biencoder.errors import BiencoderError, PeerError

T = TypeVar("T")


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
        result, failure = _attempt(work, self)
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
            outcome = list(_attempt(work, self))
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0, group=self._control)
        result, failure = outcome
        if failure:
            raise failure
        return result  # type: ignore[no-any-return]

    def keep_on_main(self, work: Callable[[], T]) -> T | None:
        """Run `work` on rank 0 and keep its result there; None elsewhere. If it fails, every rank raises its error. Every
        rank takes part."""
        result, failure = _attempt(work, self) if self.is_main else (None, None)
        self.on_main(lambda: _raise(failure))
        return result

    def before_end(self, work: Callable[[int], None]) -> None:
        """Call `work(exit code)` before another rank's failure ends this process."""
        if self._watch:
            self._watch.before_end = work

    def end_all(self, message: str, *, exit_code: int) -> None:
        """End every other rank, wherever it is, with this exit code; this one has printed the message."""
        if self._watch:
            self._watch.fail(message, exit_code=exit_code, said=True)

    def all_reduce_max_async(self, value: int) -> Callable[[], int]:
        """A function that waits for the largest of the ranks' values. Every rank takes part, and must call the returned
        function as well."""
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

    def broadcast(self, values: torch.Tensor, *, source: int = 0) -> torch.Tensor:
        """The source rank's CPU tensor on every rank; the others pass one of the same shape, which is filled. Every rank
        takes part."""
        if self.size > 1 and values.numel():
            values = values.contiguous()
            dist.broadcast(values, src=source, group=self._control)
        return values

    def all_gather_rows(self, rows_RD: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Every rank's rows of a CPU tensor on every rank, in rank order, without gradient. Every rank takes part.

        Args:
            counts: number of rows of each rank.
        """
        if self.size == 1:
            return rows_RD
        longest = max(counts)
        padded_RD = torch.cat([rows_RD, rows_RD.new_empty(longest - len(rows_RD), *rows_RD.shape[1:])])
        gathered = [torch.empty_like(padded_RD) for _ in range(self.size)]
        dist.all_gather(gathered, padded_RD, group=self._control)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])

    def exchange(self, rows_RD: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """What every rank has for this one (ranks, own rows, ...), of a CPU tensor, in rank order. Every rank takes part.

        Args:
            rows_RD: first the rows for rank 0, then those for rank 1, ...
            counts: number of rows for each rank, the same on every rank.
        """
        own = counts[self.rank]
        if self.size > 1:
            received = rows_RD.new_empty(self.size * own, *rows_RD.shape[1:])
            sizes = [own] * self.size
            dist.all_to_all_single(received, rows_RD.contiguous(), sizes, list(counts), group=self._control)
            rows_RD = received
        return rows_RD.view(self.size, own, *rows_RD.shape[1:])

    def all_gather(self, rows_RD: torch.Tensor) -> torch.Tensor:
        """Differentiable all-gather: every rank's rows (equal shapes) on every rank, in rank order.

        Every rank takes part, also in the backward pass, which hands each rank the sum of all ranks' gradients of its rows.
        """
        if self.size == 1:
            return rows_RD
        gathered: torch.Tensor = _AllGather.apply(rows_RD, self.rank, self.size)  # type: ignore[no-untyped-call]
        return gathered

    def gather(self, rows_RD: torch.Tensor) -> list[torch.Tensor] | None:
        """Every rank's rows (equal shapes) on rank 0, in rank order; None elsewhere. Every rank takes part."""
        rows_RD = rows_RD.cpu()
        if self.size == 1:
            return [rows_RD]
        gathered = [torch.empty_like(rows_RD) for _ in range(self.size)] if self.is_main else None
        dist.gather(rows_RD, gathered, dst=0, group=self._control)
        return gathered

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's (small) value on every rank, in rank order. Every rank takes part."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def all_reduce(self, values: torch.Tensor, *, control: bool = False) -> torch.Tensor:
        """The sum over ranks, in place. Every rank takes part.

        Args:
            control: use the control group, which takes tensors on the CPU, instead of the training group.
        """
        if self.size > 1:
            dist.all_reduce(values, group=self._control if control else None)
        return values

    def all_reduce_mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over ranks, in place. Every rank takes part."""
        if self.size > 1:
            self.all_reduce(values)
            values /= self.size
        return values


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        ctx.rank, ctx.size = rank, size
        parts = [torch.empty_like(rows_RD) for _ in range(size)]
        dist.all_gather(parts, rows_RD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        of_ranks = [part.contiguous() for part in gradients[0].chunk(ctx.size)]
        summed = torch.empty_like(of_ranks[ctx.rank])
        dist.reduce_scatter(summed, of_ranks)
        return summed, None, None


def _attempt(work: Callable[[], T], world: World) -> tuple[T | None, PeerError | None]:
    """What `work` returns, or how it failed, for the other ranks; where there are none its own error is raised."""
    try:
        return work(), None
    except BiencoderError as error:
        if world.size == 1:
            raise
        return None, PeerError(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
        traceback.print_exc()
        sys.stderr.flush()
        return None, PeerError(f"rank {world.rank}: {type(error).__name__}: {error}")


def _raise(failure: PeerError | None) -> None:
    if failure:
        raise failure
