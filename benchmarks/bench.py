"""All benchmarks, one after the other, each in processes of its own, and one table at the end.

    python benchmarks/bench.py --quick          # the embedded debates: a quarter of an hour on two cores
    python benchmarks/bench.py --data DIR       # everything, on a corpus such as ArguAna: three hours on two cores
    python benchmarks/bench.py --show           # the table and the plot of what the last runs have left

Each part is a script of its own in this folder, says in its first lines what it measures and how, and leaves its figures
in benchmarks/results/NAME.json and what it printed in NAME.log. A part that fails is named, and the others still run. Run
it on a machine with nothing else to do: ratios come from runs in turns and bear some company, seconds do not.

Prints the table, and writes benchmarks/results/bench.json and, with the ratios as a plot, bench.html.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from paired import Ratio
from rich.console import Console
from rich.table import Table
from training import ONE_CORE, TWO_RANKS

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
Results = dict[str, Any]
BUSY = 0.5
"""Processes that wait for a core, in the mean of the last minute, from which on the machine does not count as quiet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured; where there is a peer, how many times as fast ours is."""

    group: str
    what: str
    ours: str
    other: str = ""
    ratio: Ratio | None = None
    given: str = ""
    """What the other one was given, or what the figure is of."""
    wanted: str = ""
    met: bool | None = None


def asked(met: bool, wanted: str) -> dict[str, Any]:
    """The fields of a row that is held against a goal."""
    return {"wanted": wanted, "met": met}


def at_least(goal: float, times: Ratio) -> dict[str, Any]:
    return asked(times.median >= goal, f"{goal:g}x")


def training_rows(results: Results) -> Iterator[Row]:
    units = {"triplet": "triplets/s", "contrastive": "pairs/s"}
    peaks = []
    for loss, found in results.items():
        rows, setting = found["rows"], found["setting"]
        for case, peer, wanted in (
            ("ours", "peer, defaults", 5),
            ("ours, defaults", "peer, defaults", None),
            ("ours", "peer, best", 2),
        ):
            if case not in rows or peer not in rows:
                continue
            dropout, times = 0 if case == "ours" else 0.1, Ratio(*rows[case]["against"][peer])
            given = (
                f"same batches and precision, its {'best: dropout 0' if peer == 'peer, best' else 'defaults: dropout 0.1'}"
            )
            yield Row(
                group=f"training, {loss} loss",
                what=f"{setting['batch']} of up to {setting['length']} tokens, dropout {dropout}",
                ours=f"{rows[case]['samples_per_s']:.3g} {units[loss]}",
                other=f"{rows[peer]['samples_per_s']:.3g} {units[loss]}",
                ratio=times,
                given=given,
                **(at_least(wanted, times) if wanted and loss == "triplet" else {}),
            )
            if (case, peer) == ("ours", "peer, defaults"):
                continue  # their memory stands in the other two rows
            peak, peers_peak = (f"{rows[name]['peak_mib']:,.0f} MiB" for name in (case, peer))
            what = f"training, {loss} loss, dropout {dropout}"
            peaks.append(Row(group="peak memory", what=what, ours=peak, other=peers_peak, given=given))
        if ONE_CORE in rows.get(TWO_RANKS, {}).get("against", {}):
            times = Ratio(*rows[TWO_RANKS]["against"][ONE_CORE])
            yield Row(
                group="ranks",
                what="2 ranks with a core each",
                ours=f"{rows[TWO_RANKS]['samples_per_s']:.3g} {units[loss]}",
                other=f"{rows[ONE_CORE]['samples_per_s']:.3g} {units[loss]}",
                ratio=times,
                given="1 rank on 1 core, ours as well",
                **at_least(1.8, times),
            )
    yield from peaks


def encoding_rows(results: Results) -> Iterator[Row]:
    peers = {
        "texts as they stand": "SentenceTransformer.encode, same weights and precision",
        "distinct texts": "the same, and every text once",
        "texts to negatives": "mine_hard_negatives with FAISS, every text once",
    }
    wanted = {"texts as they stand": 2, "texts to negatives": 3}
    for kind, row in results["rows"].items():
        times = Ratio(*row["ratio"])
        yield Row(
            group="embedding",
            what=f"{kind}, {row['texts']:,}",
            ours=f"{row['texts'] / row['ours']:.3g} texts/s",
            other=f"{row['texts'] / row['peer']:.3g} texts/s",
            ratio=times,
            given=peers[kind],
            **(at_least(wanted[kind], times) if kind in wanted else {}),
        )


def mining_rows(results: Results) -> Iterator[Row]:
    """Against FAISS flat, the default: an index by what it takes to build and search, a peer by all it takes."""
    flat = {row["vectors"]: row for row in results["rows"] if row["case"] == "faiss flat"}
    for row in results["rows"]:
        size, case = row["vectors"], row["case"]
        group = f"mining, {size:,} x {results['dimension']}"
        if row.get("left_out"):
            yield Row(group=group, what=case, ours="", other="left out", given="takes more than minutes at this size")
        elif case == "faiss flat":
            given = f"build and search for {row['queries']:,} of the points; in all {row['total_s']:.3g} s"
            yield Row(group=group, what=case, ours=f"{row['build_s'] + row['search_s']:.3g} s", given=given)
        elif size in flat:
            yield Row(
                group=group,
                what=f"faiss flat against {case}",
                ours=f"{seconds_of(flat[size], case):.3g} s",
                other=f"{seconds_of(row, case):.3g} s",
                ratio=Ratio(*row["against_flat"]),
                given=mined(row),
                **wanted_of_mining(row),
            )


def seconds_of(row: Results, case: str) -> float:
    took: float = row["total_s"] if case.startswith("peer") else row["build_s"] + row["search_s"]
    return took


def mined(row: Results) -> str:
    """What a row of mining found, and how it was measured."""
    if row["case"].startswith("peer"):
        return f"mine_hard_negatives{' with FAISS' if 'faiss' in row['case'] else ''}, the vectors for nothing"
    found = [f"recall {row['recall']:.3f}"]
    if "flat" in row["case"] or row["case"] == "balltree":
        found = ["same neighbours" if row["same_ids"] else "OTHER NEIGHBOURS"]
    return ", ".join(found + ([f"scaled up from {row['measured_queries']} queries"] if "measured_queries" in row else []))


def wanted_of_mining(row: Results) -> dict[str, Any]:
    """What is asked of 50,000 vectors."""
    if row["vectors"] != 50_000:
        return {}
    times = Ratio(*row["against_flat"])
    if row["case"] == "balltree":
        return asked(times.median >= 100 and row["same_ids"], "100x, same neighbours")
    return at_least(3, times) if row["case"].startswith("peer") else {}


def epoch_rows(results: Results) -> Iterator[Row]:
    large = results["setting"]["data"] != "debates"  # these are too few for shares to mean much
    for name, row in results["epochs"].items():
        overlap = "overlap" in name
        of = f"{row['pairs']:,} pairs{', mining.overlap' if overlap else ''}"
        shares = [row[f"{part}_share"] for part in ("embedding", "mining", "evaluation")]
        yield Row(
            group="an epoch",
            what=f"mining and evaluating, {of}",
            ours=f"{sum(shares):.1%} of it",
            given=" + ".join(
                f"{part} {share:.1%}" for part, share in zip(("embedding", "mining", "evaluating"), shares, strict=True)
            ),
            **(asked(sum(shares) <= 0.15, "at most 15 %") if large and name == "1/1" else {}),
        )
        if overlap:
            yield Row(
                group="an epoch",
                what=f"training stands still for negatives, {of}",
                ours=f"{row['mining_share']:.2%} of it",
                **(asked(row["mining_share"] <= 0.03, "at most 3 %") if large else {}),
            )
        yield Row(group="growth", what=f"an epoch, {of}", ours=f"{row['epoch_s']:.3g} s", given=f"{row['steps']} steps")
    for row in results["growth"]:
        yield Row(
            group="growth",
            what=f"a step, batch {row['batch']}, up to {row['length']} tokens",
            ours=f"{row['step_s']:.3g} s",
            given=f"{row['tokens_per_text']:.0f} tokens a text, peak {row['peak_mib']:,.0f} MiB",
        )
    start_up = results["start_up"]
    given = f"of it {start_up['of_it_mining_and_evaluation_s']:.1f} s of zero-shot evaluation and mining"
    for what, name, note, limit in (
        ("launcher/train.py --help", "help_s", "", 1),
        ("importing what training needs", "import_s", "", None),
        ("first step of the quick-start, tokens cached", "first_step_s", given, 12),
    ):
        took = start_up[name]
        goal = asked(took <= limit, f"within {limit} s") if limit else {}
        yield Row(group="start-up", what=what, ours=f"{took:.2f} s", given=note, **goal)


def memory_rows(results: Results) -> Iterator[Row]:
    for file, row in results.items():
        for ranks, measured in row["before_update"].items():
            yield Row(
                group="peak memory",
                what=f"{file}, {ranks} rank{'s' * (ranks != '1')}",
                ours=f"{measured:.1f} bytes a parameter",
                given=f"computed {row['computed_device'][ranks] + row['computed_host'][ranks]:.1f}; without activations",
            )


def no_rows(results: Results) -> Iterator[Row]:
    """For parts that benchmarks/scaling.py alone reads."""
    return iter(())


def gpu_rows(results: Results) -> Iterator[Row]:
    found = results["steps"].get("training", {}).get("found", {})
    if "peer, best, triplets/s" in found:
        yield Row(
            group=f"BERT base on {results['device']}",
            what="training, triplets, bf16",
            ours=f"{found['ours, triplets/s']:.0f} triplets/s",
            other=f"{found['peer, best, triplets/s']:.0f} triplets/s",
            ratio=Ratio(*found["times as fast"]),
            given="64 of up to 256 tokens, lengths as ArguAna's; the peer's fastest settings",
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A script, what it is given, and what of its results stands in the table."""

    name: str
    rows: Callable[[Results], Iterator[Row]]
    quick: str
    full: str


