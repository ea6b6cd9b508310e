"""Encoding without padding: the tokens of a batch's texts stand one after the other, and attention looks within each text.

On a GPU attention is PyTorch's kernel for texts of many lengths (`torch.nn.attention.varlen`). It computes in 16 bits and
has no dropout. On a CPU it is made text by text: that is for tests, and slow. What keeps an encoder from being packed is a
sentence (`hindrance`), and then its texts are padded.

U: texts, T: their tokens, A: heads, D: dimension of a head, H: hidden size.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from biencoder.data.tokens import PackedTokens, Packing
from biencoder.model.pretrained import Pooling, has_own_code, is_causal

NAME = "packed"
TESTED = frozenset({"bert", "camembert", "distilbert", "electra", "nomic_bert", "roberta", "xlm-roberta"})
"""Architectures whose packed texts tests have compared with padded ones; CamemBERT is the code of RoBERTa."""
_TRIED_LENGTHS = (1, 17, 40)
_TOLERANCE = 0.03
"""Of the kernel's results and gradients, relative to those in fp32 by norm: bf16 rounds to 0.004."""


def hindrance(encoders: Sequence[PreTrainedModel], device: torch.device, dtype: torch.dtype) -> str:
    """Why the texts of these encoders are padded on this device; empty where they can be packed."""
    if device.type != "cuda":
        return "only GPUs compute packed texts fast"
    if dtype not in (torch.bfloat16, torch.float16):
        return "the kernel for packed texts computes in bf16 and fp16 alone"
    unfit = next(filter(None, map(_unfit, encoders)), "")
    if unfit:
        return unfit
    if _kernel() is None:
        return f"PyTorch {torch.__version__} has no kernel for packed texts; 2.10 has one"
    return _tried(encoders[0], device, dtype)


@cache
def _kernel() -> Callable[..., Any] | None:
    """PyTorch's attention for texts of many lengths; None before 2.10. Imported late, since it loads PyTorch's compiler."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _unfit(encoder: PreTrainedModel) -> str:
    config = encoder.config
    if config.model_type not in TESTED or has_own_code(encoder) or is_causal(encoder):
        return f"packed texts are not tested with this kind of encoder ({config.model_type})"
    if any(getattr(config, name, 0) for name in ("attention_probs_dropout_prob", "attention_dropout")):
        return "model.attention_dropout is not 0, and the kernel for packed texts has none"
    return ""


def _tried(encoder: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with the kernel's results on this device, for heads of this size; empty if nothing is."""
    heads, size = encoder.config.num_attention_heads, encoder.config.hidden_size // encoder.config.num_attention_heads
    bounds = F.pad(torch.tensor(_TRIED_LENGTHS).cumsum(0), (1, 0)).int()
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 1, heads, sum(_TRIED_LENGTHS), size, generator=random)

    def results(inputs: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        query, key, value = (part.clone().requires_grad_() for part in inputs[:3])
        out, _ = attend(torch.nn.Module(), query, key, value, None, cu_seq_lens_q=bounds, max_length_q=max(_TRIED_LENGTHS))
        gradients = torch.autograd.grad(out, (query, key, value), inputs[3].transpose(1, 2))
        return torch.stack([out.detach().transpose(1, 2), *gradients]).float().cpu()

    exact = results(inputs.to(dtype).float(), bounds)
    try:
        found = results(inputs.to(device, dtype), bounds.to(device))
    except RuntimeError as error:
        return f"the kernel for packed texts fails here ({' '.join(str(error).split())[:160]})"
    errors = [((own - other).norm() / other.norm()).item() for own, other in zip(found, exact, strict=True)]
    if not max(errors) < _TOLERANCE:  # NaN is no smaller
        return f"the kernel for packed texts is off by {max(errors):.2g} here"
    return ""


def pack(encoders: Sequence[PreTrainedModel]) -> Packing:
    """Let these encoders take packed texts, beside padded ones; how they number tokens."""
    for encoder in encoders:
        encoder.set_attn_implementation(NAME)
    positions = getattr(encoders[0].embeddings, "position_embeddings", None)
    return Packing(getattr(positions, "padding_idx", None))


def pool_packed(encoder: PreTrainedModel, tokens: PackedTokens, pooling: Pooling) -> torch.Tensor:
    """The pooled vectors (U, H) of a batch."""
    output = encoder(
        input_ids=tokens.input_ids_1T,
        position_ids=tokens.positions_1T,
        cu_seq_lens_q=tokens.bounds_U1,
        max_length_q=tokens.longest,
    )
    states_TH: torch.Tensor = output.last_hidden_state[0]
    if pooling == "mean":  # in fp32: bf16 counts tokens exactly up to 256 only
        mean_UH = torch.segment_reduce(states_TH.float(), "mean", offsets=tokens.bounds_U1)
        return mean_UH.to(states_TH.dtype)
    if pooling == "last":
        return states_TH.index_select(0, tokens.bounds_U1[1:] - 1)
    first_UH = states_TH.index_select(0, tokens.bounds_U1[:-1])
    if pooling == "cls":
        return first_UH
    pooled_UH: torch.Tensor = encoder.pooler(first_UH[:, None])  # type: ignore[operator]  # it takes each first token
    return pooled_UH


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls attention; for packed texts query, key, value (1, A, T, D) → (1, T, A, D).

    Args:
        scaling: of packed texts the usual D ** -0.5, which the kernel takes by itself.
        cu_seq_lens_q: the bounds of packed texts; None: the texts are padded.
        max_length_q: tokens of the longest packed text.
    """
    if cu_seq_lens_q is None:
        outcome: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return outcome
    if query.device.type != "cpu":
        kernel = _kernel()
        assert kernel is not None
        query_TAD, key_TAD, value_TAD = (part[0].transpose(0, 1) for part in (query, key, value))
        out_TAD: torch.Tensor = kernel(
            query_TAD, key_TAD, value_TAD, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q
        )
        return out_TAD[None], None
    lengths = cu_seq_lens_q.diff().tolist()
    texts = zip(*(torch.split(part, lengths, dim=2) for part in (query, key, value)), strict=True)
    out_1ATD = torch.cat([F.scaled_dot_product_attention(*text) for text in texts], dim=2)
    return out_1ATD.transpose(1, 2), None


def _mask(*, attention_mask: torch.Tensor | None = None, **more: Any) -> torch.Tensor | None:
    """Of padded texts, always: whether they could do without would be a question to the GPU. Packed ones have none."""
    if attention_mask is None:
        return None
    mask: torch.Tensor | None = sdpa_mask(attention_mask=attention_mask, **{**more, "allow_is_bidirectional_skip": False})
    return mask


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)
