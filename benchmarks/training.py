"""Triplets per second of a training step, against sentence-transformers' own trainer: same encoder, texts, batch, length.

    python benchmarks/training.py                             # the embedded debates, ten minutes on two cores
    python benchmarks/training.py --data DIR --repeats 3      # another corpus

Every case runs in a process of its own, in turns, `--repeats` times; the first three steps warm up, the next six count.
Ours is the loop of launcher/train.py itself: batches, triplet loss and pair classifier, ZeRO-1, clipping. The peer is
SentenceTransformerTrainer with TripletLoss (Euclidean distance), AdamW and clipping at 1, which is less work: it has no
classifier. Precision: what this machine is good at (biencoder/precision.py), the same for both.

peer, defaults    the model's own dropout, 0.1 in hidden states and attention
peer, best        dropout 0 in both, with which fused attention works on CPUs
ours, defaults    dropout 0.1 in hidden states, 0 in attention
ours              dropout 0 in both, as in configs/arguana.toml
... one padding   ours, but all texts of a batch padded to the longest
... 1 core        on one core
... 2 ranks       on two ranks with a core each

Prints a table, and writes benchmarks/results/training.json.
"""

import argparse
import json
import math
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranks import run_ranks
from rich.console import Console
from rich.table import Table

from biencoder import loop
from biencoder.data import load_dataset
from biencoder.engine import Engine
from biencoder.precision import fast_precision
from biencoder.pretrained import locate
from biencoder.run import Progress, Run
from launcher import train

OUT = Path(__file__).parent / "results" / "training.json"
WARM_UP, STEPS = 3, 6
PEERS = {"peer, defaults": 0.1, "peer, best": 0.0}
OURS = {
    "ours, defaults": ["--model.dropout", "0.1"],
    "ours": [],
    "ours, one padding": [],
    "ours, 1 core": [],
    "ours, 2 ranks": [],
}


def peer(dropout: float, data: str, batch: int, length: int) -> list[float]:
    """Seconds of each step of sentence-transformers' trainer."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import TripletDistanceMetric, TripletLoss
    from transformers import TrainerCallback

    dataset = load_dataset(data, clean=True)
    split, texts = dataset.splits["training"], dataset.texts
    columns = {
        "anchor": split.point_text_P,
        "positive": split.counter_text_P,
        "negative": np.roll(split.counter_text_P, 1),
    }
    some = slice((WARM_UP + STEPS) * batch)
    triplets = Dataset.from_dict({name: [texts[i] for i in ids[some]] for name, ids in columns.items()})
    model = SentenceTransformer(
        locate("minilm"), config_kwargs={"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    )
    model.max_seq_length = length
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **names: Any) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        precision = fast_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=WARM_UP + STEPS,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        loss = TripletLoss(model, distance_metric=TripletDistanceMetric.EUCLIDEAN, triplet_margin=1.0)
        SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=triplets, loss=loss, callbacks=[Clock()]
        ).train()
    return np.diff(ends)[WARM_UP - 1 :].tolist()


def ours(settings: list[str], data: str, batch: int, length: int, *, one_padding: bool = False) -> list[float]:
    """Seconds of a step, for each window of three, from the record of the training loop itself."""

    def one_epoch(run: Run, progress: Progress) -> None:
        progress.negatives = np.roll(run.dataset.splits["training"].counter_text_P, 1)
        loop.run_epoch(run, progress, WARM_UP + STEPS)

    loop.fit = one_epoch
    if one_padding:
        Engine.pass_cost = math.inf  # type: ignore[assignment,method-assign]
    with tempfile.TemporaryDirectory() as folder:
        train.main(
            f"""--config configs/arguana.toml --data.root {data} --run.dir {folder}/run --tracking.wandb disabled
            --tracking.report false --train.global_batch_size {batch} --model.max_length {length}
            --train.max_steps {WARM_UP + STEPS} --train.log_every 3""".split()
            + settings
        )
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    return [batch / line["train/triplets_per_s"] for line in lines if line["kind"] == "step"][1:]


def worker(case: str, data: str, batch: int, length: int) -> None:
    if case == "ours, 1 core":
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    if case in PEERS:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]  # it would take itself for a rank of a distributed job
        seconds = peer(PEERS[case], data, batch, length)
    else:
        seconds = ours(OURS[case], data, batch, length, one_padding="padding" in case)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"step_s": statistics.mean(seconds), "peak_mib": peak}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples/debates")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=[*PEERS, *OURS], choices=[*PEERS, *OURS])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.data, given.batch, given.length)
        return
    what = ["--data", given.data, "--batch", str(given.batch), "--length", str(given.length)]
    found: dict[str, list[dict[str, float]]] = {case: [] for case in given.cases}
    for repeat in range(given.repeats):
        for case in given.cases[:: -1 if repeat % 2 else 1]:
            size, threads = (2, 1) if "2 ranks" in case else (1, 1 if "1 core" in case else 0)
            found[case].append(run_ranks(__file__, ["--worker", case, *what], size=size, threads=threads))
            print(f"{case}: {found[case][-1]['step_s']:.2f} s a step", flush=True)
    rows: dict[str, Any] = {
        case: {name: statistics.median(one[name] for one in each) for name in ("step_s", "peak_mib")}
        for case, each in found.items()
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = {
        "data": given.data if given.data.startswith("examples") else Path(given.data).name,
        "batch": given.batch,
        "length": given.length,
        "precision": fast_precision(device),
        "cores": os.cpu_count(),
    }
    table = Table(title=f"training, MiniLM: {setting}", box=None)
    for name in ("", "s/step", "triplets/s", *(f"against {peer}" for peer in PEERS if peer in rows), "peak MiB"):
        table.add_column(name, justify="right" if name else "left")
    for case, row in rows.items():
        row["triplets_per_s"] = given.batch / row["step_s"]
        ratios = [rows[peer]["step_s"] / row["step_s"] for peer in PEERS if peer in rows]
        row["ratios"] = ratios
        cells = (f"{row['step_s']:.2f}", f"{row['triplets_per_s']:.2f}", *(f"{ratio:.2f}x" for ratio in ratios))
        table.add_row(case, *cells, f"{row['peak_mib']:,.0f}")
    Console(width=130).print(table)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"setting": setting, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
