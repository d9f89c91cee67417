"""Fit the linear baseline of segmentation and change detection: linear discriminant analysis of single pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sgmodel.data import loader
from sgmodel.train import training

LINEAR_SAMPLES = 500
"""Most training samples that the baseline is computed from."""


class LinearPixelModel(nn.Module):
    """A linear model of single pixels, of one date or of two."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Take a weight (K, D) and a bias (K,)."""
        super().__init__()
        self.register_buffer("weight", weight[:, :, None, None])
        self.register_buffer("bias", bias)

    def forward(self, *images: Tensor) -> Tensor:
        """Score the classes of every pixel of images (N, C, H, W): (N, K, H, W)."""
        with torch.autocast(images[0].device.type, enabled=False):
            return functional.conv2d(torch.cat(images, dim=1), self.weight, self.bias)


def fit_linear(
    setup: training.TrainingSetup[Any], source: loader.Samples, names: Sequence[str], weights: Tensor | None
) -> LinearPixelModel:
    """Fit the linear baseline: linear discriminant analysis of the labelled pixels of training samples.

    It is computed in closed form, from the same normalised pixels as the input of the model.

    Args:
        setup: Resolved recipe.
        source: Training samples, of which at most `LINEAR_SAMPLES` are used.
        names: Arrays of the dates.
        weights: Class weights of the loss, which the shares of the classes are multiplied by; None for 1 each.
    """
    size = len(setup.contract.bands) * len(names)
    count, sums = torch.zeros(setup.classes, dtype=torch.float64), torch.zeros(setup.classes, size).double()
    square = torch.zeros(size, size, dtype=torch.float64)
    chosen = np.arange(0, len(source), -(-len(source) // LINEAR_SAMPLES))
    plan = (loader.BatchIndices(samples=one, epoch=np.zeros_like(one)) for one in chosen[:, None])
    for batch in training.scored_batches(setup, source, plan):
        image = torch.cat([training.normalised_pixels(setup, batch, name) for name in names], dim=1)[0].cpu().double()
        target = training.labels(setup, batch)[0].long()
        x, y = image[:, target != setup.ignore].T, target[target != setup.ignore]
        count += torch.bincount(y, minlength=setup.classes)
        sums.index_add_(0, y, x)
        square += x.T @ x
    mean = sums / count.clamp(min=1)[:, None]
    spread = (square - mean.T @ sums) / count.sum().clamp(min=1)
    # A band without variance, such as one that is missing, must not make the matrix singular.
    spread += 1e-6 * spread.diagonal().mean().clamp(min=1e-6) * torch.eye(size, dtype=torch.float64)
    weight = torch.linalg.solve(spread, mean.T).T
    share = count / count.sum().clamp(min=1) * (1 if weights is None else weights.double())
    bias = share.clamp(min=1e-30).log() - (weight * mean).sum(dim=1) / 2
    return LinearPixelModel(weight.float(), bias.float()).to(setup.launch.device)
