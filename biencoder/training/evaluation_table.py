"""Evaluations as a table for the terminal: one row for each, two columns for each split, and one for each further size."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table

from biencoder.tracking.console import shown
from biencoder.tracking.names import Metrics, accuracy, sizes


def evaluation_table(rows: Sequence[tuple[str, Metrics]]) -> list[RenderableType]:
    """A line that explains the numbers, and the table.

    Args:
        rows: each evaluation's name and metrics, oldest first.
    """
    splits = list(dict.fromkeys(name.split("/")[1] for _, metrics in rows for name in metrics if name.count("/") > 1))
    shorter = sizes(name for _, metrics in rows for name in metrics)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for split in splits:
        table.add_column(f"{split}\nembedding", justify="right", no_wrap=True)
        for label in ("re-ranked", *(f"{size} dims" for size in shorter)):
            table.add_column(f"\n{label}", justify="right", no_wrap=True)
    for name, metrics in rows:
        cells = [
            _cell(metrics, accuracy(split, ranking), accuracy(split, ranking, text=True))
            for split in splits
            for ranking in ("embedding", "rerank", *(f"dim{size}" for size in shorter))
        ]
        table.add_row(shown(name), *cells)
    return ["accuracy@1 in % (after a slash: with identical texts counted as one, where that differs)", table]


def _cell(metrics: Metrics, strict: str, text: str) -> str:
    if strict not in metrics:
        return "–"
    share, as_one = f"{100 * metrics[strict]:.1f}", f"{100 * metrics[text]:.1f}"
    return share if share == as_one else f"{share}/{as_one}"
