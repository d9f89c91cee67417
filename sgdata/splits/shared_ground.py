"""Find samples of two splits that share ground, and the distance of each to the nearest of the other split. Pure.

Footprints are windows of one raster, or boxes in degrees with the CRS in which they are rectangles. A sample in UTM
fills its box in degrees only in part, so candidates are found in degrees and compared in metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgdata import earth
from sgdata.splits import ground_distance
from sgdata.types import Array, Bounds

# Those of the equator, where a degree of latitude is shortest, so that distances are never overestimated.
_LATITUDE_M, _LONGITUDE_M = earth.EQUATOR_LATITUDE_M, earth.EQUATOR_LONGITUDE_M
# Tolerances: windows are exact; boxes are rounded to 1e-7 degree and their pixels are 10 m only to 0.1 %.
_EXACT_M, _ROUNDED_M = 5.0, 15.0


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Ground of a sample.

    Attributes:
        crs: CRS in which it is a rectangle, or "" for windows of one raster.
        box: West, south, east, north in degrees, or in metres of the raster.
        size_m: Width and height in metres.
    """

    crs: str
    box: Bounds
    size_m: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Footprints:
    """N footprints as columns.

    Attributes:
        crs: (N,) CRS of each.
        boxes: (N, 4) as in `Footprint`.
        middle: (N, 2) centres in the units of the CRS.
        size: (N, 2) in metres.
    """

    crs: Array
    boxes: Array
    middle: Array
    size: Array

    def __getitem__(self, which: Array) -> Footprints:
        return Footprints(
            crs=self.crs[which], boxes=self.boxes[which], middle=self.middle[which], size=self.size[which]
        )


@dataclass(frozen=True, kw_only=True)
class Proximity:
    """Result of `compare`.

    Attributes:
        shared: (K, 2) indices of a first and a second footprint that share ground.
        nearest_m: (M,) metres from each second footprint to the nearest first one.
    """

    shared: Array
    nearest_m: Array


def to_columns(footprints: Sequence[Footprint]) -> Footprints:
    """Return footprints as arrays."""
    boxes = np.array([each.box for each in footprints], float).reshape(-1, 4)
    crs = np.array([each.crs for each in footprints], object)
    middle = (boxes[:, 0:2] + boxes[:, 2:4]) / 2
    for code in sorted(set(crs.tolist()) - {"", "EPSG:4326"}):
        middle[crs == code] = _projected(code, middle[crs == code])
    size = np.array([each.size_m for each in footprints], float).reshape(-1, 2)
    return Footprints(crs=crs, boxes=boxes, middle=middle, size=size)


def flatten(boxes: Array, degrees: Array) -> Array:
    """Return boxes in metres on one plane that overestimates no distance.

    Args:
        boxes: (N, 4) boxes.
        degrees: (N,) whether a box is in degrees; others are returned unchanged.
    """
    if not degrees.any():
        return boxes
    factor = _LONGITUDE_M * np.cos(np.radians(np.abs(boxes[degrees][:, [1, 3]]).max()))
    return np.where(degrees[:, None], boxes * np.array([factor, _LATITUDE_M, factor, _LATITUDE_M]), boxes)


def compare(first: Footprints, second: Footprints) -> Proximity:
    """Return which of the M footprints `second` share ground with `first`, and their distances to the nearest."""
    import shapely

    # Both together, so that they are on one plane.
    crs = np.concatenate([first.crs, second.crs])
    every = shapely.box(*flatten(np.concatenate([first.boxes, second.boxes]), crs != "").T)
    tree, boxes = shapely.STRtree(every[: len(first.crs)]), every[len(first.crs) :]
    b, a = tree.query(boxes, predicate="intersects")
    exact = (first.crs[a] == "") & (second.crs[b] == "")
    # Rectangles of different zones are rotated to each other, which makes boxes uncertain by a tenth of a side.
    slack = np.where(first.crs[a] == second.crs[b], _ROUNDED_M, 0.1 * first.size[a].max(axis=1, initial=0))
    inside = (_gaps(first[a], second[b]) < -np.where(exact, _EXACT_M, slack)[:, None]).all(axis=1)
    _, near = ground_distance.nearest(to_ground(second), to_ground(first))
    gaps = np.maximum(_gaps(first[near], second), 0)
    return Proximity(shared=np.stack([a, b], axis=1)[inside], nearest_m=np.hypot(*gaps.T))


def find_side_by_side(first: Footprints, second: Footprints) -> Array:
    """Return (M,) whether each footprint of `second` is side by side with one of `first`."""
    return ground_distance.side_by_side(to_ground(second), to_ground(first))


def find_overlaps(footprints: Footprints, least: float) -> Array:
    """Return (K, 2) pairs i < j of footprints that share more than `least` of the smaller one."""
    pairs, share = ground_distance.overlapping(to_ground(footprints))
    return pairs[share > least]


def to_ground(footprints: Footprints) -> ground_distance.SampleGround:
    """Return the ground of footprints; windows of a raster are placed at the equator, where degrees are metres."""
    middle = (footprints.boxes[:, 0:2] + footprints.boxes[:, 2:4]) / 2
    windows = footprints.crs == ""
    if windows.any():
        middle[windows] /= _LONGITUDE_M, _LATITUDE_M
    return ground_distance.SampleGround(latitude=middle[:, 1], longitude=middle[:, 0], size_m=footprints.size)


def _gaps(first: Footprints, second: Footprints) -> Array:
    """Return (N, 2) metres between the edges of each pair, east and north; negative where they overlap."""
    middle = second.middle.copy()
    for code in sorted(set(first.crs[first.crs != second.crs].tolist()) - {""}):
        which = (first.crs == code) & (second.crs != code)
        centres = (second.boxes[which, 0:2] + second.boxes[which, 2:4]) / 2
        middle[which] = centres if code == "EPSG:4326" else _projected(code, centres)
    apart = np.abs(first.middle - middle)
    geographic = first.crs == "EPSG:4326"
    scale = np.stack([_LONGITUDE_M * np.cos(np.radians(first.middle[:, 1])), np.full(len(apart), _LATITUDE_M)], axis=1)
    apart[geographic] *= scale[geographic]
    for code in sorted(set(first.crs[~geographic].tolist()) - {""}):
        apart[first.crs == code] *= _unit_m(code, first.boxes[first.crs == code])[:, None]
    gaps: Array = apart - (first.size + second.size) / 2
    return gaps


def _unit_m(code: str, boxes: Array) -> Array:
    """Return the metres on the ground of a unit of a projection at each box; 1 where they differ by less than 1 %."""
    import pyproj

    factors = pyproj.Proj(code).get_factors(*((boxes[:, 0:2] + boxes[:, 2:4]) / 2).T)
    unit = pyproj.CRS(code).axis_info[0].unit_conversion_factor / np.sqrt(np.asarray(factors.areal_scale, float))
    # As in UTM, whose pixels are called 10 m though they are that only to 0.1 %.
    return np.where(np.abs(unit - 1) < 0.01, 1.0, unit)


def _projected(code: str, degrees: Array) -> Array:
    from pyproj import Transformer

    return np.stack(Transformer.from_crs(4326, code, always_xy=True).transform(*degrees.T), axis=1)
