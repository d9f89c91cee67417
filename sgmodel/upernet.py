"""Segmentation: SpectralGPT tokens merged over the spectrum, four scales made from that one map, a UPerNet-like head.

Max pooling where UPerNet pools by mean, and GroupNorm with GELU: as released. Shape suffixes as in `encoder`;
h x w is the token grid, Q the planes (times x spectral groups) above one place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgmodel import encoder as enc


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Widths of the four levels (finest first), of their hidden layers and of the fusing units; as released.

    `dropout_levels` is for the levels and the pooling, `dropout` for the fusing units. `skip` is the width of a small
    convolution straight from the pixels, added to the scores (0, as released: none): it sees what is narrower than
    a token, such as streets.
    """

    levels: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    hidden: tuple[int, int, int] = (512, 512, 1024)
    width: int = 256
    groups_levels: int = 32
    groups: int = 16
    dropout_levels: float = 0.5
    dropout: float = 0.5
    skip: int = 0


SCALES = (8, 4, 2)  # of the three finer levels against the token grid
POOLED = (1, 2, 3, 6)


class TokenMerge(nn.Module):
    """One learned weight per plane, shared by all channels: the spectral groups of a place become one vector."""

    def __init__(self, config: enc.EncoderConfig) -> None:
        super().__init__()
        self.side = config.side
        self.linear = nn.Linear(config.planes, 1)

    def forward(self, tokens_NLD: Tensor) -> Tensor:
        """(N, L, D) -> (N, D, h, w)."""
        # Planes go last, where the linear layer works: all channels and places share its few weights.
        n, _, width = tokens_NLD.shape
        x_NQSD = tokens_NLD.reshape(n, -1, self.side**2, width)
        merged_NDS1: Tensor = self.linear(x_NQSD.permute(0, 3, 2, 1))
        return merged_NDS1.reshape(n, width, self.side, self.side)


def unit(channels_in: int, channels_out: int, groups: int, dropout: float) -> nn.Sequential:
    """Convolution 1x1, GroupNorm, GELU, dropout."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1), nn.GroupNorm(groups, channels_out), nn.GELU(), nn.Dropout(dropout)
    )


def level(channels_in: int, hidden: int, channels_out: int, scale: int, config: HeadConfig) -> nn.Sequential:
    """One finer level: convolution 1x1, GroupNorm, GELU, then each place spread over scale x scale."""
    return nn.Sequential(
        nn.Conv2d(channels_in, hidden, 1),
        nn.GroupNorm(config.groups_levels, hidden),
        nn.GELU(),
        nn.ConvTranspose2d(hidden, channels_out, scale, stride=scale),
        nn.Dropout(config.dropout_levels),
    )


def resize(x: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Bilinear, corners aligned, as everywhere in the released head."""
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class PyramidPooling(nn.Module):
    """The coarsest level beside its maxima over 1, 2, 3 and 6 parts of each side, fused."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        coarsest = config.levels[-1]
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveMaxPool2d(parts), nn.Conv2d(coarsest, config.width, 1)) for parts in POOLED
        )
        self.fuse = unit(coarsest + len(POOLED) * config.width, config.width, config.groups, config.dropout_levels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, coarsest, h, w) -> (N, width, h, w)."""
        pooled = [resize(branch(x), x.shape[-2:]) for branch in self.branches]
        fused: Tensor = self.fuse(torch.cat([*pooled, x], dim=1))
        return fused


class UperHead(nn.Module):
    """One map (N, D, h, w) -> class scores at eight times its size."""

    def __init__(self, channels: int, classes: int, config: HeadConfig) -> None:
        super().__init__()
        w, groups, dropout = config.width, config.groups, config.dropout
        # All four levels are made from the same map: the encoder gives one scale only.
        finer = zip(config.hidden, config.levels, SCALES, strict=False)
        self.levels = nn.ModuleList(level(channels, hidden, out, scale, config) for hidden, out, scale in finer)
        self.levels.append(unit(channels, config.levels[-1], config.groups_levels, config.dropout_levels))
        self.pooling = PyramidPooling(config)
        self.bridge = nn.Conv2d(w, w, 1)
        # Top-down, coarse to fine: one unit takes a level's channels to the common width, one smooths the sum.
        self.lateral = nn.ModuleList(unit(c, w, groups, dropout) for c in reversed(config.levels[:-1]))
        self.smooth = nn.ModuleList(unit(w, w, groups, dropout) for _ in range(3))
        self.fuse = unit(4 * w, w, groups, dropout)
        self.classify = nn.Conv2d(w, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, classes, 8 h, 8 w)."""
        scores: Tensor = self.classify(self.fused([make(x) for make in self.levels]))
        return scores

    def fused(self, levels: list[Tensor]) -> Tensor:
        """The four levels, finest first, from the coarsest down -> (N, width, 8 h, 8 w)."""
        coarse = [self.pooling(levels[3])]
        for i, finer in enumerate(reversed(levels[:3])):
            up = resize(coarse[-1], finer.shape[-2:])
            if i == 0:  # released so: only the pooled map passes another convolution on its way
                up = self.bridge(up)
            coarse.append(self.smooth[i](up + self.lateral[i](finer)))
        # Order x1, x2, x3, x4 (coarse to fine), as the published weights of the fusing layer expect.
        same_size = [resize(x, coarse[-1].shape[-2:]) for x in coarse[:-1]]
        fused: Tensor = self.fuse(torch.cat([*same_size, coarse[-1]], dim=1))
        return fused


class Segmenter(nn.Module):
    """Class scores for every pixel. The encoder's final norm takes no part, as released."""

    def __init__(self, encoder: enc.Encoder, classes: int = 13, head: HeadConfig | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.head_config = head or HeadConfig()
        self.encoder = encoder
        self.encoder.norm.requires_grad_(False)  # unused: ranks would wait for its gradient
        self.merge = TokenMerge(encoder.config)
        self.head = UperHead(encoder.config.width, classes, self.head_config)

        if self.head_config.skip:
            hidden = nn.Conv2d(encoder.config.bands, self.head_config.skip, 3, padding=1)
            self.skip = nn.Sequential(hidden, nn.GELU(), nn.Conv2d(self.head_config.skip, classes, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes, H, W) logits."""
        logits: Tensor = self.head(self.merge(self.encoder.tokens(images)))
        if logits.shape[-1] != images.shape[-1]:
            logits = resize(logits, images.shape[-2:])  # the head enlarges eightfold; other patch sizes need the rest
        return logits + self.skip(images) if self.head_config.skip else logits
