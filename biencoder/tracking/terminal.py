"""What a person sees on rank 0: a progress bar (plain lines where there is no terminal), one table per evaluation."""

import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from biencoder.config import Config
from biencoder.data import Dataset
from biencoder.data.records import Findings
from biencoder.distributed import World
from biencoder.health import Alert
from biencoder.inference import Hit
from biencoder.preflight_rows import Row
from biencoder.tracking.console import plain_console, shown
from biencoder.tracking.names import Metrics, accuracy

if TYPE_CHECKING:  # they bring statistics along, which no training needs
    from biencoder.evaluation.comparison import Comparison
    from biencoder.evaluation.leaks import LeakFree
    from biencoder.onnx_check import Agreement


class Terminal:
    def __init__(self, *, is_main: bool) -> None:
        self.console = plain_console(quiet=not is_main)
        self._rows: list[tuple[str, Metrics]] = []
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        self.console.print(shown(text), soft_wrap=True)

    def findings(self, findings: Findings) -> None:
        """The data check's oddities; nothing where there are none."""
        if not findings.counts:
            return
        table = Table(title="Data check", title_justify="left", box=None, pad_edge=False)
        table.add_column("count", justify="right")
        table.add_column("oddity", no_wrap=True)
        table.add_column("for example", overflow="fold")
        for kind, count, examples in findings.rows():
            table.add_row(str(count), shown(kind), shown(examples[0]))
        self.console.print(table)

    def opening(
        self,
        config: Config,
        dataset: Dataset,
        world: World,
        folder: Path,
        *,
        precision: str,
        mining: str,
        from_step: int | None,
    ) -> None:
        """What is about to happen, in five lines."""
        train = config.train
        pairs = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
        micro, accumulation = train.micro_batch(world.size), train.accumulation(world.size)
        self.say(f"corpus   {pairs} pairs, {len(dataset.texts)} distinct texts, fingerprint {dataset.fingerprint[:12]}")
        self.say(f"model    {config.model.name}, texts cut at {config.model.max_length} tokens")
        self.say(
            f"steps    {world.size} ranks x {accumulation} x {micro} = {train.global_batch_size} triplets; peak learning "
            f"rate {train.peak_lr:.3g} ({train.lr_scaling} scaling of {train.lr:.3g}); {config.deepspeed_config} in "
            f"{precision} on {world.device.type}"
        )
        self.say(f"mining   {mining}")
        self.say(f"run      {folder}" + ("" if from_step is None else f", going on from step {from_step}"))

    def closing(self, folder: Path, config: Config) -> None:
        """Where the model is, and what to do next."""
        best, last = folder / "model" / "best", folder / "model" / "last"
        found = next((model for model in (best, last) if model.is_dir()), None)
        if found is None:
            self.say(f"Neither {best} nor {last} is there: the run has left no model")
            return
        python = os.path.relpath(sys.executable) if sys.executable.startswith(os.getcwd()) else "python"
        command = [python, "launcher/search.py", "--model", str(found), "--data.root", config.data.root, "your argument"]
        which = "The best model" if found == best else f"{best} is not there; the last model"
        self.say(f"{which} is in {found}. Try it: {shlex.join(command)}")

    def rows(self, title: str, rows: Sequence[Row]) -> None:
        """What checks have found, one row each."""
        colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("check", no_wrap=True)
        table.add_column("result", no_wrap=True)
        table.add_column("finding", overflow="fold")
        for row in rows:  # as texts: a finding may hold brackets, which are markup otherwise
            table.add_row(row.name, Text(row.verdict, colours[row.verdict]), shown(row.finding))
        self.console.print(table)

    def start(self, work: str, total: int) -> None:
        """Start the progress bar of a piece of work."""
        if not self.console.is_terminal or self.console.quiet:
            return
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._progress.add_task(work, total=total, note="")
        self._progress.start()

    def advance(self, count: int = 1) -> None:
        if self._progress:
            self._progress.advance(self._progress.task_ids[0], count)

    def step(self, step: int, metrics: Metrics) -> None:
        """The latest step metrics: beside the bar, or as a line."""
        note = (
            f"loss {metrics['train/loss']:.4f}  grad norm {metrics['train/grad_norm']:.3g}  "
            f"{metrics['train/triplets_per_s']:.1f} triplets/s"
        )
        if self._progress:
            self._progress.update(self._progress.task_ids[0], note=note)
        else:
            self.say(f"step {step}  {note}")

    def end(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None

    def alert(self, alert: Alert, step: int) -> None:
        """What a health guard has seen, and what to try."""
        self.console.print(shown(f"! {alert.guard} at step {step}: {alert.sign}"), style="bold yellow", soft_wrap=True)
        self.say(f"  Try: {alert.advice}.")

    def evaluation(self, row: str, metrics: Metrics) -> None:
        """The table of all evaluations so far, the newest last."""
        self._rows.append((row, metrics))
        self.say("accuracy@1 in % (after a slash: with identical texts counted as one, where that differs)")
        self.console.print(evaluation_table(self._rows))

    def leak_free(self, split: str, left: "LeakFree") -> None:
        """What leaving out leaked queries leaves."""
        self.say(
            f"leak-free: {left.kept_P.sum()} of {len(left.kept_P)} {split} queries stay; {left.num_leaked_debates} of "
            f"{left.num_debates} debates share a text with training, some by way of others; {left.num_near_duplicates} of "
            f"{left.num_texts} distinct texts are near-duplicates of others"
        )

    def comparison(self, comparison: "Comparison") -> None:
        """Every system on every task."""
        self.say(
            f"{comparison.split}, {comparison.num_queries} queries; in %; MRR, nDCG and recall at 10; text: with identical "
            "texts counted as one; 95 %: intervals, from resampling debates"
        )
        self.console.print(comparison_table(comparison))

    def agreements(self, rows: "Sequence[Agreement]", sizes: Sequence[int], split: str) -> None:
        """What exported graphs lose and gain against the model, the first row.

        Args:
            sizes: of their files, in bytes.
        """
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        headings = ["MiB", "texts/s", "ratio", "largest\ngap", "cosine\nmean", "\nleast"]  # 80 columns
        for heading in headings + [f"accuracy@1\n{split}", "copies\nas one"] * bool(rows[0].accuracy):
            table.add_column(heading, justify="right", no_wrap=True)
        for row, size in zip(rows, sizes, strict=False):
            table.add_row(
                shown(row.name),
                f"{size / 2**20:,.1f}",
                f"{row.texts_per_s:,.1f}",
                f"{row.texts_per_s / rows[0].texts_per_s:.2f}",
                f"{row.largest_difference:.1e}",
                f"{row.mean_cosine:.4f}",
                f"{row.least_cosine:.4f}",
                *(f"{100 * value:.2f}" for value in row.accuracy.values()),
            )
        self.console.print(table)

    def found(self, query: str, hits: Sequence[Hit]) -> None:
        """A query and its hits, in their order."""
        judged = not any(math.isnan(hit.probability) for hit in hits)
        table = Table(title=shown(query, "table.title"), title_justify="left", box=None, show_lines=True)
        table.add_column("distance", justify="right")
        if judged:
            table.add_column("is a counter", justify="right")
        table.add_column("text", overflow="fold")
        for hit in hits:
            probability = [f"{100 * hit.probability:.0f} %"] if judged else []
            table.add_row(f"{hit.distance:.3f}", *probability, shown(hit.text))
        self.console.print(table)


def evaluation_table(rows: Sequence[tuple[str, Metrics]]) -> Table:
    """accuracy@1 in percent: strict, and after a slash with identical texts counted as one, where that differs."""
    splits = list(dict.fromkeys(name.split("/")[1] for _, metrics in rows for name in metrics if name.count("/") > 1))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for split in splits:
        table.add_column(f"{split}\nembedding", justify="right", no_wrap=True)
        table.add_column("\nre-ranked", justify="right", no_wrap=True)
    for name, metrics in rows:
        cells = [
            _cell(metrics, accuracy(split, ranking), accuracy(split, ranking, text=True))
            for split in splits
            for ranking in ("embedding", "rerank")
        ]
        table.add_row(shown(name), *cells)
    return table


_COMPARED = {"acc@1": "accuracy@1", "text": "accuracy@1_text", "MRR": "mrr@10", "nDCG": "ndcg@10", "recall": "accuracy@10"}
_WITH_INTERVAL = ("acc@1", "nDCG")


def comparison_table(comparison: "Comparison") -> Group:
    """For each task a line for each system, all in the same columns."""
    tables: list[Table] = []
    for task in comparison.tasks:
        title = f"{task.name}: {task.title}; {comparison.mean_candidates[task.name]:,.1f} candidates"
        table = Table(
            title=shown(title, "table.title"),
            title_justify="left",
            show_header=not tables,
            box=None,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        table.add_column("", min_width=max(len(row.name) for row in comparison.rows), overflow="fold")
        for heading in _COMPARED:
            table.add_column(heading, justify="right", min_width=max(5, len(heading)), no_wrap=True)
            if heading in _WITH_INTERVAL:
                table.add_column("95 %", min_width=len("00.0–00.0"), no_wrap=True)
        for row in comparison.rows:
            cells = []
            for heading, name in _COMPARED.items():
                figure = row.figures[task.name][name]
                cells.append(f"{100 * figure.value:.1f}")
                if heading in _WITH_INTERVAL:
                    cells.append("–" if math.isnan(figure.low) else f"{100 * figure.low:.1f}–{100 * figure.high:.1f}")
            table.add_row(shown(row.name), *cells)
        tables.append(table)
    return Group(*tables)


def _cell(metrics: Metrics, strict: str, text: str) -> str:
    if strict not in metrics:
        return "–"
    shown, as_one = f"{100 * metrics[strict]:.1f}", f"{100 * metrics[text]:.1f}"
    return shown if shown == as_one else f"{shown}/{as_one}"
