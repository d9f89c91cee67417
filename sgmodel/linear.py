"""The plainest rival: one linear classifier on the normalised bands of each pixel, blind to its neighbours."""

from __future__ import annotations

from torch import Tensor, nn


class PixelClassifier(nn.Module):
    """bands x classes weights and a bias per class."""

    def __init__(self, bands: int, classes: int) -> None:
        super().__init__()
        self.bands = bands
        self.classes = classes
        self.weights = nn.Conv2d(bands, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes, H, W) logits."""
        logits: Tensor = self.weights(images)
        return logits
