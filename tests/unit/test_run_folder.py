"""Starts are written down; a machine that starts a run again and again in vain is told to stop."""

import dataclasses
import json
from pathlib import Path

import pytest

from biencoder.config.load import load_config
from biencoder.config.schema import Config, RunConfig, TrainConfig
from biencoder.data import Dataset
from biencoder.data.records import Findings
from biencoder.data.texts import Pile
from biencoder.errors import ConfigError
from biencoder.tracking.record import read_record
from biencoder.tracking.report.summary import data_check
from biencoder.training.preflight.machine import diagnose
from biencoder.training.recovery.run_folder import finished_at, record_end, record_start, record_stop, run_folder

EMPTY = Dataset(texts=Pile().distinct()[0], splits={}, findings=Findings(), fingerprint="f" * 64)


def start(folder: Path, from_step: int) -> None:
    record_start(folder, Config(), EMPTY, precision="fp32", world_size=1, from_step=from_step)


def test_a_fourth_automatic_start_from_one_step_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for step in (0, 40, 40, 40):
        start(tmp_path, step)
        record_stop(tmp_path)  # torchrun asks rank 0 to stop when another rank has died
    with pytest.raises(ConfigError, match=r"3 starts from step 40 of .* have ended before the next checkpoint"):
        start(tmp_path, 40)
    start(tmp_path, 60)  # it got on


def test_starts_by_hand_and_starts_after_a_stop_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        start(tmp_path, 0)  # by hand
    record_stop(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    for _ in range(3):
        start(tmp_path, 0)
    with pytest.raises(ConfigError, match="8 starts from step 0"):
        start(tmp_path, 0)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line.get("from_step") for line in lines] == [0] * 5 + [None] + [0] * 3


def test_starts_that_are_stopped_before_they_get_on_end_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for _ in range(10):
        start(tmp_path, 5)
        record_stop(tmp_path)
    with pytest.raises(ConfigError, match="10 starts from step 5"):
        start(tmp_path, 5)


def test_a_finished_run_without_checkpoints_is_not_overwritten(tmp_path: Path) -> None:
    config = dataclasses.replace(Config(), run=RunConfig(dir=str(tmp_path)))
    assert run_folder(config) == tmp_path
    (tmp_path / "metrics.jsonl").touch()
    assert run_folder(config) == tmp_path  # killed before its first checkpoint: it begins anew
    (tmp_path / "model/last").mkdir(parents=True)
    with pytest.raises(ConfigError, match="finished run without checkpoints"):
        run_folder(config)


def test_default_folders_of_simultaneous_starts_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    names = set()
    for host, pid in (("a", 1), ("a", 2), ("b", 1)):
        monkeypatch.setattr("platform.node", lambda host=host: host)
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        names.add(run_folder(Config()).name[len("20260101-000000") :])
    assert names == {"-a-1", "-a-2", "-b-1"}
    for task in ("0", "1"):
        for name, value in {"JOB_ID": "77", "ARRAY_JOB_ID": "70", "ARRAY_TASK_ID": task}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        assert f"-slurm-70_{task}-" in run_folder(Config()).name


def test_the_default_folder_is_the_same_after_a_restart_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    first = run_folder(Config())
    monkeypatch.setattr("os.getpid", lambda: 1)
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert run_folder(Config()) == first


def test_the_settings_are_those_of_the_last_start(tmp_path: Path) -> None:
    for max_steps, from_step in ((10, 0), (20, 10)):
        config = dataclasses.replace(Config(), train=TrainConfig(max_steps=max_steps))
        record_start(tmp_path, config, EMPTY, precision="fp32", world_size=1, from_step=from_step)
        assert load_config(file=tmp_path / "config.toml") == config


def test_a_run_has_finished_until_it_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    start(tmp_path, 0)
    (tmp_path / "model/last").mkdir(parents=True)
    assert (finished_at(tmp_path), read_record(tmp_path).state) == (None, "unfinished")
    record_end(tmp_path, step=10)
    assert (finished_at(tmp_path), read_record(tmp_path).state) == (10, "finished")
    start(tmp_path, 10)  # prolonged: the model is that of the shorter run
    assert (finished_at(tmp_path), read_record(tmp_path).state) == (None, "unfinished")
    record_stop(tmp_path)
    record = read_record(tmp_path)
    assert record.state == "stopped"
    assert diagnose(record).events == ["2 starts, 1 of them asked to stop"]
    assert data_check(record).rows == [["distinct texts", "0"]]


def test_a_folder_that_cannot_be_trained_in_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "model" / "last").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds a finished run without checkpoints; choose another folder"):
        run_folder(Config(run=RunConfig(dir=str(tmp_path))))
    (tmp_path / "a-file").touch()
    with pytest.raises(ConfigError, match=r"run\.dir .*a-file.* cannot be written: (Not a directory|File exists)"):
        start(tmp_path / "a-file", 0)
