"""Build the sea of an area from coastlines, which have land on their left and water on their right. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SURE = 0.9
"""Share of the coastline around a piece of ground that must agree whether it is sea: wrong ways are a few metres."""


def sea(lines: Sequence[Any], area: Any) -> tuple[Any, str]:
    """Return the part of an area that is sea, and what is wrong with the coastlines ("" if nothing).

    Args:
        lines: Coastlines (shapely), in the direction of their ways; those outside the area do not matter.
        area: Polygon (shapely), of any CRS.

    Returns:
        Polygon or MultiPolygon (shapely), empty where no coastline crosses the area. Ground between coastlines that
        contradict each other, or that end inside the area, is left out.
    """
    import shapely

    pieces = [piece for piece in shapely.get_parts(shapely.intersection(list(lines), area)) if not piece.is_empty]
    coast = [piece for piece in shapely.get_parts(pieces) if piece.geom_type == "LineString"]
    if not coast:
        return shapely.Polygon(), ""
    noded = shapely.union_all([*coast, shapely.boundary(area)])
    faces, unclear = [], 0
    segments = _segments(coast)
    tree = shapely.STRtree(shapely.linestrings(segments))
    for face in shapely.get_parts(shapely.polygonize([noded])):
        right, left = _sides(face, segments[tree.query(face, predicate="intersects")])
        if right >= SURE:
            faces.append(face)
        elif left < SURE:
            unclear += 1
    gaps = f"{unclear} pieces of ground are between coastlines that end or contradict each other" if unclear else ""
    return shapely.union_all(faces), gaps


def _segments(lines: Sequence[Any]) -> Any:
    """Return (N, 2, 2) first and last point of each straight piece of the lines."""
    import shapely

    points = [shapely.get_coordinates(line) for line in lines]
    return np.concatenate([np.stack([one[:-1], one[1:]], axis=1) for one in points])


def _sides(face: Any, segments: Any) -> tuple[float, float]:
    """Return the shares, by length, of the coastline along a face that have it on their right only and left only."""
    import shapely

    first, last = segments[:, 0], segments[:, 1]
    vectors = last - first
    length = np.hypot(*vectors.T)
    step = 1e-9 * max(1.0, float(np.abs(first).max(initial=0))) / np.maximum(length, 1e-300)
    # Points just beside the middle of each piece.
    offsets = np.stack([vectors[:, 1], -vectors[:, 0]], axis=1) * step[:, None]
    right, left = (shapely.contains_xy(face, *((first + last) / 2 + sign * offsets).T) for sign in (1, -1))
    total = max(float(length[right | left].sum()), 1e-300)
    return float(length[right & ~left].sum()) / total, float(length[left & ~right].sum()) / total
