"""Queries over a large corpus, most of which answers nothing: what each rank's memory takes, and what was foretold.

    python benchmarks/large_corpus.py                            # a million further texts
    python benchmarks/large_corpus.py --texts 100000             # for a first look
    python benchmarks/large_corpus.py --texts 10000000 --dimension 64 --cases "4 ranks, sharded ivf"   # 20 GB, half an hour

10,000 pairs of short texts stand in one table, and further texts in another, `data.corpus`. They are read, tokenized,
embedded by a BERT of 2 layers and 64 dimensions with random weights (by the mean over tokens, because vectors of a random
pooler hardly differ), and searched for the nearest negative of each pair, by the code that a training run uses: on one
rank, on two with rank 0 searching, and on two and four that hold a part each.

read, tokens    seconds of reading the tables, and of tokenizing on the first of the ranks
embed, mine     seconds of embedding all texts, and of building, searching and auditing
texts           memory that a rank takes for texts and token ids before anything is embedded, MiB, on the rank where it is
                highest; without the files that are mapped, which the ranks share
peak            most memory above that while texts were embedded and mined, MiB, on the rank where it is highest
foretold        what a run says of this before it starts, MiB (see biencoder/training/engine/memory.py)

Prints a table, and writes benchmarks/results/large_corpus.json.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from losses import tiny_bert
from ranks import run_ranks
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from biencoder.config.schema import Config, DataConfig, DistributedConfig, MiningConfig, ModelConfig
from biencoder.data import Forbidden, load_dataset
from biencoder.data.token_cache import cached_tokens
from biencoder.data.tokens import Batch
from biencoder.distributed.join import join
from biencoder.distributed.world import World
from biencoder.mining import Miner
from biencoder.model.bi_encoder import Sides, build_model
from biencoder.model.pretrained import load_pretrained
from biencoder.retrieval.build import build_index
from biencoder.retrieval.embedding import embed_texts
from biencoder.training.engine.memory import mining_bytes

OUT = Path(__file__).parent / "results" / "large_corpus.json"
MIB = 2**20
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "1 rank": (1, {}),
    "2 ranks": (2, {}),
    "2 ranks, sharded": (2, {"placement": "sharded"}),
    "1 rank, ivf": (1, {"faiss_kind": "ivf"}),
    "4 ranks, sharded ivf": (4, {"placement": "sharded", "faiss_kind": "ivf"}),
}


def write_corpus(folder: Path, vocabulary: list[str], *, pairs: int, texts: int) -> None:
    """Texts of 6 to 12 words, each of which is one token; the same ones at every call."""
    rng, words = np.random.default_rng(0), [word for word in sorted(vocabulary) if word.isalpha() and len(word) > 3]

    def made(count: int) -> list[str]:
        lengths = rng.integers(6, 13, count)
        numbers = rng.integers(0, len(words), lengths.sum())
        parts = np.split(numbers, np.cumsum(lengths)[:-1])
        return [f"{' '.join(words[number] for number in part)}." for part in parts]

    both = zip(made(pairs), made(pairs), strict=True)
    rows = (json.dumps({"query": query, "positive": answer}) for query, answer in both)
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for start in range(0, texts, 100_000):
            file.writelines(json.dumps({"text": text}) + "\n" for text in made(min(100_000, texts - start)))


class Clock:
    """Seconds since it was last looked at."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self) -> float:
        start, self._start = self._start, time.perf_counter()
        return self._start - start


