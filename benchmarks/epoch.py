"""Where the time of a run goes: start-up, share of mining and evaluation in an epoch, growth with length and batch.

    python benchmarks/epoch.py [--data DIR]        # a quarter of an hour on two cores with ArguAna

start-up   seconds of `launcher/train.py --help`, of importing what training needs, and until the first step of the
           quick-start is done: zero-shot evaluation of all splits and the first mining come before it
epoch      `configs/arguana.toml` trains `--steps` steps; mining and evaluation as recorded, steps as many as the epoch has
growth     seconds a step of the same loop at other lengths and batches

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

from ranks import run_ranks
from rich.console import Console
from rich.table import Table

from biencoder.data import load_dataset

OUT = Path(__file__).parent / "results" / "epoch.json"
TRAINING = str(Path(__file__).parent / "training.py")
MINING = ("mine/encode_s", "mine/index_s", "mine/search_s", "mine/audit_s", "mine/wait_s")


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
            seconds_of("-c", "import biencoder.loop, biencoder.tracking.tracker; biencoder.engine._import_deepspeed()")
            for _ in range(3)
        ),
    }
    for attempt in range(2):  # the first one warms caches of files and tokens
        with tempfile.TemporaryDirectory() as folder:
            begin = time.time()
            lines = run(folder, "--config", "configs/quickstart.toml", "--train.max_steps", "1", "--train.log_every", "1")
            if attempt:
                found["first_step_s"] = next(line["time"] for line in lines if line["kind"] == "step") - begin
                found["of_it_mining_and_evaluation_s"] = (
                    _sum(lines, "mine", MINING) + lines_of(lines, "eval")[0]["eval/seconds"]
                )
    return found


def lines_of(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


def _sum(lines: list[dict[str, Any]], kind: str, names: tuple[str, ...]) -> float:
    """Of the first line of this kind."""
    return sum(lines_of(lines, kind)[0].get(name, 0.0) for name in names)


def epoch(data: str, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        lines = run(
            folder, "--config", "configs/arguana.toml", "--data.root", data, "--train.max_steps", str(steps),
            "--train.log_every", "5",
        )  # fmt: skip
    batch = 16
    step_s = statistics.median(batch / line["train/triplets_per_s"] for line in lines_of(lines, "step")[1:])
    num_steps = len(load_dataset(data, clean=True).splits["training"]) // batch
    mining, evaluation = _sum(lines, "mine", MINING), lines_of(lines, "eval")[-1]["eval/seconds"]
    whole = num_steps * step_s + mining + evaluation
    return {
        "steps": num_steps,
        "step_s": step_s,
        "steps_s": num_steps * step_s,
        "embedding_s": lines_of(lines, "mine")[0]["mine/encode_s"],
        "search_s": mining - lines_of(lines, "mine")[0]["mine/encode_s"],
        "evaluation_s": evaluation,
        "share": (mining + evaluation) / whole,
        "search_share": (mining - lines_of(lines, "mine")[0]["mine/encode_s"]) / whole,
    }


def growth(data: str) -> list[dict[str, float]]:
    rows = []
    for length, batch in ((64, 16), (128, 16), (256, 16), (128, 8), (128, 32)):
        arguments = ["--worker", "ours", "--data", data, "--batch", str(batch), "--length", str(length)]
        rows.append({"length": length, "batch": batch, **run_ranks(TRAINING, arguments)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples/debates")
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    found = {"start_up": start_up(), "epoch": epoch(given.data, given.steps), "growth": growth(given.data)}
    found["cores"] = os.cpu_count()
    for title in ("start_up", "epoch"):
        table = Table(title=title.replace("_", "-"), box=None, show_header=False)
        for name, value in found[title].items():
            table.add_row(name, f"{value:.3g}")
        Console().print(table)
    table = Table("length", "batch", "s/step", "triplets/s", "peak MiB", title="growth", box=None)
    for row in found["growth"]:
        cells = (f"{row['step_s']:.2f}", f"{row['batch'] / row['step_s']:.1f}", f"{row['peak_mib']:,.0f}")
        table.add_row(str(row["length"]), str(row["batch"]), *cells)
    Console().print(table)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
