"""Who decides in which precision a run trains: its key, else the DeepSpeed file, else what this machine is good at."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from biencoder.config.schema import Config, TrainConfig
from biencoder.errors import ConfigError
from biencoder.training.engine import precision
from biencoder.training.engine.precision import Precision, fast_precision
from biencoder.training.engine.settings import precision_of, read_settings

SHIPPED = sorted(str(path) for path in Path("ds_configs").glob("*.json"))
OLD_NAMES = """zero0_bf16 zero0_fp32 zero1_auto zero1_bf16 zero1_fp16 zero1_fp32 zero2_bf16 zero2_bf16_offload zero2_fp16
zero2_fp16_offload zero2_fp32 zero3_bf16 zero3_bf16_offload zero3_fp16 zero3_fp32""".split()


def config(file: str, key: Any = "auto") -> Config:
    return Config(deepspeed_config=file, train=TrainConfig(precision=key))


@pytest.mark.parametrize(("bf16_s", "expected"), [(0.5, "bf16"), (0.95, "fp32"), (100.0, "fp32")])
def test_a_cpu_trains_in_bf16_only_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, bf16_s: float, expected: str
) -> None:
    monkeypatch.setattr(precision, "_product_seconds", lambda dtype: bf16_s if dtype == torch.bfloat16 else 1.0)
    assert fast_precision(torch.device("cpu")) == expected


def test_nothing_is_measured_where_fp32_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "fast_precision", lambda _: "bf16")
    found = {wanted: precision.precision_of_auto(wanted, torch.device("cpu")) for wanted in ("auto", "bf16", "fp32")}
    assert found == {"auto": "bf16", "bf16": "bf16", "fp32": "fp32"}


def test_products_of_both_kinds_are_timed() -> None:
    assert all(precision._product_seconds(dtype) > 0 for dtype in (torch.float32, torch.bfloat16))


@pytest.mark.parametrize("file", SHIPPED)
def test_a_shipped_file_takes_the_key_s_precision_and_auto_the_fastest(file: str) -> None:
    assert len(SHIPPED) == 6
    for key, fastest, expected in (("bf16", "fp32", "bf16"), ("fp32", "bf16", "fp32"), ("auto", "bf16", "bf16")):
        settings = read_settings(config(file, key), 1, fastest=fastest)  # type: ignore[arg-type]
        assert precision_of(settings) == expected
        assert [settings[name]["enabled"] for name in ("bf16", "fp16")] == [expected == "bf16", False]


@pytest.mark.parametrize(
    ("content", "key", "fastest", "expected"),
    [
        ({}, "auto", "bf16", "bf16"),
        ({}, "bf16", "fp32", "bf16"),
        ({"bf16": {"enabled": True}}, "auto", "fp32", "bf16"),
        ({"bf16": {"enabled": True}}, "bf16", "fp32", "bf16"),
        ({"bf16": {"enabled": False}}, "auto", "bf16", "fp32"),
        ({"bf16": {"enabled": False}}, "fp32", "bf16", "fp32"),
    ],
)
def test_a_file_of_one_s_own_may_name_the_precision(
    tmp_path: Path, content: dict[str, Any], key: Precision, fastest: Precision, expected: str
) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps(content))
    assert precision_of(read_settings(config(str(file), key), 1, fastest=fastest)) == expected


@pytest.mark.parametrize(
    ("content", "key", "sentence"),
    [
        ({"bf16": {"enabled": True}}, "fp32", "enables bf16, but train.precision is fp32; set train.precision = bf16, or"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "auto", "enables both bf16 and fp16"),
        ({"bf16": {"enabled": False}}, "bf16", "forbids bf16, but train.precision is bf16"),
        ({"fp16": True}, "auto", "must hold a JSON object, and zero_optimization, bf16 and fp16 in it as well"),
        ([], "auto", "must hold a JSON object"),
    ],
)
def test_a_file_that_contradicts_the_key_is_refused(tmp_path: Path, content: Any, key: Precision, sentence: str) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=sentence):
        read_settings(config(str(file), key), 1)


@pytest.mark.parametrize("name", OLD_NAMES)
def test_the_names_of_before_say_what_to_set_now(name: str) -> None:
    stage, key, *offload = name.split("_")
    new = "_".join([stage, *offload])
    with pytest.raises(ConfigError, match=rf"set deepspeed_config = ds_configs/{new}\.json and train\.precision = {key}$"):
        read_settings(config(f"ds_configs/{name}.json"), 1)
    assert f"ds_configs/{new}.json" in SHIPPED


def test_another_file_that_is_missing_is_only_missing() -> None:
    with pytest.raises(ConfigError, match=r"ds_configs/zero7_fp16\.json cannot be read: No such file"):
        read_settings(config("ds_configs/zero7_fp16.json"), 1)
