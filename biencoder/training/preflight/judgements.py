"""What the ranks' facts mean for a job: the rows of the table that `preflight` prints. Pure functions.

Facts come in rank order, and `hosts` names the host of each rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from biencoder.training.engine.memory import GIB

Verdict = Literal["ok", "warn", "fail"]
Judgement = tuple[Verdict, str]

MAX_CLOCK_OFFSET_S = 5.0


@dataclass(frozen=True, slots=True)
class CheckResult:
    name: str
    verdict: Verdict
    finding: str


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    """A GPU's model, or CPU."""
    total_bytes: int
    """The GPU's memory; 0 on a CPU."""
    unused_gpu: str = ""
    """The PyTorch build that cannot use this machine's NVIDIA driver; empty where all is well."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one rank may still take, in bytes."""

    share_bytes: int
    """Of its host's memory, divided by the ranks there."""
    gpu_bytes: int | None
    """None on a CPU."""
    refusal: str = ""
    """Why training would not start on this rank; empty if it would."""


def judge_devices(devices: Sequence[Device], hosts: Sequence[str]) -> Judgement:
    """Which ranks are where, on what; warns of GPUs that differ or stay unused."""
    num_hosts = len(set(hosts))
    finding = f"{len(hosts)} on {num_hosts} host{'s' if num_hosts > 1 else ''}"
    unused = {rank: device.unused_gpu for rank, device in enumerate(devices) if device.unused_gpu}
    if unused:
        build = next(iter(unused.values()))
        finding += f"; {name_ranks(unused, hosts)} on a machine with an NVIDIA driver that torch {build} does not use"
    kinds = dict.fromkeys((device.name, device.total_bytes) for device in devices)
    if len(kinds) > 1:
        finding += "; the devices differ, and the slowest sets the pace"
    for name, total in kinds:
        ranks = [rank for rank, device in enumerate(devices) if (device.name, device.total_bytes) == (name, total)]
        finding += f"; {name_ranks(ranks, hosts)}: {name}" + (f" with {total / GIB:.1f} GiB" if total else "")
    return ("warn" if unused or len(kinds) > 1 else "ok"), finding


def judge_equal(facts: Sequence[Mapping[str, str]], hosts: Sequence[str], *, summary: str) -> Judgement:
    """Fails where the ranks differ, and names each value with the ranks and hosts that hold it; else says `summary`."""
    differences = []
    for name in facts[0]:
        holders: dict[str, list[int]] = {}
        for rank, fact in enumerate(facts):
            holders.setdefault(fact.get(name, "none"), []).append(rank)
        if len(holders) > 1:
            held = [f"{value} on {name_ranks(ranks, hosts)}" for value, ranks in holders.items()]
            differences.append(f"{name} is {' and '.join(held)}")
    return ("fail", "; ".join(differences)) if differences else ("ok", summary)


def judge_round_trip(seconds: Sequence[tuple[float, float]], library: str) -> Judgement:
    """The slowest rank's median time for a sum of one number, on the training and on the control group."""
    training, control = (1000 * max(column) for column in zip(*seconds, strict=True))
    return "ok", f"training group ({library}) {training:.2f} ms, control group (gloo) {control:.2f} ms"


def judge_bandwidth(seconds: Sequence[float], *, num_bytes: int) -> Judgement:
    """Bytes of one large sum over the slowest rank's median time for it; what the wires carry is up to twice that."""
    slowest = max(seconds)
    return "ok", f"{num_bytes / slowest / 1e9:.2f} GB/s (bytes / seconds: {num_bytes / 2**20:.0f} MiB in {slowest:.3f} s)"


def judge_clocks(clocks: Sequence[float], hosts: Sequence[str]) -> Judgement:
    """The largest offset between two hosts, in seconds; too large a one confuses logs and file times."""
    if len(set(hosts)) == 1:
        return "ok", "one host, one clock"
    first, last = min(range(len(clocks)), key=clocks.__getitem__), max(range(len(clocks)), key=clocks.__getitem__)
    offset = clocks[last] - clocks[first]
    if offset <= MAX_CLOCK_OFFSET_S:
        return "ok", f"at most {offset:.2f} s apart"
    return "warn", f"{hosts[last]} is {offset:.2f} s ahead of {hosts[first]}; at most {MAX_CLOCK_OFFSET_S:g} s are fine"


