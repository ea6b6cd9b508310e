"""Whether gradients are finite, and their norm: the same answers as gradient by gradient, in any precision."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from biencoder.training.engine.gradient_norms import extremes, is_not_finite, largest_magnitudes, norm_in_blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_asked_together_whether_they_are_finite(dtype: torch.dtype) -> None:
    fine = [torch.full((3, 2), 6e4, dtype=dtype), torch.empty(0, dtype=dtype), torch.zeros(1, dtype=dtype)]
    assert not is_not_finite(fine, "cpu")
    assert not is_not_finite([], "cpu")
    for value in (float("inf"), float("-inf"), float("nan")):
        assert is_not_finite([*fine, torch.tensor([1.0, value], dtype=dtype)], "cpu")
    assert is_not_finite(fine, "cpu").shape == (1,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("figures", [extremes, largest_magnitudes])
def test_a_value_that_is_not_finite_shows_wherever_it_stands(
    figures: Callable[[Sequence[torch.Tensor]], torch.Tensor], dtype: torch.dtype
) -> None:
    for size in (1, 63, 4099):
        part = torch.linspace(-1, 1, size).to(dtype)
        assert torch.isfinite(figures([part, part])).all()
        for place in {0, size // 2, size - 1}:
            for value in (float("inf"), float("-inf"), float("nan")):
                broken = part.clone()
                broken[place] = value
                assert not torch.isfinite(figures([part, broken])).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_of_gradients_is_that_in_float64(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(*shape, generator=generator).to(dtype) for shape in ((400, 700), (3,), (0,), (131_073,))]
    exact = math.sqrt(sum(float(part.double().square().sum()) for part in parts))
    assert norm_in_blocks(parts).item() == pytest.approx(exact, rel=1e-5)
    assert norm_in_blocks([torch.full((1000,), 6e4, dtype=dtype)]).item() == pytest.approx(6e4 * 1000**0.5, rel=5e-3)
    assert not torch.isfinite(norm_in_blocks([*parts, torch.tensor([float("nan")], dtype=dtype)])).any()
