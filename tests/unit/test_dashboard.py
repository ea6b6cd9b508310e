"""The W&B dashboard: it plots what is recorded, over the right axis, and its file needs neither network nor account."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from biencoder.errors import ConfigError
from biencoder.tracking.dashboard import SECTIONS, Curves, specification
from biencoder.tracking.names import CHECKPOINT, CLOSEST, EVAL, HARDNESS, MINE, STEP, examples
from launcher import dashboard


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for section in spec["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]


def plots(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel["config"] for panel in panels(spec) if panel["viewType"] == "Run History Line Plot"]


def test_every_plotted_metric_is_recorded_and_every_recorded_one_plotted() -> None:
    plotted = {metric for plot in plots(specification()) for metric in plot["metrics"]}
    evaluated = {
        name.format(split=split, ranking=ranking, size=8)
        for name in EVAL
        for split in ("training", "validation", "test")
        for ranking in ("embedding", "rerank")
    }
    recorded = {*STEP, *MINE, *CHECKPOINT, HARDNESS}
    assert plotted - evaluated == recorded
    assert {"eval/validation/embedding/accuracy@1", "eval/seconds"} <= plotted & evaluated


def test_no_panel_is_empty_whatever_the_corpus() -> None:
    names = {**STEP, **MINE, **CHECKPOINT} | {
        name.format(split="validation", ranking=ranking, size=8): text
        for name, text in EVAL.items()
        for ranking in ("embedding", "rerank")
    }
    always = {name for name, text in names.items() if not re.search("only:|only if", text)}
    assert "eval/validation/embedding/map@100" in names.keys() - always
    recorded = {*always, HARDNESS, CLOSEST, examples("validation")}
    contents = [content for section in SECTIONS.values() for content in section]
    shown = [content.metrics if isinstance(content, Curves) else [content.name] for content in contents]
    assert [metrics for metrics in shown if not recorded & set(metrics)] == []


def test_axes_and_scales() -> None:
    axes: dict[str, set[str]] = {}
    for plot in plots(specification()):
        for metric in plot["metrics"]:
            axes.setdefault(metric.split("/")[0], set()).add(plot["xAxis"])
    assert axes == {"train": {"step"}, "checkpoint": {"step"}, "mine": {"epoch"}, "eval": {"epoch"}}
    assert [plot["metrics"] for plot in plots(specification()) if plot.get("yLogScale")] == [
        ["train/grad_norm", "train/grad_norm_clipped"],
        ["train/loss_scale"],
    ]


def test_the_tables_have_panels() -> None:
    tables = [json.dumps(panel) for panel in panels(specification()) if panel["viewType"] == "Weave"]
    assert [name for name in (CLOSEST, examples("validation")) for table in tables if f'"{name}"' in table] == [
        CLOSEST,
        examples("validation"),
    ]


def test_the_file_is_the_same_each_time_and_touches_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("subprocess.Popen.__init__", refuse)  # W&B talks through a process of its own
    for name in ("first", "second"):
        dashboard.main(["--out", str(tmp_path / name)])
    first = (tmp_path / "first").read_text()
    assert first == (tmp_path / "second").read_text()
    assert json.loads(first) == specification()
    with pytest.raises(ConfigError, match=r"no-such/file cannot be written: No such file or directory"):
        dashboard.main(["--out", str(tmp_path / "no-such" / "file")])


def test_saving_without_a_login_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wandb.login", lambda **_: False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    with pytest.raises(ConfigError, match=r"^not logged in to W&B: run `wandb login`"):
        dashboard.main(["--entity", "me"])


def test_a_server_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_: object) -> None:
        raise ConnectionError("no route\nto host.")

    monkeypatch.setattr("wandb.login", lambda **_: True)
    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", unreachable)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    with pytest.raises(ConfigError, match="could not be saved in me/mine: no route to host; look at"):
        dashboard.main(["--entity", "me", "--project", "mine"])


@pytest.mark.parametrize("arguments", [[], ["--entity", "me", "--out", "file"]])
def test_one_of_two_goals_is_wanted(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="--entity"):
        dashboard.main(arguments)
