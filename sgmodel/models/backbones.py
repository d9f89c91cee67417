"""What stands in SpectralGPT's place in a comparison: images in, feature maps or one vector out.

A backbone that has no notion of scales gives one map; one that has gives four, finest first, for `upernet.UperHead`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from sgmodel.models.adapt import FirstLayer, State


class Backbone(nn.Module):
    """What heads need of a backbone: `channels` of its maps, how far `UperHead` enlarges each (`scales`), and `width`,
    the length of its vector. Weights made elsewhere lack the prefix `root` of its own."""

    channels: tuple[int, ...]
    scales: tuple[int, ...] = (1, 1, 1, 1)
    width: int
    root: str = ""

    def maps(self, images: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> one (N, D, H, W), or four of `channels`, finest first."""
        raise NotImplementedError

    def pooled(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width)."""
        return self.maps(images)[-1].mean(dim=(2, 3))

    def only_maps(self) -> None:
        """Leave out of training what `maps` does not use: ranks would wait for its gradient."""

    def adapted(self, state: State, how: FirstLayer, wavelengths: Sequence[float]) -> State:
        """Weights of another image size or number of bands as this backbone takes them, where that can be done."""
        return state


class Pixels(Backbone):
    """The plainest baseline: nothing at all, so that the head is a linear model of single pixels."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.channels, self.width = (bands,), bands

    def maps(self, images: Tensor) -> list[Tensor]:
        """The image itself."""
        return [images]


class UNet(Backbone):
    """Ronneberger et al., "U-Net", 2015: halve and deepen, then enlarge and join with what was seen on the way down.

    Padded convolutions, so that the output has the input's size; GroupNorm, since batches are small.
    """

    def __init__(self, bands: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.width, *_ = widths
        self.channels = (self.width,)
        self.down = nn.ModuleList(_pair(a, b) for a, b in zip((bands, *widths), widths, strict=False))
        steps = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.up = nn.ModuleList(_pair(coarse + fine, fine) for coarse, fine in steps)
        self.halve = nn.MaxPool2d(2)

    def maps(self, images: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> [(N, widths[0], H, W)]."""
        seen = [self.down[0](images)]
        for layer in list(self.down)[1:]:
            seen.append(layer(self.halve(seen[-1])))
        x = seen.pop()
        for layer in self.up:
            finer = seen.pop()
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
