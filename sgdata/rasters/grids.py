"""Snap areas to grids, compare grids, and cut them into tiles and patches. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sgdata import earth
from sgdata.errors import SettingError
from sgdata.types import Bounds, Grid, Window

SAME_SIZE = 0.05
"""Greatest difference from a stated size of pixels: it is rounded, and that of Web Mercator varies with latitude."""


def snap_outward(bounds: Bounds, crs: str, *, gsd_m: float = 10, snap_m: float = 60) -> Grid:
    """Return the smallest grid over `bounds` (in units of `crs`) whose edges are multiples of `snap_m`.

    60 m is the least common multiple of the Sentinel-2 resolutions, so that 20 m and 60 m pixels nest.
    """
    west, south, east, north = bounds
    if not (west < east and south < north):
        raise SettingError(f"bounds {bounds}: expected west < east and south < north")
    # Outwards, on the grid of the UTM origin: two neighbouring areas get grids that fit each other.
    left, bottom = math.floor(west / snap_m) * snap_m, math.floor(south / snap_m) * snap_m
    right, top = math.ceil(east / snap_m) * snap_m, math.ceil(north / snap_m) * snap_m
    shape = (round((top - bottom) / gsd_m), round((right - left) / gsd_m))
    return Grid(crs=crs, origin=(left, top), gsd_m=gsd_m, shape=shape)


def coarsen(grid: Grid, factor: int) -> Grid:
    """Return the grid over the same ground with pixels `factor` times as large; the shape must be divisible."""
    height, width = grid.shape
    # A rest would shift the coarse pixels against the sensor's own, which are at multiples of 20 m and 60 m.
    if height % factor or width % factor:
        raise SettingError(f"grid of {grid.shape} pixels does not divide by {factor}; use a multiple")
    shape = (height // factor, width // factor)
    return Grid(crs=grid.crs, origin=grid.origin, gsd_m=grid.gsd_m * factor, shape=shape)


def crop(grid: Grid, window: Window) -> Grid:
    """Return the part of `grid` inside `window`."""
    west, north = grid.origin
    origin = (west + window.col * grid.gsd_m, north - window.row * grid.gsd_m)
    return Grid(crs=grid.crs, origin=origin, gsd_m=grid.gsd_m, shape=(window.height, window.width))


def find_window(grid: Grid, bounds: Bounds, *, margin: int = 0) -> Window:
    """Return the window of `grid`, extended infinitely, over `bounds` with `margin` more pixels on each side."""
    west, south, east, north = bounds
    (left, top), gsd, slack = grid.origin, grid.gsd_m, 1e-6
    row, last_row = math.floor((top - north) / gsd + slack) - margin, math.ceil((top - south) / gsd - slack) + margin
    col, last_col = math.floor((west - left) / gsd + slack) - margin, math.ceil((east - left) / gsd - slack) + margin
    return Window(row=row, col=col, height=last_row - row, width=last_col - col)


def window_over(grid: Grid, bounds: Bounds, *, margin: int) -> Window:
    """Return the window of `grid` over `bounds` with `margin` more pixels on each side, cut at its edges."""
    endless = find_window(grid, bounds, margin=margin)
    row, last_row = (min(max(r, 0), grid.shape[0]) for r in (endless.row, endless.row + endless.height))
    col, last_col = (min(max(c, 0), grid.shape[1]) for c in (endless.col, endless.col + endless.width))
    return Window(row=row, col=col, height=last_row - row, width=last_col - col)


def find_differences(ours: Grid, theirs: Grid) -> list[str]:
    """Return what differs between two grids, in words; nothing where all pixels agree to a hundredth of their size."""
    slack = 0.01 * min(ours.gsd_m, theirs.gsd_m)
    pairs = {
        "CRS": (ours.crs, theirs.crs, ours.crs == theirs.crs),
        "size": (ours.shape, theirs.shape, ours.shape == theirs.shape),
        "pixel size": (ours.gsd_m, theirs.gsd_m, abs(ours.gsd_m - theirs.gsd_m) * max(ours.shape) <= slack),
        "origin": (
            ours.origin,
            theirs.origin,
            all(abs(a - b) <= slack for a, b in zip(ours.origin, theirs.origin, strict=True)),
        ),
    }
    return [f"{name} is {own}, expected {other}" for name, (own, other, same) in pairs.items() if not same]


def scale_factor(grid: Grid) -> float:
    """Return how many times longer the centre of `grid` is on the map than on the ground, by its CRS.

    It is near 1 in UTM and national grids, and 1 / cos(latitude) in Web Mercator.
    """
    import pyproj

    crs = pyproj.CRS(grid.crs)
    if not crs.is_projected or crs.geodetic_crs is None:
        return 1.0
    west, south, east, north = grid.bounds
    place = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(
        (west + east) / 2, (south + north) / 2
    )
    factor = math.sqrt(pyproj.Proj(crs).get_factors(*place).areal_scale)
    return factor if math.isfinite(factor) and factor > 0 else 1.0


def ground_size_m(grid: Grid) -> float:
    """Return the side in metres of a pixel at the centre of `grid`, as long as it is on the ground.

    Pixels in degrees are not square on the ground: the side is that of a square of their area.
    """
    import pyproj

    crs = pyproj.CRS(grid.crs)
    if not crs.is_geographic:
        return grid.gsd_m * crs.axis_info[0].unit_conversion_factor / scale_factor(grid)
    _, south, _, north = grid.bounds
    return math.radians(grid.gsd_m) * earth.RADIUS_M * math.sqrt(max(math.cos(math.radians((south + north) / 2)), 0.0))


def cut_tiles(shape: tuple[int, int], rows: int, cols: int | None = None) -> Iterator[Window]:
    """Yield windows of at most `rows` x `cols` (default: `rows`) that cover `shape` once, row by row."""
    (height, width), across = shape, cols or rows
    for row in range(0, height, rows):
        for col in range(0, width, across):
            yield Window(row=row, col=col, height=min(rows, height - row), width=min(across, width - col))


def cut_strips(shape: tuple[int, int], pixels: int, *, multiple: int = 1) -> Iterator[Window]:
    """Yield windows of full width and about `pixels` from top to bottom, in multiples of `multiple` rows."""
    width = max(shape[1], 1)
    return cut_tiles(shape, max(pixels // width // multiple, 1) * multiple, width)


def cut_patches(shape: tuple[int, int], size: int, stride: int) -> Iterator[Window]:
    """Yield windows of exactly `size` x `size` at `stride`, row by row, without the rest at the right and bottom."""
    height, width = shape
    # A patch padded at the edge would teach a model what nodata looks like; every patch has the full size instead.
    for row in range(0, height - size + 1, stride):
        for col in range(0, width - size + 1, stride):
            yield Window(row=row, col=col, height=size, width=size)
