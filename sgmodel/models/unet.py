"""The U-Net, a baseline that needs no library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgmodel.models.backbones import Backbone


class UNet(Backbone):
    """The U-Net of Ronneberger et al., "U-Net", MICCAI 2015, which halves and deepens, then enlarges and joins.

    Padded convolutions, so that the output has the input's size; GroupNorm, since batches are small.
    """

    def __init__(self, bands: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.bands, self.width = bands, widths[0]
        self.channels = (self.width,)
        self.down = nn.ModuleList(_pair(a, b) for a, b in zip((bands, *widths), widths, strict=False))
        steps = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.up = nn.ModuleList(_pair(coarse + fine, fine) for coarse, fine in steps)
        self.halve = nn.MaxPool2d(2)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Encode images (N, C, H, W) into one map (N, widths[0], H, W)."""
        levels = [self.down[0](images)]
        for layer in list(self.down)[1:]:
            levels.append(layer(self.halve(levels[-1])))
        x = levels.pop()
        for layer in self.up:
            finer = levels.pop()
            # Enlarged to the finer map's own size: an odd side was rounded down on the way.
            x = functional.interpolate(x, size=finer.shape[-2:], mode="bilinear", align_corners=True)
            x = layer(torch.cat([x, finer], dim=1))
        return [x]


def _pair(channels_in: int, channels_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        norm = nn.GroupNorm(min(8, channels_out), channels_out)
        layers += [nn.Conv2d(channels, channels_out, 3, padding=1, bias=False), norm, nn.ReLU()]
    return nn.Sequential(*layers)
