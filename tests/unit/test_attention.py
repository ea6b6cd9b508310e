"""Attention in blocks of products gives what the fused kernel and the plain formula give."""

from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import eager_attention_forward

from biencoder.config.schema import ModelConfig
from biencoder.model import attention
from biencoder.model.attention import NAME, attention_forward, use_blocks
from biencoder.model.bi_encoder import BiEncoder, build_model
from biencoder.model.pretrained import load_pretrained


def inputs(texts: int, heads: int, tokens: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    query, key, value = (torch.randn(texts, heads, tokens, size).to(dtype).requires_grad_() for _ in range(3))
    lengths = torch.linspace(1, tokens, texts).round().long()
    mask = (torch.arange(tokens) < lengths[:, None])[:, None, None, :].expand(texts, 1, tokens, tokens)
    return query, key, value, mask


def gradients(out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(out, (query, key, value), torch.randn(out.shape).to(out.dtype))


@pytest.mark.parametrize("block_bytes", [1, 2000, 2**20])
@pytest.mark.parametrize("masked", [None, "true where one may look", "added"])
def test_outputs_and_gradients_are_those_of_the_plain_formula(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int, masked: str | None
) -> None:
    monkeypatch.setattr(attention, "_BLOCK_BYTES", block_bytes)  # a head at a time, a text, or all of them
    query, key, value, mask = inputs(5, 3, 11, 8, torch.float32)
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    module = torch.nn.Module()
    out, _ = attention_forward(
        module, query, key, value, None if masked is None else added if masked == "added" else mask, scaling=0.3
    )
    plain, _ = eager_attention_forward(module, query, key, value, None if masked is None else added, 0.3)
    assert torch.allclose(out, plain, atol=1e-6)
    pairs = zip(gradients(out, query, key, value), gradients(plain, query, key, value), strict=True)
    assert all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in pairs)


def test_gradients_are_those_of_differences() -> None:
    query, key, value, mask = inputs(3, 2, 4, 3, torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, k, v: attention_forward(torch.nn.Module(), q, k, v, mask)[0], (query, key, value)
    )


@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_dropout_drops_the_same_weights_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(attention, "_BLOCK_BYTES", block_bytes)
    query, key, value, mask = inputs(3, 2, 6, 3, torch.float64)

    def seeded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return attention_forward(torch.nn.Module(), query, key, value, mask, dropout=0.4)[0]

    assert torch.autograd.gradcheck(seeded, (query, key, value))


def test_dropout_keeps_the_mean() -> None:
    query, key, value, mask = (part.detach() for part in inputs(4, 2, 8, 3, torch.float64))
    plain, _ = attention_forward(torch.nn.Module(), query, key, value, mask)
    drawn = [attention_forward(torch.nn.Module(), query, key, value, mask, dropout=0.4)[0] for _ in range(400)]
    assert not torch.equal(drawn[0], drawn[1])
    spread = torch.stack(drawn).std(0) / 20  # of a mean of 400
    assert ((torch.stack(drawn).mean(0) - plain).abs() <= 5 * spread + 1e-12).all()


def test_nearly_all_may_be_dropped() -> None:
    query, key, value, mask = (part.detach() for part in inputs(2, 2, 8, 4, torch.float32))
    out, _ = attention_forward(torch.nn.Module(), query, key, value, mask, dropout=0.9999999)
    assert out.isfinite().all()


def test_in_bf16_gradients_are_as_near_to_fp32_as_the_fused_kernel_s() -> None:
    exact = inputs(8, 4, 64, 32, torch.float32)
    query, key, value, mask = exact
    q, k, v = (part.detach().bfloat16().requires_grad_() for part in (query, key, value))
    module = torch.nn.Module()
    reference = gradients(attention_forward(module, query, key, value, mask)[0], query, key, value)
    ours = gradients(attention_forward(module, q, k, v, mask)[0], q, k, v)
    for full, near in zip(reference, ours, strict=True):
        assert (near.float() - full).norm() < 0.01 * full.norm()


def encoder_of(model: BiEncoder) -> PreTrainedModel:
    (tower,) = model.towers
    return cast(PreTrainedModel, tower.encoder)


@pytest.fixture
def model(tiny_bert: Path) -> BiEncoder:
    config = ModelConfig(name=str(tiny_bert), dropout=0.0, embedding_dim=0, max_length=32)
    return build_model(config, load_pretrained(config), seed=0)


def test_it_is_used_in_bf16_on_processors_that_know_it(model: BiEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    bf16, fp32 = torch.bfloat16, torch.float32
    for amx, avx512_bf16, dtype, used in (
        (False, False, bf16, False),
        (True, True, fp32, False),
        (False, True, bf16, True),
        (True, False, bf16, True),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda knows=avx512_bf16: knows)
        assert use_blocks(model.encoders, dtype) is used
        assert encoder_of(model).config._attn_implementation == (NAME if used else "sdpa")
        encoder_of(model).set_attn_implementation("sdpa")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_encoder_has_the_same_outputs_and_gradients(
    model: BiEncoder, monkeypatch: pytest.MonkeyPatch, *, checkpointing: bool
) -> None:
    encoder = encoder_of(model).train()
    if checkpointing:
        encoder.activation_checkpointing_enable()
    tokens = torch.randint(5, 40, (4, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [1], [7]])).long()

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        out = encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        (out * mask[..., None]).square().sum().backward()
        return out, [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]

    fused, expected = run()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert use_blocks(model.encoders, torch.bfloat16)
    out, found = run()
    assert torch.allclose(out[mask.bool()], fused[mask.bool()], atol=1e-5)
    assert len(found) == len(expected) > 10
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(found, expected, strict=True))


def test_a_saved_encoder_does_not_ask_for_it(model: BiEncoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert use_blocks(model.encoders, torch.bfloat16)
    encoder_of(model).save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
