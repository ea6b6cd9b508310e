"""DeepSpeed files and precisions that are tested: `zero2_offload bf16` is ds_configs/zero2_offload.json in bf16."""

import dataclasses
from typing import cast

from biencoder.config.schema import Config
from biencoder.training.engine.precision import Precision

MODES = (
    *("zero0 fp32", "zero0 bf16", "zero1 fp32", "zero1 bf16", "zero1 fp16", "zero2 fp32", "zero2 bf16", "zero2 fp16"),
    *("zero2_offload bf16", "zero2_offload fp16", "zero3 fp32", "zero3 bf16", "zero3 fp16", "zero3_offload bf16"),
)

EACH_FILE = ("zero0 fp32", "zero1 fp16", "zero2 bf16", "zero2_offload fp16", "zero3 fp32", "zero3_offload bf16")
"""Every DeepSpeed file and every precision at least once, for what differs little between them."""


def settings_of(mode: str) -> tuple[str, Precision]:
    """Values of deepspeed_config and train.precision; the file may also be a path of its own."""
    file, precision = mode.split()
    return (file if file.endswith(".json") else f"ds_configs/{file}.json"), cast(Precision, precision)


def in_mode(config: Config, mode: str) -> Config:
    """The configuration with the mode's DeepSpeed file and precision."""
    file, precision = settings_of(mode)
    return dataclasses.replace(config, deepspeed_config=file, train=dataclasses.replace(config.train, precision=precision))
