"""DeepSpeed files and precisions that are tested: `zero2_offload bf16` is ds_configs/zero2_offload.json in bf16."""

from biencoder.config import Config

MODES = """zero0 fp32, zero0 bf16, zero1 fp32, zero1 bf16, zero1 fp16, zero2 fp32, zero2 bf16, zero2 fp16,
zero2_offload bf16, zero2_offload fp16, zero3 fp32, zero3 bf16, zero3 fp16, zero3_offload bf16""".replace("\n", " ").split(
    ", "
)


def settings_of(mode: str) -> tuple[str, str]:
    """Values of deepspeed_config and train.precision."""
    file, precision = mode.split()
    return (file if file.endswith(".json") else f"ds_configs/{file}.json"), precision


def in_mode(config: Config, mode: str) -> Config:
    """The configuration with the mode's DeepSpeed file and precision."""
    import dataclasses

    file, precision = settings_of(mode)
    return dataclasses.replace(config, deepspeed_config=file, train=dataclasses.replace(config.train, precision=precision))
