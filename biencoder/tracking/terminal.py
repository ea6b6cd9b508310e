"""What a person sees on rank 0: a progress bar (plain lines where there is no terminal), one table per evaluation."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from biencoder.tracking.console import plain_console, shown
from biencoder.tracking.guards import Alert
from biencoder.tracking.names import Metrics, accuracy


class Terminal:
    def __init__(self, *, is_main: bool) -> None:
        self.console = plain_console(quiet=not is_main)
        self._rows: list[tuple[str, Metrics]] = []
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        self.console.print(shown(text), soft_wrap=True)

    def show(self, *things: RenderableType) -> None:
        """Texts, each a line however long, and tables."""
        for thing in things:
            if isinstance(thing, str):
                self.say(thing)
            else:
                self.console.print(thing)

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


def _cell(metrics: Metrics, strict: str, text: str) -> str:
    if strict not in metrics:
        return "–"
    shown, as_one = f"{100 * metrics[strict]:.1f}", f"{100 * metrics[text]:.1f}"
    return shown if shown == as_one else f"{shown}/{as_one}"
