"""What the parts of an epoch take that the encoder has no share in, by size: corpus, ranking, and messages between ranks.

    python benchmarks/parts.py                         # five minutes on two cores

corpus     of so many texts (sentences of the embedded debates, put together anew): reading it, its bytes in the memory of
           every rank beside the mapped file of a large one, tokenizing it, its order for an epoch, and looking up what is
           forbidden for a block of 8,192 queries
copies     finding the near-duplicates among so many texts of nine random words, one in ten a copy but for a word
evaluation of a split of so many texts with vectors of 128 and 384 dimensions drawn at random: both rankings, re-ranking
messages   between two ranks: a sum of gradients (90 MB, those of MiniLM), a small sum, rows sent to rank 0, ids sent to all
merging    the answers of 64 ranks to a block of queries

Prints tables, and writes benchmarks/results/parts.json.
"""

import argparse
import json
import os
import statistics
import tempfile
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

from biencoder.config.schema import DistributedConfig, ModelConfig
from biencoder.data import Forbidden, Split, load_dataset
from biencoder.data.near_duplicates import near_duplicates
from biencoder.data.tokens import tokenize
from biencoder.distributed.join import join
from biencoder.distributed.world import World
from biencoder.evaluation import evaluate_split
from biencoder.model.bi_encoder import PairClassifier, Vectors
from biencoder.model.pretrained import load_pretrained
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.training.preflight.network import time_all_reduce
from biencoder.training.sampler import global_batches

