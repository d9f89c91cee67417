"""Shapes that places are made of: blobs, wandering lines, and land cut up into blocks and parcels. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import shapely
from shapely.geometry import LineString, Point, Polygon
from shapely.geometry.base import BaseGeometry

Rng = np.random.Generator


# Overlays of polygons that touch leave points, lines and slivers in a GeometryCollection: 150 m2 is not mapped, and a
# pixel holds 100.
def polygons(geometry: BaseGeometry, least_m2: float = 150) -> list[Polygon]:
    """Return the polygons of any geometry with at least the given area."""
    parts = shapely.get_parts(geometry)
    return [part for part in parts if part.geom_type == "Polygon" and part.area >= least_m2]


def lines(geometry: BaseGeometry, least_m: float = 15) -> list[LineString]:
    """Return the line strings of any geometry with at least the given length."""
    parts = shapely.get_parts(geometry)
    return [part for part in parts if part.geom_type == "LineString" and part.length >= least_m]


def blob(x: float, y: float, radius: float, rng: Rng, *, rough: float = 0.2, stretch: float = 1.0) -> Polygon:
    """Draw a closed shape around (x, y); `rough` varies the radius, `stretch` elongates it in a random direction."""
    angles = np.linspace(0, 2 * np.pi, max(24, int(radius / 12)), endpoint=False)
    radii = np.ones(len(angles))
    # A Fourier series in the angle, falling like 1/order. Order 1 would only shift the middle.
    for order in range(2, 7):
        radii += rough * rng.normal() / order * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
    tilt = rng.uniform(0, np.pi)
    east, north = np.cos(angles) * radii * stretch**0.5, np.sin(angles) * radii / stretch**0.5
    turned = (east * math.cos(tilt) - north * math.sin(tilt), east * math.sin(tilt) + north * math.cos(tilt))
    shape = Polygon(np.column_stack([x + radius * turned[0], y + radius * turned[1]]))
    # Large amplitudes fold the outline over itself; buffer(0) mends that.
    return polygons(shape.buffer(0))[0]


def winding_line(start: tuple[float, float], end: tuple[float, float], rng: Rng, *, sway: float) -> LineString:
    """Draw a line from start to end with bends of 0.5 to 4 km that deviate by about `sway` metres."""
    length = math.dist(start, end)
    position = np.linspace(0, 1, max(int(length / 50), 3))
    deviation = np.zeros(len(position))
    # Amplitude over wavelength as the sum of a coloured noise: large bends swing far, small ones little.
    for bend in (4000, 2000, 1000, 550):
        waves = max(length / bend, 0.5)
        phase = rng.uniform(0, 2 * np.pi)
        deviation += sway * (bend / 4000) ** 0.7 * rng.normal() * np.sin(2 * np.pi * waves * position + phase)
    # Calm over the last 300 m, so that the line truly starts and ends where others do.
    deviation *= np.minimum(1, np.minimum(position, 1 - position) * length / 300)
    east, north = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    x = start[0] + east * length * position - north * deviation
    y = start[1] + north * length * position + east * deviation
    return LineString(np.column_stack([x, y]))


def point_toward(x: float, y: float, bearing: float, distance: float) -> tuple[float, float]:
    """Return the point at a distance from (x, y) on a bearing in radians clockwise from north."""
    return x + distance * math.sin(bearing), y + distance * math.cos(bearing)


def cut(shape: Polygon, rng: Rng, *, axis: float | None, jitter: float) -> tuple[list[Polygon], LineString]:
    """Cut a shape across its long side near the middle; with `axis`, along or across that direction."""
    # The long side of the smallest rectangle around: cutting across it keeps pieces as square as may be.
    corners = shapely.get_coordinates(shapely.oriented_envelope(shape))
    length, angle = max((math.dist(p, q), math.atan2(q[1] - p[1], q[0] - p[0])) for p, q in pairwise(corners[:3]))
    if axis is not None:
        angle = axis + round((angle - axis) / (math.pi / 2)) * (math.pi / 2)
    angle += rng.normal() * 0.03  # no surveyor is exact, and exact right angles are easy to learn
    shift = rng.uniform(-jitter, jitter) * length
    x, y = shape.centroid.x + shift * math.cos(angle), shape.centroid.y + shift * math.sin(angle)
    # Twice the long side reaches beyond the shape from wherever inside the cut is placed.
    reach = length * 2 + 50
    east, north = math.cos(angle) * reach, math.sin(angle) * reach
    a, b = (x - north, y + east), (x + north, y - east)
    half = Polygon([a, b, (b[0] + east, b[1] + north), (a[0] + east, a[1] + north)])
    parts = polygons(shape.intersection(half)) + polygons(shape.difference(half))
    return parts, LineString([a, b])


def subdivide(
    shape: Polygon, target_m2: float, rng: Rng, *, axis: float | None = None, jitter: float = 0.12
) -> tuple[list[Polygon], list[tuple[int, LineString]]]:
    """Halve a shape repeatedly into pieces of about `target_m2`; return them and the cuts as (depth, line)."""
    pieces, cuts, unfinished = [], [], [(shape, 0)]
    while unfinished:
        piece, depth = unfinished.pop()
        # The random factor spreads the sizes; the depth ends the halving of a sliver that never gets smaller.
        if piece.area < target_m2 * rng.uniform(1.0, 1.9) or depth > 12:
            pieces.append(piece)
            continue
        parts, line = cut(piece, rng, axis=axis, jitter=jitter)
        cuts += [(depth, part) for part in lines(line.intersection(piece))]
        unfinished += [(part, depth + 1) for part in parts]
    return pieces, cuts


def direction(shape: Polygon) -> float:
    """Return the direction of the long side of a shape in radians, counter-clockwise from east."""
    corners = shapely.get_coordinates(shapely.oriented_envelope(shape))
    sides = np.diff(corners[:3], axis=0)
    east, north = max(sides.tolist(), key=lambda side: math.hypot(*side))
    return math.atan2(north, east)


def strips(shape: Polygon, width_m: float, rng: Rng) -> list[Polygon]:
    """Cut a shape along its long side into strips of about `width_m`."""
    corners = shapely.get_coordinates(shapely.oriented_envelope(shape))
    origin, along, across = corners[0], corners[1] - corners[0], corners[3] - corners[0]
    if np.hypot(*across) > np.hypot(*along):
        along, across = across, along
    count = max(1, round(float(np.hypot(*across)) / width_m))
    edges = (np.arange(count + 1) + rng.uniform(-0.25, 0.25, count + 1)) / count
    edges[[0, -1]] = 0, 1
    bands = [
        Polygon([origin + across * a, origin + across * a + along, origin + across * b + along, origin + across * b])
        for a, b in pairwise(edges)
    ]
    return [part for piece in shapely.intersection(shape, bands) for part in polygons(piece, 400)]


def subtract(shape: BaseGeometry, tree: shapely.STRtree) -> list[Polygon]:
    """Return the polygons of a shape outside everything in the tree."""
    hits = tree.query(shape, predicate="intersects")
    if len(hits):
        shape = shape.difference(shapely.union_all(tree.geometries[hits]))
    return polygons(shape, 400)


def crossing(line: LineString, over: BaseGeometry) -> Iterator[tuple[bool, LineString]]:
    """Split a line at `over`; return each part and whether it is inside (a bridge, a tunnel)."""
    for inside, part in ((True, line.intersection(over)), (False, line.difference(over))):
        # Merged, for an overlay cuts a line at every vertex that it shares.
        for piece in lines(shapely.line_merge(part), 5):
            yield inside, piece


def scatter(count: int, area: Polygon, apart_m: float, rng: Rng, avoid: Iterable[Polygon]) -> list[Point]:
    """Draw up to `count` random points inside, so far from each other and outside the shapes to avoid."""
    west, south, east, north = area.bounds
    points: list[Point] = []
    avoided = shapely.union_all(list(avoid))
    # Rejection, with an end: a small area may have no room for all.
    for _ in range(count * 30):
        point = Point(rng.uniform(west, east), rng.uniform(south, north))
        if all(point.distance(earlier) > apart_m for earlier in points) and not avoided.intersects(point):
            points.append(point)
        if len(points) == count:
            break
    return points
