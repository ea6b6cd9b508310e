"""Gradients of LayerNorms and embeddings on CPUs, summed in fp32 where the parameters have 16 bits.

PyTorch sums both over the tokens of a batch in the parameters' own type there. A sum in bf16 stops growing at 256 times the
size of what is added to it, so the gradient is the farther off the more tokens a micro-batch has. benchmarks/gradients.py
measures it. Matrix products, and all sums on GPUs, are in fp32 by themselves.

    sum_in_fp32(model)      # once, before the model trains; changes nothing of a model in fp32

T: tokens, B: tokens in a block, H: hidden size, V: rows of an embedding's table, U: distinct ids in a batch.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

_BLOCK = 2**17
"""Numbers that are turned into fp32 at once: what is left of a core's cache would not hold more."""
_HALF = (torch.bfloat16, torch.float16)


def sum_in_fp32(model: nn.Module) -> None:
    """Let all plain LayerNorms and embeddings of a model sum their gradients in fp32."""
    for module in model.modules():
        if type(module) is nn.LayerNorm and module.elementwise_affine and module.bias is not None:
            module.__class__ = _LayerNorm
        elif type(module) is nn.Embedding and not (module.max_norm or module.scale_grad_by_freq or module.sparse):
            module.__class__ = _Embedding


class _LayerNorm(nn.LayerNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not (_concerns(self.weight) and self.bias.dtype == input.dtype == self.weight.dtype):
            return super().forward(input)
        output: torch.Tensor = _NormSum.apply(input, self.weight, self.bias, self.normalized_shape, self.eps)  # type: ignore[no-untyped-call]
        return output


class _Embedding(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not _concerns(self.weight):
            return super().forward(input)
        output: torch.Tensor = _EmbeddingSum.apply(input, self.weight, self.padding_idx)  # type: ignore[no-untyped-call]
        return output


def _concerns(weight: torch.Tensor) -> bool:
    return weight.dtype in _HALF and weight.device.type == "cpu" and weight.requires_grad and torch.is_grad_enabled()


class _NormSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input_: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shape: tuple[int, ...], eps: float
    ) -> torch.Tensor:
        # Copies in fp32: they make PyTorch keep mean and deviation in fp32, and are still there when ZeRO-3 has taken the
        # parameters apart again.
        weight_H, bias_H = weight.float(), bias.float()
        output, mean, deviation = torch.native_layer_norm(input_, shape, weight_H, bias_H, eps)
        ctx.save_for_backward(input_, mean, deviation, weight_H, bias_H)
        ctx.shape = shape
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        input_, mean, deviation, weight_H, bias_H = ctx.saved_tensors
        of_input = None
        if ctx.needs_input_grad[0]:
            of_input = torch.ops.aten.native_layer_norm_backward(
                gradient, input_, ctx.shape, mean, deviation, weight_H, bias_H, [True, False, False]
            )[0]
        H = weight_H.numel()
        of_weight_H, of_bias_H = _norm_sums(
            gradient.reshape(-1, H), input_.reshape(-1, H), mean.reshape(-1, 1), deviation.reshape(-1)
        )
        kind = gradient.dtype
        return of_input, of_weight_H.to(kind).view(ctx.shape), of_bias_H.to(kind).view(ctx.shape), None, None


def _norm_sums(
    gradient_TH: torch.Tensor, input_TH: torch.Tensor, mean_T1: torch.Tensor, inverse_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over tokens, in fp32, of gradient * (input - mean) * inverse deviation, and of the gradient."""
    H = gradient_TH.shape[1]
    size = max(1, _BLOCK // H)
    of_weight_H, of_bias_H = mean_T1.new_zeros(H), mean_T1.new_zeros(H)
    ones_B, upper_BH, lower_BH = mean_T1.new_ones(size), mean_T1.new_empty(size, H), mean_T1.new_empty(size, H)
    for start in range(0, len(gradient_TH), size):
        block = slice(start, start + size)
        count = len(inverse_T[block])
        wide_BH = upper_BH[:count].copy_(gradient_TH[block])
        of_bias_H.addmv_(wide_BH.T, ones_B[:count])
        product_BH = torch.sub(input_TH[block], mean_T1[block], out=lower_BH[:count]).mul_(wide_BH)
        of_weight_H.addmv_(product_BH.T, inverse_T[block])
    return of_weight_H, of_bias_H


class _EmbeddingSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: torch.Tensor, weight: torch.Tensor, padding_id: int | None) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.table, ctx.padding_id = weight.shape, padding_id
        return nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        (ids,) = ctx.saved_tensors
        V, H = ctx.table
        ids_U, row_T = torch.unique(ids, return_inverse=True)
        sums_UH = gradient.new_zeros(len(ids_U), H, dtype=torch.float32)
        sums_UH.index_add_(0, row_T.flatten(), gradient.reshape(-1, H).float())
        if ctx.padding_id is not None:
            sums_UH[ids_U == ctx.padding_id] = 0  # its vector never changes
        return None, gradient.new_zeros(V, H).index_copy_(0, ids_U, sums_UH.to(gradient.dtype)), None
