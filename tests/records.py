"""Records of runs, made by hand."""

import json
from pathlib import Path
from typing import Any

import tomli_w

from biencoder.tracking.names import CLOSEST, HARDNESS, STEP, accuracy, examples
from biencoder.tracking.record import RunRecord, read_record

EVIL = "</script><script>document.title = 'broken out'</script> & <b>bold</b>"


def write_run(
    folder: Path,
    *,
    validation: tuple[float, ...] = (0.3, 0.5, 0.45),
    test: tuple[float, ...] = (0.2, 0.4, 0.6),
    settings: dict[str, dict[str, Any]] | None = None,
    lines: tuple[dict[str, Any], ...] = (),
    text: str = EVIL,
) -> RunRecord:
    """A run's folder with an evaluation before each epoch of four steps and one at the end, and all kinds of record."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(tomli_w.dumps(settings or {}))
    data = {"pairs": {"training": 32}, "distinct_texts": 60, "fingerprint": "f" * 64, "oddities": {"odd": 3}}
    start = {"started": "today", "command": f"train.py {text}", "host": "here", "ranks": 2, "from_step": 0, "data": data}
    (folder / "run.jsonl").write_text(json.dumps({**start, "python": "3.11", "packages": {"torch": "2"}}) + "\n")
    record: list[dict[str, Any]] = []
    for epoch, (value, other) in enumerate(zip(validation, test, strict=True)):
        at = {"step": 4 * epoch, "epoch": epoch, "time": 1e9 + epoch}
        found = {"validation": value, "test": other, "training": 0.9}
        measured = {accuracy(split, "embedding", text=t): v for split, v in found.items() for t in (False, True)}
        deeper = {f"eval/validation/embedding/{name}": 0.9 for name in ("accuracy@5", "accuracy@10", "mrr@10", "ndcg@10")}
        record.append({"kind": "eval", **at, **measured, **deeper, "eval/seconds": 2.0})
        row = [text, text, 2, 1, text, 0.5, None]
        columns = ["point", "gold", "gold_rank", "rank", "retrieved", "distance", "probability"]
        record.append({"kind": "table", **at, "name": examples("validation"), "columns": columns, "rows": [row]})
        if epoch + 1 == len(validation):
            break
        mined = {
            "pair_distance": 0.9,
            "nearest_distance": 0.8,
            "spread": 0.9,
            "effective_rank": 90.0 - epoch,
            "wait_s": 1.0,
        }
        record.append({"kind": "mine", **at, "mine/encode_s": 3.0, **{f"mine/{name}": v for name, v in mined.items()}})
        record.append({"kind": "histogram", **at, "name": HARDNESS, "edges": [-1, -0.5, 0, 0.5], "counts": [3, 5, 1]})
        columns = ["point", "counter", "negative", "to_point", "to_counter", "counter_to_point"]
        record.append({"kind": "table", **at, "name": CLOSEST, "columns": columns, "rows": [[text] * 3 + [0.1, 0.2, 0.3]]})
        for i in range(1, 5):
            values = dict.fromkeys(STEP, 1.0 / (4 * epoch + i)) | {"train/loss_scale": 1.0, "train/skipped_steps": 0}
            record.append({"kind": "step", "step": 4 * epoch + i, "epoch": epoch, "time": 1e9, **values})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*record, *lines]))
    return read_record(folder)


ALERT = {
    "kind": "event",
    "step": 3,
    "epoch": 0,
    "time": 1e9,
    "event": "alert",
    "guard": "slow rank",
    "detail": EVIL,
    "advice": "x",
}
