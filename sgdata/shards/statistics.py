"""Per-band statistics from exact counts: one histogram of 65,536 bins per band, merged by plain addition.

A uint16 value is its own bin, so count, mean, standard deviation and percentiles are exact, and since integer
addition commutes, no order of tiles, shards or workers can change a digit. float32 images (a scaled store
that would not be exact in uint16) are counted at the nearest whole number, ties upwards, clipped to 0..65535:
half a stored unit at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sgdata.errors import SourceError
from sgdata.types import Array, BandStatistics

# One bin per value of uint16: nothing is rounded, so nothing depends on the order of adding.
BINS = 65_536
_FIGURES = ("mean", "std", "min", "max", "p1", "p2", "p50", "p98", "p99")


def empty(bands: int) -> Array:
    """No pixel counted yet: (bands, 65536) int64 zeros, the neutral element of addition."""
    return np.zeros((bands, BINS), np.int64)


def counts(image: Array) -> Array:
    """The histogram of each band of a (C, H, W) image: (C, 65536) int64. Raises SourceError on NaN."""
    total = empty(len(image))
    add(image, total)
    return total


def add(image: Array, total: Array) -> None:
    """Count the values of a (C, H, W) image into a histogram (C, 65536). Raises SourceError on NaN."""
    from sgdata.shards import histogram  # compiled: not on the way of those who only read statistics

    histogram.add(np.ascontiguousarray(_bins(image)).reshape(len(image), -1), total)


def _bins(image: Array) -> Array:
    if image.dtype.kind == "u" and image.dtype.itemsize <= 2:
        return image
    if not np.isfinite(image).all():
        raise SourceError(f"image holds {np.count_nonzero(~np.isfinite(image))} NaN or infinite values")
    # Upwards at the half, not to even: the same rule as resampling uses.
    return np.clip(np.floor(image + 0.5), 0, BINS - 1).astype(np.uint16)


def summarise(histogram: Array, bands: Sequence[str], nodata: int | None) -> dict[str, BandStatistics]:
    """Band name to statistics, values equal to `nodata` left out; a band without a valid pixel is all zeros."""
    return {name: _band(row, nodata) for name, row in zip(bands, histogram, strict=True)}


def _band(row: Array, nodata: int | None) -> BandStatistics:
    values = np.flatnonzero(row)
    values = values[values != (-1 if nodata is None else nodata)]
    held = row[values]
    count = int(held.sum())
    if not count:
        return BandStatistics(count=0, **dict.fromkeys(_FIGURES, 0.0))
    total = int((values * held).sum())
    # The squares of 10^12 pixels pass 64 bits: as (256 high + low)^2, each term stays below 2^57.
    high, low = values >> 8, values & 255
    squares = sum(int((term * held).sum()) << bits for term, bits in ((high**2, 16), (high * low, 9), (low**2, 0)))
    reached = np.cumsum(held)

    def percentile(percent: int) -> float:
        # The smallest value with at least `percent` of the pixels at or under it (numpy's 'inverted_cdf').
        return float(values[np.searchsorted(reached, -(-count * percent // 100))])

    return BandStatistics(
        count=count,
        mean=total / count,
        std=math.sqrt(count * squares - total * total) / count,
        min=float(values[0]),
        max=float(values[-1]),
        **{f"p{percent}": percentile(percent) for percent in (1, 2, 50, 98, 99)},
    )
