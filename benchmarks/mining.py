"""What mining takes with each index and placement: seconds, recall, and rank 0's memory, through the code training runs.

    python benchmarks/mining.py                                  # 10k and 100k texts
    python benchmarks/mining.py --sizes 10000 100000 1000000     # half an hour on two cores

Vectors: clusters of about 50 around random centres, 128 dimensions, length 1, as embeddings of a debate portal are. Half of
the texts are points, half are counters; `--queries` of the points get their nearest allowed text, the others a random one.
Each row runs in processes of its own: on rank 0 alone with all cores, or sharded over two ranks with half of them each.

build, search   seconds
recall          share of negatives that are the nearest allowed text, from 500 of them; exact indexes show `=` when they
                mined the same ids as FAISS flat on rank 0, and `!` if not
peak            most memory that rank 0 took above what it held before it had vectors, MiB
computed        what the program foretells for it, MiB (see biencoder/memory.py)

peer, peer faiss  sentence-transformers' mine_hard_negatives over the same vectors (its model hands them out): one negative
                for each of `--queries` points, out of all texts, with its default search and with FAISS. It takes
                vectors as they are and compares texts, not ids; its memory and recall are not looked at

Prints a table, and writes benchmarks/results/mining.json.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil
import torch
from ranks import run_ranks
from rich.console import Console
from rich.table import Table

from biencoder.config import Config, MiningConfig, ModelConfig
from biencoder.data import Split
from biencoder.distributed import World, world
from biencoder.embedding import EmbeddedTexts
from biencoder.memory import mining_bytes
from biencoder.mining import Miner
from biencoder.mining.build import build_index
from biencoder.model import Vectors

BLOCK = 1000
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
    build_index(np.eye(8, dtype=np.float32), MiningConfig(index=config.index))  # load the library
    before = psutil.Process().memory_info().rss
    held = np.flatnonzero(holder_M == ranks.rank)
    rows = torch.from_numpy(clustered(size, dimension, blocks[blocks % ranks.size == ranks.rank]))
    vectors = Vectors(rows, rows.new_empty(len(rows), 0))
    embedded = EmbeddedTexts(held, vectors, vectors, np.arange(size), holder_M)
    mined = Miner(split, size, ranks, config, seed=0, num_epochs=1).negatives(0, embedded)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "vectors": size,
        "queries": round(mined.search.nearest_share * len(split)),
        "build_s": mined.search.index_s,
        "search_s": mined.search.search_s,
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
        return self._rows.shape[1]

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
    return {"vectors": size, "queries": len(mined), "seconds": time.perf_counter() - start}


def worker(case: str, size: int, queries: int, dimension: int) -> None:
    if case in PEERS:
        print(json.dumps(peer(size, min(queries, size // 2), dimension, faiss="faiss" in case)), flush=True)
        return
    settings, placement = CASES[case]
    rate = max(0.0, 1 - queries / (size // 2))
    config = MiningConfig(placement=placement, random_rate=rate, **settings)
    with world(timeout_s=3600, control_timeout_s=86400, silence_s=3600) as ranks:
        found = measure(ranks, size, queries, dimension, config)
        if ranks.is_main:
            print(json.dumps(found), flush=True)


def run_case(case: str, size: int, queries: int, dimension: int) -> dict[str, Any]:
    """A row, as rank 0 says it."""
    arguments = ["--worker", case, "--sizes", str(size), "--queries", str(queries), "--dimension", str(dimension)]
    found: dict[str, Any] = run_ranks(__file__, arguments, size=2 if "sharded" in case else 1)
    return found | {"case": case, "seconds": found.get("seconds") or found["build_s"] + found["search_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="multiples of 1000")
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--skip", nargs="*", default=[], choices=[*CASES, *PEERS])
    parser.add_argument("--balltree-up-to", type=int, default=10_000, help="texts; it takes minutes above")
    parser.add_argument("--worker", choices=[*CASES, *PEERS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.sizes[0], arguments.queries, arguments.dimension)
        return
    table = Table(title=f"mining, {arguments.dimension} dimensions, {os.cpu_count()} cores", box=None)
    for column in ("texts", "queries", "index", "build s", "search s", "recall", "peak MiB", "computed MiB"):
        table.add_column(column, justify="left" if column == "index" else "right", no_wrap=column == "index")
    results = []
    for size in arguments.sizes:
        flat = None
        for case in (*CASES, *PEERS):
            if case in arguments.skip or (case == "balltree" and size > arguments.balltree_up_to):
                continue
            row = run_case(case, size, arguments.queries, arguments.dimension)
            results.append(row)
            print(f"{size:,} {case}: {row['seconds']:.1f} s", file=sys.stderr)
            if case in PEERS:
                table.add_row(f"{size:,}", f"{row['queries']:,}", case, "", f"{row['seconds']:.2f}")
                continue
            flat = flat or row["negatives"]
            exact = "flat" in case or case == "balltree"
            sign = (" =" if row["negatives"] == flat else " !") if exact else "  "
            table.add_row(
                f"{size:,}",
                f"{row['queries']:,}",
                case,
                f"{row['build_s']:.2f}",
                f"{row['search_s']:.2f}",
                f"{row['recall']:.3f}{sign}",
                f"{row['peak_mib']:,.0f}",
                f"{row['computed_mib']:,.0f}",
            )
    Console().print(table)
    out = Path(__file__).parent / "results" / "mining.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
