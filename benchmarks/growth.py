"""How parts of a run grow with texts and ranks: exponents of what was measured, beside those of the cost model.

    python benchmarks/growth.py

Takes what mining.py, parts.py and traffic.py have left in benchmarks/results/, and prints a table of docs/scaling.md. An
exponent of 1 is as the texts or ranks, 0.5 as their root.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from cost_model import Machine, ranking_seconds
from scaling import Results, ivf_search_seconds, markdown, measured, read_results, rows_of, search_job, search_seconds

_OF_ALL = {"gradients", "parts"}
"""What benchmarks/traffic.py measures and every rank gets from every other; all else is divided among the ranks."""


def growths(results: Results, machine: Machine) -> Iterator[tuple[str, Sequence[float], Sequence[float], Sequence[float]]]:
    """(what, sizes, measured, what the model says) of every part that was measured at two or more sizes or rank counts."""
    if "mining" in results:
        for case, seconds_of in (("faiss flat", search_seconds), ("faiss ivf", ivf_search_seconds)):
            rows = rows_of(results, case)
            jobs = [search_job(results, row, ranks=1) for row in rows]
            yield (
                f"{case}, of a query, by texts",
                [row["vectors"] for row in rows],
                [(row["build_s"] + row["search_s"]) / row["queries"] for row in rows],
                [seconds_of(job, machine) / row["queries"] for job, row in zip(jobs, rows, strict=True)],
            )
    if "parts" in results:
        rows = results["parts"]["corpus"]
        texts = [row["texts"] for row in rows]
        for what, name in (
            ("memory of the corpus on a rank", "held_bytes_per_text"),
            ("reading", "read_s_per_million"),
            ("tokens on disk", "token_bytes_per_text"),
        ):
            yield f"{what}, by texts", texts, [row["texts"] * row[name] for row in rows], texts
        yield "order of an epoch, by texts", texts, [row["order_s"] for row in rows], texts
        rows = results["parts"].get("copies", [])
        texts = [row["texts"] for row in rows]
        yield "finding near-duplicates, by texts", texts, [row["seconds"] for row in rows], texts
        rows = results["parts"]["evaluation"]
        texts = [row["texts"] for row in rows]
        ranking = [ranking_seconds(size / 2, size, 1, machine) for size in texts]
        yield "ranking a split, every second text a query, by texts", texts, [row["seconds"] for row in rows], ranking
    if "traffic" in results:
        ranks = sorted(map(int, results["traffic"]))
        # The batch grows with the ranks, so every rank gets the gradients of more texts; a manifest names every rank.
        of_all, divided = [size - 1 for size in ranks], [(size - 1) / size for size in ranks]
        for part in results["traffic"][str(ranks[0])]:
            sent = [results["traffic"][str(size)][part] for size in ranks]
            yield f"bytes that a rank sends, {part}, by ranks", ranks, sent, of_all if part in _OF_ALL else divided


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Of the power of the size that comes nearest to the values: the slope of their logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def exponents_table(results: Results, machine: Machine) -> str:
    rows = [
        (what, ", ".join(f"{size:,}" for size in sizes), f"{exponent(sizes, found):.2f}", f"{exponent(sizes, model):.2f}")
        for what, sizes, found, model in growths(results, machine)
        if len(sizes) > 1
    ]
    return markdown(("what, by what", "measured at", "exponent", "the model's"), rows)


def main() -> None:
    results = read_results()
    print(exponents_table(results, measured(results)))


if __name__ == "__main__":
    main()
