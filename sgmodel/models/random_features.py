"""Random convolutional features of whole images, a yardstick whose weights are drawn and never trained.

Rolf et al., "A generalizable and accessible approach to machine learning with global satellite imagery", Nature
Communications 12, 2021, with kernels from a normal distribution in place of patches of the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgdata.errors import SettingError
from sgmodel.models.backbones import Backbone

SIZES = ("features", "kernel_px")
BIAS = -1.0
"""Added to the response of a kernel before it is cut off at 0."""
AT_ONCE = 2


def sizes(options: Mapping[str, Any]) -> dict[str, int]:
    """Return the settings of `RandomFeatures` in a table of options. Raises SettingError."""
    if wrong := {name: value for name, value in options.items() if name not in SIZES or type(value) is not int}:
        raise SettingError(f"model.options has {wrong}: 'random-features' has whole numbers {' and '.join(SIZES)}")
    return dict(options)


class RandomFeatures(Backbone):
    """Mean responses of random kernels, each once as it is and once negated.

    Args:
        bands: Number of bands.
        features: Number of values that represent an image, twice the number of kernels.
        kernel_px: Side of a kernel in pixels.

    Raises:
        SettingError: `features` is odd, or a size is below 1.
    """

    def __init__(self, bands: int, features: int = 512, kernel_px: int = 3) -> None:
        super().__init__()
        if features < 2 or features % 2 or kernel_px < 1:
            message = f"model.options has features = {features}, kernel_px = {kernel_px}"
            raise SettingError(f"{message}: expected an even number of features, and kernels of 1 px or more")
        self.bands, self.width, self.channels = bands, features, (features,)
        self.kernels = nn.Conv2d(bands, features // 2, kernel_px, bias=False).requires_grad_(False)
        nn.init.normal_(self.kernels.weight)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the features of images (N, C, H, W) as a map of one pixel: every pixel gets the same answer."""
        return [self.pooled(images)[:, :, None, None]]

    def pooled(self, images: Tensor) -> Tensor:
        """Return the features (N, width) of images (N, C, H, W), normalised and no smaller than a kernel."""
        # A few images at a time: their responses stay in the cache, which takes a third of the time on a CPU.
        return torch.cat([self._pooled(part) for part in torch.split(images, AT_ONCE)])

    def _pooled(self, images: Tensor) -> Tensor:
        response = self.kernels(images)
        signs = [(sign * response + BIAS).relu().mean(dim=(2, 3)) for sign in (1.0, -1.0)]
        return torch.cat(signs, dim=1)
