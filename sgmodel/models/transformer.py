"""Pre-norm transformer blocks with full attention, as of ViT (Dosovitskiy et al., ICLR 2021).

Shape suffixes: N images, L tokens, D width, A attention heads, E width of one head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

LAYER_NORM_EPS = 1e-6


def attend(q_NALE: Tensor, k_NALE: Tensor, v_NALE: Tensor) -> Tensor:
    """Compute softmax(q k^T E^-0.5) v of each head, (N, A, L, E)."""
    if q_NALE.device.type != "cpu" or q_NALE.dtype != torch.bfloat16:
        return functional.scaled_dot_product_attention(q_NALE, k_NALE, v_NALE)  # its default scale is E ** -0.5
    # On a CPU torch's own kernel takes twice as long in bf16. Heads are computed in batches whose scores (2 MB) fit
    # into the cache.
    at_once = max(1, 2**20 // q_NALE.shape[2] ** 2)
    parts = zip(*(torch.split(x.flatten(0, 1), at_once) for x in (q_NALE, k_NALE, v_NALE)), strict=True)
    heads = [(q * q.shape[-1] ** -0.5 @ k.transpose(1, 2)).softmax(-1) @ v for q, k, v in parts]
    return torch.cat(heads).reshape(q_NALE.shape)


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
        q_NALE, k_NALE, v_NALE = (
            layer(x_NLD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        out: Tensor = self.proj(attend(q_NALE, k_NALE, v_NALE).transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, on tokens (N, L, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_NLD: Tensor) -> Tensor:
        """Transform tokens (N, L, D)."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x_NLD)))
        return out


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

    def forward(self, x_NLD: Tensor) -> Tensor:
        """Transform tokens (N, L, D)."""
        if self.recompute and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._forward, x_NLD, use_reentrant=False)
            return out
        return self._forward(x_NLD)

    def _forward(self, x_NLD: Tensor) -> Tensor:
        rate = self.drop_path if self.training else 0.0
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
