"""The precision that a DeepSpeed file leaves open is the one this machine is good at."""

import pytest
import torch

from biencoder.config import Config
from biencoder.training.engine import precision
from biencoder.training.engine.engine import precision_of, read_settings
from biencoder.training.engine.precision import fast_precision

AUTO = Config(deepspeed_config="ds_configs/zero1_auto.json")


@pytest.mark.parametrize(("bf16_s", "expected"), [(0.5, "bf16"), (0.95, "fp32"), (100.0, "fp32")])
def test_a_cpu_trains_in_bf16_only_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, bf16_s: float, expected: str
) -> None:
    monkeypatch.setattr(precision, "_product_seconds", lambda dtype: bf16_s if dtype == torch.bfloat16 else 1.0)
    assert fast_precision(torch.device("cpu")) == expected


def test_products_of_both_kinds_are_timed() -> None:
    assert all(precision._product_seconds(dtype) > 0 for dtype in (torch.float32, torch.bfloat16))


def test_auto_becomes_what_the_machine_is_good_at() -> None:
    assert precision_of(read_settings(AUTO, 1, auto="bf16")) == "bf16"
    settings = read_settings(AUTO, 1, auto="fp32")
    assert precision_of(settings) == "fp32"
    assert settings["bf16"]["enabled"] is settings["fp16"]["enabled"] is False


def test_a_precision_that_is_asked_for_stays() -> None:
    settings = read_settings(Config(deepspeed_config="ds_configs/zero1_bf16.json"), 1, auto="fp32")
    assert precision_of(settings) == "bf16"
