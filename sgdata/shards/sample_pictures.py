"""Render the images and masks of a sample as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sgdata.display import true_colour
from sgdata.shards import tar_format
from sgdata.types import Array, Contract, Sample


def pictures(sample: Sample, mask: Array | None, contract: Contract) -> Iterator[tuple[str, Array]]:
    """Yield name and pixels of each picture of a sample: images (3, H, W), classes of the mask (H, W, 3), uint8."""
    # In the order of IMAGES, `before` first.
    for name in (name for name in tar_format.IMAGES if name in sample.arrays):
        # Of a sample stored at native resolutions show the 10 m group, which has the bands for true colour.
        bands = [band.name for band in contract.bands if name != "image_10m" or band.gsd_m == 10]
        yield name.replace("_", "-"), _stretched(sample.arrays[name], bands, contract)
    if mask is not None:
        yield "mask", _paint(mask, contract.label_space.palette)


def _stretched(array: Array, bands: Sequence[str], contract: Contract) -> Array:
    """Render (C, H, W) in stored units as uint8 (3, H, W), with the limits of the train split for every sample."""
    # The same limits for all samples: stretched one by one, a dark sample and a cloud would look the same.
    chosen = true_colour.band_indices(bands)
    statistics = [contract.statistics[bands[index]] for index in chosen]
    pixels = np.nan_to_num(array[chosen].astype(np.float32))
    return true_colour.stretch(pixels, [(band.p1, band.p99) for band in statistics])


def _paint(classes: Array, colours: Mapping[int, str]) -> Array:
    """Return (H, W) class ids as (H, W, 3) uint8 colours; ids without a colour are mid-grey."""
    values = np.array(sorted(colours))
    table = np.array([[int(colours[value][i : i + 2], 16) for i in (1, 3, 5)] for value in values.tolist()], np.uint8)
    at = np.searchsorted(values, classes).clip(max=len(values) - 1)
    painted: Array = table[at]
    painted[values[at] != classes] = 128  # as unmapped pixels are drawn elsewhere
    return painted