PARTS = (
    Part("training", training_rows, "--length 128 --steps 3 --repeats 1", "--repeats 3"),
    Part("encoding", encoding_rows, "--length 128 --repeats 2", "--repeats 5"),
    Part("mining", mining_rows, "--sizes 5000 50000 --repeats 1 --hnsw-up-to 5000 --balltree-queries 200", ""),
    Part("epoch", epoch_rows, "--parts 1", "--parts 4 2 1"),
    Part("memory", memory_rows, "--modes zero1_bf16", ""),
    Part("parts", no_rows, "--texts 20000 100000 --ranked 2000 5000 10000", ""),
    *([Part("gpu", gpu_rows, "", "")] if torch.cuda.is_available() else []),
)
TAKES_DATA = ("training", "encoding", "epoch")


def run_part(part: Part, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a script to its end; what it prints goes into its log."""
    result, log = RESULTS / f"{part.name}.json", RESULTS / f"{part.name}.log"
    result.unlink(missing_ok=True)  # a part that fails leaves nothing that looks like its result
    start = time.perf_counter()
    with log.open("w") as file:
        command = [sys.executable, str(FOLDER / f"{part.name}.py"), *arguments]
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    minutes = (time.perf_counter() - start) / 60
    print(f"{part.name}: {minutes:.1f} min" + (f", FAILED: see {log}" if code else ""), flush=True)
    return {"arguments": list(arguments), "minutes": minutes, "failed": bool(code)}


def read_rows() -> list[Row]:
    """What the parts have left; groups in the order in which they come up first."""
    rows: list[Row] = []
    for part in PARTS:
        file = RESULTS / f"{part.name}.json"
        rows += part.rows(json.loads(file.read_text())) if file.exists() else []
    groups = list(dict.fromkeys(row.group for row in rows))
    return sorted(rows, key=lambda row: groups.index(row.group))


def show(rows: Sequence[Row]) -> None:
    columns = {"": "left", "ours": "right", "other": "right", "other / ours, in time": "right", "given": "left"}
    table = Table(title="benchmarks", box=None)
    for name, side in columns.items():
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    table.add_column("wanted")
    group = ""
    for row in rows:
        if row.group != group:
            table.add_section()
            table.add_row(f"[bold]{row.group}")
            group = row.group
        wanted = f"{row.wanted}: {'met' if row.met else 'NOT MET'}" if row.wanted else ""
        table.add_row(f"  {row.what}", row.ours, row.other, str(row.ratio or ""), row.given, wanted)
    Console(width=190).print(table)


def plot(rows: Sequence[Row]) -> go.Figure:
    """The ratios, with the range of their turns."""
    figure = go.Figure()
    compared = [row for row in rows if row.ratio]
    for group in dict.fromkeys(row.group for row in compared):
        some = [(row, row.ratio) for row in compared if row.group == group and row.ratio]
        figure.add_bar(
            name=group,
            orientation="h",
            y=[f"{group}: {row.what}" for row, _ in some],
            x=[times.median for _, times in some],
            error_x={
                "array": [times.highest - times.median for _, times in some],
                "arrayminus": [times.median - times.lowest for _, times in some],
            },
            customdata=[row.given for row, _ in some],
            hovertemplate="%{x:.2f}x<br>%{customdata}",
        )
    figure.add_vline(x=1, line_dash="dot")
    figure.update_xaxes(type="log", title="how many times as fast ours is (bar: median of the turns, line: their range)")
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(title="biencoder against its peers", showlegend=False, height=160 + 26 * len(compared))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--quick", action="store_true", help="small settings, on the embedded debates")
    which.add_argument("--data", help="a corpus to run everything on")
    which.add_argument("--show", action="store_true", help="run nothing")
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if (load := os.getloadavg()[0]) > BUSY:
        print(f"this machine has other work to do (load {load:.1f}): take no seconds from what follows", flush=True)
    runs: dict[str, Any] = {}
    for part in () if given.show else PARTS:
        data = ["--data", given.data] if given.data and part.name in TAKES_DATA else []
        runs[part.name] = run_part(part, [*data, *(part.quick if given.quick else part.full).split()])
    rows = read_rows()
    show(rows)
    packages = {name: version(name) for name in ("torch", "sentence-transformers", "faiss-cpu", "deepspeed")}
    machine = {"cores": os.cpu_count(), "load_before": load, "packages": packages}
    summary = {"machine": machine, "runs": runs, "rows": [asdict(row) for row in rows]}
    (RESULTS / "bench.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot(rows).write_html(RESULTS / "bench.html", include_plotlyjs=True)
    if failed := [name for name, run in runs.items() if run["failed"]]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
