"""Where the time of a run goes: start-up, share of mining and evaluation in an epoch, growth with corpus, length and batch.

    python benchmarks/epoch.py                                  # ten minutes on two cores
    python benchmarks/epoch.py --data DIR --parts 4 2 1         # half an hour with ArguAna

start-up   seconds of `launcher/train.py --help`, of importing what training needs, and until the first step of the
           quick-start is done, its tokens cached: zero-shot evaluation of all splits and the first mining come before it
epoch      the second of two epochs of configs/triplets.toml, by the run's own record: on every fourth, every second, every
           pair of the corpus (`--parts`), and on all of them with `mining.overlap` as well
growth     seconds a step of the same loop at other lengths and batches

embedding    of the training texts, for mining and evaluation both
mining       seconds that training stood still for mining after that: index, search, audit, or waiting for them
evaluation   embedding the other splits, and ranking all

Prints tables, and writes benchmarks/results/epoch.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ranks import run_ranks
from rich.console import Console
from rich.table import Table
from training import WARM_UP, seconds_of_steps

from biencoder.data import load_dataset
from biencoder.training.engine.precision import Precision, fast_precision

OUT = Path(__file__).parent / "results" / "epoch.json"
TRAINING = str(Path(__file__).parent / "training.py")
FILES = {"training": "train", "validation": "validation", "test": "test"}


def seconds_of(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def run(folder: str, *arguments: str) -> list[dict[str, Any]]:
    """Train, and return the run's record."""
    command = [sys.executable, "launcher/train.py", "--run.dir", folder, "--tracking.wandb", "disabled", *arguments]
    subprocess.run([*command, "--tracking.report", "false"], check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def start_up() -> dict[str, float]:
    found = {
        "help_s": statistics.median(seconds_of("launcher/train.py", "--help") for _ in range(3)),
        "import_s": statistics.median(
            seconds_of(
                "-c",
                "import biencoder.training.loop, biencoder.tracking.tracker; "
                "biencoder.training.engine.settings.import_deepspeed()",
            )
            for _ in range(3)
        ),
    }
    for attempt in range(2):  # the first one warms caches of files and tokens
        with tempfile.TemporaryDirectory() as folder:
            begin = time.time()
            lines = run(folder, "--config", "configs/quickstart.toml", "--train.max_steps", "1", "--train.log_every", "1")
            if attempt:
                (step,), (mine,), (evaluation, *_) = (lines_of(lines, kind) for kind in ("step", "mine", "eval"))
                found["first_step_s"] = step["time"] - begin
                found["of_it_mining_and_evaluation_s"] = (
                    mine["mine/encode_s"] + mine["mine/wait_s"] + evaluation["eval/seconds"]
                )
    return found


def lines_of(lines: list[dict[str, Any]], kind: str, *, epoch: int | None = None) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind and epoch in (None, line["epoch"])]


def every_nth_pair(data: str, every: int, folder: Path) -> dict[str, int]:
    """Write a corpus of every n-th pair of each split, and return the sizes that matter."""
    dataset = load_dataset(data, clean=True)
    others: set[int] = set()
    for name, split in dataset.splits.items():
        point_text, counter_text = split.point_text_P[::every], split.counter_text_P[::every]
        rows = [
            {"point": dataset.texts[p], "counter": dataset.texts[c]} for p, c in zip(point_text, counter_text, strict=True)
        ]
        (folder / f"{FILES[name]}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if name != "training":
            others.update(point_text.tolist(), counter_text.tolist())
    training = dataset.splits["training"]
    ids = {*training.point_text_P[::every].tolist(), *training.counter_text_P[::every].tolist()}
    return {"pairs": len(training.point_text_P[::every]), "texts": len(ids), "other_texts": len(others)}


def epoch(data: str, every: int, precision: Precision, *, overlap: bool) -> dict[str, float]:
    """The second epoch of two on every n-th pair."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = every_nth_pair(data, every, Path(folder))
        lines = run(
            f"{folder}/run", "--config", "configs/triplets.toml", "--data.root", folder, "--data.clean", "false",
            "--train.epochs", "2", "--mining.overlap", str(overlap).lower(),
            "--train.precision", precision,
        )  # fmt: skip
    (mine,), (evaluation,) = (lines_of(lines, kind, epoch=1) for kind in ("mine", "eval"))
    ends = [lines_of(lines, "step", epoch=number)[-1] for number in (0, 1)]
    found = {
        **sizes,
        "steps": ends[1]["step"] - ends[0]["step"],
        "epoch_s": ends[1]["time"] - ends[0]["time"],
        "steps_s": seconds_of_steps(lines, after=ends[0]["step"]),
        "embedding_s": mine["mine/encode_s"],
        "mining_s": mine["mine/wait_s"],
        "of_it_index_and_search_s": mine["mine/index_s"] + mine["mine/search_s"],
        "evaluation_s": evaluation["eval/seconds"],
        "checkpoint_s": lines_of(lines, "checkpoint")[0]["checkpoint/blocked_s"],
    }
    for part in ("embedding", "mining", "evaluation"):
        found[f"{part}_share"] = found[f"{part}_s"] / found["epoch_s"]
    return found


def growth(data: str, precision: Precision) -> list[dict[str, float]]:
    rows = []
    for length, batch in ((64, 16), (128, 16), (256, 16), (128, 8), (128, 32)):
        what = ["--worker", "ours", "--loss", "triplet", "--data", data, "--precision", precision]
        found = run_ranks(TRAINING, [*what, "--batch", str(batch), "--length", str(length), "--steps", str(3 * WARM_UP)])
        rows.append({"length": length, "batch": batch, **found})
    return rows


def show(found: dict[str, Any]) -> None:
    table = Table(title="start-up", box=None, show_header=False)
    for name, value in found["start_up"].items():
        table.add_row(name, f"{value:.3g}")
    Console().print(table)
    names = list(next(iter(found["epochs"].values())))
    table = Table("", *found["epochs"], title="an epoch", box=None)
    for name in names:
        table.add_row(name, *(f"{row[name]:.3g}" for row in found["epochs"].values()))
    Console(width=130).print(table)
    table = Table("length", "batch", "tokens a text", "s/step", "triplets/s", "peak MiB", title="growth", box=None)
    for row in found["growth"]:
        cells = (f"{row['step_s']:.2f}", f"{row['batch'] / row['step_s']:.1f}", f"{row['peak_mib']:,.0f}")
        table.add_row(str(row["length"]), str(row["batch"]), f"{row['tokens_per_text']:.0f}", *cells)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples/debates")
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 1], help="take every n-th pair; the last one twice")
    given = parser.parse_args()
    precision = fast_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    epochs = {f"1/{part}": epoch(given.data, part, precision, overlap=False) for part in given.parts}
    last = given.parts[-1]
    epochs[f"1/{last}, overlap"] = epoch(given.data, last, precision, overlap=True)
    setting = {"data": Path(given.data).name, "precision": precision, "cores": os.cpu_count()}
    found = {"setting": setting, "start_up": start_up(), "epochs": epochs, "growth": growth(given.data, precision)}
    show(found)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
