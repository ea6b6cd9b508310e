"""The precision in which a trained model computes, which its user names or the machine decides."""

from typing import Literal, get_args

import torch

from biencoder.errors import ConfigError

AskedPrecision = Literal["auto", "fp32", "bf16"]
PRECISIONS: tuple[AskedPrecision, ...] = get_args(AskedPrecision)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def inference_dtype(asked: AskedPrecision, device: torch.device) -> torch.dtype:
    """What a trained model's weights are held in.

    auto: bf16 on GPUs from Ampere on and on CPUs with AMX or AVX512-BF16, else fp32.

    The rule measures nothing: two calls on one machine compute alike, however busy it is.

    Raises:
        ConfigError: there is no such precision.
    """
    if asked not in PRECISIONS:
        raise ConfigError(f"the precision is {asked!r}, expected one of {', '.join(PRECISIONS)}")
    if asked != "auto":
        return _DTYPES[asked]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    return torch.bfloat16 if cpu_knows_bf16() else torch.float32


def cpu_knows_bf16() -> bool:
    """Whether this CPU multiplies in bf16 by instructions of its own: AMX or AVX512-BF16."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def precision_name(dtype: torch.dtype) -> str:
    """fp32 or bf16."""
    return next(name for name, known in _DTYPES.items() if known == dtype)
