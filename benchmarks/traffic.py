"""The bytes that a rank sends, by the number of ranks, counted on the loopback device.

    python benchmarks/traffic.py                       # two minutes on two cores
    unshare --net sh -c 'ip link set lo up; python benchmarks/traffic.py'     # as root: nobody else's bytes are counted

answers    to the queries of a sharded search: the same queries and the same neighbours, whatever the number of ranks
distances  of pairs of texts that are held by different ranks, as the audit of negatives asks for them
gradients  of the candidates of the contrastive loss: every rank has the same number of its own

Prints the bytes of a rank at 2, 4 and 8 ranks, and those at 8 as a multiple of those at 2. What is bounded grows as
(R - 1) / R does, which is 1.75 times; what every rank gets from every other grows 7 times. Over gloo a reduce-scatter
sends as much as a sum over all ranks, over NCCL half of it. Writes benchmarks/results/traffic.json.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from ranks import run_ranks
from rich.console import Console
from rich.table import Table

from biencoder.config.schema import DistributedConfig
from biencoder.distributed.join import join
from biencoder.distributed.world import World
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.nearest import nearest_of_ranks

OUT = Path(__file__).parent / "results" / "traffic.json"
RANKS = (2, 4, 8)
QUERIES, NEIGHBOURS = 20_000, 16
DIMENSION, CANDIDATES = 128, 4096


def sent_by_a_rank(ranks: World, work: Callable[[], object]) -> float:
    """Bytes of each rank in the mean, also those of the signs of life in that time."""
    ranks.together(lambda: None)
    before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
    ranks.together(work)
    sent: int = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before
    return sent / ranks.size


def answers(ranks: World) -> None:
    counts = [QUERIES // ranks.size] * ranks.size
    rng = np.random.default_rng(ranks.rank)
    shape = (sum(counts), NEIGHBOURS)
    nearest_of_ranks(rng.integers(0, 10**6, shape), np.sort(rng.random(shape), axis=1), ranks, counts)


def distances(ranks: World) -> None:
    holder_M = np.arange(QUERIES, dtype=np.int32) % ranks.size
    held = np.flatnonzero(holder_M == ranks.rank)
    mine = Vectors(torch.zeros(len(held), DIMENSION), torch.zeros(len(held), 0))
    embedded = EmbeddedTexts(held, mine, mine, np.arange(QUERIES), holder_M)
    embedded.distances("query", np.arange(QUERIES), np.roll(np.arange(QUERIES), 1), ranks)


def gradients(ranks: World) -> None:
    rows = torch.zeros(CANDIDATES, DIMENSION, requires_grad=True)
    torch.autograd.backward(ranks.all_gather(rows).sum())


PARTS: dict[str, Callable[[World], None]] = {"answers": answers, "distances": distances, "gradients": gradients}


def worker() -> None:
    with join(DistributedConfig(timeout_s=300, control_timeout_s=300, silence_s=300)) as ranks:
        found = {name: sent_by_a_rank(ranks, lambda part=part: part(ranks)) for name, part in PARTS.items()}  # type: ignore[misc]
        if ranks.is_main:
            print(json.dumps(found))


def main() -> None:
    found = {size: run_ranks(__file__, ["worker"], size=size, threads=1) for size in RANKS}
    table = Table("part", *(f"{size} ranks" for size in RANKS), "growth", title="MB that a rank sends", box=None)
    for name in PARTS:
        sent = [found[size][name] for size in RANKS]
        table.add_row(name, *(f"{part / 1e6:.2f}" for part in sent), f"{sent[-1] / sent[0]:.2f}")
    Console().print(table)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
