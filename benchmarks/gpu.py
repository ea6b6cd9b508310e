"""Training on one GPU: BERT base at 128, 256 and 512 tokens in bf16, against sentence-transformers and the GPU's own peak.

    python benchmarks/gpu.py                         # needs an NVIDIA GPU

It was written where there is none: its parts ran on a CPU with a small model, and no figure of it exists so far.

Weights are random, since only their shape matters, and every text fills its length, so that no padding blurs the count. The
cases are those of benchmarks/training.py, with the triplet loss: ours without dropout, and the peer at its best (neither
compiled).

model FLOP utilisation    samples/s x 3 texts x 3 x F / peak, where a forward pass of a text of L tokens takes
                          F = layers (24 H^2 L + 4 H L^2) operations and the backward pass twice as many (Kaplan et al.
                          2020; Narayanan et al. 2021); embeddings, LayerNorms and heads are not counted
peak                      what a product of two 8192 x 8192 matrices in bf16 reaches on this GPU, measured before

Prints a table, and writes benchmarks/results/gpu.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cost_model import BERT_BASE
from rich.console import Console
from rich.table import Table
from training import Work, compare
from transformers import AutoTokenizer, BertConfig, BertModel

from biencoder.model.pretrained import locate

OUT = Path(__file__).parent / "results" / "gpu.json"
CASES = ["peer, best", "ours"]
LENGTHS = {128: 128, 256: 64, 512: 32}
"""Tokens, and triplets in a batch."""
STEPS = 30


def write_model(config: BertConfig, folder: Path) -> None:
    """Random weights in this shape, with MiniLM's tokenizer, which is BERT's."""
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate("minilm")).save_pretrained(folder)


def write_corpus(num_pairs: int, length: int, file: Path) -> None:
    """Pairs of texts that are cut at `length` tokens, all different."""
    rng = np.random.default_rng(0)
    words = ["point", "counter", "city", "market", "school", "law", "health", "science", "vote", "tax", "art", "war"]
    texts = [" ".join(words[i] for i in row) for row in rng.integers(0, len(words), (2 * num_pairs, length))]
    rows = zip(texts[::2], texts[1::2], strict=True)
    lines = (json.dumps({"split": "train", "point": point, "counter": counter}) for point, counter in rows)
    file.write_text("\n".join(lines) + "\n")


def product_flops(size: int = 8192) -> float:
    """Operations per second of a bf16 matrix product, the best of ten runs of ten."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(11):  # the first one sets up
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            left @ right
        torch.cuda.synchronize()
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - start))
    return best


def measure(model: BertConfig, lengths: dict[int, int], *, steps: int, repeats: int, precision: str) -> dict[int, Any]:
    """The cases of a comparison for each length."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(model, Path(folder) / "bert")
        for length, batch in lengths.items():
            data = Path(folder) / f"{length}.jsonl"
            write_corpus(batch * (steps + 4), length, data)
            work = Work(
                loss="triplet",
                batch=batch,
                length=length,
                steps=steps,
                data=str(data),
                model=f"{folder}/bert",
                precision=precision,
            )
            found[length] = {"batch": batch, "rows": compare(work, CASES, repeats)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs an NVIDIA GPU, and PyTorch sees none here")
    peak = product_flops()
    found = measure(BertConfig(), LENGTHS, steps=STEPS, repeats=given.repeats, precision="bf16")
    title = f"BERT base, bf16, {torch.cuda.get_device_name()}: products reach {peak / 1e12:.0f} TFLOP/s"
    table = Table("tokens", "batch", "", "triplets/s", "against the peer", "of the peak", "peak MiB", title=title, box=None)
    for length, part in found.items():
        for case, row in part["rows"].items():
            row["utilisation"] = row["samples_per_s"] * 3 * 3 * BERT_BASE.forward_flops(length) / peak
            cells = (f"{row['samples_per_s']:.0f}", str(row["against"].get("peer, best", "")), f"{row['utilisation']:.1%}")
            table.add_row(str(length), str(part["batch"]), case, *cells, f"{row['peak_mib']:,.0f}")
    Console(width=130).print(table)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(
        json.dumps({"device": torch.cuda.get_device_name(), "peak_flops": peak, "lengths": found}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
