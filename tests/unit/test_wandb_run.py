"""Weights & Biases without its server: runs are offline ones, under one id."""

import time
from pathlib import Path

import pytest

from biencoder.config import TrackingConfig
from biencoder.tracking import wandb_run
from tests.e2e.wandb_file import history, wandb_records


def test_a_server_that_cannot_be_reached_makes_the_run_an_offline_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "MODE": "online",
        "API_KEY": "0123456789" * 4,
        "BASE_URL": "http://127.0.0.1:9",  # where nothing listens
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setattr(wandb_run, "_INIT_TIMEOUT_S", 2)
    for step in (1, 2):  # a first start, and one that goes on
        start = time.monotonic()
        run = wandb_run.start_wandb(TrackingConfig(), tmp_path, {"train.lr": 1e-5})
        assert run is not None
        run.log({"train/loss": 0.5}, step=step, epoch=0)
        run.finish()
        assert time.monotonic() - start < 30
        time.sleep(1)  # folders of W&B are named by the second
    assert [(line["step"], line["train/loss"]) for line in history(tmp_path)] == [(1, 0.5), (2, 0.5)]
    ids = {record.run.run_id for record in wandb_records(tmp_path) if record.WhichOneof("record_type") == "run"}
    assert ids == {(tmp_path / "wandb-id").read_text()}