def judge_shared(sees: Sequence[bool], hosts: Sequence[str], *, folder: Path, sharded: bool) -> Judgement:
    """Warns where a rank does not see rank 0's files, which most runs can do without.

    Args:
        sharded: whether every rank writes its part of a checkpoint; then such a rank fails.
    """
    blind = [rank for rank, seen in enumerate(sees) if not seen]
    if blind:
        unseen = f"what rank 0 writes in {folder} is not seen by {name_ranks(blind, hosts)}"
        if sharded:
            return "fail", f"{unseen}, as checkpoint.placement = sharded needs"
        return "warn", f"{unseen}; a run works without, since rank 0 alone reads and writes there"
    return "ok", f"{folder} is seen by all ranks"


def judge_memory(
    memories: Sequence[Memory], hosts: Sequence[str], *, state: int, offloaded: int, mining: int, sharded: bool
) -> Judgement:
    """Fails where training would refuse to start, and warns where a rank's share is less than it is known to need.

    Args:
        state: bytes of weights, gradients and optimizer on one rank; on its GPU if it has one.
        offloaded: bytes of the same that lie in the host's memory in any case.
        mining: bytes of embeddings and index, on every rank if `sharded`, else on rank 0.
    """
    refusals = {rank: memory.refusal for rank, memory in enumerate(memories) if memory.refusal}
    if refusals:
        return "fail", failures_by_rank(refusals, hosts)
    on_gpu = memories[0].gpu_bytes is not None
    held = offloaded if on_gpu else state + offloaded
    needed = [held + (mining if sharded or rank == 0 else 0) for rank in range(len(memories))]
    tight = [rank for rank, memory in enumerate(memories) if memory.share_bytes < needed[rank]]
    full = [rank for rank, memory in enumerate(memories) if memory.gpu_bytes is not None and memory.gpu_bytes < state]
    least = min(range(len(memories)), key=lambda rank: memories[rank].share_bytes)
    finding = (
        f"{memories[least].share_bytes / GIB:.1f} GiB free for {name_ranks([least], hosts)}, the least of all; mining "
        f"takes up to {mining / GIB:.1f} on {'each rank' if sharded else 'rank 0'}, weights and optimizer "
    )
    if on_gpu:
        free = min(memory.gpu_bytes or 0 for memory in memories)
        finding += f"{offloaded / GIB:.1f} on each rank's host and " if offloaded else ""
        finding += f"{state / GIB:.1f} on each GPU, where {free / GIB:.1f} are free; activations come on top"
    else:
        finding += f"{held / GIB:.1f} on each"
    if tight:
        finding += f"; tight on {name_ranks(tight, hosts)}"
    if full:
        finding += f"; the GPU is too small on {name_ranks(full, hosts)}"
    return ("warn" if tight or full else "ok"), finding


def judge_disk(folder: Path, free: int, *, num_parameters: int, keep: int) -> Judgement:
    """A checkpoint takes 12 bytes a parameter (weights and two moments, fp32), each of the two models 4.

    Besides the checkpoints to keep there are the best one and the one that is being written.
    """
    models, checkpoint = 2 * 4 * num_parameters, 12 * num_parameters
    needed = models + (keep + 2) * checkpoint
    finding = f"{free / GIB:.1f} GiB free in {folder}; {keep + 2} checkpoints and two models take {needed / GIB:.1f}"
    return ("fail" if free < models + checkpoint else "warn" if free < needed else "ok"), finding


def name_ranks(ranks: Sequence[int] | Mapping[int, str], hosts: Sequence[str]) -> str:
    """`rank 1 (a), ranks 8-15 (b)`: host by host, in the order in which they first appear."""
    by_host: dict[str, list[int]] = {}
    for rank in sorted(ranks):
        by_host.setdefault(hosts[rank], []).append(rank)
    return ", ".join(f"{'ranks' if len(own) > 1 else 'rank'} {_runs(own)} ({host})" for host, own in by_host.items())


def failures_by_rank(failures: Mapping[int, str], hosts: Sequence[str]) -> str:
    """Each message once, with the ranks that have it; without them where all ranks have the same."""
    by_message: dict[str, list[int]] = {}
    for rank, message in failures.items():
        by_message.setdefault(message, []).append(rank)
    if len(by_message) == 1 and len(failures) == len(hosts):
        return next(iter(by_message))
    return "; ".join(f"{name_ranks(ranks, hosts)}: {message}" for message, ranks in by_message.items())


def _runs(ranks: Sequence[int]) -> str:
    """0, 1, 2, 5 → `0-2, 5`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
