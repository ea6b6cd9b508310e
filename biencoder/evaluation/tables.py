"""The tables of the commands that evaluate, export and search."""

import math
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from biencoder.evaluation.comparison import Comparison
from biencoder.evaluation.fidelity import Agreement
from biencoder.evaluation.leaks import LeakFree
from biencoder.retrieval.trained_model import Hit
from biencoder.tracking.console import shown
from biencoder.tracking.formats import shortened

_COMPARED = {"acc@1": "accuracy@1", "text": "accuracy@1_text", "MRR": "mrr@10", "nDCG": "ndcg@10", "recall": "accuracy@10"}
_WITH_INTERVAL = ("acc@1", "nDCG")
_SHOWN = 5_000
"""Characters of a text that are shown; more than an argument has, less than a document that fills the terminal."""


def comparison_table(comparison: Comparison) -> Group:
    """A table for each task with a row for each system; all tables have the same columns."""
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
    legend = (
        f"{comparison.split}, {comparison.num_queries} queries; in %; MRR, nDCG and recall at 10; text: with identical "
        "texts counted as one; 95 %: intervals, from resampling debates"
    )
    return Group(shown(legend), *tables)


def leak_free_line(split: str, kept: LeakFree) -> str:
    """How many queries of the split are leak-free, and why the others are not."""
    return (
        f"leak-free: {kept.kept_P.sum()} of {len(kept.kept_P)} {split} queries stay; {kept.num_leaked_debates} of "
        f"{kept.num_debates} debates share a text with training, some by way of others; {kept.num_near_duplicates} of "
        f"{kept.num_texts} distinct texts are near-duplicates of others"
    )


def agreements_table(rows: Sequence[Agreement], sizes: Sequence[int], split: str) -> Table:
    """Exported graphs compared with the model, which is the first row.

    Args:
        sizes: bytes of each row's files.
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
    return table


def hits_table(query: str, hits: Sequence[Hit], *, probabilities: bool) -> Table:
    """A query and its hits, in their order.

    Args:
        probabilities: show the pair classifier's, where there is one.
    """
    has_probability = probabilities and not any(math.isnan(hit.probability) for hit in hits)
    table = Table(title=shown(shortened(query, _SHOWN), "table.title"), title_justify="left", box=None, show_lines=True)
    table.add_column("distance", justify="right")
    if has_probability:
        table.add_column("is a counter", justify="right")
    table.add_column("text", overflow="fold")
    for hit in hits:
        probability = [f"{100 * hit.probability:.0f} %"] if has_probability else []
        table.add_row(f"{hit.distance:.3f}", *probability, shown(shortened(hit.text, _SHOWN)))
    return table
