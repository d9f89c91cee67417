"""Bands of 20 m and 60 m on the 10 m lattice: integers in, integers out, centre-aligned. Pure.

The rule (`VERSION` counts its changes): a fine pixel is nodata exactly where the coarse pixel under it is; an
invalid neighbour in an interpolation takes the value of that pixel; beyond the array its edge repeats.
Interpolated integers are rounded half up. So the result at a pixel never depends on the window asked for.
"""

from __future__ import annotations

from typing import Literal

import numba
import numpy as np

from sgdata.types import Array, Window

Kernel = Literal["nearest", "bilinear"]
VERSION = 1


def finer(coarse: Array, factor: int, *, kernel: Kernel, window: Window | None = None, nodata: int = 0) -> Array:
    """(..., H, W) coarse pixels -> (..., h, w) fine ones, each coarse pixel cut into `factor` x `factor`.

    `window` counts fine pixels from the upper left corner of `coarse`; without it the whole is returned.
    Bilinear takes unsigned integers of at most 16 bits.
    """
    *lead, height, width = coarse.shape
    window = window or Window(row=0, col=0, height=height * factor, width=width * factor)
    if factor == 1:
        return coarse[(..., *window.slices)]
    rows = np.arange(window.row, window.row + window.height) // factor
    cols = np.arange(window.col, window.col + window.width) // factor
    if kernel == "nearest":
        return coarse[..., rows[:, None], cols[None, :]]
    planes = np.ascontiguousarray(coarse).reshape(-1, height, width)
    out = np.empty((len(planes), window.height, window.width), coarse.dtype)
    for plane, target in zip(planes, out, strict=True):
        _bilinear(plane, factor, window.row, window.col, nodata, target)
    return out.reshape(*lead, window.height, window.width)


@numba.njit(cache=True, nogil=True)
def _bilinear(coarse: Array, factor: int, row: int, col: int, nodata: int, out: Array) -> None:
    """Fill `out` from the four coarse pixels round each fine centre, in exact integer arithmetic.

    The centre of fine pixel i lies at (2i + 1 - factor) / (2 factor) in units of coarse centres; so the
    weights are whole numbers over 2 factor per axis.
    """
    height, width = coarse.shape
    unit = 2 * factor
    whole = unit * unit
    for i in range(out.shape[0]):
        own_r = (row + i) // factor
        at_r = 2 * (row + i) + 1 - factor
        upper = at_r // unit
        weight_r = at_r - upper * unit
        for j in range(out.shape[1]):
            own_c = (col + j) // factor
            own = np.int64(coarse[own_r, own_c])
            if own == nodata:
                out[i, j] = nodata
                continue
            at_c = 2 * (col + j) + 1 - factor
            left = at_c // unit
            weight_c = at_c - left * unit
            total = np.int64(0)
            for dr in range(2):
                for dc in range(2):
                    r = min(max(upper + dr, 0), height - 1)
                    c = min(max(left + dc, 0), width - 1)
                    value = np.int64(coarse[r, c])
                    if value == nodata:
                        value = own
                    share_r = weight_r if dr else unit - weight_r
                    share_c = weight_c if dc else unit - weight_c
                    total += value * share_r * share_c
            out[i, j] = (2 * total + whole) // (2 * whole)
