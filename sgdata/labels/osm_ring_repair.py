"""Build polygons from rings that the assembler of pyosmium refused, and find those that cross too often for that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sgdata.limits import CROSSINGS


def mend_way(ring: list[tuple[float, float]]) -> tuple[Any, str]:
    """Return the ground of a ring that pyosmium could not assemble, and the reason."""
    import shapely

    if ring and cross_often([shapely.LineString(ring)]):
        return shapely.Polygon(), f"its ring crosses itself more than {CROSSINGS.most} times"
    reason = "its ring crosses itself" if ring else "nodes of the ring are not in the data"
    return polygons_in(shapely.Polygon(ring)), reason


def mend_relation(members: list[tuple[int, str]], ways: Mapping[int, Any]) -> tuple[Any, str]:
    """Return the ground of a relation that pyosmium could not assemble, and the reason."""
    import shapely

    if cross_often([ways[ref] for ref, _ in members if ref in ways]):
        return shapely.Polygon(), f"its rings cross more than {CROSSINGS.most} times"
    outer = close_rings(ways[ref] for ref, role in members if role != "inner" and ref in ways)
    inner = close_rings(ways[ref] for ref, role in members if role == "inner" and ref in ways)
    # A forest cut by the border of an extract keeps the rings that close.
    missing = sum(ref not in ways for ref, _ in members)
    reason = f"{missing} of {len(members)} members are not in the data" if missing else "its rings do not close"
    return polygons_in(outer.difference(inner)), reason


def cross_often(lines: Sequence[Any]) -> bool:
    """Return whether lines cross each other or themselves more than CROSSINGS times; GEOS makes a node of each."""
    import shapely

    segment_arrays = []
    for line in lines:
        points = shapely.get_coordinates(line)
        segment_arrays.append(np.stack([points[:-1], points[1:]], axis=1))
    if not segment_arrays:
        return False
    segments = shapely.linestrings(np.concatenate(segment_arrays))
    tree = shapely.STRtree(segments)
    crossings = 0
    # Few at a time, to stop early: of a zigzag every segment meets every other.
    for start in range(0, len(segments), 64):
        crossings += tree.query(segments[start : start + 64], predicate="crosses").shape[1]
        if crossings > 2 * CROSSINGS.most:  # each is found from both sides
            return True
    return False


def close_rings(lines: Iterable[Any]) -> Any:
    """Return the ground inside the rings that these lines close, with nodes at their crossings."""
    import shapely

    return shapely.union_all(shapely.get_parts(shapely.polygonize([shapely.union_all(list(lines))])))


def polygons_in(geometry: Any) -> Any:
    """Return the polygons of a geometry that is made valid."""
    import shapely

    parts = shapely.get_parts(shapely.make_valid(geometry))
    areas = [part for part in parts if part.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(areas)
