"""How long mining takes with each index, side by side on the same vectors and queries, and how many negatives agree.

    python benchmarks/mining.py --sizes 5000 50000 --queries 1000

Vectors: clusters of about 50 around random centres, 128 dimensions, length 1, as embeddings of a debate portal are. Every
index answers the same queries through the same selection that training uses; `agree` is the share of negatives equal to
the exact ones. Prints a table, and writes benchmarks/results/mining.json.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from biencoder.config import MiningConfig
from biencoder.mining.build import build_index
from biencoder.mining.index import nearest_allowed

INDEXES = {
    "balltree": MiningConfig(index="balltree"),
    "faiss flat": MiningConfig(),
    "faiss ivf": MiningConfig(faiss_kind="ivf"),
    "faiss hnsw": MiningConfig(faiss_kind="hnsw"),
}


def clustered(size: int, dimension: int, seed: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, size // 50), dimension))
    vectors = centres[rng.integers(0, len(centres), size)] + 0.7 * rng.standard_normal((size, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def measure(size: int, queries: int, *, dimension: int, skip: set[str]) -> list[dict[str, object]]:
    vectors_ND = clustered(size, dimension, seed=0)
    asked = np.random.default_rng(1).choice(size, min(queries, size), replace=False)
    rows: list[dict[str, object]] = []
    exact: npt.NDArray[np.int64] | None = None
    for name in sorted(INDEXES.keys() - skip, key=lambda name: name != "faiss flat"):
        start = time.perf_counter()
        index = build_index(vectors_ND, INDEXES[name])
        built = time.perf_counter()
        found, _ = nearest_allowed(index, vectors_ND, vectors_ND[asked], lambda q, r: r != asked[q][:, None])
        searched = time.perf_counter()
        exact = found if exact is None else exact
        rows.append(
            {
                "vectors": size,
                "queries": len(asked),
                "index": name,
                "build_s": built - start,
                "search_s": searched - built,
                "agree": float((found == exact).mean()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--skip", nargs="*", default=[], choices=list(INDEXES))
    arguments = parser.parse_args()
    table = Table(title=f"mining, {arguments.dimension} dimensions, {os.cpu_count()} cores", box=None)
    for column in ("vectors", "queries", "index", "build s", "search s", "search, × flat", "agree"):
        table.add_column(column, justify="left" if column == "index" else "right")
    results = []
    for size in arguments.sizes:
        rows = measure(size, arguments.queries, dimension=arguments.dimension, skip=set(arguments.skip))
        flat = next(float(str(row["search_s"])) for row in rows if row["index"] == "faiss flat")
        for row in rows:
            search_s = float(str(row["search_s"]))
            table.add_row(
                f"{size:,}",
                str(row["queries"]),
                str(row["index"]),
                f"{row['build_s']:.2f}",
                f"{search_s:.3f}",
                f"{search_s / flat:.2f}",
                f"{row['agree']:.4f}",
            )
        results += rows
    Console().print(table)
    out = Path(__file__).parent / "results" / "mining.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
