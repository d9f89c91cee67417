"""Locate a window without georeference in a larger image, in any of eight orientations. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.signal import oaconvolve

from sgdata.rasters import dihedral
from sgdata.types import Array

COARSE = 4
"""Pixels per side that are averaged for the search of the whole image."""
CANDIDATES = 3
"""Coarse places per turn that are compared pixel by pixel."""
DETAIL_PX, LEAST_DN = 4, 50
"""Standard deviation in pixels of the smooth part that is removed from images, and DN below which they are noise."""


@dataclass(frozen=True, kw_only=True)
class WindowLocation:
    """Place of a window.

    Attributes:
        row: First row in the image.
        col: First column in the image.
        turn: Index of the copy of `dihedral.symmetric_copies` that matches there.
        correlation: Normalised cross-correlation, mean over the bands.
        elsewhere: The highest correlation at another place.
    """

    row: int
    col: int
    turn: int
    correlation: float
    elsewhere: float = -1.0


def extract_detail(image: Array) -> Array:
    """Return (C, H, W) DN as logarithms without what is smooth: fields and roads stay, seasons and haze hardly do.

    Args:
        image: (C, H, W) DN.
    """
    from scipy import ndimage

    logs = np.log(np.maximum(image.astype(np.float32), LEAST_DN))
    return np.asarray(logs - ndimage.gaussian_filter(logs, (0, DETAIL_PX, DETAIL_PX)))


def locate_window(window: Array, image: Array) -> WindowLocation:
    """Return the best place of a window in an image.

    Args:
        window: (C, h, w) of any numbers, sides divisible by COARSE.
        image: (C, H, W), the same bands, not smaller.
    """
    small = _averaged(image)
    candidates = []
    for turn, template in enumerate(dihedral.symmetric_copies(window)):
        coarse = correlations(_averaged(template), small)
        for _ in range(CANDIDATES):
            row, col = (int(at) for at in np.unravel_index(np.argmax(coarse), coarse.shape))
            candidates.append(_refined(template, image, row * COARSE, col * COARSE, turn))
            coarse[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3] = -1
    best = max(candidates, key=lambda one: one.correlation)
    near = 2 * COARSE
    others = [
        one.correlation
        for one in candidates
        if one.turn != best.turn or abs(one.row - best.row) > near or abs(one.col - best.col) > near
    ]
    return replace(best, elsewhere=max(others, default=-1.0))


def _refined(template: Array, image: Array, row: int, col: int, turn: int) -> WindowLocation:
    """Return the best place within two coarse pixels of (row, col)."""
    top, left = max(row - 2 * COARSE, 0), max(col - 2 * COARSE, 0)
    height, width = template.shape[1:]
    near = image[:, top : row + height + 2 * COARSE, left : col + width + 2 * COARSE]
    fine = correlations(template, near)
    at = np.unravel_index(np.argmax(fine), fine.shape)
    return WindowLocation(row=top + int(at[0]), col=left + int(at[1]), turn=turn, correlation=round(float(fine[at]), 4))


def correlations(template: Array, image: Array) -> Array:
    """Return the normalised cross-correlation at each place of a template, (H - h + 1, W - w + 1), mean over bands."""
    each = [_correlation(one, of) for one, of in zip(template, image, strict=True)]
    return np.asarray(np.mean(each, axis=0))


def _correlation(template: Array, image: Array) -> Array:
    # Without the mean, which decides nothing, sums of squares keep their digits.
    values = image.astype(np.float64) - image.mean()
    zero_mean = template.astype(np.float64) - template.mean()
    ones = np.ones(template.shape)
    sums, squares = (oaconvolve(one, ones, mode="valid") for one in (values, values**2))
    variance = np.maximum(squares - sums**2 / template.size, 0)
    norm = np.sqrt(variance * (zero_mean**2).sum())
    products = oaconvolve(values, zero_mean[::-1, ::-1], mode="valid")
    flat = norm < 1e-6 * template.size
    return np.where(flat, -1.0, products / np.where(flat, 1, norm))


def _averaged(image: Array) -> Array:
    """Return the means over squares of COARSE pixels, without the rest at the right and bottom."""
    bands, height, width = image.shape
    rows, cols = height // COARSE, width // COARSE
    whole = image[:, : rows * COARSE, : cols * COARSE].astype(np.float64)
    return np.asarray(whole.reshape(bands, rows, COARSE, cols, COARSE).mean(axis=(2, 4)))
