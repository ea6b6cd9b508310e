"""What mining takes with each index and placement: seconds, recall, and rank 0's memory, through the code training runs.

    python benchmarks/mining.py                                  # 5k, 50k and 500k texts: half an hour on two cores
    python benchmarks/mining.py --sizes 5000                     # two minutes

Vectors: clusters of about 50 around random centres, 128 dimensions, length 1, as embeddings of a debate portal are. Half of
the texts are points, half are counters; `--queries` of the points get their nearest allowed text, the others a random one.
Each run is made of processes of its own: on rank 0 alone with all cores, or sharded over two ranks with half of them each.
Up to 100,000 texts all indexes run `--repeats` times, in turns, and what is shown is the median; above, once.

The ball tree takes minutes above 10,000 texts: there it answers `--balltree-queries`, its search time is scaled up to all
queries, and a FAISS flat that answers the same few says whether the neighbours are the same.

build, search   seconds
in all          seconds of mining without embedding: build, search, random negatives, and the audit of all of them, with the
                measured recall of approximate indexes, and up to 20,000 texts the ball tree's answers to 50 queries
recall          share of negatives that are the nearest allowed text, from 500 of them; exact indexes show `=` when they
                mined the same ids as FAISS flat on rank 0, and `!` if not
peak            most memory that rank 0 took above what it held before it had vectors, MiB
computed        what the program foretells for it, MiB (see biencoder/training/engine/memory.py)

peer, peer faiss  sentence-transformers' mine_hard_negatives over the same vectors (its model hands them out): one negative
                for each of `--queries` points, out of all texts, with its default search and with FAISS. It takes
                vectors as they are and compares texts, not ids; its memory and recall are not looked at

Prints a table, and writes benchmarks/results/mining.json.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil
import torch
from paired import ratio
from ranks import run_ranks
from rich.console import Console
from rich.table import Table

from biencoder.config.schema import Config, DistributedConfig, MiningConfig, ModelConfig
from biencoder.data import Forbidden, Split
from biencoder.distributed.join import join
from biencoder.distributed.world import World
from biencoder.mining import Miner
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.build import build_index
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.training.engine.memory import mining_bytes

OUT = Path(__file__).parent / "results" / "mining.json"
BLOCK = 1000
MANY, MANY_FOR_A_BALL_TREE = 100_000, 10_000
TIMES = ("build_s", "search_s", "total_s", "peak_mib")
Placement = Literal["rank0", "sharded"]
CASES: dict[str, tuple[dict[str, Any], Placement]] = {
    "faiss flat": ({}, "rank0"),
    "faiss flat, sharded": ({}, "sharded"),
    "faiss ivf": ({"faiss_kind": "ivf"}, "rank0"),
    "faiss ivf, sharded": ({"faiss_kind": "ivf"}, "sharded"),
    "faiss hnsw": ({"faiss_kind": "hnsw"}, "rank0"),
    "faiss hnsw, sharded": ({"faiss_kind": "hnsw"}, "sharded"),
    "balltree": ({"index": "balltree"}, "rank0"),
}
PEERS = ("peer", "peer faiss")


def clustered(size: int, dimension: int, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The vectors of these blocks of texts; each is the same whoever makes it."""
    centres = np.random.default_rng(0).standard_normal((max(1, size // 50), dimension), dtype=np.float32)
    made = np.empty((len(blocks) * BLOCK, dimension), dtype=np.float32)
    for i, block in enumerate(blocks):
        rng = np.random.default_rng([1, int(block)])
        rows = centres[rng.integers(0, len(centres), BLOCK)]
        rows += 0.7 * rng.standard_normal((BLOCK, dimension), dtype=np.float32)
        made[i * BLOCK : (i + 1) * BLOCK] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return made


def measure(ranks: World, size: int, queries: int, dimension: int, config: MiningConfig) -> dict[str, Any]:
    """One row, on every rank."""
    blocks = np.arange(size // BLOCK)
    holder_M = np.repeat(blocks % ranks.size, BLOCK).astype(np.int32)
    any_pair: Any = (None,) * (size // 2)
    split = Split("training", any_pair, np.arange(0, size, 2), np.arange(1, size, 2))
    for index in ("faiss", "balltree"):  # load the libraries
        build_index(np.eye(8, dtype=np.float32), MiningConfig(index=index))
    before = psutil.Process().memory_info().rss
    held = np.flatnonzero(holder_M == ranks.rank)
    rows = torch.from_numpy(clustered(size, dimension, blocks[blocks % ranks.size == ranks.rank]))
    vectors = Vectors(rows, rows.new_empty(len(rows), 0))
    embedded = EmbeddedTexts(held, vectors, vectors, np.arange(size), holder_M)
    forbidden = Forbidden.of(split, size)
    start = time.perf_counter()
    mined = Miner(split, forbidden, ranks, config, seed=0, num_epochs=1).mine(0, embedded)
    total_s = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "vectors": size,
        "queries": round(mined.search.nearest_share * len(split)),
        "build_s": mined.search.index_s,
        "search_s": mined.search.search_s,
        "total_s": total_s,
        "recall": mined.search.recall,
        "negatives": mined.digest,
        "peak_mib": (peak - before) / 2**20,
        "computed_mib": mining_bytes(
            Config(model=ModelConfig(embedding_dim=dimension), mining=config),
            num_texts=size,
            hidden=0,
            world_size=ranks.size,
        )
        / 2**20,
    }


class Precomputed:
    """Of a sentence-transformers model what mine_hard_negatives asks for; a text is the number of its vector."""

    device = torch.device("cpu")

    def __init__(self, rows: npt.NDArray[np.float32]) -> None:
        self._rows = rows

    def encode_document(self, texts: list[str], **options: Any) -> npt.NDArray[np.float32]:
        return self._rows[[int(text) for text in texts]]

    encode_query = encode_document

    def get_embedding_dimension(self) -> int:
        return int(self._rows.shape[1])

    @staticmethod
    def similarity(queries: Any, texts: Any) -> torch.Tensor:
        return torch.as_tensor(queries) @ torch.as_tensor(texts).T

    @staticmethod
    def similarity_pairwise(queries: Any, texts: Any) -> torch.Tensor:
        return (torch.as_tensor(queries) * torch.as_tensor(texts)).sum(-1)


def peer(size: int, queries: int, dimension: int, *, faiss: bool) -> dict[str, Any]:
    """A row of the peer's."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    rows = clustered(size, dimension, np.arange(size // BLOCK))
    pairs = {"point": range(0, 2 * queries, 2), "counter": range(1, 2 * queries, 2)}
    texts = Dataset.from_dict({name: [str(i) for i in ids] for name, ids in pairs.items()})
    start = time.perf_counter()
    mined = mine_hard_negatives(
        texts,
        Precomputed(rows),  # type: ignore[arg-type]
        corpus=[str(i) for i in range(size)],
        num_negatives=1,
        use_faiss=faiss,
        verbose=False,
    )
    return {"vectors": size, "queries": len(mined), "total_s": time.perf_counter() - start}


def worker(case: str, size: int, queries: int, dimension: int) -> None:
    if case in PEERS:
        print(json.dumps(peer(size, min(queries, size // 2), dimension, faiss="faiss" in case)), flush=True)
        return
    settings, placement = CASES[case]
    rate = max(0.0, 1 - queries / (size // 2))
    config = MiningConfig(placement=placement, random_rate=rate, **settings)
    with join(DistributedConfig(timeout_s=3600, control_timeout_s=86400, silence_s=3600)) as ranks:
        found = measure(ranks, size, queries, dimension, config)
        if ranks.is_main:
            print(json.dumps(found), flush=True)


def run_case(case: str, size: int, queries: int, dimension: int) -> dict[str, Any]:
    """A row, as rank 0 says it."""
    arguments = ["--worker", case, "--sizes", str(size), "--queries", str(queries), "--dimension", str(dimension)]
    found: dict[str, Any] = run_ranks(__file__, arguments, size=2 if "sharded" in case else 1)
    print(f"{size:,} {case}: {found['total_s']:.2f} s", file=sys.stderr)
    return found


def scaled_balltree(size: int, few: int, queries: int, dimension: int) -> dict[str, Any]:
    """The ball tree's row from a few queries."""
    row, flat = (run_case(case, size, few, dimension) for case in ("balltree", "faiss flat"))
    factor = min(queries, size // 2) / row["queries"]
    return row | {
        "measured_queries": row["queries"],
        "queries": round(factor * row["queries"]),
        "search_s": factor * row["search_s"],
        "total_s": row["total_s"] + (factor - 1) * row["search_s"],
        "same_ids": row["negatives"] == flat["negatives"],
    }


def run_size(size: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a size: all cases in turns, and those that would take too long."""
    limits = {"balltree": given.balltree_up_to, "faiss hnsw": given.hnsw_up_to, "faiss hnsw, sharded": given.hnsw_up_to}
    wanted = [case for case in (*CASES, *PEERS) if case not in given.skip]
    cases = [case for case in wanted if size <= limits.get(case, size)]
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    for repeat in range(given.repeats if size <= MANY else 1):
        for case in cases[:: -1 if repeat % 2 else 1]:
            if case == "balltree" and size > MANY_FOR_A_BALL_TREE:
                row = scaled_balltree(size, given.balltree_queries, given.queries, given.dimension)
            else:
                row = run_case(case, size, given.queries, given.dimension)
            found[case].append(row)
    left_out = [{"case": case, "vectors": size, "left_out": True} for case in wanted if case not in cases]
    return [*summed_up(found), *left_out]


def summed_up(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians of each case's runs, and how many times as long as FAISS flat it took in the same turn: an index to build and
    search, a peer in all."""

    def seconds(run: dict[str, Any], case: str) -> float:
        took: float = run["total_s"] if case in PEERS else run["build_s"] + run["search_s"]
        return took

    rows, flat = [], found.get("faiss flat", [])
    for case, runs in found.items():
        middle = {name: statistics.median(run[name] for run in runs) for name in TIMES if name in runs[0]}
        row = runs[0] | middle | {"case": case}
        if case not in PEERS and "same_ids" not in row and flat:
            row["same_ids"] = all(run["negatives"] == flat[0]["negatives"] for run in runs)
        if flat:
            row["against_flat"] = ratio([seconds(run, case) for run in runs], [seconds(run, case) for run in flat])
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], dimension: int) -> None:
    table = Table(title=f"mining, {dimension} dimensions, {os.cpu_count()} cores", box=None)
    for column in ("texts", "queries", "index", "build s", "search s", "in all s", "recall", "peak MiB", "computed MiB"):
        table.add_column(column, justify="left" if column == "index" else "right", no_wrap=column == "index")
    for row in rows:
        name = row["case"] + (f", scaled from {row['measured_queries']}" if "measured_queries" in row else "")
        cells = ["left out"] if "left_out" in row else ["", "", f"{row['total_s']:.2f}"]
        if "recall" in row:
            exact = "flat" in name or "balltree" in name
            sign = (" =" if row.get("same_ids") else " !") if exact else "  "
            cells[:2] = [f"{row['build_s']:.2f}", f"{row['search_s']:.2f}"]
            cells += [f"{row['recall']:.3f}{sign}", f"{row['peak_mib']:,.0f}", f"{row['computed_mib']:,.0f}"]
        table.add_row(f"{row['vectors']:,}", f"{row.get('queries', 0):,}", name, *cells)
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 50_000, 500_000], help="multiples of 1000")
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip", nargs="*", default=[], choices=[*CASES, *PEERS])
    parser.add_argument("--balltree-up-to", type=int, default=50_000, help="texts")
    parser.add_argument("--balltree-queries", type=int, default=500, help="above 10,000 texts")
    parser.add_argument("--hnsw-up-to", type=int, default=100_000, help="texts; building it takes minutes above")
    parser.add_argument("--worker", choices=[*CASES, *PEERS], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.sizes[0], given.queries, given.dimension)
        return
    rows = [row for size in given.sizes for row in run_size(size, given)]
    show(rows, given.dimension)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"cores": os.cpu_count(), "dimension": given.dimension, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
