"""Stored integers to the floats that a model sees, on the device; recorded in every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from sgdata.errors import SettingError
from sgdata.types import BandStatistics, Contract
from sgmodel.data import band_selection

Scheme = Literal["minmax", "zscore", "clip"]


@dataclass(frozen=True, kw_only=True)
class NormaliseRecipe:
    """Normalisation of the images.

    Attributes:
        scheme: Formula, see `normalise.apply`.
        eps: Value added to the divisor.
        mean: Means in stored units, one per band, in place of those of the contract.
        std: Standard deviations in stored units, one per band, in place of those of the contract.
        missing: Substitute for bands that the data lack, see `sgmodel.data.band_selection`.
    """

    scheme: Scheme
    eps: float = 1e-10
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    missing: band_selection.Policy = "refuse"


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """A scheme with its constants. It is applied to whole images, before any crop.

    `absent` are the bands of the model that the data did not have, filled in by the policy `missing`."""

    scheme: Scheme
    eps: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    before_crop: bool = True
    missing: band_selection.Policy = "refuse"
    absent: tuple[str, ...] = ()


def resolve(recipe: NormaliseRecipe, contract: Contract) -> Normalisation:
    """The recipe with the constants of the data; `minmax` has none. A band of `contract` without statistics is missing.

    Raises SettingError.
    """
    names = [band.name for band in contract.bands]
    absent = tuple(name for name in names if name not in contract.statistics and recipe.missing != "refuse")
    how = Normalisation(scheme=recipe.scheme, eps=recipe.eps, mean=(), std=(), missing=recipe.missing, absent=absent)
    if recipe.scheme == "minmax":
        return how
    # Asked of the data only where the recipe does not say: shards without a train split have no statistics.
    mean = recipe.mean or tuple(fmean(b.mean for b in _statistics(name, recipe.missing, contract)) for name in names)
    std = recipe.std or tuple(fmean(b.std for b in _statistics(name, recipe.missing, contract)) for name in names)
    if not len(mean) == len(std) == len(names):
        raise SettingError(f"normalise: {len(mean)} means, {len(std)} stds for {len(names)} bands ({' '.join(names)})")
    return replace(how, mean=mean, std=std)


def _statistics(name: str, policy: band_selection.Policy, contract: Contract) -> list[BandStatistics]:
    """Of a band, or of those in its place. The mean of their std is a little more than the std of their mean."""
    if name in contract.statistics:
        return [contract.statistics[name]]
    present = [band for band in contract.bands if band.name in contract.statistics]
    if not present:
        message = f"normalise: the shards of '{contract.dataset}', splits {contract.splits}, have no statistics"
        raise SettingError(f"{message}; expected a split 'train', or mean and std in the recipe")
    return [contract.statistics[band.name] for band in band_selection.stand_ins(name, present, policy)]


def apply(how: Normalisation, images: Tensor, valid_size: Tensor, bands: Sequence[int] | None = None) -> Tensor:
    """(N, C, H, W) of any number type -> float32. Only [:h, :w] of each image is real, `valid_size` (N, 2) = h, w.

    `bands` are the indices of the bands to take (None: all), as `band_selection.taken` gives them;
    the constants of `how` are theirs.
    """
    # Float32 holds every uint16, so nothing is lost before the constants are taken off.
    x = images.float() if bands is None else band_selection.taken(images.float(), bands)
    if how.scheme == "minmax":
        return _minmax(x, valid_size, how.eps)
    # Made on the host and sent, never made there: that would wait for all that the device still has to do.
    constants = torch.tensor([how.mean, how.std], dtype=torch.float32).to(x.device, non_blocking=True)
    mean, std = constants[..., None, None]
    return (x - mean) / (std + how.eps) if how.scheme == "zscore" else _clip(x, mean, std)


def _minmax(x: Tensor, valid_size: Tensor, eps: float) -> Tensor:
    """(x - min) / (max - min + eps) per image and band (spec section 5)."""
    outside = outside_extent(x, valid_size)
    # Padding must not be the minimum of an image smaller than its batch.
    low = x.masked_fill(outside, float("inf")).amin(dim=(2, 3), keepdim=True)
    high = x.masked_fill(outside, float("-inf")).amax(dim=(2, 3), keepdim=True)
    return (x - low) / (high - low + eps)


def _clip(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """mean +- 2 std onto 0..255, truncated to whole numbers, over 255 (spec section 5, BigEarthNet)."""
    scaled = (x - (mean - 2 * std)) / (4 * std) * 255.0
    return scaled.clamp(0.0, 255.0).floor() / 255.0


def outside_extent(x: Tensor, valid_size: Tensor) -> Tensor:
    """(N, 1, H, W) true on the padding of images smaller than the batch's buffer."""
    height, width = valid_size.to(x.device, non_blocking=True)[:, :, None, None].unbind(1)
    rows = torch.arange(x.shape[2], device=x.device)[:, None] >= height
    cols = torch.arange(x.shape[3], device=x.device)[None, :] >= width
    return (rows | cols)[:, None]
