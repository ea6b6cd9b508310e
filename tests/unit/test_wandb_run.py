"""Weights & Biases without its server: runs are offline ones, under one id, whatever the server does."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from biencoder.config.schema import TrackingConfig
from biencoder.tracking import wandb_run
from biencoder.tracking.wandb_log import key_of, read_wandb_contents
from biencoder.tracking.wandb_run import WandbRun, start_wandb
from tests.wandb_file import history, wandb_records

KEY = "0123456789" * 4
NOWHERE = "http://127.0.0.1:9"  # where nothing listens
LIMIT_S = 30.0


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the logins of the person who tests nor the mode that other tests want."""
    import wandb

    wandb.teardown()  # what an earlier test's environment was read into
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))


@contextmanager
def server(status: int, *, delay_s: float = 0.0) -> Iterator[str]:
    """The address of a server that answers everything in this way."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            stop.wait(delay_s)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"errors": [{"message": "no"}]}')

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    stop, web = threading.Event(), ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{web.server_port}"
    finally:
        stop.set()
        web.shutdown()
        web.server_close()


def a_step(step: int, loss: float = 0.5) -> dict[str, Any]:
    return {"kind": "step", "step": step, "epoch": 0, "train/loss": loss}


def offline(run_dir: Path, **settings: Any) -> WandbRun:
    run = start_wandb(TrackingConfig(wandb="offline"), run_dir, settings, {})
    assert run is not None
    return run


def give_key(how: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    match how:
        case "environment":
            monkeypatch.setenv("WANDB_API_KEY", KEY)
        case "netrc":
            (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9\n  login user\n  password {KEY}\n")
            (tmp_path / "netrc").chmod(0o600)
        case "settings":
            (tmp_path / "settings").mkdir()
            (tmp_path / "settings" / "settings").write_text(f"[default]\napi_key = {KEY}\n")
        case "damaged":
            monkeypatch.setenv("WANDB_API_KEY", "short")


def finish(run: WandbRun, run_dir: Path) -> None:
    """End the run, and wait until the process of W&B has written its log to the end; the next one has another second."""
    run.finish()
    deadline = time.monotonic() + 30
    while [record.WhichOneof("record_type") for record in wandb_records(run_dir)][-1:] != ["exit"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)  # folders of W&B are named by the second


@pytest.mark.slow
def test_starts_of_one_run_give_each_record_once(tmp_path: Path) -> None:
    """The second start repeats steps, the third fills in what was lost, the fourth trains otherwise from step 2 on."""
    table = {"kind": "table", "step": 2, "epoch": 0, "name": "mine/closest", "columns": ["text"], "rows": [["a [b]"]]}
    bars = {"kind": "histogram", "step": 2, "epoch": 0, "name": "mine/hardness", "edges": [0.0, 1.0], "counts": [3]}
    alert = {"kind": "event", "event": "alert", "step": 2, "epoch": 0, "guard": "loss", "detail": "it rises", "advice": "x"}
    event = {"kind": "event", "event": "resumed", "step": 2, "epoch": 0, "detail": "on 1 ranks"}
    first = [a_step(1), a_step(2), table, bars, alert, event]
    lost = [a_step(3)]

    run = offline(tmp_path, lr=1)
    run.follow([])
    for line in first:
        run.give(line)
    finish(run, tmp_path)
    run = offline(tmp_path, lr=1)
    run.follow([*first[:1]])
    for line in first[1:]:
        run.give(line)
    finish(run, tmp_path)
    run = offline(tmp_path, lr=1)
    run.follow([*first, *lost])
    finish(run, tmp_path)

    def steps() -> list[int]:
        return [line["step"] for line in history(tmp_path) if "train/loss" in line]

    assert steps() == [1, 2, 3]
    assert sum(any(name.startswith("mine/closest") for name in line) for line in history(tmp_path)) == 1
    assert sum(any(name.startswith("mine/hardness") for name in line) for line in history(tmp_path)) == 1
    assert [r.alert.title for r in wandb_records(tmp_path) if r.WhichOneof("record_type") == "alert"] == ["loss"]
    run_id = (tmp_path / "wandb-id").read_text()
    assert read_wandb_contents(tmp_path, run_id).records == {key_of(line) for line in [*first, *lost]} - {None}

    run = offline(tmp_path, lr=1)
    run.follow([*first, *lost])
    run.repeat()
    run.give(a_step(2, loss=0.1))
    finish(run, tmp_path)
    assert [line["train/loss"] for line in history(tmp_path) if line.get("step") == 2 and "train/loss" in line] == [
        0.5,
        0.1,
    ]

    run = offline(tmp_path, lr=2)  # nothing to go on from, and other settings: these are other numbers
    run.follow([])
    run.give(a_step(1, loss=0.2))
    finish(run, tmp_path)
    assert [line["train/loss"] for line in history(tmp_path) if line["step"] == 1] == [0.5, 0.2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "status", "delay_s"),
    [
        ("environment", None, 0),
        ("netrc", None, 0),
        ("settings", None, 0),
        ("damaged", None, 0),
        ("environment", 401, 0),
        ("environment", 500, 0),
        ("environment", 200, 0),  # an answer that makes no sense
        ("environment", 200, 60),  # none at all
    ],
)
def test_a_server_that_fails_makes_the_run_an_offline_one_with_one_line(
    how: str,
    status: int | None,
    delay_s: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with server(status or 200, delay_s=delay_s) as url:
        give_key(how, url if status else NOWHERE, tmp_path, monkeypatch)
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("W&B asked"))
        if (how, status) != ("environment", None):  # one waits as long as a run does
            monkeypatch.setattr(wandb_run, "_INIT_TIMEOUT_S", 2)
        start = time.monotonic()
        run = start_wandb(TrackingConfig(), tmp_path, {"train.lr": 1e-5}, {})
        assert time.monotonic() - start < LIMIT_S
        assert run is not None
        run.give(a_step(1))
        run.finish()
    said = capfd.readouterr().err
    assert said.startswith("warning: Weights & Biases failed (")
    assert said.endswith("the run is an offline one, for `wandb sync`\n")
    assert said.count("\n") == 1
    assert KEY not in said
    assert [(line["step"], line["train/loss"]) for line in history(tmp_path)] == [(1, 0.5)]


@pytest.mark.slow
def test_online_without_a_login_is_offline_and_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("W&B asked"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    run = start_wandb(TrackingConfig(wandb="online"), tmp_path, {}, {})
    assert run is not None
    run.finish()
    assert capfd.readouterr().err == (
        "warning: there is no login to Weights & Biases: the run is an offline one, for `wandb sync`\n"
    )


def test_where_its_logs_were_deleted_the_run_holds_what_was_recorded(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(a_step(step)) + "\n" for step in (1, 2)) + '{"torn')
    assert read_wandb_contents(tmp_path, "an-id").records == {("train/loss", 1), ("train/loss", 2)}


@pytest.mark.parametrize("damaged", [b"", b"\n", b"a/b", b"\xff\xfe\x00", b"x" * 200, b"two\nlines"])
def test_a_damaged_id_is_replaced_and_said(damaged: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wandb-id").write_bytes(damaged)
    made = wandb_run._run_id(tmp_path)
    assert len(made) == 8
    assert (tmp_path / "wandb-id").read_text() == made == wandb_run._run_id(tmp_path)
    assert capfd.readouterr().err.count("holds no run id of Weights & Biases; a new run begins") == 1
