"""Texts per second of embedding a corpus, against `SentenceTransformer.encode`: same weights, texts, length, precision.

    python benchmarks/encoding.py [--data DIR]        # a few minutes on two cores

Both load one exported model folder, and start from texts: tokenization is part of it. In turns, `--repeats` times, in one
process; the first turn warms up. The peer runs at its default batch of 32, and also gets every distinct text once.

texts as they stand   a corpus tool is given every point and every counter; what stands twice, ours embeds once
distinct texts        what is left without that
texts to negatives    embedding and the nearest allowed text for every point, against `mine_hard_negatives` (with FAISS)
largest difference    between the two embeddings (of length 1), any coordinate

Prints a table, and writes benchmarks/results/encoding.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from paired import ratio
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from biencoder.config.schema import MiningConfig, ModelConfig
from biencoder.data import Forbidden, Split, load_dataset
from biencoder.data.ids import Ids
from biencoder.distributed.world import World
from biencoder.mining import Miner
from biencoder.model.bi_encoder import build_model
from biencoder.model.folder import save_model
from biencoder.model.precision import inference_dtype, precision_name
from biencoder.model.pretrained import load_pretrained
from biencoder.retrieval.trained_model import TrainedModel

OUT = Path(__file__).parent / "results" / "encoding.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples/debates")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--texts", type=int, default=600, help="distinct texts, about")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = inference_dtype("auto", device)
    precision = precision_name(dtype)
    dataset = load_dataset(arguments.data, clean=True)
    split = sample_pairs(dataset.splits["training"], arguments.texts)
    standing, distinct = np.concatenate([split.point_text_P, split.counter_text_P]), split.text_ids
    ours, peer = load_both(arguments.length, dtype)
    work: dict[str, Callable[[], Any]] = {
        "peer, texts as they stand": lambda: peer_vectors(peer, dataset.texts, standing),
        "ours, texts as they stand": lambda: our_vectors(ours, dataset.texts, standing),
        "peer, distinct texts": lambda: peer_vectors(peer, dataset.texts, distinct),
        "ours, distinct texts": lambda: our_vectors(ours, dataset.texts, distinct),
        "peer, texts to negatives": lambda: peer_negatives(peer, dataset.texts, split),
        "ours, texts to negatives": lambda: our_negatives(ours, dataset.texts, split),
    }
    seconds, results = timed(work, arguments.repeats)
    difference = (results["peer, distinct texts"] - results["ours, distinct texts"]).abs().max().item()
    counts = {"texts as they stand": len(standing), "distinct texts": len(distinct), "texts to negatives": len(distinct)}
    rows = {kind: row_of(kind, count, seconds) | {"difference": difference} for kind, count in counts.items()}
    show(rows, title=f"embedding, MiniLM, {arguments.length} tokens, {precision}, {device.type}")
    tokens = ours.tokenize([dataset.texts[i] for i in distinct]).lengths(np.arange(len(distinct)))
    setting: dict[str, Any] = {
        "length": arguments.length,
        "precision": precision,
        "device": device.type,
        "data": Path(arguments.data).name,
    }
    setting["tokens_per_text"] = float(tokens.mean())
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"setting": setting, "rows": rows}, indent=2) + "\n")


def sample_pairs(split: Split, num_texts: int) -> Split:
    """Every so many distinct points with all their pairs: the share of repeated texts is that of the whole split."""
    every = -(-len(split.text_ids) // num_texts)
    pairs = np.flatnonzero(np.isin(split.point_text_P, np.unique(split.point_text_P)[::every]))
    any_pair: Any = (None,) * len(pairs)
    return Split("training", any_pair, split.point_text_P[pairs], split.counter_text_P[pairs])


def load_both(length: int, dtype: torch.dtype) -> tuple[TrainedModel, SentenceTransformer]:
    """The same weights in this program and in sentence-transformers."""
    config = ModelConfig(name="minilm", max_length=length, embedding_dim=0, normalize=True)
    with tempfile.TemporaryDirectory() as folder:
        pretrained = load_pretrained(config)
        model = build_model(config, pretrained, seed=0)
        save_model(Path(folder) / "model", model, model.state_dict(), pretrained.tokenizer, config, card="")
        ours = TrainedModel.load(f"{folder}/model")
        peer = SentenceTransformer(f"{folder}/model", model_kwargs={"dtype": dtype})
    peer.max_seq_length = length
    return ours, peer


def our_vectors(model: TrainedModel, texts: Sequence[str], text_ids: Ids) -> torch.Tensor:
    kept, row = np.unique(text_ids, return_inverse=True)
    tokens = model.tokenize([texts[i] for i in kept])
    return model.embed(tokens, np.arange(len(kept))).query.embedding[torch.from_numpy(row)]


def peer_vectors(model: SentenceTransformer, texts: Sequence[str], text_ids: Ids) -> torch.Tensor:
    encoded: torch.Tensor = model.encode([texts[i] for i in text_ids], convert_to_tensor=True)
    return encoded.cpu()


def our_negatives(model: TrainedModel, texts: Sequence[str], split: Split) -> Any:
    distinct = split.text_ids
    point_P, counter_P = (np.searchsorted(distinct, i) for i in (split.point_text_P, split.counter_text_P))
    numbered = replace(split, point_text_P=point_P, counter_text_P=counter_P)
    embedded = model.embed(model.tokenize([texts[i] for i in distinct]), np.arange(len(distinct)))
    nearest, forbidden = MiningConfig(random_rate=0), Forbidden.of(numbered, len(distinct))
    return Miner(numbered, forbidden, World.alone(), nearest, seed=0, num_epochs=1).mine(0, embedded)


def peer_negatives(model: SentenceTransformer, texts: Sequence[str], split: Split) -> Any:
    columns = {"point": split.point_text_P, "counter": split.counter_text_P}
    pairs = Dataset.from_dict({name: [texts[i] for i in ids] for name, ids in columns.items()})
    corpus = [texts[i] for i in split.text_ids]
    return mine_hard_negatives(pairs, model, corpus=corpus, num_negatives=1, use_faiss=True, verbose=False)


def timed(work: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each repeat of each work, after one that does not count, and its last result; the order alternates."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    results = {}
    for repeat in range(-1, repeats):
        for name in list(work)[:: -1 if repeat % 2 else 1]:
            start = time.perf_counter()
            results[name] = work[name]()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds, results


def row_of(kind: str, num_texts: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    pair = {who: statistics.median(seconds[f"{who}, {kind}"]) for who in ("peer", "ours")}
    return {"texts": num_texts, **pair, "ratio": ratio(seconds[f"peer, {kind}"], seconds[f"ours, {kind}"])}


def show(rows: dict[str, dict[str, Any]], *, title: str) -> None:
    table = Table(title=title, box=None)
    for column in ("", "texts", "s", "texts/s", "ratio", "largest difference"):
        table.add_column(column, justify="right" if column else "left")
    for kind, row in rows.items():
        for who in ("peer", "ours"):
            took, cells = row[who], (str(row["ratio"]), f"{row['difference']:.1e}") if who == "ours" else ("", "")
            table.add_row(f"{who}, {kind}", str(row["texts"]), f"{took:.1f}", f"{row['texts'] / took:.1f}", *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
