"""What the contrastive loss of one step takes on one process, all but the encoder, as the batch grows.

    python benchmarks/contrast.py                      # 1,024 to 16,384 pairs: some minutes on two cores

targets     finding each point's own counter and what is left out, from text ids
loss        the loss and its gradient at all embeddings, from embeddings
products    the matrix products alone that any form of this loss needs: logits, and the gradients of both sides
dense       the loss as one table of points by candidates under autograd, up to `--dense-up-to` pairs
peak        most memory above what the process held with the embeddings there, MiB; of the dense form as well

Eight pairs each share a point, all other texts differ; embeddings of length 1, drawn at random; temperature 0.05.
Each row is the median of `--repeats` runs in a process of its own.

Prints a table, and writes benchmarks/results/contrast.json.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from ranks import run_ranks
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from biencoder.config.schema import LossConfig
from biencoder.data import Forbidden, Split
from biencoder.distributed.world import World
from biencoder.model.bi_encoder import Scores
from biencoder.training.contrastive import Targets, contrast, targets

OUT = Path(__file__).parent / "results" / "contrast.json"
TEMPERATURE, SHARE_A_POINT = 0.05, 8


def timed(work: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def batch(pairs: int, negatives: int) -> tuple[Split, np.ndarray[Any, Any], Forbidden]:
    """A split of so many pairs, which are one batch, and their negatives."""
    points = np.arange(pairs) // SHARE_A_POINT * SHARE_A_POINT
    split = Split("training", (), points, np.arange(pairs, 2 * pairs))
    negative_text_PK = np.random.default_rng(0).integers(pairs, 2 * pairs, (pairs, negatives))
    return split, negative_text_PK, Forbidden.of(split, 2 * pairs)


def scores(pairs: int, negatives: int, dimension: int) -> Scores:
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> torch.Tensor:
        return F.normalize(torch.randn(count, dimension, generator=generator), dim=1)

    point, empty = rows(pairs), torch.empty(0)
    return Scores(point, rows(pairs), rows(pairs * negatives).reshape(pairs, negatives, dimension), empty, empty, point)


def products(given: Scores) -> None:
    """In blocks of 64 MiB of logits."""
    assert given.rival_BD is not None
    candidates = torch.cat([given.counter_BD, given.negative_BKD.flatten(0, 1), given.rival_BD])
    rows = 2**24 // len(candidates)
    block, to_candidates = torch.empty(rows, len(candidates)), torch.zeros_like(candidates)
    for point in given.point_BD.split(rows):  # type: ignore[no-untyped-call]
        logits = torch.mm(point, candidates.T, out=block[: len(point)])
        logits @ candidates
        to_candidates.addmm_(logits.T, point)


def dense(given: Scores, wanted: Targets) -> None:
    assert given.rival_BD is not None
    query, counters, negatives, rivals = (
        part.clone().requires_grad_()
        for part in (given.point_BD, given.counter_BD, given.negative_BKD.flatten(0, 1), given.rival_BD)
    )
    candidates = torch.cat([counters, negatives, rivals])
    left_out = torch.zeros(len(query), len(candidates), dtype=torch.bool)
    left_out[*wanted.left_out_2X] = True
    logits = (query @ candidates.T - candidates.square().sum(1) / 2) / TEMPERATURE
    F.cross_entropy(logits.masked_fill(left_out, -torch.inf), wanted.own_S).backward()  # type: ignore[no-untyped-call]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    pairs, negatives = given.pairs[0], given.negatives[0]
    split, negative_text_PK, forbidden = batch(pairs, negatives)
    samples, some = np.arange(pairs)[None], scores(pairs, negatives, given.dimension)
    config: Any = LossConfig(contrastive_weight=1, temperature=TEMPERATURE, symmetric=given.symmetric)
    contrast(
        [scores(8, negatives, given.dimension)],
        targets(np.arange(8)[None], *batch(8, negatives), rank=0),
        config,
        World.alone(),
    )
    before = psutil.Process().memory_info().rss
    targets_s = timed(lambda: targets(samples, split, negative_text_PK, forbidden, rank=0), given.repeats)
    wanted = targets(samples, split, negative_text_PK, forbidden, rank=0)
    if given.worker == "dense":
        took = {"dense_s": timed(lambda: dense(some, wanted), 1)}
    else:
        took = {"loss_s": timed(lambda: contrast([some], wanted, config, World.alone()), given.repeats)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if given.worker != "dense":
        took["products_s"] = timed(lambda: products(some), given.repeats)
    return {"pairs": pairs, "negatives": negatives, "targets_s": targets_s, **took, "peak_mib": peak / 2**20}


def row(pairs: int, negatives: int, given: argparse.Namespace) -> dict[str, Any]:
    settings = f"--pairs {pairs} --negatives {negatives} --dimension {given.dimension} --repeats {given.repeats}".split()
    settings += ["--symmetric"] if given.symmetric else []
    found: dict[str, Any] = run_ranks(__file__, ["--worker", "blocks", *settings])
    if pairs <= given.dense_up_to:
        other = run_ranks(__file__, ["--worker", "dense", *settings])
        found |= {"dense_s": other["dense_s"], "dense_peak_mib": other["peak_mib"]}
    return found


def show(rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    title = f"contrastive loss, {given.dimension} dimensions, {os.cpu_count()} cores{', symmetric' * given.symmetric}"
    table = Table(title=title, box=None)
    names = ("pairs", "negatives", "targets_s", "loss_s", "products_s", "dense_s", "peak_mib", "dense_peak_mib")
    for name in names:
        table.add_column(name, justify="right")
    for found in rows:
        cells = [found.get(name, "") for name in names]
        table.add_row(
            *(
                f"{cell:,.3g}" if isinstance(cell, float) and cell < 100 else f"{cell:,.0f}" if cell else ""
                for cell in cells
            )
        )
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1024, 4096, 16_384])
    parser.add_argument("--negatives", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--symmetric", action="store_true", help="the direction from counters to points as well")
    parser.add_argument("--dense-up-to", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=["blocks", "dense"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measure(given)), flush=True)
        return
    rows = [row(pairs, negatives, given) for pairs in given.pairs for negatives in given.negatives]
    show(rows, given)
    OUT.parent.mkdir(exist_ok=True)
    settings = {"cores": os.cpu_count(), "dimension": given.dimension, "symmetric": given.symmetric}
    OUT.write_text(json.dumps(settings | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
