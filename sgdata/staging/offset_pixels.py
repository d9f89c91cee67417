"""Count the pixels of a scene that show whether its DN include an offset. Pure."""

from __future__ import annotations

import numba
import numpy as np

from sgdata.scenes.offsets import GROUND, NEAR_DN
from sgdata.sentinel2 import MSI
from sgdata.types import Array

_ELIGIBLE, _GROUND, _VALID = 1, 2, 4
"""Bits of what a class of the scene classification counts as."""


def count_test_pixels(scene_classes: Array, bands: Array) -> Array:
    """Return (5,) int64: eligible pixels, clear ground, pixels with data, eligible values that are dark and near dark.

    Args:
        scene_classes: (H, W) scene classification.
        bands: (C, H, W) DN of the test bands.
    """
    table = np.full(256, _VALID, np.uint8)
    table[MSI.classes.no_data] = 0
    table[list(GROUND)] |= _GROUND
    table[list(MSI.classes.offset_test)] |= _ELIGIBLE
    counts = np.zeros(5, np.int64)
    _count(scene_classes, bands, table, MSI.offset.dark_dn, NEAR_DN, counts)
    return counts


@numba.njit(cache=True, nogil=True)
def _count(scene_classes: Array, bands: Array, table: Array, dark_dn: int, near_dn: int, counts: Array) -> None:
    height, width = scene_classes.shape
    for y in range(height):
        eligible = ground = valid = dark = near = 0
        for x in range(width):
            kind = table[min(scene_classes[y, x], 255)]
            ground += (kind & _GROUND) != 0
            valid += (kind & _VALID) != 0
            if kind & _ELIGIBLE:
                least, here_dark, here_near = np.uint16(65535), 0, 0
                for b in range(bands.shape[0]):
                    value = bands[b, y, x]
                    least = min(least, value)
                    here_dark += value < dark_dn
                    here_near += value < near_dn
                if least > 0:
                    eligible, dark, near = eligible + 1, dark + here_dark, near + here_near
        counts += np.array([eligible, ground, valid, dark, near])
