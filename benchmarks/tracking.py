"""What tracking costs a training step: everything on against everything off, in turns within one run.

    python benchmarks/tracking.py                     # some 10 minutes on two cores

A run of the quick-start (pretrained MiniLM, the embedded debates, with short steps: 8 triplets of 64 tokens) makes windows
of `train.log_every` (10) steps. Every other window ends as in training: means over ranks, metrics.jsonl, Weights & Biases
(offline), guards. The other windows record nothing at all. The order within each pair of windows alternates. What writing
report.html costs is how much longer the steps meanwhile take, over the time from one writing to the next.
Prints a table, and writes benchmarks/results/tracking.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from biencoder.tracking import live_report
from biencoder.training.loop import Trainer
from biencoder.training.sampler import global_batches
from launcher import train

OUT = Path(__file__).parent / "results" / "tracking.json"


def windows(trainer: Trainer, pairs: int) -> dict[str, list[float]]:
    """Seconds of each window, by what was going on."""
    step, window, config = trainer.step, trainer.window, trainer.plan.config
    embedded, _ = trainer.evaluator.embed(step.split, pooled=False)
    negatives = trainer.miner.mine(0, embedded).negative_text_PK
    batch_size = config.train.global_batch_size
    batches = global_batches(num_samples=len(step.split), global_batch_size=batch_size, seed=0, epoch=0)
    seconds: dict[str, list[float]] = {"on": [], "off": [], "on, report": [], "off, report": []}
    report: Any = live_report.LiveReport(trainer.plan.folder)
    for pair in range(-1, pairs):  # the first pair warms up
        # Reports are written during one pair of eight; alone they would come every three minutes.
        writing = pair % 8 == 7
        for tracked in (True, False) if pair % 2 else (False, True):
            if writing:
                report._due = 0.0
                report.refresh()
            window.clear()
            start = time.perf_counter()
            for number in range(config.train.log_every):
                with window.batches.running():
                    made = step.batch(batches[number % len(batches)], negatives)
                window.count_step(step.train(made, trainer.progress.step))
                trainer.progress.step += 1
            if tracked:
                trainer._report_steps()
            elapsed = time.perf_counter() - start
            if pair >= 0:
                seconds[("on" if tracked else "off") + (", report" if writing else "")].append(elapsed)
            if writing and report._writer:
                report._writer.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24, help="pairs of windows of 10 steps")
    pairs = parser.parse_args().pairs
    found: dict[str, list[float]] = {}

    def measured(self: Trainer) -> None:
        found.update(windows(self, pairs))
        best = self.plan.folder / "model" / "best"
        best.mkdir(parents=True)  # which a run leaves, and W&B is given
        (best / "README.md").touch()

    Trainer.fit = measured  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        settings = f"""--config configs/quickstart.toml --run.dir {folder}/run --train.epochs 1000
            --train.global_batch_size 8 --model.max_length 64 --tracking.wandb offline --tracking.report false"""
        train.main(settings.split())
    middle = {name: statistics.median(times) for name, times in found.items()}
    steps = 10
    tracking = middle["on"] / middle["off"] - 1
    slower = statistics.median([*found["on, report"], *found["off, report"]]) - middle["off"]
    report = max(0.0, slower) / live_report._EVERY_S
    rows = {
        "step_s_off": middle["off"] / steps,
        "step_s_on": middle["on"] / steps,
        "records": tracking,
        "report": report,
        "together": tracking + report,
        "pairs": pairs,
    }
    table = Table(box=None)
    for name in ("step, off", "step, on", "records and guards", "report", "together"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{1000 * rows['step_s_off']:.0f} ms",
        f"{1000 * rows['step_s_on']:.0f} ms",
        *(f"{100 * rows[name]:+.2f} %" for name in ("records", "report", "together")),
    )
    Console(width=100).print(table)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
