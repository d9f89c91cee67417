"""Bands of 20 m and 60 m on the 10 m grid: integers in, integers out, centre-aligned. Pure.

The rule (`VERSION` counts its changes): a fine pixel is nodata exactly where the coarse pixel under it is; an
invalid neighbour in an interpolation takes the value of that pixel; beyond the array its edge repeats.
Interpolated integers are rounded half up. So the result at a pixel never depends on the window asked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numba
import numpy as np

from sgdata.errors import SourceError
from sgdata.types import Array, Contract, Sample, Window

Kernel = Literal["nearest", "bilinear", "cubic"]
VERSION = 1


def upsample(coarse: Array, factor: int, *, kernel: Kernel, window: Window | None = None, nodata: int = 0) -> Array:
    """Resample a raster to a finer grid that cuts each pixel into `factor` x `factor`.

    Args:
        coarse: (..., H, W) pixels; unsigned integers of at most 16 bits for bilinear and cubic.
        factor: Number of fine pixels along the side of a coarse one.
        kernel: Resampling kernel.
        window: Window of the result in fine pixels from the upper left corner of `coarse`; None for all of it.
        nodata: Value of pixels without data in `coarse` and in the result.

    Returns:
        (..., h, w) pixels of the window, of the type of `coarse`.
    """
    *lead, height, width = coarse.shape
    window = window or Window(row=0, col=0, height=height * factor, width=width * factor)
    if factor == 1:
        return coarse[(..., *window.slices)]
    is_whole = not any(size % factor for size in (window.row, window.col, window.height, window.width))
    if kernel == "nearest" and is_whole:
        rows, cols = (slice(part.start // factor, part.stop // factor) for part in window.slices)
        return _repeat(coarse[..., rows, cols], factor)
    if kernel == "nearest":
        down, across = (np.arange(part.start, part.stop) // factor for part in window.slices)
        # Only the coarse pixels under the window: tiles are small, files large. Columns first, while rows are few.
        under = coarse[..., down[0] : down[-1] + 1, :] if len(down) else coarse[..., :0, :]
        fine: Array = under.take(across, axis=-1).take(down - down[:1], axis=-2)
        return fine
    planes = np.ascontiguousarray(coarse).reshape(-1, height, width)
    out = np.empty((len(planes), window.height, window.width), coarse.dtype)
    whole = (
        kernel == "bilinear" and out.shape[1:] == (height * factor, width * factor) and window.row == window.col == 0
    )
    whole = whole and (nodata < 0 or not (planes == nodata).any())
    for plane, target in zip(planes, out, strict=True):
        if whole:
            _bilinear_whole(plane, factor, target)
        elif kernel == "cubic":
            _cubic(plane, factor, window.row, window.col, nodata, target)
        else:
            _bilinear(plane, factor, window.row, window.col, nodata, target)
    return out.reshape(*lead, window.height, window.width)


def _repeat(coarse: Array, factor: int) -> Array:
    """Return (..., factor H, factor W): each pixel repeated, by strided copies, which are faster than look-ups."""
    *lead, height, width = coarse.shape
    fine = np.empty((*lead, height * factor, width * factor), coarse.dtype)
    for k in range(factor):
        fine[..., ::factor, k::factor] = coarse
    for k in range(1, factor):
        fine[..., k::factor, :] = fine[..., ::factor, :]
    return fine


def join_groups(sample: Sample, contract: Contract) -> Sample:
    """Return the sample with its native groups on one grid, resampled as its contract says, else bilinearly."""
    ours: tuple[Kernel, ...] = ("nearest", "bilinear", "cubic")
    return resample_groups(sample, contract, next((k for k in ours if k == contract.resampling), "bilinear"))


def resample_groups(sample: Sample, contract: Contract, kernel: Kernel) -> Sample:
    """Return the sample with its groups `image_10m`, `image_20m`, `image_60m` as one `image` on the finest grid.

    Raises SourceError if they do not cover it, or lack bands.
    """
    groups = {name: array for name, array in sample.arrays.items() if name.startswith("image_") and name[-1] == "m"}
    if not groups:
        return sample
    finest = min(int(name[6:-1]) for name in groups)
    names = [band.name for band in contract.bands]
    nodata = -1 if contract.nodata is None else contract.nodata
    grid = groups[f"image_{finest}m"]
    image = np.empty((len(names), *grid.shape[1:]), grid.dtype)
    filled: list[int] = []
    for name, array in groups.items():
        gsd = int(name[6:-1])
        fine = upsample(array, gsd // finest, kernel=kernel, nodata=nodata)
        # Groups hold their bands in the order of the contract, which is that of wavelengths.
        at = [names.index(band.name) for band in contract.bands if band.gsd_m == gsd]
        if fine.shape != (len(at), *image.shape[1:]):
            raise SourceError(
                f"{name} covers {fine.shape} of the finest pixels, expected {(len(at), *image.shape[1:])}"
            )
        image[at] = fine
        filled += at
    # One group for each gsd of the contract, or a plane would hold whatever lay in memory.
    if sorted(filled) != list(range(len(names))):
        raise SourceError(f"groups {sorted(groups)} hold {len(filled)} of {len(names)} bands, expected all")
    rest = {name: array for name, array in sample.arrays.items() if name not in groups}
    return replace(sample, arrays={"image": image, **rest})


@numba.njit(cache=True, nogil=True)
def _bilinear(coarse: Array, factor: int, row: int, col: int, nodata: int, out: Array) -> None:
    """Fill `out` from the four coarse pixels round each fine centre, in exact integer arithmetic.

    The centre of fine pixel i is at (2i + 1 - factor) / (2 factor) in units of coarse centres; so the
    weights are whole numbers over 2 factor per axis.
    """
    height, width = coarse.shape
    unit = 2 * factor
    first = max((2 * col + 1 - factor) // unit, 0)
    last = min((2 * (col + out.shape[1]) - 1 - factor) // unit + 1, width - 1) + 1
    holes = np.zeros(height, np.bool_)
    for r in range(height):
        for value in coarse[r, first:last]:
            holes[r] |= value == nodata
    # uint32 holds 65535 x 12 x 12 with room to spare, and its loops run in vector registers. One more at either end:
    # before the first centre and behind the last there is but one coarse pixel, which is then its own neighbour.
    blend = np.empty(width + 2, np.uint32)
    line = np.empty(out.shape[1] + 2 * factor, np.uint32)
    for i in range(out.shape[0]):
        at = 2 * (row + i) + 1 - factor
        above, below = max(at // unit, 0), min(at // unit + 1, height - 1)
        upper, lower = coarse[above], coarse[below]
        share = np.uint32(at % unit)
        if holes[above] or holes[below]:
            _row_with_holes((coarse[(row + i) // factor], upper, lower), int(share), factor, col, nodata, out[i])
        else:
            upper, lower = upper[first:last], lower[first:last]
            inner = blend[first + 1 : last + 1]
            for c in range(last - first):
                inner[c] = upper[c] * (np.uint32(unit) - share) + lower[c] * share
            blend[0], blend[width + 1] = blend[1], blend[width]
            _row(blend, factor, col, line, out[i])


@numba.njit(cache=True, nogil=True)
def _bilinear_whole(coarse: Array, factor: int, out: Array) -> None:
    """Fill `out` as `_bilinear` does, of a whole plane without holes: five times as fast for a factor of 2."""
    height, width = coarse.shape
    unit, half = np.uint32(2 * factor), (factor + 1) // 2
    blend = np.empty(width + 2, np.uint32)
    gaps = np.empty((width + 1, factor), np.uint32)
    flat = gaps.reshape(-1)
    # Views that begin at 0, as in `_row`.
    inner, right = blend[1 : width + 1], blend[1:]
    for i in range(out.shape[0]):
        at = 2 * i + 1 - factor
        upper, lower = coarse[max(at // (2 * factor), 0)], coarse[min(at // (2 * factor) + 1, height - 1)]
        row, share = out[i], np.uint32(at % (2 * factor))
        for c in range(width):
            inner[c] = upper[c] * (unit - share) + lower[c] * share
        blend[0], blend[width + 1] = blend[1], blend[width]
        if factor == 2:
            behind = row[1:]
            row[0] = (blend[0] + right[0] * np.uint32(3) + np.uint32(8)) >> np.uint32(4)
            for c in range(width - 1):
                behind[2 * c] = (inner[c] * np.uint32(3) + inner[c + 1] + np.uint32(8)) >> np.uint32(4)
                behind[2 * c + 1] = (inner[c] + inner[c + 1] * np.uint32(3) + np.uint32(8)) >> np.uint32(4)
            behind[2 * width - 2] = (blend[width] * np.uint32(3) + blend[width + 1] + np.uint32(8)) >> np.uint32(4)
        else:
            _gaps(blend, factor, gaps)
            row[:] = flat[half : half + len(row)]


@numba.njit(cache=True, nogil=True)
def _gaps(blend: Array, factor: int, gaps: Array) -> None:
    """Fill `gaps` (gaps, factor) with the fine pixels between each two of the coarse ones of `blend`."""
    unit = np.uint32(2 * factor)
    whole = unit * unit
    for c in range(len(gaps)):
        left, right, pixels = blend[c], blend[c + 1], gaps[c]
        if factor == 6:  # constants, so that the loop runs in vector registers: 60 m bands
            for k in range(6):
                share = np.uint32(2 * k + 1)
                pixels[k] = (left * (np.uint32(12) - share) + right * share + np.uint32(72)) // np.uint32(144)
        else:
            for k in range(factor):
                share = np.uint32(2 * k + 1 - factor % 2)
                pixels[k] = (left * (unit - share) + right * share + whole // np.uint32(2)) // whole


@numba.njit(cache=True, nogil=True)
def _row(blend: Array, factor: int, col: int, line: Array, out: Array) -> None:
    """Compute one fine row from the vertical blend of two coarse rows without a hole; gap c is before coarse column c.

    Gap by gap with fixed weights, without a look-up per pixel: twice as quick.
    """
    unit = np.uint32(2 * factor)
    whole = unit * unit
    first = (col + (factor + 1) // 2) // factor
    start = (col + (factor + 1) // 2) % factor
    gaps = (start + out.shape[0] - 1) // factor + 1
    # Views that begin at 0: an index that might be negative would keep the loops out of vector registers.
    left, right = blend[first : first + gaps], blend[first + 1 : first + 1 + gaps]
    if factor == 2:  # a shift instead of a division: most bands are 20 m
        for c in range(gaps):
            line[2 * c] = (left[c] * np.uint32(3) + right[c] + np.uint32(8)) >> np.uint32(4)
            line[2 * c + 1] = (left[c] + right[c] * np.uint32(3) + np.uint32(8)) >> np.uint32(4)
    else:
        for k in range(factor):
            share = np.uint32(2 * k + 1 - factor % 2)
            for c in range(gaps):
                line[c * factor + k] = (left[c] * (unit - share) + right[c] * share + whole // np.uint32(2)) // whole
    out[:] = line[start : start + out.shape[0]]


@numba.njit(cache=True, nogil=True)
def _row_with_holes(
    rows: tuple[Array, Array, Array], share: int, factor: int, col: int, nodata: int, out: Array
) -> None:
    """Fill a row as `_row` does where some coarse pixels are nodata: the pixel's own value takes their place."""
    own, upper, lower = rows
    unit, width = 2 * factor, len(own)
    for j in range(out.shape[0]):
        at = 2 * (col + j) + 1 - factor
        columns, right = (max(at // unit, 0), min(at // unit + 1, width - 1)), at % unit
        mine = np.int64(own[(col + j) // factor])
        total = np.int64(0)
        for side in range(2):
            above, below = np.int64(upper[columns[side]]), np.int64(lower[columns[side]])
            above = mine if above == nodata else above
            below = mine if below == nodata else below
            total += (above * (unit - share) + below * share) * (right if side else unit - right)
        out[j] = nodata if mine == nodata else (total + unit * unit // 2) // (unit * unit)


@numba.njit(cache=True, nogil=True)
def _cubic(coarse: Array, factor: int, row: int, col: int, nodata: int, out: Array) -> None:
    """Fill `out` from sixteen coarse pixels by cubic convolution (Keys 1981, a = -1/2, as GDAL does), in integers.

    The weights are whole numbers over 2 (2 factor)^3 per axis. They overshoot at edges: what leaves the range of the
    data type, or falls on nodata, becomes the nearest valid value.
    """
    height, width = coarse.shape
    unit = 2 * factor
    parts = 2 * unit**3
    lowest, highest = (1 if nodata == 0 else 0), (255 if coarse.itemsize == 1 else 65535)
    weights = np.empty((unit, 4), np.int64)
    # Keys' polynomials at t = s / unit, times 2 unit^3; each row sums to `parts`.
    for s in range(unit):
        weights[s, 0] = -s * unit**2 + 2 * s**2 * unit - s**3
        weights[s, 1] = parts - 5 * s**2 * unit + 3 * s**3
        weights[s, 2] = s * unit**2 + 4 * s**2 * unit - 3 * s**3
        weights[s, 3] = s**3 - s**2 * unit
    for i in range(out.shape[0]):
        y = 2 * (row + i) + 1 - factor  # the fine centre in 1 / unit of coarse centres, as in `_bilinear`
        for j in range(out.shape[1]):
            x = 2 * (col + j) + 1 - factor
            mine = np.int64(coarse[(row + i) // factor, (col + j) // factor])
            total = np.int64(0)
            for a in range(4):
                line = coarse[min(max(y // unit + a - 1, 0), height - 1)]
                for b in range(4):
                    value = np.int64(line[min(max(x // unit + b - 1, 0), width - 1)])
                    total += (mine if value == nodata else value) * weights[y % unit, a] * weights[x % unit, b]
            rounded = (total + parts * parts // 2) // (parts * parts)
            out[i, j] = nodata if mine == nodata else min(max(rounded, lowest), highest)
