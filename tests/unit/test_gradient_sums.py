"""In 16 bits on a CPU the gradients of norms and embeddings are sums in fp32, however many tokens there are."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from biencoder.config.schema import ModelConfig
from biencoder.data.tokens import Tokens
from biencoder.model.bi_encoder import BiEncoder, build_model
from biencoder.model.pretrained import load_pretrained
from biencoder.training.engine.gradient_sums import sum_in_fp32

TOKENS, HIDDEN, ROWS = 10_000, 48, 300
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Relative distance of a number from the nearest one of the type."""


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def gradients(
    module: nn.Module, input_: torch.Tensor, upstream: torch.Tensor, dtype: torch.dtype, *, mended: bool
) -> list[torch.Tensor]:
    """Of all parameters, and of the input where it has one."""
    twin = copy.deepcopy(module).to(dtype)
    if mended:
        sum_in_fp32(twin)
    given = input_.to(dtype).requires_grad_() if input_.is_floating_point() else input_
    twin(given).backward(upstream.to(dtype))
    return [leaf.grad for leaf in (*twin.parameters(), *([given] if given.requires_grad else [])) if leaf.grad is not None]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers around 0.3, as bf16 and fp16 can both express them."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) + 0.3).bfloat16().float().clamp(-60, 60)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(TOKENS, HIDDEN), (100, TOKENS // 100, HIDDEN)], ids=str)
def test_a_layer_norm_sums_in_fp32(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    module = nn.LayerNorm(HIDDEN)
    module.weight.data.copy_(drawn(HIDDEN, seed=1))
    input_, upstream = drawn(*shape, seed=2), drawn(*shape, seed=3)
    exact = gradients(module, input_, upstream, torch.float64, mended=False)
    found = gradients(module, input_, upstream, dtype, mended=True)
    assert len(found) == 3
    assert [error(*pair) < ROUNDING[dtype] for pair in zip(found, exact, strict=True)] == [True] * 3
    left = gradients(module, input_, upstream, dtype, mended=False)
    assert error(left[1], exact[1]) > 3 * error(found[1], exact[1])  # what this is for


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padding_id", [None, 1])
def test_an_embedding_sums_in_fp32(dtype: torch.dtype, padding_id: int | None) -> None:
    module = nn.Embedding(ROWS, HIDDEN, padding_idx=padding_id)
    ids = (torch.arange(TOKENS) ** 2 % 7).view(100, -1)  # few rows, often
    upstream = drawn(100, TOKENS // 100, HIDDEN)
    (exact,) = gradients(module, ids, upstream, torch.float64, mended=False)
    (found,) = gradients(module, ids, upstream, dtype, mended=True)
    assert found.dtype == dtype
    assert error(found, exact) < ROUNDING[dtype]
    assert torch.equal(found == 0, exact == 0)
    (left,) = gradients(module, ids, upstream, dtype, mended=False)
    assert error(left, exact) > 3 * error(found, exact)


def model_of(tiny_bert: Path, dtype: torch.dtype, *, checkpointing: bool) -> BiEncoder:
    config = ModelConfig(
        name=str(tiny_bert), max_length=32, dropout=0.0, pooling="mean", gradient_checkpointing=checkpointing
    )
    model = build_model(config, load_pretrained(config), seed=0).train()
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data.bfloat16())  # the same function in all types
    return model.to(dtype)


@pytest.mark.slow
def test_a_models_gradient_is_near_that_in_fp32_with_checkpointing_too(tiny_bert: Path) -> None:
    ids_UL = torch.randint(5, 60, (256, 32), generator=torch.Generator().manual_seed(0))
    tokens, wanted = Tokens(ids_UL, torch.ones_like(ids_UL)), drawn(256, 128)

    def gradient(dtype: torch.dtype, mend: Callable[[nn.Module], None], *, checkpointing: bool) -> torch.Tensor:
        model = model_of(tiny_bert, dtype, checkpointing=checkpointing)
        mend(model)
        (model(tokens).query.embedding.float() * wanted).mean().backward()
        return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])

    exact = gradient(torch.float32, lambda model: None, checkpointing=False)
    assert torch.equal(gradient(torch.float32, sum_in_fp32, checkpointing=False), exact)  # fp32 is left alone
    plain, checkpointed = (gradient(torch.bfloat16, sum_in_fp32, checkpointing=on) for on in (False, True))
    assert torch.equal(plain, checkpointed)
    assert error(plain, exact) < 0.02 < error(gradient(torch.bfloat16, lambda model: None, checkpointing=False), exact)
