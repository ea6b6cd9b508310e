"""The report's pieces on records made by hand: what is drawn, what is told, and that no text gets out of its place."""

from pathlib import Path

import pytest

from biencoder.errors import ConfigError
from biencoder.tracking.record import read_record
from biencoder.tracking.report import summary, write_report
from biencoder.tracking.report.figures import figures
from biencoder.tracking.report.series import phases, thinned
from tests.records import ALERT, EVIL, write_run


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
