"""Colour and gradient statistics of whole images, a baseline without weights for scene classification."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from sgmodel.models.backbones import Backbone

PERCENTILES = (0.10, 0.25, 0.50, 0.75, 0.90)


class ImageStatistics(Backbone):
    """Nine statistics of each band and one of each pair of bands: 30 of three bands.

    Of each band: mean, standard deviation, the 10th, 25th, 50th, 75th and 90th percentile, and mean and standard
    deviation of the gradient's magnitude (central differences). Of each pair: the standard deviation of the difference.

    Args:
        bands: Number of bands.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.bands = bands
        self.width = (4 + len(PERCENTILES)) * bands + bands * (bands - 1) // 2
        self.channels = (self.width,)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the statistics of images (N, C, H, W) as a map of one pixel: every pixel gets the same answer."""
        return [self.pooled(images)[:, :, None, None]]

    def pooled(self, images: Tensor) -> Tensor:
        """Return the statistics (N, width) of images (N, C, H, W), in their units.

        Args:
            images: Images (N, C, H, W), of at least 2 x 2 pixels.
        """
        values = images.float().flatten(2)
        rows, columns = torch.gradient(images.float(), dim=(2, 3))
        slope = torch.hypot(rows, columns).flatten(2)
        shares = torch.tensor(PERCENTILES, device=images.device)
        percentiles = torch.quantile(values, shares, dim=2)
        each = [values.mean(2), _spread(values), *percentiles, slope.mean(2), _spread(slope)]
        pairs = [
            _spread(values[:, one] - values[:, other])[:, None]
            for one, other in itertools.combinations(range(self.bands), 2)
        ]
        return torch.cat([*each, *pairs], dim=1)


def _spread(values: Tensor) -> Tensor:
    """Return the standard deviation over the last axis, five times as fast as torch's on a CPU."""
    return (values - values.mean(-1, keepdim=True)).square().mean(-1).sqrt()
