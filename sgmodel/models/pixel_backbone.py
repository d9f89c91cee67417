"""The backbone of the `linear` baseline, whose head classifies single pixels."""

from __future__ import annotations

from torch import Tensor

from sgmodel.models.backbones import Backbone


class PixelBackbone(Backbone):
    """The identity, which makes the head a linear model of single pixels."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.channels, self.width, self.bands = (bands,), bands, bands

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the images (N, C, H, W) as the only map."""
        return [images]
