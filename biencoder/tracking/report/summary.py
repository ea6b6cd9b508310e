"""The texts and tables of the page. The template escapes every text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from biencoder.config.keys import describe
from biencoder.config.schema import SPLITS, Config
from biencoder.tracking.formats import clock, duration, number, percent, setting_text
from biencoder.tracking.json_lines import Line
from biencoder.tracking.names import CLOSEST, ORDINARY, PROVENANCE, accuracy, examples, sizes
from biencoder.tracking.record import RunRecord, best_first, differing_keys
from biencoder.tracking.report.figures import names
from biencoder.tracking.report.series import phases

RANKINGS = (("strict", "embedding", False), ("copies as one", "embedding", True), ("re-ranked", "rerank", False))


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the main figures."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class PageTable:
    columns: list[str]
    rows: list[list[str]]
    marked: int = -1
    """The row to point out."""


def tiles(record: RunRecord) -> list[Tile]:
    name, best, evaluations = accuracy(record.deciding_split, "embedding"), record.best, record.of("eval")
    steps = record.frame("step")
    last = steps.iloc[-1] if len(steps) else None
    found = []
    if evaluations:
        before = f"{percent(evaluations[0].get(name))} before training"
        value = percent((best or evaluations[0]).get(name))
        note = f"best, at step {best['step']:,}; {before}" if best else before
        found.append(Tile(value, f"accuracy@1 on {record.deciding_split}", note))
    if last is not None:
        found.append(Tile(f"{last['train/loss']:.3g}", "loss", f"step {last['step']:,.0f}, epoch {last['epoch'] + 1:.0f}"))
        found.append(Tile(number(steps["train/triplets_per_s"].median()), "triplets a second", "median"))
    taken = math.fsum(phases(record).values())
    if taken:
        found.append(Tile(duration(taken), "at work", "restarts left out"))
    return found


def alerts(record: RunRecord) -> list[Line]:
    return record.of("event", "alert")


def events(record: RunRecord) -> PageTable:
    """What happened, without the alerts and the digests of the negatives."""
    told = [line for line in record.of("event") if line["event"] not in (*ORDINARY, "alert")]
    return PageTable(
        ["when", "step", "event", ""],
        [[clock(line["time"]), f"{line['step']:,}", line["event"], line.get("detail", "")] for line in told],
    )


def evaluations(record: RunRecord) -> PageTable:
    """Every evaluation: accuracy@1 of each split, as ranked by embeddings, re-ranked, and by fewer dimensions."""
    lines = record.of("eval")
    splits = [split for split in SPLITS if any(accuracy(split, "embedding") in line for line in lines)]
    shown = [
        (f"{split}, {label}", accuracy(split, ranking, text=text)) for split in splits for label, ranking, text in RANKINGS
    ]
    shorter = sizes(name for line in lines for name in line)
    shown += [(f"{split}, {size} dimensions", accuracy(split, f"dim{size}")) for split in splits for size in shorter]
    shown = [(label, name) for label, name in shown if any(name in line for line in lines)]
    rows = [[str(line["epoch"]), f"{line['step']:,}", *(percent(line.get(name)) for _, name in shown)] for line in lines]
    best = record.best
    return PageTable(["epoch", "step", *(label for label, _ in shown)], rows, lines.index(best) if best else -1)


def retrievals(record: RunRecord) -> list[tuple[str, list[dict[str, Any]]]]:
    """(when, points with what was retrieved for them) of the newest evaluation and of the first one."""
    tables = record.of("table", examples(record.deciding_split))
    shown = []
    for when, table in [("newest", tables[-1]), ("first", tables[0])][: len(tables)] if tables else []:
        points: dict[str, dict[str, Any]] = {}
        for values in table["rows"]:
            row = dict(zip(table["columns"], values, strict=True))
            point = points.setdefault(row["point"], {**row, "retrieved": []})
            point["retrieved"].append(
                {
                    "text": row["retrieved"],
                    "distance": number(row["distance"]),
                    "probability": "" if row["probability"] is None else percent(row["probability"]),
                    "is_gold": row["rank"] == row["gold_rank"],
                }
            )
        shown.append(
            (f"{when}: after step {table['step']:,}" if table["step"] else "before training", list(points.values()))
        )
    return shown


def closest_negatives(record: RunRecord) -> list[dict[str, Any]]:
    """The newest epoch's samples whose negative is nearest to a copy."""
    tables = record.of("table", CLOSEST)
    found = [dict(zip(tables[-1]["columns"], row, strict=True)) for row in tables[-1]["rows"]] if tables else []
    return [{key: value if isinstance(value, str) else number(value) for key, value in row.items()} for row in found]


