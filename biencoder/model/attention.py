"""Attention in bf16 for CPUs, made of batched matrix products; and choices for GPUs.

PyTorch's fused kernel for CPUs multiplies in bf16 at a small part of what batched products reach on a processor that knows
bf16. Here the attention weights of a few texts at a time are made, used and forgotten, so that they stay in the cache; the
backward pass makes them again (as FlashAttention does: Dao et al. 2022).

B: texts, H: heads, L: tokens, D: dimension of a head; of a block: n texts, h heads of each, X = n * h.
"""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from biencoder.model.precision import cpu_knows_bf16

NAME, MASKED = "sdpa_blocks", "sdpa_masked"
_BLOCK_BYTES = 2**21
"""Of attention weights that a thread holds at a time; half of it was up to a tenth slower (Zen 5, bf16)."""


def use_blocks(encoders: Iterable[PreTrainedModel], dtype: torch.dtype) -> bool:
    """Let these encoders use this attention on a CPU where it is the faster one; whether they do.

    In fp32, and on processors that emulate bf16, the fused kernel is faster. The rule does not measure: a run that is
    resumed has to compute as before.
    """
    if dtype != torch.bfloat16 or not cpu_knows_bf16():
        return False
    for encoder in encoders:
        if encoder.config._attn_implementation == "sdpa":
            encoder.set_attn_implementation(NAME)
    return True


def use_gpu_kernels(encoders: Iterable[PreTrainedModel]) -> None:
    """Let these encoders use PyTorch's fused attention on a GPU as batches of many shapes want it.

    cuDNN's kernel makes a plan for every new number of texts and width, which takes as long as some steps; so it is off in
    this process. And a mask is always made: whether a batch could do without one is a question to the GPU, whose answer the
    program would wait for in every pass.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    for encoder in encoders:
        if encoder.config._attn_implementation == "sdpa":
            encoder.set_attn_implementation(MASKED)


def _mask(*given: Any, allow_is_bidirectional_skip: bool = False, **more: Any) -> torch.Tensor | None:
    """As transformers' own, but never None because a look at the values has shown that nothing is masked."""
    mask: torch.Tensor | None = sdpa_mask(*given, **more)
    return mask


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls attention: query, key, value (B, H, L, D) → (B, L, H, D)."""
    causal = getattr(module, "is_causal", False) or more.get("is_causal")
    special = not query.shape == key.shape == value.shape or causal or more.get("position_bias") is not None
    if special or query.device.type != "cpu":
        outcome: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return outcome
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: torch.Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, attention_mask, scale, dropout
    )
    return out.transpose(1, 2), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        dropout: float,
    ) -> torch.Tensor:
        B, H, L, D = query.shape
        seed = int(torch.randint(2**62, ())) if dropout else 0
        random, blocks, added = torch.Generator().manual_seed(seed), list(_blocks(query)), _added(mask, query)
        out = query.new_empty(B, L, H, D).transpose(1, 2)  # the layout that the next layer reads
        for block in blocks:
            weights_XLL = _weights(query[block], key[block], None if added is None else added[block], scale)
            if dropout:
                weights_XLL.mul_(_kept(weights_XLL, dropout, random))
            out[block] = torch.bmm(weights_XLL, value[block].flatten(0, 1)).view_as(out[block])
        ctx.save_for_backward(query, key, value, mask, out)
        ctx.scale, ctx.dropout, ctx.seed, ctx.blocks = scale, dropout, seed, blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask, out = ctx.saved_tensors
        random, added = torch.Generator().manual_seed(ctx.seed), _added(mask, query)
        to_query, to_key, to_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for block in ctx.blocks:
            query_XLD, key_XLD, value_XLD, to_out_XLD = (part[block].flatten(0, 1) for part in (query, key, value, to_out))
            weights_XLL = _weights(query[block], key[block], None if added is None else added[block], ctx.scale)
            to_weights_XLL = torch.bmm(to_out_XLD, value_XLD.mT)
            used_XLL = weights_XLL
            if ctx.dropout:
                kept_XLL = _kept(weights_XLL, ctx.dropout, random)
                used_XLL = weights_XLL * kept_XLL
                to_weights_XLL.mul_(kept_XLL)
            to_value[block] = torch.bmm(used_XLL.mT, to_out_XLD).view_as(to_value[block])
            # The softmax's gradient: the weighted mean of the weights' gradients is that of the output along itself.
            mean_XL1 = (to_out_XLD * out[block].flatten(0, 1)).sum(-1, keepdim=True)
            to_scores_XLL = to_weights_XLL.sub_(mean_XL1).mul_(weights_XLL)
            to_query[block] = torch.bmm(to_scores_XLL, key_XLD).mul_(ctx.scale).view_as(to_query[block])
            to_key[block] = torch.bmm(to_scores_XLL.mT, query_XLD).mul_(ctx.scale).view_as(to_key[block])
        return to_query, to_key, to_value, None, None, None


def _kept(weights_XLL: torch.Tensor, dropout: float, random: torch.Generator) -> torch.Tensor:
    """By how much each weight is multiplied: 0 where it is dropped, so much more elsewhere. The same for the same seed.

    Drawn 16 bits a weight, which takes a seventh of the time that PyTorch's `bernoulli_` takes, so the share that is
    dropped is a multiple of 2**-16.
    """
    dropped = min(round(dropout * 2**16), 2**16 - 1)
    words = torch.empty(-(-weights_XLL.numel() // 4), dtype=torch.int64).random_(-(2**63), None, generator=random)
    draws_XLL = words.view(torch.int16)[: weights_XLL.numel()].view_as(weights_XLL)
    return (draws_XLL >= dropped - 2**15).to(weights_XLL.dtype).mul_(2**16 / (2**16 - dropped))


def _blocks(query: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """A few texts at a time, or a few heads of one text."""
    B, H, L, _ = query.shape
    held = max(1, torch.get_num_threads() * _BLOCK_BYTES // (L * L * query.element_size()))
    texts, heads = max(1, held // H), min(held, H)
    for text, head in product(range(0, B, texts), range(0, H, heads)):
        yield slice(text, text + texts), slice(head, head + heads)


def _added(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """The mask as what is added to the scores (B, H, L, L); given so, or as true where a token may look at another."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    B, H, L, _ = query.shape
    return mask.expand(B, H, L, L)


def _weights(
    query_nhLD: torch.Tensor, key_nhLD: torch.Tensor, mask_nhLL: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention weights (X, L, L)."""
    query_XLD, key_XDL = query_nhLD.flatten(0, 1), key_nhLD.flatten(0, 1).mT
    X, L, _ = query_XLD.shape
    scores_XLL = query_XLD.new_empty(X, L, L)
    if mask_nhLL is None:
        return scores_XLL.baddbmm_(query_XLD, key_XDL, beta=0, alpha=scale).softmax(-1)
    scores_XLL.view(mask_nhLL.shape).copy_(mask_nhLL)
    return scores_XLL.baddbmm_(query_XLD, key_XDL, alpha=scale).softmax(-1)


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
AttentionInterface.register(MASKED, sdpa_attention_forward)
AttentionMaskInterface.register(MASKED, _mask)
