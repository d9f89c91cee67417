"""The dense head, after UPerNet: four maps, or four scales made from one, become scores of every pixel.

Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018. As in the released code of SpectralGPT,
pooling is by maximum instead of mean, and units have GroupNorm and GELU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Size of the UperNet head; the defaults are those of the released code.

    Attributes:
        levels: Widths of the four levels, finest first.
        hidden: Widths of the hidden layers of the three levels that are upsampled.
        width: Width of the fusion layers.
        groups_levels: Groups of the normalisation in the levels.
        groups: Groups of the normalisation in the fusion layers.
        dropout_levels: Dropout in the levels and the pooling.
        dropout: Dropout in the fusion layers.
        skip: Width of a small convolution of the pixels that is added to the scores; 0 for none, as released. It sees
            structures narrower than a token, such as streets.
        skip_layers: Number of its layers of 3x3 pixels: it covers windows of 2 x `skip_layers` + 1 pixels a side.
        skip_dilations: Dilations of residual layers of 3x3 pixels behind those, each with BatchNorm: each widens the
            window by twice its dilation, so that rows of roofs or trees fit into it.
    """

    levels: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    hidden: tuple[int, int, int] = (512, 512, 1024)
    width: int = 256
    groups_levels: int = 32
    groups: int = 16
    dropout_levels: float = 0.5
    dropout: float = 0.5
    skip: int = 0
    skip_layers: int = 1
    skip_dilations: tuple[int, ...] = ()


SCALES = (8, 4, 2, 1)
"""Factors by which one token grid is enlarged into the four levels."""

POOLED = (1, 2, 3, 6)
"""Number of parts per side over which the coarsest level is pooled."""


def unit(channels_in: int, channels_out: int, groups: int, dropout: float) -> nn.Sequential:
    """Build a unit of 1x1 convolution, GroupNorm, GELU and dropout."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1), nn.GroupNorm(groups, channels_out), nn.GELU(), nn.Dropout(dropout)
    )


def level(channels_in: int, number: int, scale: int, config: HeadConfig) -> nn.Sequential:
    """Build level `number` (0 is the finest): a unit, which a transposed convolution enlarges if `scale` is not 1."""
    if scale == 1:
        return unit(channels_in, config.levels[number], config.groups_levels, config.dropout_levels)
    hidden = config.hidden[number]
    return nn.Sequential(
        *list(unit(channels_in, hidden, config.groups_levels, 0.0))[:3],
        nn.ConvTranspose2d(hidden, config.levels[number], scale, stride=scale),
        nn.Dropout(config.dropout_levels),
    )


def resize(x: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Resize maps (N, D, h, w) to `size` bilinearly with aligned corners, as the released head does throughout."""
    if x.shape[-2:] == tuple(size):
        return x
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class PyramidPooling(nn.Module):
    """The coarsest level, fused with its maxima over 1, 2, 3 and 6 parts of each side (section 3.1 of UPerNet).

    Args:
        config: Widths of the head.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        coarsest = config.levels[-1]
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveMaxPool2d(parts), nn.Conv2d(coarsest, config.width, 1)) for parts in POOLED
        )
        self.fuse = unit(coarsest + len(POOLED) * config.width, config.width, config.groups, config.dropout_levels)

    def forward(self, x: Tensor) -> Tensor:
        """Pool and fuse a map (N, levels[-1], h, w) into (N, width, h, w)."""
        pooled = [resize(branch(x), x.shape[-2:]) for branch in self.branches]
        fused: Tensor = self.fuse(torch.cat([*pooled, x], dim=1))
        return fused


class UperHead(nn.Module):
    """Head that turns four maps, finest first, into class scores at the size of the finest level.

    Args:
        channels: Channels of the four maps.
        classes: Number of classes.
        config: Widths of the head.
        scales: Factor by which each map is enlarged into its level: `SCALES` for four times the same map, as of
            SpectralGPT, and 1 for the maps of a pyramid.
    """

    def __init__(
        self, channels: Sequence[int], classes: int, config: HeadConfig, scales: Sequence[int] = SCALES
    ) -> None:
        super().__init__()
        w, groups, dropout = config.width, config.groups, config.dropout
        self.levels = nn.ModuleList(level(channels[i], i, scales[i], config) for i in range(len(SCALES)))
        self.pooling = PyramidPooling(config)
        self.bridge = nn.Conv2d(w, w, 1)
        # Top-down, coarse to fine: one unit brings the level to the common width, one smooths the sum.
        self.lateral = nn.ModuleList(unit(c, w, groups, dropout) for c in reversed(config.levels[:-1]))
        self.smooth = nn.ModuleList(unit(w, w, groups, dropout) for _ in range(3))
        self.fuse = unit(4 * w, w, groups, dropout)
        self.classify = nn.Conv2d(w, classes, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Score four maps (N, D, h, w), finest first, with (N, classes, H, W) at the size of the finest level."""
        scores: Tensor = self.classify(self.fused([make(x) for make, x in zip(self.levels, maps, strict=True)]))
        return scores

    def fused(self, levels: list[Tensor]) -> Tensor:
        """Fuse four levels, finest first, from the coarsest down into (N, width, H, W) at the size of the finest.

        Raises:
            SettingError: The levels are all of one size, as of a backbone that does not set its `scales`.
        """
        if levels[0].shape[-2:] == levels[3].shape[-2:]:
            size = tuple(levels[0].shape[-2:])
            raise SettingError(f"the four maps of the backbone make levels of one size, {size}; set its `scales`")
        coarse = [self.pooling(levels[3])]
        for i, finer in enumerate(reversed(levels[:3])):
            up = resize(coarse[-1], finer.shape[-2:])
            if i == 0:  # as released: only the pooled map passes through another convolution
                up = self.bridge(up)
            coarse.append(self.smooth[i](up + self.lateral[i](finer)))
        # Coarse to fine, the order of the channels in released weights of the fusing unit.
        same_size = [resize(x, coarse[-1].shape[-2:]) for x in coarse[:-1]]
        fused: Tensor = self.fuse(torch.cat([*same_size, coarse[-1]], dim=1))
        return fused


class DilatedResidual(nn.Module):
    """Add to features of pixels what a dilated convolution finds around them.

    With GroupNorm or LayerNorm in place of BatchNorm it fits training samples as well and held-out ground worse.

    Args:
        dilation: Distance between the 3 x 3 pixels of the convolution.
        width: Number of features.
    """

    def __init__(self, dilation: int, width: int) -> None:
        super().__init__()
        self.find = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Widen features (N, width, H, W)."""
        found: Tensor = functional.gelu(self.norm(self.find(x)))
        return x + found


def shortcut(bands: int, classes: int, config: HeadConfig) -> nn.Sequential | None:
    """Build a small convolution of pixels into class scores, for objects narrower than a token; None for width 0."""
    if not config.skip:
        return None
    layers: list[nn.Module] = []
    for number in range(config.skip_layers):
        layers += [nn.Conv2d(config.skip if number else bands, config.skip, 3, padding=1), nn.GELU()]
    layers += [DilatedResidual(dilation, config.skip) for dilation in config.skip_dilations]
    return nn.Sequential(*layers, nn.Conv2d(config.skip, classes, 1))
