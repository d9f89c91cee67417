"""Linear layers of transformer blocks, in bf16 on a CPU by the products that were measured to be the fastest.

| device, format | kernel | reason |
| --- | --- | --- |
| all but the next row | torch's linear | one kernel for product and bias |
| CPU, bf16 under autocast | `_HalfLinear` | the same products, of factors that are laid out for them |

In the latter, with 8,192 tokens of width 512 and 2,048 outputs, in CPU ms of one thread of a Xeon with AMX:

| part of a step | torch | here | why |
| --- | --- | --- | --- |
| product and bias | 22.5 | 12.7 | the bias is one more column, not a pass over the result; no rows 2^n bytes apart |
| gradient of weight and bias | 46.9 | 32 | the narrower factor is transposed once, not by each block of the product |

Shape suffixes: T tokens, D width of the input, O width of the output, C columns of the input with those of the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_HALF = torch.bfloat16
_TILE = 32
"""Rows start a multiple of so many numbers apart."""


def project(x: Tensor, *layers: nn.Module) -> Tensor:
    """Apply layers to tokens (..., D) and lay their outputs side by side, (..., O).

    One product serves all layers; those of another kind, such as an adapter or another number format, run alone.
    """
    linear = [layer for layer in layers if type(layer) is nn.Linear and layer.bias is not None]
    if len(linear) < len(layers):
        if torch.is_autocast_enabled(x.device.type):  # once, not in each layer; those of torchao do not on a CPU
            x = x.to(torch.get_autocast_dtype(x.device.type))
        outputs = [layer(x) for layer in layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
    weights: list[Tensor] = [layer.weight for layer in linear]
    biases: list[Tensor] = [layer.bias for layer in linear]
    if _is_half_on_cpu(x):
        out: Tensor = _HalfLinear.apply(x, len(layers), *weights, *biases)  # type: ignore[no-untyped-call]
        return out
    if len(linear) == 1:
        return functional.linear(x, weights[0], biases[0])
    return functional.linear(x, torch.cat(weights), torch.cat(biases))


def _is_half_on_cpu(x: Tensor) -> bool:
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # which compilers cannot trace
        return False
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == _HALF


class _HalfLinear(torch.autograd.Function):
    """Linear layers side by side, of weights in any format, in bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[:count], parameters[count:]
        width, outputs = x.shape[-1], sum(len(weight) for weight in weights)
        weight_OC = _allocate_rows(outputs, width, x)
        for part, weight, bias in zip(_split(weight_OC, weights), weights, biases, strict=True):
            part[:, :width].copy_(weight)
            part[:, width].copy_(bias)
        if x.dtype == _HALF and x.is_contiguous():  # a copy takes longer than what it saves
            x_TC = x.reshape(-1, width)
            out_TO = torch.addmm(weight_OC[:, width], x_TC, weight_OC[:, :width].t())
        else:
            x_TC = _allocate_rows(x.numel() // width, width, x)
            x_TC[:, :width].view(x.shape).copy_(x)
            x_TC[:, width] = 1
            out_TO = x_TC @ weight_OC.t()
        ctx.save_for_backward(x_TC, weight_OC, *weights)
        ctx.like = x.shape, x.dtype
        return out_TO.view(*x.shape[:-1], outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x_TC, weight_OC, *weights = ctx.saved_tensors
        shape, dtype = ctx.like
        g_TO = g.reshape(-1, g.shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (g_TO @ weight_OC[:, : shape[-1]]).view(shape).to(dtype)
        gradients: list[Tensor | None] = [None] * (2 * len(weights))
        if any(ctx.needs_input_grad[2:]):
            found = _differentiate_weights(g_TO, x_TC, shape[-1])
            parts = [_split(each, weights) for each in found]
            gradients = [
                part.to(weight.dtype, memory_format=torch.contiguous_format) if needed else None
                for part, weight, needed in zip(
                    [*parts[0], *parts[1]], weights * 2, ctx.needs_input_grad[2:], strict=True
                )
            ]
        return dx, None, *gradients


def _allocate_rows(count: int, width: int, like: Tensor) -> Tensor:
    """Allocate rows of `width` numbers, one for the bias and zeros up to a multiple of `_TILE`.

    Products of a part of each row would read the numbers behind it, and NaN among them makes the result NaN.
    """
    rows = like.new_empty(count, (width // _TILE + 1) * _TILE, dtype=_HALF)
    rows[:, width + 1 :] = 0
    return rows


def _split(x: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.split(x, [len(weight) for weight in weights])


def _differentiate_weights(g_TO: Tensor, x_TC: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of weights (O, D) and biases (O,) by those of the outputs."""
    tokens, outputs = g_TO.shape
    if outputs <= width:
        g_OT = g_TO.t().contiguous()
        both_OC = g_OT @ x_TC
    elif tokens > 2 * outputs:
        both_OC = (x_TC.t().contiguous() @ g_TO).t()
    else:  # transposing the result back would take longer than what it saves
        both_OC = g_TO.t() @ x_TC
    bias_O = both_OC[:, width] if x_TC.shape[1] > width else g_TO.sum(0, dtype=torch.float32)
    return both_OC[:, :width], bias_O
