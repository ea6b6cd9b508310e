"""Which settings a resume may change: each key says so itself, and here every one of them is changed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biencoder.config.keys import describe
from biencoder.config.load import load_config
from biencoder.config.schema import Config
from biencoder.distributed.world import World
from biencoder.errors import ConfigError
from biencoder.tracking.names import LOSS_PARTS
from biencoder.training.recovery.checkpoint import Checkpoint, CheckpointFolder
from biencoder.training.recovery.resume import find_checkpoint
from biencoder.training.window import Window

FREE = """data.root data.columns data.corpus run.dir run.resume mining.placement mining.memory_gib train.micro_batch_size
train.log_every train.max_skipped train.max_rollbacks checkpoint.every_steps checkpoint.every_minutes checkpoint.keep
checkpoint.placement tracking.wandb tracking.project tracking.guards tracking.report distributed.timeout_s
distributed.control_timeout_s distributed.silence_s train.precision train.packing deepspeed_config""".split()
LENGTH = ["train.epochs", "train.max_steps"]
DESCRIBED = describe()


def other_value(key: str, value: Any) -> str:
    """A valid value of this key that is not `value`."""
    choices = DESCRIBED[key][1]
    if isinstance(value, bool):
        return str(not value).lower()
    if choices.startswith("one of "):
        return next(choice for choice in choices.removeprefix("one of ").split(", ") if choice != value)
    if isinstance(value, str):
        return "8" if "numbers" in choices else value + "other"
    for candidate in (2 * value, value + 1, value + 0.5, value / 2):
        try:
            load_config(overrides={key: f"{candidate:g}"})
        except ConfigError:
            continue
        if candidate != value:
            return f"{candidate:g}"
    raise AssertionError(key)


def run_with(folder: Path, overrides: dict[str, str], /, **facts: Any) -> tuple[CheckpointFolder, Config]:
    """A folder with one checkpoint of a run with these settings."""
    config, checkpoints = load_config(overrides=overrides), CheckpointFolder(folder, keep=2)
    state = {"format": 2, "settings": config.flat(), "fingerprint": "f" * 64, "precision": "fp32"} | facts
    checkpoints.write(Checkpoint(8, state, {"window": torch.zeros(1)}), also_keep=-1)
    checkpoints.wait()
    return checkpoints, config


def resumed(checkpoints: CheckpointFolder, config: Config, **facts: str) -> int | None:
    found = find_checkpoint(checkpoints, config, {"fingerprint": "f" * 64, "precision": "fp32"} | facts)
    return found.step if found else None


def refusal(checkpoints: CheckpointFolder, config: Config) -> str:
    with pytest.raises(ConfigError) as refused:
        resumed(checkpoints, config)
    return str(refused.value)


def test_each_key_may_differ_or_is_refused_with_its_old_and_new_value(tmp_path: Path) -> None:
    checkpoints, before = run_with(tmp_path, {})
    assert {*FREE, *LENGTH} < set(before.flat())
    for key, value in before.flat().items():
        other = load_config(overrides={key: other_value(key, value)})
        assert other != before, key
        if key in (*FREE, *LENGTH):
            assert resumed(checkpoints, other) == 8, key
        else:
            told = refusal(checkpoints, other)
            assert (f"{key} was {value!r} and is {other.flat()[key]!r}" in told, told.count(" was ")) == (True, 1), told


def test_a_key_that_the_run_s_version_did_not_know_had_its_default(tmp_path: Path) -> None:
    known = {key: value for key, value in load_config().flat().items() if key != "mining.every_epochs"}
    checkpoints, _ = run_with(tmp_path, {}, settings=known)
    assert resumed(checkpoints, load_config()) == 8
    told = refusal(checkpoints, load_config(overrides={"mining.every_epochs": "3"}))
    assert "mining.every_epochs was 1 and is 3" in told


@pytest.mark.parametrize("rule", [{"train.schedule": "linear"}, {"train.warmup_ratio": "0.1"}], ids=str)
def test_a_run_whose_learning_rates_depend_on_its_end_keeps_its_length(tmp_path: Path, rule: dict[str, str]) -> None:
    checkpoints, before = run_with(tmp_path, rule)
    for key in LENGTH:
        other = load_config(overrides=rule | {key: other_value(key, before.flat()[key])})
        assert f"{key} was {before.flat()[key]} and is {other.flat()[key]}, which train.schedule" in refusal(
            checkpoints, other
        )


def test_another_corpus_or_precision_is_refused_with_old_and_new(tmp_path: Path) -> None:
    checkpoints, config = run_with(tmp_path, {})
    with pytest.raises(ConfigError, match=f"the corpus's fingerprint was {'f' * 64} and is {'0' * 64}"):
        resumed(checkpoints, config, fingerprint="0" * 64)
    with pytest.raises(ConfigError, match="the precision was fp32 and is bf16"):
        resumed(checkpoints, config, precision="bf16")


def test_other_pretrained_weights_are_refused_where_a_share_of_them_counts(tmp_path: Path) -> None:
    checkpoints, config = run_with(tmp_path, {"train.pretrained_share": "0.3"}, start="abc")
    assert resumed(checkpoints, config, start="abc") == 8
    with pytest.raises(ConfigError, match="the pretrained weights' hash was abc and is def"):
        resumed(checkpoints, config, start="def")


def test_checkpoints_of_another_version_are_refused(tmp_path: Path) -> None:
    checkpoints, config = run_with(tmp_path, {}, format=1)
    assert "written by another version of this program" in refusal(checkpoints, config)


def test_a_checkpoint_from_before_there_were_prompts_is_resumed_without(tmp_path: Path) -> None:
    settings = {key: value for key, value in Config().flat().items() if not key.endswith("_prompt")}
    checkpoints, _ = run_with(tmp_path, {}, settings=settings)
    none = {"model.query_prompt": "", "model.document_prompt": ""}  # what a run has settled once it has read the model
    assert resumed(checkpoints, load_config(overrides=none)) == 8
    said = refusal(checkpoints, load_config(overrides=none | {"model.query_prompt": "query: "}))
    assert "model.query_prompt was '' and is 'query: '" in said


def test_a_window_of_a_version_with_fewer_loss_parts_goes_on_without_the_new_ones() -> None:
    window, old = Window(World.alone()), torch.tensor([[5.0, 1.0, 2.0, 3.0, 2.5, 3.5]])
    window.load_state_dict({"window_steps": 5, "window": old})
    known = dict(zip(LOSS_PARTS, (window.parts_K / 5).tolist(), strict=True))
    assert known["train/loss"] == 1
    assert known["train/active_triplets"] == pytest.approx(0.7)
    assert np.isnan([known["train/wrong_probability"], known["train/mined_probability"]]).all()
    window.load_state_dict(json.loads(json.dumps(window.state_dict())))  # as a checkpoint keeps it
    assert window.parts_K[:6].tolist() == old[0].tolist()
