"""The norm of the gradients, and whether they are finite, in the few passes over memory that this takes.

DeepSpeed's ZeRO 1 and 2 ask each gradient by itself whether it is finite, with several kernels for each: on a GPU these are
more than a backward pass starts. For the norm they copy it to float64, which on a CPU takes longer than blocks do.

    measure_together(optimizer)      # once, before the first step

B: numbers in a block.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

_BLOCK = 2**17
"""Numbers that are turned into fp32 at once: what is left of a core's cache would not hold more."""


def measure_together(optimizer: Any) -> None:
    """Replace the measures of a ZeRO optimizer of stage 1 or 2 by ones of the same results. Others are left as they are."""
    if not (isinstance(getattr(optimizer, "averaged_gradients", None), dict) and hasattr(optimizer, "bit16_groups")):
        return

    def any_is_not_finite() -> torch.Tensor:
        parts = [part for group in optimizer.averaged_gradients.values() for part in group or []]
        return is_not_finite([part for part in parts if part is not None], optimizer.device)

    norm_over_ranks = optimizer.get_grad_norm_direct

    def norm(gradients: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        own = [part for part in gradients if not getattr(part, "_zero_padding", False)]
        # To DeepSpeed, which goes on to the other ranks, a rank's norm is a gradient of one number.
        total: torch.Tensor = norm_over_ranks([norm_in_blocks(own)] if own else [], parameters)
        return total

    optimizer.has_overflow_partitioned_grads_serial = any_is_not_finite
    if torch.device(optimizer.device).type == "cpu":
        optimizer.get_grad_norm_direct = norm


def is_not_finite(gradients: Sequence[torch.Tensor], device: torch.device | str) -> torch.Tensor:
    """Whether any value is inf or NaN, (1,) on the device.

    It follows from the extremes, which are exact in any precision; a sum of squares could overflow in fp16.
    """
    filled = [part for part in gradients if part.numel()]
    if not filled:
        return torch.zeros(1, dtype=torch.bool, device=device)
    extremes_N = (extremes if filled[0].device.type == "cpu" else largest_magnitudes)(filled)
    return ~torch.isfinite(extremes_N).all().reshape(1)


def extremes(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The lowest and the highest value of each part, NaN where it has one: on CPUs in a twentieth of the other's time."""
    return torch.stack([extreme for part in parts for extreme in torch.aminmax(part)])


def largest_magnitudes(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of each part, NaN where it has one: on GPUs by few kernels for all."""
    return torch.stack(torch._foreach_norm(list(parts), math.inf))


def norm_in_blocks(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """L2 norm of all gradients as one vector, (1,) in float64; squares are summed in fp32 within a block."""
    upper_B, total = torch.empty(_BLOCK, dtype=torch.float32), torch.zeros(1, dtype=torch.float64)
    for gradient in gradients:
        for block_B in torch.split(gradient.detach().reshape(-1), _BLOCK):
            wide_B = block_B if block_B.dtype == torch.float32 else upper_B[: len(block_B)].copy_(block_B)
            total += torch.dot(wide_B, wide_B)
    return total.sqrt()