def own_bytes(process: psutil.Process) -> int:
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def measure(ranks: World, config: Config) -> dict[str, Any]:
    """One row, on every rank."""
    process = psutil.Process()
    pretrained = load_pretrained(config.model)
    model = build_model(config.model, pretrained, seed=0).eval()
    build_index(np.eye(8, dtype=np.float32), MiningConfig())  # loads the library
    empty, clock = own_bytes(process), Clock()
    dataset = load_dataset(config.data.root, clean=config.data.clean, corpus=config.data.corpus)
    split, read_s = dataset.splits["training"], clock()
    tokens = cached_tokens(dataset.texts, pretrained.tokenizer, max_length=config.model.max_length, world=ranks)
    forbidden = Forbidden.of(split, len(dataset.texts))
    dataset.texts.share(ranks)
    tokens_s, before, held = clock(), process.memory_info().rss, own_bytes(process)

    def encode(batch: Batch) -> Sides:
        with torch.no_grad():
            sides: Sides = model(batch)
        return sides

    sharded = config.mining.sharded
    embedded = embed_texts(encode, tokens, split.text_ids, ranks, batch_tokens=4096, sharded=sharded)
    embed_s = clock()
    mined = Miner(split, forbidden, ranks, config.mining, seed=0, num_epochs=1).mine(0, embedded)
    mine_s, peak = clock(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert mined.audit.figures.forbidden == 0
    foretold = mining_bytes(
        config,
        num_texts=len(split.text_ids),
        hidden=pretrained.encoder.config.hidden_size,
        world_size=ranks.size,
    )
    memory = ranks.all_gather_object(((held - empty) / MIB, (peak - before) / MIB))
    return {
        "texts": len(dataset.texts),
        "pairs": len(split),
        "read_s": read_s,
        "tokens_s": tokens_s,
        "embed_s": embed_s,
        "mine_s": mine_s,
        "search_s": mined.search.search_s,
        "recall": mined.search.recall,
        "negatives": mined.digest,
        "texts_mib": max(texts for texts, _ in memory),
        "peak_mib": [peak for _, peak in memory],
        "foretold_mib": foretold / MIB,
    }


def worker(case: str, folder: Path, dimension: int) -> None:
    _, mining = CASES[case]
    config = Config(
        data=DataConfig(root=str(folder / "train.jsonl"), corpus=str(folder / "corpus.jsonl")),
        model=ModelConfig(name=str(folder / "model"), max_length=32, embedding_dim=dimension, pooling="mean"),
        mining=MiningConfig(random_rate=0.0, **mining),
    )
    with join(DistributedConfig(timeout_s=3600, silence_s=3600)) as ranks:
        found = measure(ranks, config)
        if ranks.is_main:
            print(json.dumps(found), flush=True)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{rows[0]['texts']:,} texts, {rows[0]['pairs']:,} queries, {os.cpu_count()} cores", box=None)
    names = ("read s", "tokens s", "embed s", "mine s", "recall", "texts MiB", "peak MiB", "foretold MiB")
    for column in ("case", *names):
        table.add_column(column, justify="left" if column == "case" else "right", no_wrap=column == "case")
    for row in rows:
        seconds = [f"{row[name]:.1f}" for name in ("read_s", "tokens_s", "embed_s", "mine_s")]
        memory = [f"{mib:,.0f}" for mib in (row["texts_mib"], max(row["peak_mib"]), row["foretold_mib"])]
        table.add_row(row["case"], *seconds, f"{row['recall']:.3f}", *memory)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1_000_000, help="of the corpus, besides those of the pairs")
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--dimension", type=int, default=128, help="of the embeddings")
    parser.add_argument("--worker", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.folder, given.dimension)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        model.mkdir()
        tiny_bert(model)
        vocabulary = list(AutoTokenizer.from_pretrained(model).get_vocab())
        write_corpus(Path(folder), vocabulary, pairs=given.pairs, texts=given.texts)
        for case in given.cases:
            os.environ["XDG_CACHE_HOME"] = f"{folder}/cache of {case}"  # noqa: TID251 - of the children
            worker_of = ["--worker", case, "--folder", folder, "--dimension", str(given.dimension)]
            row = run_ranks(__file__, worker_of, size=CASES[case][0])
            rows.append({"case": case} | row)
            show(rows[-1:])
    show(rows)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
