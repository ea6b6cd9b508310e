"""Answering one query from a saved index, through the code that launcher/index.py and launcher/search.py run.

    python benchmarks/search.py                     # a million texts; half an hour on two cores
    python benchmarks/search.py --sizes 100000 --kinds flat ivf

Vectors are those of benchmarks/mining.py: clusters of about 50 around random centres, length 1. Queries are further vectors
of the same clusters. A query's own encoding, milliseconds of the model's, is not part of it. Each row builds its folder in
one process and opens it in another.

build, cpu      seconds, vectors given: by the clock, and of processor time, which counts nobody else's work
disk            the whole folder, MiB
open            milliseconds until the folder is mapped
own, mapped     memory that the searching process has taken after all queries, MiB: its own, and pages of the files, which
                the system takes back when it needs them
ms 1, ms 2      one query for its 10 nearest, measured again exactly, on 1 and on 2 threads: median; p95: 95th percentile
recall          share of the 10 nearest vectors, found by comparing with all, that are among the 10 answered

Prints a table, and writes benchmarks/results/search.json.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import torch
from mining import BLOCK, clustered
from ranks import run_ranks
from rich.console import Console
from rich.table import Table

from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.nearest import Rows, nearest_allowed
from biencoder.retrieval.saved_index import KINDS, IndexKind, measured_recall, open_index, read_facts, write_index

TOP_K = 10
MIB = 2**20


def build(folder: Path, kind: IndexKind, size: int, dimension: int) -> dict[str, Any]:
    """Write the folder."""
    rows = torch.from_numpy(clustered(size, dimension, np.arange(size // BLOCK)))

    def embed(texts: Sequence[str]) -> Vectors:
        return Vectors(rows[[int(text) for text in texts]], torch.empty(len(texts), 0))

    texts = [str(row) for row in range(size)]
    start, cpu_start = time.perf_counter(), time.process_time()
    facts = write_index(folder, texts, kind=kind, clean=False, model="", model_sha256="", candidates=embed, queries=embed)
    return {
        "build_s": time.perf_counter() - start,
        "build_cpu_s": time.process_time() - cpu_start,
        "build_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "disk_mib": sum(facts.num_bytes.values()) / MIB,
        "index_mib": facts.num_bytes.get("index.faiss", 0) / MIB,
    }


def search(folder: Path, size: int, dimension: int, queries: int) -> dict[str, Any]:
    """Open the folder and answer."""
    queries_QD = clustered(size, dimension, np.array([size // BLOCK]))[:queries]
    before = psutil.Process().memory_info()
    start = time.perf_counter()
    opened = open_index(folder, read_facts(folder), model_sha256="")
    open_s = time.perf_counter() - start

    def every(_: Rows, rows_Qk: Rows) -> Any:
        return rows_Qk >= 0

    found: dict[str, Any] = {"open_ms": 1000 * open_s}
    for threads in (1, 2):
        faiss.omp_set_num_threads(threads)
        took = []
        for query_1D in queries_QD[:, None]:
            start = time.perf_counter()
            nearest_allowed(opened.index, opened.embedding_ND, query_1D, every, count=TOP_K)
            took.append(1000 * (time.perf_counter() - start))
        found |= {"first_ms": took[0]} if threads == 1 else {}
        found |= {f"median_ms_{threads}": np.median(took), f"p95_ms_{threads}": np.percentile(took, 95)}
    after = psutil.Process().memory_info()
    found |= {
        "own_mib": ((after.rss - after.shared) - (before.rss - before.shared)) / MIB,
        "mapped_mib": (after.shared - before.shared) / MIB,
    }
    return found | {"recall": measured_recall(opened.index, opened.embedding_ND, queries_QD)}


def run_case(kind: IndexKind, size: int, dimension: int, queries: int) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": kind, "vectors": size, "dimension": dimension}
    with tempfile.TemporaryDirectory() as place:
        shape = ["--sizes", str(size), "--dimension", str(dimension), "--queries", str(queries), "--kinds", kind]
        for worker in ("build", "search"):
            row |= run_ranks(__file__, ["--worker", worker, "--folder", f"{place}/index", *shape])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000], help="multiples of 1000")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--queries", type=int, default=500, help="at most 1000")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--worker", choices=["build", "search"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size, dimension, queries = arguments.sizes[0], arguments.dimension, arguments.queries
    if arguments.worker == "build":
        print(json.dumps(build(arguments.folder, arguments.kinds[0], size, dimension)), flush=True)
        return
    if arguments.worker == "search":
        print(json.dumps(search(arguments.folder, size, dimension, queries)), flush=True)
        return
    table = Table(title=f"search, {dimension} dimensions, {os.cpu_count()} cores", box=None, padding=(0, 1, 0, 0))
    for column in (
        "texts",
        "index",
        "build",
        "cpu",
        "disk",
        "open",
        "own",
        "mapped",
        "ms 1",
        "p95",
        "ms 2",
        "p95",
        "recall",
    ):
        table.add_column(column, justify="left" if column == "index" else "right", no_wrap=True)
    results = []
    for size in arguments.sizes:
        for kind in arguments.kinds:
            row = run_case(kind, size, dimension, queries)
            results.append(row)
            print(f"{size:,} {kind}: {row['median_ms_1']:.2f} ms", file=sys.stderr)
            memory = [f"{row[name]:,.0f}" for name in ("disk_mib", "open_ms", "own_mib", "mapped_mib")]
            times = [f"{row[f'{name}_ms_{threads}']:.2f}" for threads in (1, 2) for name in ("median", "p95")]
            built = [f"{row[name]:,.0f}" for name in ("build_s", "build_cpu_s")]
            table.add_row(f"{size // 1000:,}k", kind, *built, *memory, *times, f"{row['recall']:.3f}")
    Console().print(table)
    out = Path(__file__).parent / "results" / "search.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
