"""Pre-norm transformer blocks with full attention, as of ViT (Dosovitskiy et al., ICLR 2021).

Attention is computed by the kernel that was measured to be the fastest:

| device, format | kernel | reason |
| --- | --- | --- |
| all but the next rows | torch's SDPA | flash and cuDNN attention on GPUs; in fp32 on CPUs as fast as the formula |
| CPU, bf16, up to `SHORT` tokens | the formula, as torch operators | SDPA's backward pass takes 6 times as long |
| CPU, bf16, more tokens | `_RecomputedAttention`: forward as SDPA | 0.8 of SDPA's time, and steady under load |
| CPU, first block of the decoder, if `mask_token_attention.is_faster` | `attend_masks` | mask scores once a batch |

Shape suffixes: N images, L tokens, D width, A attention heads, E width of one head, B images x heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sgmodel.models import bf16_linear
from sgmodel.models.mask_token_attention import PartlyMasked, attend_masks

LAYER_NORM_EPS = 1e-6
SHORT = 256
"""Tokens up to which, in bf16 on a CPU, the scores of all heads are kept for the backward pass."""


class Attention(nn.Module):
    """Full attention over all given tokens, spatial and spectral alike, with separate layers for q, k and v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Not one fused layer: the released weights and their initialisation keep them apart.
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_NLD: Tensor) -> Tensor:
        """Transform tokens (N, L, D)."""
        out_NL3D = bf16_linear.project(x_NLD, self.q, self.k, self.v)
        q, k, v = out_NL3D.reshape(*x_NLD.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        return bf16_linear.project(attend(q, k, v).transpose(1, 2).flatten(2), self.proj)

    def of_partly_masked(self, x: PartlyMasked, norm: nn.Module) -> Tensor:
        """Transform the norm of partly masked images into tokens (N, L, D); mask tokens are transformed once."""
        rows_1RO = bf16_linear.project(norm(x.rows()), self.q, self.k, self.v)
        visible, masks = (list(part.unbind()) for part in x.split_heads(rows_1RO, self.heads))
        k, v = (_put(own, shared, x.places) for own, shared in zip(visible[1:], masks[1:], strict=True))
        out_NALE = attend_masks(visible, masks, x.places)
        if out_NALE is None:
            out_NALE = attend(_put(visible[0], masks[0], x.places), k, v)
        else:
            out_NALE = _put(attend(visible[0], k, v), out_NALE, x.places)
        return bf16_linear.project(out_NALE.transpose(1, 2).flatten(2), self.proj)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, on tokens (N, L, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_NLD: Tensor) -> Tensor:
        """Transform tokens (N, L, D)."""
        return bf16_linear.project(functional.gelu(bf16_linear.project(x_NLD, self.fc1)), self.fc2)


class Block(nn.Module):
    """Pre-norm transformer block: x += attention(norm(x)); x += mlp(norm(x)).

    Attributes:
        drop_path: Rate of stochastic depth, see the function `drop_path`.
        recompute: Whether the backward pass recomputes activations, which saves memory at the cost of a second forward
            pass.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = drop_path
        self.recompute = False

    def forward(self, x_NLD: Tensor | PartlyMasked) -> Tensor:
        """Transform tokens (N, L, D), or partly masked ones into those of all places."""
        if self.recompute and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._forward, x_NLD, use_reentrant=False)
            return out
        return self._forward(x_NLD)

    def _forward(self, x_NLD: Tensor | PartlyMasked) -> Tensor:
        rate = self.drop_path if self.training else 0.0
        if isinstance(x_NLD, PartlyMasked):
            x_NLD = x_NLD.fill() + drop_path(self.attn.of_partly_masked(x_NLD, self.norm1), rate)
        else:
            x_NLD = x_NLD + drop_path(self.attn(self.norm1(x_NLD)), rate)
        return x_NLD + drop_path(self.mlp(self.norm2(x_NLD)), rate)


def drop_path(x_NLD: Tensor, rate: float) -> Tensor:
    """Zero the whole branch of a sample with probability `rate`, and scale the others to keep the mean.

    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    """
    if rate == 0.0:
        return x_NLD
    # Drawn in float32 whatever the stream's precision, so that bf16 and fp32 runs drop the same samples.
    kept = torch.rand(x_NLD.shape[0], 1, 1, device=x_NLD.device) >= rate
    return x_NLD * (kept / (1.0 - rate)).to(x_NLD.dtype)


def blocks(depth: int, width: int, heads: int, mlp_ratio: float, drop_path: float = 0.0) -> nn.Sequential:
    """Build `depth` blocks, whose drop path grows linearly from 0 in the first to `drop_path` in the last.

    Args:
        depth: Number of blocks.
        width: Width of the tokens, D.
        heads: Number of attention heads, A.
        mlp_ratio: Hidden width of the MLP over `width`.
        drop_path: Drop path of the last block.
    """
    last = max(depth - 1, 1)
    return nn.Sequential(*(Block(width, heads, mlp_ratio, drop_path * number / last) for number in range(depth)))


def recompute_activations(module: nn.Module) -> None:
    """Make every `Block` in `module` recompute its activations in the backward pass."""
    for block in module.modules():
        if isinstance(block, Block):
            block.recompute = True


# --- attention on each device --------------------------------------------------------------


def _put(own_NAKE: Tensor, shared: Tensor, places_NK: Tensor) -> Tensor:
    """Return `shared` (N, A, L, E), or (A, L, E) for all images, with `own_NAKE` in the places of each image."""
    everywhere_NALE = shared.expand(*own_NAKE.shape[:2], *shared.shape[-2:])
    return everywhere_NALE.scatter(2, places_NK[:, None, :, None].expand_as(own_NAKE), own_NAKE)


def attend(q_NALE: Tensor, k_NALE: Tensor, v_NALE: Tensor) -> Tensor:
    """Compute softmax(q k^T E^-0.5) v of each head, (N, A, L, E)."""
    # Compilers fuse SDPA themselves, and cannot trace the threads of the other way.
    if q_NALE.device.type != "cpu" or q_NALE.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return functional.scaled_dot_product_attention(q_NALE, k_NALE, v_NALE)  # its default scale is E ** -0.5
    if q_NALE.shape[2] <= SHORT:
        scores_NALL: Tensor = q_NALE * q_NALE.shape[-1] ** -0.5 @ k_NALE.transpose(2, 3)
        return scores_NALL.softmax(-1) @ v_NALE
    out: Tensor = _RecomputedAttention.apply(q_NALE, k_NALE, v_NALE)  # type: ignore[no-untyped-call]
    return out


class _RecomputedAttention(torch.autograd.Function):
    """Attention whose backward pass computes the probabilities anew, a few heads at a time (Dao et al., 2022).

    Probabilities and their gradients are one matrix product each, followed by one pass over its result: terms that
    are constant per query ride along as two more columns of the factors.
    """

    @staticmethod
    def forward(ctx: Any, q_NALE: Tensor, k_NALE: Tensor, v_NALE: Tensor) -> Tensor:
        out_NALE: Tensor
        # What SDPA calls, but it also returns the logarithm of each query's sum of exponentials.
        out_NALE, log_sum_NAL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_NALE, k_NALE, v_NALE)
        ctx.save_for_backward(q_NALE, k_NALE, v_NALE, out_NALE, log_sum_NAL)
        return out_NALE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NALE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_NALE, k_NALE, v_NALE, out_NALE, log_sum_NAL = ctx.saved_tensors
        images, _, tokens, width = q_NALE.shape
        scale = width**-0.5
        # exp(score - log_sum) is small if attention is spread out, and its exponent then a large number, which bf16
        # holds coarsely. Probabilities are computed times the root of L, to the power of two, and gradients divided.
        power = round(math.log2(tokens) / 2)
        mean_NAL = (g_NALE * out_NALE).sum(-1, dtype=torch.float32)  # of the gradient, weighted by the probabilities
        ones_NAL2 = torch.ones_like(q_NALE[..., :2])
        keys = torch.cat([k_NALE, ones_NAL2], -1).flatten(0, 1)
        values = torch.cat([v_NALE, ones_NAL2], -1).flatten(0, 1)
        queries = torch.cat([q_NALE * scale, _split_bf16(power * math.log(2) - log_sum_NAL)], -1).flatten(0, 1)
        gradients = (torch.cat([g_NALE, _split_bf16(-mean_NAL)], -1) * 2.0**-power).flatten(0, 1)
        k_BEL = (k_NALE * scale).flatten(0, 1).transpose(1, 2).contiguous()
        dq_BEL = torch.empty_like(k_BEL)
        dk_BLE, dv_BLE = q_NALE.new_empty(2, len(keys), tokens, width).unbind()
        buffers_T2LL = q_NALE.new_empty(torch.get_num_threads(), 2, tokens, tokens)

        def compute(heads: Iterable[int], thread: int) -> None:
            p_1LL, ds_1LL = buffers_T2LL[thread].unsqueeze(1)  # (key, query)
            for one in (slice(head, head + 1) for head in heads):
                torch.bmm(keys[one], queries[one].transpose(1, 2), out=p_1LL).exp_()
                torch.bmm(p_1LL, gradients[one, :, :width], out=dv_BLE[one])
                torch.bmm(values[one], gradients[one].transpose(1, 2), out=ds_1LL).mul_(p_1LL)
                torch.bmm(ds_1LL, queries[one, :, :width], out=dk_BLE[one])
                torch.bmm(k_BEL[one], ds_1LL, out=dq_BEL[one])

        _divide_among_threads(len(keys), compute)
        dq, dk, dv = (x.unflatten(0, (images, -1)) for x in (dq_BEL.transpose(1, 2), dk_BLE, dv_BLE))
        return dq, dk, dv


def _divide_among_threads(count: int, compute: Callable[[Iterable[int], int], None]) -> None:
    """Let each of torch's threads compute items of its own, without waiting for the others in every operator.

    With twelve other processes on two cores that waiting took ten times the CPU time of the computation.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return compute(range(count), 0)
    left = iter(range(count))

    def work(thread: int) -> None:
        torch.set_num_threads(1)
        with torch.no_grad():
            compute(left, thread)

    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    finally:
        torch.set_num_threads(threads)  # of operators in new threads, for which the last call counts


def _split_bf16(values: Tensor) -> Tensor:
    """Return float32 values (...) as the sum of two bf16 values each, (..., 2)."""
    high = values.bfloat16()
    return torch.stack([high, (values - high).bfloat16()], -1)