def mining(record: RunRecord) -> PageTable:
    """What each epoch's mining found."""
    shown = {
        "random": ("mine/random_rate", percent),
        "nearer than the counter": ("mine/harder_share", percent),
        "near copies": ("mine/near_copies", percent),
        "to the counter": ("mine/pair_distance", number),
        "to the negative": ("mine/nearest_distance", number),
        "spread": ("mine/spread", number),
        "effective rank": ("mine/effective_rank", number),
        "new": ("mine/churn", percent),
        "forbidden": ("mine/forbidden", number),
        "recall": ("mine/recall", percent),
        "as the ball tree": ("mine/reference_agreement", percent),
        "seconds": ("mine/wait_s", number),
    }
    hashes = {(line["epoch"], line["event"]): line["detail"] for line in record.of("event") if line["event"] in PROVENANCE}
    rows = [
        [
            str(line["epoch"]),
            *(show(line.get(name)) for name, show in shown.values()),
            *(hashes.get((line["epoch"], event), "") for event in PROVENANCE),
        ]
        for line in record.of("mine")
    ]
    return PageTable(["epoch", *shown, *PROVENANCE], rows)


def data_check(record: RunRecord) -> PageTable:
    found: Mapping[str, Any] = next((line["data"] for line in reversed(record.starts) if "data" in line), {})
    facts = [[f"{name} pairs", f"{count:,}"] for name, count in found.get("pairs", {}).items()]
    if "distinct_texts" in found:
        facts.append(["distinct texts", f"{found['distinct_texts']:,}"])
    facts += [[oddity, f"{count:,}"] for oddity, count in found.get("oddities", {}).items()]
    return PageTable(["", "count"], facts)


def settings(record: RunRecord) -> tuple[PageTable, PageTable]:
    """What differs from the defaults, and everything."""
    mine, default = record.config.flat(), Config().flat()
    changed = [
        [key, setting_text(value), setting_text(default[key])] for key, value in mine.items() if value != default[key]
    ]
    everything = [[key, setting_text(value), describe()[key][0]] for key, value in mine.items()]
    return PageTable(["key", "value", "default"], changed), PageTable(["key", "value", ""], everything)


def starts(record: RunRecord) -> PageTable:
    rows = [
        [
            line["started"],
            str(line["from_step"]),
            str(line["ranks"]),
            line["host"],
            line.get("commit") or "",
            line["command"],
        ]
        for line in record.starts
        if "started" in line
    ]
    return PageTable(["started", "from step", "ranks", "host", "code", "command"], rows)


def packages(record: RunRecord) -> str:
    last = next((line for line in reversed(record.starts) if "packages" in line), {})
    versions = {"python": last.get("python", ""), **last.get("packages", {})}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def ranking(records: Sequence[RunRecord]) -> PageTable:
    """The runs, the best on validation first; test is read at the evaluation that validation chose, and orders nothing."""

    named = zip(names(records), records, strict=True)
    ordered = sorted(named, key=lambda pair: best_first(pair[1].best_accuracy(pair[1].deciding_split)))
    rows = []
    for place, (name, record) in enumerate(ordered, 1):
        best, steps = record.best or {}, record.frame("step")
        rows.append(
            [
                str(place),
                name,
                percent(record.best_accuracy(record.deciding_split)),
                percent(record.best_accuracy("test")),
                f"{best['step']:,}" if best else "",
                number(steps["train/triplets_per_s"].median()) if len(steps) else "",
                str(len(alerts(record))),
                record.state,
            ]
        )
    deciding = " or ".join(dict.fromkeys(record.deciding_split for record in records))
    return PageTable(
        ["", "run", f"{deciding} accuracy@1", "test, then", "at step", "triplets/s", "alerts", "state"], rows, 0
    )


def differences(records: Sequence[RunRecord]) -> PageTable:
    """The settings that are not the same in all runs, but for where a run is kept and shown."""
    configs = [record.config for record in records]
    keys = [key for key in differing_keys(configs) if not key.startswith("tracking.")]
    rows = [[key, *(setting_text(config.flat()[key]) for config in configs)] for key in keys]
    return PageTable(["key", *names(records)], rows)
