"""Which precision a machine is good at, measured rather than looked up in a list of processors."""

import time
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
_SLOW_S = 0.1
_WORTH_IT = 1.2
"""How many times faster bf16 products must be on a CPU: rounding and conversions around them cost something."""


def precision_of_auto(wanted: str, device: torch.device) -> Precision:
    """What train.precision = auto means on this device; not measured where fp32 is wanted, which every device computes."""
    return "fp32" if wanted == "fp32" else fast_precision(device)


def fast_precision(device: torch.device) -> Precision:
    """What to train in on this device: bf16 where it is fast, else fp16 (GPUs before Ampere) or fp32 (CPUs)."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if _product_seconds(torch.float32) > _WORTH_IT * _product_seconds(torch.bfloat16) else "fp32"


def _product_seconds(dtype: torch.dtype) -> float:
    """Of a matrix product as in a small encoder: 0.3 s where bf16 is emulated, milliseconds elsewhere."""
    texts, weights = torch.ones(512, 384, dtype=dtype), torch.ones(384, 768, dtype=dtype)
    texts[:8] @ weights  # the first call sets up
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < _SLOW_S:
        start = time.perf_counter()
        texts @ weights
        seconds.append(time.perf_counter() - start)
    return min(seconds)