OUT = Path(__file__).parent / "results" / "parts.json"
DIMENSION, HIDDEN = 128, 384
BLOCK, NEIGHBOURS = 8192, 8
GRADIENT_BYTES, MESSAGE_BYTES = 90_000_000, 64 * 2**20


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def write_corpus(num_texts: int, file: Path) -> None:
    """Pairs of texts of four sentences each, drawn from the embedded debates."""
    sentences = sorted({part for text in load_dataset("examples/debates", clean=True).texts for part in text.split(". ")})
    rng = np.random.default_rng(0)
    with file.open("w", encoding="utf-8") as rows:
        for _ in range(num_texts // 2):  # row by row: memory that is free again would hide what reading takes
            point, counter = (". ".join(sentences[i] for i in rng.integers(0, len(sentences), 4)) for _ in range(2))
            rows.write(json.dumps({"split": "train", "point": point, "counter": counter}) + "\n")


def own_bytes() -> int:
    """Memory of this process alone, without files that are mapped."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


def corpus(num_texts: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        write_corpus(1000, file)
        load_dataset(str(file), clean=True)  # libraries are loaded before anything counts
        write_corpus(num_texts, file)
        before = own_bytes()
        read_s, dataset = timed(lambda: load_dataset(str(file), clean=True))
    held = own_bytes() - before
    split, texts = dataset.splits["training"], len(dataset.texts)
    tokenizer = load_pretrained(ModelConfig(name="minilm")).tokenizer
    some = dataset.texts[:10_000]
    tokenize_s, tokens = timed(lambda: tokenize(some, tokenizer, max_length=256))
    order_s, _ = timed(lambda: global_batches(num_samples=len(split), global_batch_size=16, seed=0, epoch=0))
    forbidden = Forbidden.of(split, texts)
    points = np.resize(split.point_text_P, (BLOCK, 1))
    near = np.random.default_rng(1).integers(0, texts, (BLOCK, NEIGHBOURS))
    forbidden_s, _ = timed(lambda: forbidden.allows(points, near))
    return {
        "texts": texts,
        "read_s_per_million": 1e6 * read_s / texts,
        "held_bytes_per_text": held / texts,
        "tokenize_s_per_million": 1e6 * tokenize_s / len(some),
        "token_bytes_per_text": tokens.flat_T.nbytes / len(some) + 8,
        "order_s": order_s,
        "forbidden_s_per_block": forbidden_s,
    }


def copies(num_texts: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 20_000, (num_texts, 9))
    words[::10, :-1] = words[rng.integers(0, num_texts // 10, len(words[::10])) * 10 + 1, :-1]
    texts = [" ".join(map(str, row)) for row in words.tolist()]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # noqa: TID251 - groups that are kept are not found
        seconds, group_N = timed(lambda: near_duplicates(texts))
    return {"texts": num_texts, "seconds": seconds, "grouped": int((group_N != np.arange(num_texts)).sum())}


def evaluation(num_texts: int) -> dict[str, float]:
    """Ranking alone: the vectors are there."""
    ids = np.arange(num_texts)
    any_pair: Any = (None,) * (num_texts // 2)
    split = Split("training", any_pair, ids[::2], ids[1::2])
    generator = torch.Generator().manual_seed(0)
    vectors = Vectors(*(torch.randn(num_texts, width, generator=generator) for width in (DIMENSION, HIDDEN)))
    classifier = PairClassifier(ModelConfig(), embedding_dim=DIMENSION, hidden=HIDDEN).eval()
    embedded = EmbeddedTexts.whole(ids, vectors, vectors)
    seconds, _ = timed(lambda: evaluate_split(split, embedded, classifier, top_k=10, world=World.alone()))
    return {"texts": num_texts, "seconds": seconds}


def messages() -> dict[str, float] | None:
    """On each of the ranks; what rank 0 saw."""
    with join(DistributedConfig(timeout_s=300, control_timeout_s=300, silence_s=300)) as ranks:
        rows = torch.zeros(MESSAGE_BYTES // (4 * DIMENSION), DIMENSION)
        ids = np.zeros(MESSAGE_BYTES // 8, dtype=np.int64)
        found = {
            "sum_s": statistics.median(time_all_reduce(ranks, GRADIENT_BYTES, repeats=5, control=False)),
            "small_sum_s": statistics.median(time_all_reduce(ranks, 4, repeats=21, control=False)),
            "gather_s": statistics.median(timed(lambda: ranks.gather(rows))[0] for _ in range(5)),
            "broadcast_s": statistics.median(timed(lambda: ranks.broadcast(torch.from_numpy(ids)))[0] for _ in range(5)),
        }
        return found if ranks.is_main else None


def merging(ranks: int = 64) -> float:
    """Seconds for one answer of one rank, as `World.nearest` merges them."""
    rng = np.random.default_rng(0)
    ids, distances = rng.integers(0, 10**6, (BLOCK, ranks)), rng.random((BLOCK, ranks))
    seconds, _ = timed(lambda: np.lexsort((ids, distances), axis=1))
    return seconds / (BLOCK * ranks)


def worker(what: str, size: int) -> None:
    sized = {"corpus": corpus, "copies": copies, "evaluation": evaluation}
    found = messages() if what == "messages" else sized[what](size)
    if found:
        print(json.dumps(found), flush=True)


def show(found: dict[str, Any]) -> None:
    for kind in ("corpus", "copies", "evaluation"):
        table = Table(*found[kind][0], title=kind, box=None)
        for row in found[kind]:
            table.add_row(*(f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" for value in row.values()))
        Console(width=130).print(table)
    table = Table(title="messages and merging", box=None, show_header=False)
    for name, value in (found["messages"] | {"merge_s_per_answer": found["merge_s_per_answer"]}).items():
        table.add_row(name, f"{value:.3g}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, nargs="+", default=[20_000, 200_000], help="of corpora")
    parser.add_argument("--ranked", type=int, nargs="+", default=[5000, 20_000, 50_000], help="texts of evaluated splits")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.texts[0])
        return
    found = {
        "cores": os.cpu_count(),
        "dimension": DIMENSION,
        "corpus": [run_ranks(__file__, ["--worker", "corpus", "--texts", str(size)]) for size in given.texts],
        "copies": [run_ranks(__file__, ["--worker", "copies", "--texts", str(size)]) for size in given.texts],
        "evaluation": [run_ranks(__file__, ["--worker", "evaluation", "--texts", str(size)]) for size in given.ranked],
        "messages": run_ranks(__file__, ["--worker", "messages"], size=2),
        "gradient_bytes": GRADIENT_BYTES,
        "message_bytes": MESSAGE_BYTES,
        "merge_s_per_answer": merging(),
    }
    show(found)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
