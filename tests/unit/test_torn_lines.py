"""A process that was killed while it wrote leaves half a line: readers pass over it, the next start cuts it off."""

import json
import os
from pathlib import Path

import pytest

from biencoder.config.schema import Config, TrackingConfig
from biencoder.data import Dataset
from biencoder.data.records import Findings
from biencoder.data.texts import Pile
from biencoder.tracking.record import read_record
from biencoder.tracking.tracker import Tracker, open_tracker
from biencoder.training.recovery import run_folder
from biencoder.training.recovery.out_of_memory import record_bound, within_bound
from biencoder.training.recovery.run_folder import read_lines, record_start, record_stop

EMPTY = Dataset(texts=Pile().distinct()[0], splits={}, findings=Findings(), fingerprint="f" * 64)


def tracker(folder: Path) -> Tracker:
    config = Config(tracking=TrackingConfig(report=False, wandb="disabled"))
    return open_tracker(config, folder, {}, precision="fp32", show=lambda alert, step: None, is_main=True)


def steps(content: bytes) -> list[int]:
    return [json.loads(line)["step"] for line in content.splitlines()]


def test_metrics_cut_at_any_byte_of_their_last_two_lines_are_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tracker(tmp_path)
    for step in range(4):
        first.event("so", step=step, epoch=0, detail="it goes")
    position = first.position()
    first.close()
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert position == len(whole)
    for size in range(len(whole) - len(lines[-1]) - len(lines[-2]), len(whole) + 1):
        file.write_bytes(whole[:size])
        again = tracker(tmp_path)
        again.rewind(position)
        again.event("so", step=9, epoch=0, detail="it goes on")
        again.close()
        left = whole[: whole.rfind(b"\n", 0, size) + 1]
        assert file.read_bytes().startswith(left)
        assert steps(file.read_bytes()) == [*steps(left), 9], size
        warned = capsys.readouterr().err
        assert ("was not whole" in warned) == (size > len(left))
        assert ("is lost" in warned) == (size < len(whole))


def test_what_waits_in_memory_before_a_checkpoint_is_not_forgotten_by_going_back_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tracker(tmp_path)
    real_write = os.write
    file = record._file  # type: ignore[attr-defined]

    class Full:
        """The file on a disk without room."""

        def __getattr__(self, name: str) -> object:
            return getattr(file, name)

        def write(self, content: bytes) -> int:
            return real_write(file.fileno(), content[:5])

    monkeypatch.setattr(record, "_file", Full())
    record.event("so", step=1, epoch=0, detail="it waits")
    position = record.position()
    record.event("so", step=2, epoch=0, detail="it will happen again")
    monkeypatch.setattr(record, "_file", file)
    record.rewind(position)
    record.close()
    assert steps((tmp_path / "metrics.jsonl").read_bytes()) == [1]


def test_starts_cut_at_any_byte_of_their_last_two_lines_are_followed_by_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config()
    monkeypatch.setattr(run_folder, "_commit", lambda: None)  # takes a process

    def start() -> None:
        record_start(tmp_path, config, EMPTY, precision="fp32", world_size=1, from_step=0)

    start()
    record_bound(tmp_path, config, world_size=1)
    record_stop(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    file = tmp_path / "run.jsonl"
    whole = file.read_bytes()
    first = whole.splitlines(keepends=True)[0]
    for size in range(len(first), len(whole) + 1):
        file.write_bytes(whole[:size])
        num_left = whole[:size].count(b"\n")
        assert len(read_lines(tmp_path)) == len(read_record(tmp_path).starts) == num_left
        bounded = within_bound(tmp_path, config, world_size=1).train.micro_batch_size == 4
        assert bounded == (num_left > 1)
        start()
        assert len([json.loads(line) for line in file.read_bytes().splitlines()]) == num_left + 1
        assert ("was not whole" in capsys.readouterr().err) == (not whole[:size].endswith(b"\n"))


def test_a_line_that_is_no_json_stops_no_restart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As two runs in one folder, or a file server, may leave it."""
    (tmp_path / "run.jsonl").write_bytes(b'{"from_step": 0}\n{"fr\xff\0\0\n{"from_step": 5}\n')
    assert [line["from_step"] for line in read_lines(tmp_path)] == [0, 5]
    assert "line 2 of" in capsys.readouterr().err


def test_a_full_disk_does_not_change_how_a_run_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.jsonl").mkdir()  # whatever it is that cannot be written
    record_stop(tmp_path)
    record_bound(tmp_path, Config(), world_size=1)
    assert capsys.readouterr().err.count("cannot be written") == 2
