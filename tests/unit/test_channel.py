"""What stands beside the training fails in every way, and the record is what it would have been."""

import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from biencoder.config.load import load_config
from biencoder.tracking import live_report, tracker
from biencoder.tracking.channel import Channel, protected
from biencoder.tracking.guards import Alert
from biencoder.tracking.live_report import LiveReport
from biencoder.tracking.tracker import Recorder
from biencoder.tracking.wandb_log import WandbContents
from biencoder.tracking.wandb_run import WandbRun


def fails(*_: Any, **__: Any) -> Any:
    raise ConnectionResetError("Connection lost")


class Fake:
    """A W&B run, of which one method fails."""

    id = "an-id"

    def __init__(self, failing: str = "") -> None:
        self.called: list[str] = []
        self._failing = failing

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*_: Any, **__: Any) -> None:
            self.called.append(name)
            if name == self._failing:
                fails()

        return call


class AlertsOnEveryStep:
    def observe(self, line: dict[str, Any]) -> list[Alert]:
        return [Alert("loss", "it rises", "a lower rate")] if line["kind"] == "step" else []


def record(run_dir: Path, run: Any = None, *, guards: Any = None, report: Any = None, show: Any = None) -> list[Any]:
    """A few records of every kind, and what metrics.jsonl then holds, without times."""
    (run_dir / "model").mkdir()
    path = run_dir / "metrics.jsonl"
    path.touch()
    recorder = Recorder(
        open(path, "r+b", buffering=0),  # noqa: SIM115 - closed by the recorder
        WandbRun(run, WandbContents(), {}) if run else None,
        guards or AlertsOnEveryStep,  # type: ignore[arg-type]
        report,
        show or (lambda *_: None),
    )
    recorder.rewind(0)
    for step in (1, 2):
        at = {"step": step, "epoch": 0}
        recorder.log("step", **at, metrics={"train/loss": 0.5})
        recorder.histogram("mine/hardness", **at, edges=[0.0, 1.0], counts=[3])
        recorder.table("mine/closest", **at, columns=["text"], rows=[["a"]])
        recorder.event("negatives", **at, detail="x")
    recorder.rewind(recorder.position())
    recorder.close(run_dir / "model")
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in path.read_text().splitlines()]


@pytest.mark.parametrize("method", ["log", "alert", "log_artifact", "finish"])
def test_a_call_of_wandb_that_fails_is_one_warning(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biencoder.tracking.wandb_run.end_service", lambda: None)
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole, run = Fake(), Fake(method)
    expected = record(tmp_path / "whole", whole)
    assert {"log", "alert", "log_artifact", "finish"} <= set(whole.called)
    assert record(tmp_path / "broken", run) == expected
    assert run.called.count(method) == (2 if method == "finish" else 1)  # it is left with what it holds
    (said,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("wandb:")]
    assert said.startswith("warning: ")
    assert said.endswith("Weights & Biases failed (ConnectionResetError: Connection lost); training goes on without it")


def guards_that_fail() -> Any:
    class Broken:
        observe = fails

    return Broken()


def subprocess_that(exit_code: int) -> Any:
    class Ended:
        pid, returncode = 1, exit_code

        def poll(self) -> int:
            return exit_code

        def wait(self, _: float) -> int:
            return exit_code

    return Ended()


@pytest.mark.parametrize("what", ["guards", "new guards", "show", "report: no process", "report: exit code"])
def test_guards_alerts_and_report_that_fail_are_one_warning(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = None
    if what.startswith("report"):
        report = LiveReport(tmp_path)
        monkeypatch.setattr(live_report, "_EVERY_S", 0.0)
        monkeypatch.setattr("psutil.Process.nice", lambda *_: None)
        made = fails if what == "report: no process" else (lambda *_, **__: subprocess_that(1))
        monkeypatch.setattr(subprocess, "Popen", made)
    lines = record(
        tmp_path,
        guards={"guards": guards_that_fail, "new guards": fails}.get(what),
        report=report,
        show=fails if what == "show" else None,
    )
    without_alerts = [line for line in lines if line.get("event") != "alert"]
    assert [line["kind"] for line in without_alerts] == ["step", "histogram", "table", "event"] * 2
    assert len(lines) - len(without_alerts) == (0 if "guards" in what else 2)
    assert capsys.readouterr().err.count("warning: ") == 1


def test_wandb_that_cannot_be_started_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "start_wandb", fails)
    monkeypatch.setattr(tracker, "end_service", fails)
    config = load_config(overrides={"tracking.report": "false"})
    made = tracker.open_tracker(config, tmp_path, {}, precision="fp32", show=fails, is_main=True)
    made.rewind(0)
    made.close()
    assert capsys.readouterr().err.count("warning: Weights & Biases failed") == 1


def test_a_call_that_never_returns_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    stuck, lost = threading.Event(), []
    channel = Channel("a server", limit_s=0.2, on_loss=lambda: lost.append(1))
    start = time.monotonic()
    for _ in range(3):
        assert channel.run(stuck.wait) is None
    stuck.set()
    assert time.monotonic() - start < 2
    assert lost == [1]
    assert capsys.readouterr().err == (
        "warning: a server failed (TimeoutError: no answer within 0.2 s); training goes on without it\n"
    )


def test_what_is_tried_again_comes_back_and_warns_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Screen:
        width = 80

        def __init__(self) -> None:
            self.seen: list[str] = []

        def draw(self, text: str) -> str:
            if text == "bad":
                raise SystemExit(1)  # as rich does when its pipe is closed
            self.seen.append(text)
            return text

    screen = Screen()
    shown = protected(screen, Channel("the terminal", again=True))
    assert [shown.draw(text) for text in ("one", "bad", "bad", "two")] == ["one", None, None, "two"]
    assert shown.width == 80
    assert screen.seen == ["one", "two"]
    assert capsys.readouterr().err == "warning: the terminal failed (SystemExit: 1); it is tried again later\n"
    monkeypatch.setattr("sys.stderr", None)  # where the warning itself cannot be written
    assert Channel("x").run(fails) is None


def test_a_person_still_interrupts() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    for limit_s in (None, 5.0):
        with pytest.raises(KeyboardInterrupt):
            Channel("x", limit_s=limit_s).run(interrupted)
