"""Attention for CPUs with AMX, whose backward pass in bf16 is made of batched matrix products; and choices for GPUs.

PyTorch's fused kernel is fast forward, but its backward pass in bf16 reaches a small part of what products in bf16 reach on
such a processor. Here forward is the fused kernel. Backward computes the attention weights again for a few texts at a time,
so that they stay in the cache, and takes the gradients from them (as FlashAttention does: Dao et al. 2022).

B: texts, H: heads, L: tokens, D: dimension of a head, n: texts of a block, X: heads of all texts of a block.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from biencoder.model.bi_encoder import BiEncoder

NAME, MASKED = "sdpa_blocks", "sdpa_masked"
_BLOCK_BYTES = 2**20
"""Of attention weights that are held at a time: about half of a core's second-level cache."""


def use_blocks(model: BiEncoder, *, bf16: bool) -> bool:
    """Let the model's encoders use this attention where it is the faster one; whether they do.

    In fp32, and in bf16 on processors without AMX, the fused kernel's backward pass is faster. The rule does not measure:
    a run that is resumed has to compute as before.
    """
    if not bf16 or not torch.cpu._is_amx_tile_supported():
        return False
    for tower in model.towers:
        encoder = cast(PreTrainedModel, tower.encoder)
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
    special = dropout or query.shape != key.shape or getattr(module, "is_causal", False)
    if special or not torch.is_grad_enabled() or query.device.type != "cpu":
        outcome: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return outcome
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: torch.Tensor = _Attention.apply(query, key, value, attention_mask, scale)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        ctx.save_for_backward(query, key, value, mask, out)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask, out = ctx.saved_tensors
        to_query, to_key, to_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for block in _blocks(query):
            query_XLD, key_XLD, value_XLD, to_out_XLD = (part[block].flatten(0, 1) for part in (query, key, value, to_out))
            weights_XLL = _weights(query[block], key[block], _rows(mask, block), ctx.scale)
            to_value[block] = torch.bmm(weights_XLL.mT, to_out_XLD).view_as(to_value[block])
            # The softmax's gradient: the weighted mean of the weights' gradients is that of the output along itself.
            mean_XL1 = (to_out_XLD * out[block].flatten(0, 1)).sum(-1, keepdim=True)
            to_weights_XLL = torch.bmm(to_out_XLD, value_XLD.mT)
            to_scores_XLL = to_weights_XLL.sub_(mean_XL1).mul_(weights_XLL).mul_(ctx.scale)
            to_query[block] = torch.bmm(to_scores_XLL, key_XLD).view_as(to_query[block])
            to_key[block] = torch.bmm(to_scores_XLL.mT, query_XLD).view_as(to_key[block])
        return to_query, to_key, to_value, None, None


def _blocks(query: torch.Tensor) -> Iterator[slice]:
    """A few texts at a time."""
    B, H, L, _ = query.shape
    size = max(1, _BLOCK_BYTES // (H * L * L * query.element_size()))
    return (slice(start, start + size) for start in range(0, B, size))


def _rows(mask: torch.Tensor | None, block: slice) -> torch.Tensor | None:
    return mask if mask is None or len(mask) == 1 else mask[block]


def _weights(query_nHLD: torch.Tensor, key_nHLD: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Attention weights (X, L, L).

    Args:
        mask: expands to (n, H, L, L); true where a token may look at another, or what is added to the scores.
    """
    n, H, L, _ = query_nHLD.shape
    scores_XLL = torch.bmm(query_nHLD.flatten(0, 1) * scale, key_nHLD.flatten(0, 1).mT)
    if mask is not None:
        scores = scores_XLL.view(n, H, L, L)
        if mask.dtype == torch.bool:
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        else:
            scores.add_(mask)
    return scores_XLL.softmax(-1)


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
AttentionInterface.register(MASKED, sdpa_attention_forward)
AttentionMaskInterface.register(MASKED, _mask)
