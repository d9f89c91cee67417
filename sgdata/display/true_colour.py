"""Images for display: which bands to show as red, green and blue, and their contrast stretch. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sgdata.sentinel2 import RED_GREEN_BLUE
from sgdata.types import Array


def band_indices(names: Sequence[str]) -> list[int]:
    """Return the indices of B04, B03 and B02 in `names`; if one is missing, those of the first three bands."""
    if set(RED_GREEN_BLUE) <= set(names):
        return [names.index(name) for name in RED_GREEN_BLUE]
    # Fewer than three bands are repeated, so that the image always has three channels.
    return [index % len(names) for index in range(3)]


def limits(values: Array, percentiles: tuple[float, float] = (2, 98)) -> tuple[float, float]:
    """Return two percentiles of the valid values of a band, or (0, 1) if there are none."""
    if not values.size:
        return 0.0, 1.0
    # Percentiles rather than extremes: a single bright roof would leave the rest black.
    low, high = np.percentile(values, percentiles)
    return low, high


def stretch(bands: Array, low_high: Sequence[tuple[float, float]]) -> Array:
    """Scale each band linearly so that `low` becomes 0 and `high` 255.

    Args:
        bands: (C, H, W) of any number type.
        low_high: Limits of each band, in its units.

    Returns:
        (C, H, W) uint8; values outside the limits are clipped.
    """
    out = np.zeros(bands.shape, np.uint8)
    for index, (low, high) in enumerate(low_high):
        out[index] = np.clip((bands[index] - low) / max(high - low, 1e-9) * 255, 0, 255)
    return out
