"""Normalise stored integers to floats on the device; every checkpoint records how."""

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
    """A scheme with its constants, applied to whole images before any crop.

    Attributes:
        scheme: Formula, see `apply`.
        eps: Value added to the divisor.
        mean: Mean of each band in stored units.
        std: Standard deviation of each band in stored units.
        before_crop: Whether whole images are normalised, which is always so.
        missing: Policy for bands that the data lack.
        absent: Bands that the training data lacked, substituted by that policy.
        fill: Value in stored units in place of no data, that of the contract.
    """

    scheme: Scheme
    eps: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    before_crop: bool = True
    missing: band_selection.Policy = "refuse"
    absent: tuple[str, ...] = ()
    fill: float = 0.0


def resolve(recipe: NormaliseRecipe, contract: Contract) -> Normalisation:
    """Complete the recipe with the constants of the data; `minmax` has none.

    Args:
        recipe: Scheme and constants, if any.
        contract: Contract of the model's bands; a band without statistics is missing from the data.

    Returns:
        The normalisation, with one mean and one standard deviation per band in stored units; none for `minmax`.

    Raises:
        SettingError: The data have no statistics, or the number of constants is not that of the bands.
    """
    names = [band.name for band in contract.bands]
    absent = tuple(name for name in names if name not in contract.statistics and recipe.missing != "refuse")
    how = Normalisation(
        scheme=recipe.scheme,
        eps=recipe.eps,
        mean=(),
        std=(),
        missing=recipe.missing,
        absent=absent,
        fill=contract.fill,
    )
    if recipe.scheme == "minmax":
        return how
    # Read from the data only if the recipe has none: a contract of your own need not have statistics.
    mean = recipe.mean or tuple(fmean(b.mean for b in _statistics(name, recipe.missing, contract)) for name in names)
    std = recipe.std or tuple(fmean(b.std for b in _statistics(name, recipe.missing, contract)) for name in names)
    if not len(mean) == len(std) == len(names):
        raise SettingError(
            f"normalise: {len(mean)} means, {len(std)} stds for {len(names)} bands ({' '.join(names)}); give one each"
        )
    return replace(how, mean=mean, std=std)


def _statistics(name: str, policy: band_selection.Policy, contract: Contract) -> list[BandStatistics]:
    """Return the statistics of a band, or of its substitutes.

    The mean of their standard deviations is a little more than the standard deviation of their mean.
    """
    if name in contract.statistics:
        return [contract.statistics[name]]
    present = [band for band in contract.bands if band.name in contract.statistics]
    if not present:
        names = " ".join(band.name for band in contract.bands)
        message = f"normalise: the contract of '{contract.dataset}' has no statistics of {names}"
        raise SettingError(f"{message}; pack the data again, or set normalise.mean and normalise.std in the recipe")
    return [contract.statistics[band.name] for band in band_selection.substitutes(name, present, policy)]


def mask_nodata(images: Tensor, nodata: float | None) -> Tensor:
    """Return images as stored as float32, NaN where a value is `nodata` or not finite: the one mark of no data."""
    # Float32 represents every uint16 exactly, so that nothing is lost before the constants are subtracted.
    x = images.float()
    valid = x.isfinite()
    if nodata is not None:
        valid = valid & (x != float(nodata))
    return x.where(valid, float("nan"))


def apply(how: Normalisation, images: Tensor, valid_size: Tensor, bands: Sequence[int] | None = None) -> Tensor:
    """Normalise images.

    The schemes are, per band: "minmax", (x - min) / (max - min + eps) with the extremes of each image; "zscore",
    (x - mean) / (std + eps); "clip", mean +- 2 std scaled to 0..255, clamped, truncated, over 255.

    Args:
        how: Scheme and constants, in the order of the selected bands.
        images: (N, C, H, W) of any number type; NaN is no data (`mask_nodata`), which no statistic of an image includes
            and which becomes the fill.
        valid_size: (N, 2) height and width of each image; the rest is padding.
        bands: Indices for `band_selection.select`; None selects all.

    Returns:
        (N, C, H, W) float32.
    """
    x = images.float() if bands is None else band_selection.select(images.float(), bands)
    if how.scheme == "minmax":
        return _minmax(x, valid_size, how)
    x = x.where(~x.isnan(), how.fill)
    # Constants are created on the host and copied asynchronously: creation on the device would wait for its work.
    constants = torch.tensor([how.mean, how.std], dtype=torch.float32).to(x.device, non_blocking=True)
    mean, std = constants[..., None, None]
    return (x - mean) / (std + how.eps) if how.scheme == "zscore" else _clip(x, mean, std)


def _minmax(x: Tensor, valid_size: Tensor, how: Normalisation) -> Tensor:
    # Padding must not be the minimum of an image smaller than the largest of its batch.
    outside = padding(x, valid_size) | x.isnan()
    low = x.masked_fill(outside, float("inf")).amin(dim=(2, 3), keepdim=True)
    high = x.masked_fill(outside, float("-inf")).amax(dim=(2, 3), keepdim=True)
    # An image without a seen pixel has neither. The fill is clamped, since it may be far from all that was seen.
    low, high = low.where(low <= high, how.fill), high.where(low <= high, how.fill)
    filled = torch.where(x.isnan(), low.clamp(min=how.fill).minimum(high), x)
    return (filled - low) / (high - low + how.eps)


def _clip(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    # The transform of the released BigEarthNet reader.
    scaled = (x - (mean - 2 * std)) / (4 * std) * 255.0
    return scaled.clamp(0.0, 255.0).floor() / 255.0


def padding(x: Tensor, valid_size: Tensor) -> Tensor:
    """Return (N, 1, H, W) bool, true on the padding of images smaller than the buffer of the batch."""
    height, width = valid_size.to(x.device, non_blocking=True)[:, :, None, None].unbind(1)
    rows = torch.arange(x.shape[2], device=x.device)[:, None] >= height
    cols = torch.arange(x.shape[3], device=x.device)[None, :] >= width
    return (rows | cols)[:, None]
