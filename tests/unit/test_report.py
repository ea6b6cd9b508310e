"""The report's pieces on records made by hand: what is drawn, what is told, and that no text gets out of its place."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from biencoder.errors import ConfigError
from biencoder.tracking.names import CLOSEST, HARDNESS, STEP, accuracy, examples
from biencoder.tracking.record import RunRecord, read_record
from biencoder.tracking.report import summary, write_report
from biencoder.tracking.report.figures import figures
from biencoder.tracking.report.series import phases, thinned

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


def test_a_page_holds_every_text_and_none_breaks_out(tmp_path: Path) -> None:
    record = write_run(tmp_path / "run", lines=(ALERT,))
    write_report([record], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert EVIL not in page
    assert page.count("&lt;/script&gt;&lt;script&gt;document.title") == 11  # 6 of retrievals, 3 of mining, alert, start
    for told in ("slow rank", "50.0\N{NO-BREAK SPACE}%", "accuracy@1 on validation", "distinct texts", "Learning rate"):
        assert told in page
    assert {path.name for path in tmp_path.iterdir()} == {"run", "report.html"}


def test_what_says_nothing_is_not_drawn(tmp_path: Path) -> None:
    drawn = {figure.title: figure for figure in figures([write_run(tmp_path / "run")])}
    assert {"Loss", "Gradient norm", "Hardness of the negatives", "Where the time went", "Ranking on validation"} <= set(
        drawn
    )
    assert not {"Loss scale", "Skipped steps", "accuracy@1, re-ranked", "Recall of the index"} & set(drawn)
    assert [trace["name"] for trace in drawn["accuracy@1 by split"].traces] == ["training", "validation", "test"]


def test_a_record_from_before_a_metric_existed_is_shown_without_it(tmp_path: Path) -> None:
    record = write_run(tmp_path / "run")
    for line in record.lines:
        for name in ("train/step_s", "train/grad_norm_clipped", "mine/spread"):
            line.pop(name, None)  # type: ignore[attr-defined]
    write_report([record], tmp_path / "report.html")
    write_report([read_record(empty(tmp_path / "empty"))], tmp_path / "empty.html")


def empty(folder: Path) -> Path:
    """A run that has only just begun."""
    folder.mkdir()
    (folder / "config.toml").write_text("")
    (folder / "metrics.jsonl").write_text('{"kind": "ev')
    return folder


def test_runs_are_ranked_by_validation_whatever_test_says(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "tested", validation=(0.3, 0.4, 0.41), test=(0.3, 0.9, 0.99)),
        write_run(tmp_path / "chosen", validation=(0.3, 0.5, 0.45), test=(0.2, 0.4, 0.6), settings={"train": {"lr": 1e-5}}),
    ]
    ranked = summary.ranking(runs)
    assert [row[1:5] for row in ranked.rows] == [
        ["chosen", "50.0\N{NO-BREAK SPACE}%", "40.0\N{NO-BREAK SPACE}%", "4"],
        ["tested", "41.0\N{NO-BREAK SPACE}%", "99.0\N{NO-BREAK SPACE}%", "8"],
    ]
    assert summary.differences(runs).rows == [["train.lr", "3e-06", "1e-05"]]
    drawn = {figure.title: figure for figure in figures(runs)}
    assert [trace["name"] for trace in drawn["Loss: combined"].traces] == ["tested", "chosen"]
    assert {trace["palette"] for figure in drawn.values() for trace in figure.traces if trace["name"] == "chosen"} == {1}


def test_thinning_keeps_spikes_and_ends() -> None:
    y = [0.0] * 100_000
    y[54_321], y[77_777] = 9.0, -9.0
    x, thin = thinned(list(range(100_000)), y, 1000)
    assert len(x) <= 1000
    assert (x[0], x[-1], max(thin), min(thin)) == (0, 99_999, 9.0, -9.0)  # type: ignore[type-var]
    assert x == sorted(x)
    assert thinned([1, 2], [float("nan"), 1.0]) == ([1, 2], [None, 1.0])


def test_time_is_shared_out_by_what_the_run_was_doing(tmp_path: Path) -> None:
    found = phases(write_run(tmp_path / "run"))
    assert found["training"] == pytest.approx(sum(1 / i for i in range(1, 9)))
    assert (found["embedding for mining"], found["mining"], found["evaluation"]) == (6, 2, 6)


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/report.html cannot be written"):
        write_report([write_run(tmp_path / "run")], tmp_path / "file" / "report.html")
