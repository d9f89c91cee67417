"""Compute statistics of bands from exact histograms of 65,536 bins, which are merged by addition.

Each uint16 value has its own bin, so count, mean, standard deviation and percentiles are exact and independent of the
order of tiles, shards and workers. Values of float32 images are rounded to the nearest whole number, ties upwards, and
clipped to 0..65535: the error is at most half a stored unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sgdata.errors import SourceError
from sgdata.types import Array, BandStatistics

# One bin per value of uint16.
BINS = 65_536
_FIGURES = ("mean", "std", "min", "max", "p1", "p2", "p50", "p98", "p99")


def empty(bands: int) -> Array:
    """Return an empty histogram, (bands, 65536) int64."""
    return np.zeros((bands, BINS), np.int64)


def counts(image: Array) -> Array:
    """Return the histogram of a (C, H, W) image, (C, 65536) int64. Raises SourceError on NaN."""
    total = empty(len(image))
    add(image, total)
    return total


def valid_mask(image: Array, nodata: float | None) -> Array:
    """Return which values of an image hold data: those that are finite and not `nodata`."""
    finite: Array = np.isfinite(image) if image.dtype.kind == "f" else np.ones(image.shape, bool)
    return finite if nodata is None else finite & (image != nodata)


def add(image: Array, total: Array, valid: Array | None = None) -> None:
    """Count the values of a (C, H, W) image into a histogram (C, 65536), only those `valid` (C, H, W) if given.

    Raises SourceError on NaN that is counted.
    """
    from sgdata.shards import histogram  # here, since numba takes long to import

    valid = None if valid is None or valid.all() else valid
    bins = _bins(image if valid is None else np.where(valid, image, 0))
    histogram.add(np.ascontiguousarray(bins).reshape(len(image), -1), total)
    if valid is not None:  # counted as 0 above, and taken out again: the counts are exact
        total[:, 0] -= np.count_nonzero(~valid, axis=(1, 2))


def add_valid(image: Array, total: Array, nodata: float | None) -> None:
    """Count the values of a (C, H, W) image that hold data, as `valid_mask` finds them, into a histogram."""
    plain = nodata is None and image.dtype.kind != "f"
    add(image, total, None if plain else valid_mask(image, nodata))


def _bins(image: Array) -> Array:
    if image.dtype.kind == "u" and image.dtype.itemsize <= 2:
        return image
    if not np.isfinite(image).all():
        raise SourceError(f"image holds {np.count_nonzero(~np.isfinite(image))} NaN or infinite values, expected none")
    # Ties upwards, not to even, as in resampling.
    return np.clip(np.floor(image + 0.5), 0, BINS - 1).astype(np.uint16)


def summarise(histogram: Array, bands: Sequence[str], nodata: int | None) -> dict[str, BandStatistics]:
    """Return the statistics of each band without values equal to `nodata`; zeros for a band without a valid pixel.

    Args:
        histogram: (C, 65536) counts.
        bands: Names of the bands.
        nodata: Value to leave out, or None.
    """
    return {name: _band_statistics(row, nodata) for name, row in zip(bands, histogram, strict=True)}


def _band_statistics(row: Array, nodata: int | None) -> BandStatistics:
    values = np.flatnonzero(row)
    values = values[values != (-1 if nodata is None else nodata)]
    weights = row[values]
    count = int(weights.sum())
    if not count:
        return BandStatistics(count=0, **dict.fromkeys(_FIGURES, 0.0))
    total = int((values * weights).sum())
    # Sums of squares of 10^12 pixels exceed 64 bits; as (256 high + low)^2 each term stays below 2^57.
    high, low = values >> 8, values & 255
    squares = sum(int((term * weights).sum()) << bits for term, bits in ((high**2, 16), (high * low, 9), (low**2, 0)))
    cumulative = np.cumsum(weights)

    def percentile(percent: int) -> float:
        # The smallest value with at least `percent` of the pixels at or under it (numpy's 'inverted_cdf').
        return float(values[np.searchsorted(cumulative, -(-count * percent // 100))])

    return BandStatistics(
        count=count,
        mean=total / count,
        std=math.sqrt(count * squares - total * total) / count,
        min=float(values[0]),
        max=float(values[-1]),
        **{f"p{percent}": percentile(percent) for percent in (1, 2, 50, 98, 99)},
    )
