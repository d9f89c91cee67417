"""Where the samples of two splits lie to each other: shared ground, and the distance of the nearest. Pure.

Boxes come as windows of one raster, or in degrees with the CRS in which they are square. A sample in UTM fills its
box in degrees only in part, so degrees find the candidates and metres judge them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgdata.types import Array, Bounds

# Metres per degree: of latitude at its least (the equator), of longitude there. Distances come out too short, never
# too long.
_LATITUDE_M, _LONGITUDE_M = 110_574.0, 111_320.0
# Windows are exact; a box rounded to 1e-7 degree, of pixels that are 10 m but for 0.1 %, is not.
_EXACT_M, _ROUNDED_M = 5.0, 15.0


@dataclass(frozen=True, kw_only=True)
class Spot:
    """Ground of a sample: `box` in degrees and its `crs`, or in metres of a raster and "". `size_m`: across, down."""

    crs: str
    box: Bounds
    size_m: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Spots:
    """Many spots as columns: `boxes` (N, 4) as given, `middle` (N, 2) in the units of each one's CRS, `size` (N, 2)."""

    crs: Array
    boxes: Array
    middle: Array
    size: Array

    def __getitem__(self, which: Array) -> Spots:
        parts = (self.crs[which], self.boxes[which], self.middle[which], self.size[which])
        return Spots(crs=parts[0], boxes=parts[1], middle=parts[2], size=parts[3])


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """`shared`: (M, 2) numbers of spots that have ground in common; `nearest_m`: from each second spot to a first."""

    shared: Array
    nearest_m: Array


def columns(spots: Sequence[Spot]) -> Spots:
    """The spots as arrays."""
    boxes = np.array([spot.box for spot in spots], float).reshape(-1, 4)
    crs = np.array([spot.crs for spot in spots], object)
    middle = (boxes[:, 0:2] + boxes[:, 2:4]) / 2
    for code in sorted(set(crs.tolist()) - {"", "EPSG:4326"}):
        middle[crs == code] = _projected(code, middle[crs == code])
    size = np.array([spot.size_m for spot in spots], float).reshape(-1, 2)
    return Spots(crs=crs, boxes=boxes, middle=middle, size=size)


def flattened(boxes: Array, degrees: Array) -> Array:
    """(N, 4) boxes on one plane in metres that nowhere exaggerates a distance; those not in degrees stay."""
    if not degrees.any():
        return boxes
    factor = _LONGITUDE_M * np.cos(np.radians(np.abs(boxes[degrees][:, [1, 3]]).max()))
    return np.where(degrees[:, None], boxes * np.array([factor, _LATITUDE_M, factor, _LATITUDE_M]), boxes)


def meeting(first: Spots, second: Spots) -> Meeting:
    """Which of `second` (M) share ground with which of `first` (N), and how far each is from the nearest."""
    import shapely

    # Both at once: on planes of their own they would not lie side by side.
    crs = np.concatenate([first.crs, second.crs])
    every = shapely.box(*flattened(np.concatenate([first.boxes, second.boxes]), crs != "").T)
    tree, boxes = shapely.STRtree(every[: len(first.crs)]), every[len(first.crs) :]
    b, a = tree.query(boxes, predicate="intersects")
    exact = (first.crs[a] == "") & (second.crs[b] == "")
    # Across zones the squares stand askew to each other: a tenth of the side is what their boxes may lie.
    slack = np.where(first.crs[a] == second.crs[b], _ROUNDED_M, 0.1 * first.size[a].max(axis=1, initial=0))
    inside = (_gaps(first[a], second[b]) < -np.where(exact, _EXACT_M, slack)[:, None]).all(axis=1)
    at, near = tree.query_nearest(boxes, all_matches=False)
    gaps = np.maximum(_gaps(first[near], second[at]), 0)
    return Meeting(shared=np.stack([a, b], axis=1)[inside], nearest_m=np.hypot(*gaps.T)[np.argsort(at)])


def _gaps(first: Spots, second: Spots) -> Array:
    """(N, 2) metres between the edges of each pair, across and down; negative where they overlap."""
    middle = second.middle.copy()
    for code in sorted(set(first.crs[first.crs != second.crs].tolist()) - {""}):
        which = (first.crs == code) & (second.crs != code)
        centres = (second.boxes[which, 0:2] + second.boxes[which, 2:4]) / 2
        middle[which] = centres if code == "EPSG:4326" else _projected(code, centres)
    apart = np.abs(first.middle - middle)
    geographic = first.crs == "EPSG:4326"
    scale = np.stack([_LONGITUDE_M * np.cos(np.radians(first.middle[:, 1])), np.full(len(apart), _LATITUDE_M)], axis=1)
    apart[geographic] *= scale[geographic]
    gaps: Array = apart - (first.size + second.size) / 2
    return gaps


def _projected(code: str, degrees: Array) -> Array:
    from pyproj import Transformer

    return np.stack(Transformer.from_crs(4326, code, always_xy=True).transform(*degrees.T), axis=1)
