"""What the evaluating commands show: systems side by side, what a leak takes away, exported graphs, hits of a search."""

import math
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from biencoder.evaluation.comparison import Comparison
from biencoder.evaluation.fidelity import Agreement
from biencoder.evaluation.leaks import LeakFree
from biencoder.retrieval.trained_model import Hit
from biencoder.tracking.console import shown

_COMPARED = {"acc@1": "accuracy@1", "text": "accuracy@1_text", "MRR": "mrr@10", "nDCG": "ndcg@10", "recall": "accuracy@10"}
_WITH_INTERVAL = ("acc@1", "nDCG")


def comparison_table(comparison: Comparison) -> Group:
    """Every system on every task: a line for each, all in the same columns."""
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


def leak_free_line(split: str, left: LeakFree) -> str:
    """What leaving out leaked queries leaves."""
    return (
        f"leak-free: {left.kept_P.sum()} of {len(left.kept_P)} {split} queries stay; {left.num_leaked_debates} of "
        f"{left.num_debates} debates share a text with training, some by way of others; {left.num_near_duplicates} of "
        f"{left.num_texts} distinct texts are near-duplicates of others"
    )


def agreements_table(rows: Sequence[Agreement], sizes: Sequence[int], split: str) -> Table:
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
    return table


def hits_table(query: str, hits: Sequence[Hit]) -> Table:
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
    return table
