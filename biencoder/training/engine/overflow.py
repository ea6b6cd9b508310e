"""Whether gradients are finite, asked of all of them at once.

DeepSpeed asks each gradient of ZeRO 1 and 2 by itself, with several kernels for each: on a GPU these are more
than a backward pass starts.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch


def ask_together(optimizer: Any) -> None:
    """Replace the test of a ZeRO optimizer of stage 1 or 2 by one of the same answer. Others are left as they are."""
    if isinstance(getattr(optimizer, "averaged_gradients", None), dict) and hasattr(optimizer, "bit16_groups"):

        def any_is_not_finite() -> torch.Tensor:
            parts = [part for group in optimizer.averaged_gradients.values() for part in group or []]
            return is_not_finite([part for part in parts if part is not None], optimizer.device)

        optimizer.has_overflow_partitioned_grads_serial = any_is_not_finite


def is_not_finite(gradients: Sequence[torch.Tensor], device: torch.device | str) -> torch.Tensor:
    """Whether any value is inf or NaN, (1,) on the device.

    It follows from the largest magnitudes, which are exact in any precision; a sum of squares could overflow in fp16.
    """
    filled = [part for part in gradients if part.numel()]
    if not filled:
        return torch.zeros(1, dtype=torch.bool, device=device)
    largest_N = torch.stack(torch._foreach_norm(filled, math.inf))
    return ~torch.isfinite(largest_N).all().reshape(1)
