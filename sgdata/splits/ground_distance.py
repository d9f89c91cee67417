"""Measure the distance of samples to the nearest sample of another set, in metres between their footprints. Pure.

Centres are compared on the WGS 84 ellipsoid, anywhere on Earth: across zones of UTM, and at distances from side by side
to a continent. `shared_ground` decides which footprints overlap in their own projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sgdata import earth
from sgdata.types import Array

SIDES = 1.1
"""Distance of the centres of neighbours in sides of a sample: neither diagonal nor with another sample between."""


@dataclass(frozen=True, kw_only=True)
class SampleGround:
    """Ground of N samples.

    Attributes:
        latitude: (N,) degrees of the centres.
        longitude: (N,) degrees of the centres.
        size_m: (N, 2) width and height in metres.
    """

    latitude: Array
    longitude: Array
    size_m: Array

    def __getitem__(self, which: Array) -> SampleGround:
        return SampleGround(latitude=self.latitude[which], longitude=self.longitude[which], size_m=self.size_m[which])

    def __len__(self) -> int:
        return len(self.latitude)


def from_boxes(boxes: Array, shapes: Array, gsd_m: float, geographic: Array) -> SampleGround:
    """Return the ground of samples.

    Args:
        boxes: (N, 4) west, south, east, north in degrees.
        shapes: (N, 2) rows and columns.
        gsd_m: Side of a pixel in metres.
        geographic: (N,) whether the pixels are degrees, so that the box gives their size.
    """
    latitude, longitude = (boxes[:, 1] + boxes[:, 3]) / 2, (boxes[:, 0] + boxes[:, 2]) / 2
    # The box of a square that is rotated to north is larger than the square.
    size = shapes[:, ::-1] * gsd_m
    east, north = earth.metres_per_degree(latitude)
    in_degrees = np.stack([(boxes[:, 2] - boxes[:, 0]) * east, (boxes[:, 3] - boxes[:, 1]) * north], axis=1)
    return SampleGround(latitude=latitude, longitude=longitude, size_m=np.where(geographic[:, None], in_degrees, size))


def nearest(of: SampleGround, to: SampleGround) -> tuple[Array, Array]:
    """Find the nearest sample of another set for each sample.

    Args:
        of: N samples.
        to: M samples to compare with, at least one.

    Returns:
        (N,) metres between the footprints, 0 where they touch or overlap, and (N,) the index of the nearest in `to`.
    """
    from scipy.spatial import cKDTree

    tree, points = cKDTree(_ecef(to)), _ecef(of)
    metres, index = np.full(len(of), np.inf), np.zeros(len(of), np.int64)
    half = np.hypot(*of.size_m.T) / 2 + np.hypot(*to.size_m.T).max() / 2
    left, count = np.arange(len(of)), 8
    while len(left):
        count = min(count, len(to))
        centres, neighbours = tree.query(points[left], k=np.arange(1, count + 1))
        gaps = between(of[np.repeat(left, count)], to[neighbours.ravel()]).reshape(-1, count)
        best = gaps.argmin(axis=1)
        rows = np.arange(len(left))
        metres[left], index[left] = gaps[rows, best], neighbours[rows, best]
        # A sample whose centre is farther than all of these may still be nearer with its edge, as squares differ.
        left = left[(centres[:, -1] - half[left] < metres[left]) & (count < len(to))]
        count *= 4
    return metres, index


def side_by_side(of: SampleGround, to: SampleGround) -> Array:
    """Return (N,) whether the nearest centre of another set is at most SIDES of a sample's side away.

    Args:
        of: N samples.
        to: M samples to compare with, at least one.
    """
    from scipy.spatial import cKDTree

    _, index = cKDTree(_ecef(to)).query(_ecef(of))
    sides = (of.size_m.mean(axis=1) + to.size_m[index].mean(axis=1)) / 2
    return np.asarray(np.hypot(*offsets(of, to[index]).T) <= SIDES * sides)


def overlapping(ground: SampleGround) -> tuple[Array, Array]:
    """Find the pairs of N samples whose footprints overlap.

    Returns:
        (K, 2) indices of the two, and (K,) the shared area as a share of the smaller one.
    """
    from scipy.spatial import cKDTree

    reach = np.hypot(*ground.size_m.max(axis=0, initial=0))
    pairs = cKDTree(_ecef(ground)).query_pairs(reach, output_type="ndarray")
    one, other = ground[pairs[:, 0]], ground[pairs[:, 1]]
    shared = np.minimum((one.size_m + other.size_m) / 2 - offsets(one, other), np.minimum(one.size_m, other.size_m))
    share = np.maximum(shared, 0).prod(axis=1) / np.minimum(one.size_m.prod(axis=1), other.size_m.prod(axis=1))
    return pairs[share > 0], share[share > 0]


def between(one: SampleGround, other: SampleGround) -> Array:
    """Return (N,) metres between the footprints of N pairs, 0 where they touch or overlap."""
    gaps = np.maximum(offsets(one, other) - (one.size_m + other.size_m) / 2, 0)
    return np.asarray(np.hypot(*gaps.T))


def offsets(one: SampleGround, other: SampleGround) -> Array:
    """Return (N, 2) metres between the centres of N pairs, east and north."""
    east, north = earth.metres_per_degree((one.latitude + other.latitude) / 2)
    around = np.abs(one.longitude - other.longitude) % 360
    apart = np.minimum(around, 360 - around)
    return np.stack([apart * east, np.abs(one.latitude - other.latitude) * north], axis=1)


def _ecef(ground: SampleGround) -> Array:
    """Return (N, 3) geocentric metres of the centres: straight lines between them are never longer than the ground."""
    north, east = np.radians(ground.latitude), np.radians(ground.longitude)
    normal = earth.AXIS_M / np.sqrt(1 - earth.ECCENTRICITY_2 * np.sin(north) ** 2)
    flat = normal * np.cos(north)
    return np.stack(
        [flat * np.cos(east), flat * np.sin(east), normal * (1 - earth.ECCENTRICITY_2) * np.sin(north)], axis=1
    )
