"""Draw OpenStreetMap features onto a grid: one label per pixel and its source. Pure.

`prepare` classifies, repairs and orders the features once, in integer coordinates of the whole grid; `paint` then draws
any window of it. Both work on a grid `supersample` times as fine, and each pixel gets the class of most of its parts.
All comparisons are between integers, so the result does not depend on the tiling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numba
import numpy as np

from sgdata.errors import SettingError
from sgdata.labels import tag_rules
from sgdata.types import Array, Grid, Window

UNMAPPED = tag_rules.IGNORE
SOURCES = {0: "none", 1: "OpenStreetMap polygon", 2: "OpenStreetMap line", 3: "gap fill"}
POLYGON, LINE, GAP_FILL, RASTER = 1, 2, 3, 4
RASTER_SOURCES = SOURCES | {RASTER: "land cover raster"}
"""Sources of labels that come from a raster, with streets drawn over them."""
UNITS = 1024
"""Integer steps per fine pixel: 2 mm for fine pixels of 2 m."""
MARGIN_PX = 100
"""Distance from the grid at which geometries are cut, which bounds the integers."""


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Settings of labels (`labels` in a build recipe).

    Attributes:
        classes: segmunich-osm, corine, or the path of a class table.
        supersample: Fine pixels per side of a pixel.
        overlap: Whether the smaller polygon wins or the stronger priority of the tag table.
        streets: Whether streets are drawn by carriageway width or as every pixel that the centre line touches.
        tiers: Tiers of rows of the tag table to use.
        street_groups: Groups of streets to draw.
        source: Whether all classes are painted by tags, or only streets, over a coded raster (`--raster`).
        codes: Codes of that raster: "" for those of the class table, corine, worldcover, or the path of a table.
    """

    classes: str = "segmunich-osm"
    supersample: int = 5
    overlap: Literal["area", "priority"] = "area"
    streets: Literal["width", "touched"] = "width"
    tiers: tuple[tag_rules.Tier, ...] = ("core", "ext")
    street_groups: tuple[str, ...] = ("drive", "drive_service", "walk")
    source: Literal["osm", "raster"] = "osm"
    codes: str = ""


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """S shapes in painting order, in flat arrays.

    Attributes:
        xy: (N, 2) int64 points in 1/UNITS of a fine pixel, x east, y south.
        parts: (P + 1,) offsets into `xy`.
        shapes: (S + 1,) offsets into `parts`.
        bounds: (S, 4) west, north, east, south.
        label: (S,) uint8.
        source: (S,) uint8, a key of SOURCES.
    """

    xy: Array
    parts: Array
    shapes: Array
    bounds: Array
    label: Array
    source: Array


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Outlines to paint on a grid.

    Attributes:
        grid: The grid.
        supersample: Fine pixels per side of a pixel.
        filled: Outlines to fill.
        touched: Lines to draw afterwards, as every pixel that they touch.
        counts: Number of features that were drawn, mended or lost, had no rule, or are under ground.
    """

    grid: Grid
    supersample: int
    filled: Outlines
    touched: Outlines
    counts: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class _Classified:
    """Feature with its rule and its geometry in the grid's CRS."""

    object_id: tuple[str, int]
    rule: tag_rules.TagRule
    geometry: Any
    area_m2: float
    half_width_m: float

    @property
    def is_line(self) -> bool:
        return self.rule.kind == "line"


# --- from features to outlines -------------------------------------------------------------


def prepare(features: Any, rules: tag_rules.RuleTable, grid: Grid, settings: LabelSettings) -> Drawing:
    """Classify, repair, widen and order features for painting.

    Args:
        features: GeoDataFrame `Features.table` of `osm_features.read`.
        rules: Rules that classify features.
        grid: Grid of the labels.
        settings: Settings of labels.

    Returns:
        Outlines with polygons below lines, and lines by priority (water, rail, streets on top).

    Raises:
        SettingError: `settings.supersample` is out of range.
    """
    if not 1 <= settings.supersample <= 15:
        raise SettingError(f"labels.supersample is {settings.supersample}; expected 1 to 15")
    counts: Counter[str] = Counter()
    classified = _classify(features, rules, grid, counts)
    to_touch: list[_Classified] = []
    to_fill: list[_Classified] = []
    for feature in classified:
        by_centre_line = settings.streets == "touched" and feature.is_line and feature.rule.group != ""
        (to_touch if by_centre_line else to_fill).append(feature)
    areas = _widen_lines(to_fill, grid)
    areas.sort(key=_by_priority if settings.overlap == "priority" else _by_area)
    counts.update("lines" if feature.is_line else "polygons" for feature in (*areas, *to_touch))
    return Drawing(
        grid=grid,
        supersample=settings.supersample,
        filled=_outlines(areas, grid, settings.supersample),
        touched=_outlines(to_touch, grid, settings.supersample),
        counts=dict(sorted(counts.items())),
    )


def _by_area(feature: _Classified) -> tuple[Any, ...]:
    """Return a sort key: polygons, largest first, then lines by priority; later shapes cover earlier ones."""
    return (feature.is_line, -round(feature.area_m2, 1), -feature.rule.priority, *feature.object_id)


def _by_priority(feature: _Classified) -> tuple[Any, ...]:
    """Return a sort key: weakest priority first, within a priority polygons before lines and larger before smaller."""
    return (-feature.rule.priority, feature.is_line, -round(feature.area_m2, 1), *feature.object_id)


def _classify(features: Any, rules: tag_rules.RuleTable, grid: Grid, counts: Counter[str]) -> list[_Classified]:
    """Return the features with a rule that are not under ground, valid and near the grid, in the grid's CRS."""
    import shapely

    west, south, east, north = grid.bounds
    margin = MARGIN_PX * grid.gsd_m
    frame = shapely.box(west - margin, south - margin, east + margin, north + margin)
    shapely.prepare(frame)
    projected = features.geometry.to_crs(grid.crs).to_numpy()
    classified = []
    columns = (features[name] for name in ("osm_type", "osm_id", "kind", "tags"))
    for osm_type, osm_id, kind, tags, geometry in zip(*columns, projected, strict=True):
        rule = tag_rules.match(rules, kind, tags, is_way=osm_type == "way")
        if rule is None:
            counts["without a rule"] += 1
        elif tag_rules.is_underground(tags, rule):
            counts["under ground"] += 1
        else:
            valid = _make_valid(geometry, kind, counts)
            if valid is None:
                continue
            if not shapely.intersects(frame, valid):
                counts["outside the grid"] += 1
                continue
            half_width_m = 0.0
            if kind == "line":
                half_width_m = (tag_rules.width_m(tags) or 2 * (rule.half_width_m or 0)) / 2
            object_id = (str(osm_type), int(osm_id))
            # The area decides the order; that of the whole geometry is the same for every grid.
            area_m2, clipped = float(valid.area), _clip(frame, valid)
            if rule.key == tag_rules.SEA:
                area_m2 = np.inf  # below every polygon, however small the part of the sea is
            classified.append(
                _Classified(
                    object_id=object_id, rule=rule, geometry=clipped, area_m2=area_m2, half_width_m=half_width_m
                )
            )
    return classified


def _make_valid(geometry: Any, kind: tag_rules.Kind, counts: Counter[str]) -> Any:
    """Return the geometry made valid; None, counted, if it cannot be projected or has no extent."""
    import shapely

    dimension = 2 if kind == "polygon" else 1
    if not np.isfinite(shapely.bounds(geometry)).all():
        counts["lost: no place in the grid's CRS"] += 1
        return None
    if dimension == 2 and not shapely.is_valid(geometry):
        counts["mended"] += 1
        geometry = shapely.make_valid(geometry)
    valid = _keep_dimension(geometry, dimension)
    if shapely.is_empty(valid):
        counts["lost: no extent"] += 1
        return None
    return valid


def _clip(frame: Any, geometry: Any) -> Any:
    """Return the part of a multi-part geometry inside the (prepared) frame."""
    import shapely

    if shapely.covers(frame, geometry):
        return geometry
    return _keep_dimension(shapely.intersection(geometry, frame), int(shapely.get_dimensions(geometry)))


def _keep_dimension(geometry: Any, dimension: int) -> Any:
    """Return the parts of a geometry that are areas (2) or lines (1), as one multi-part geometry."""
    import shapely

    parts = shapely.get_parts(shapely.get_parts(geometry))
    parts = parts[shapely.get_dimensions(parts) == dimension]
    return shapely.multipolygons(parts) if dimension == 2 else shapely.multilinestrings(parts)


def _widen_lines(classified: list[_Classified], grid: Grid) -> list[_Classified]:
    """Return lines as areas of their width, at least one pixel; those of rivers without their parts in river areas."""
    import shapely

    water = [feature for feature in classified if not feature.is_line and feature.rule.key in tag_rules.WATER]
    tree = shapely.STRtree([feature.geometry for feature in water])
    areas = []
    for feature in classified:
        line = feature.geometry
        if feature.is_line and feature.rule.key in tag_rules.WATER:
            near = tree.query(line, predicate="intersects")
            line = shapely.difference(line, shapely.union_all([water[i].geometry for i in near]))
        if feature.is_line:
            # Round ends close the joints between the ways of a street; two segments per quarter circle suffice.
            line = shapely.buffer(line, max(feature.half_width_m, grid.gsd_m / 2), quad_segs=2)
        if not shapely.is_empty(line):  # as a river line within a river area is, or a shape that only touches the frame
            areas.append(replace(feature, geometry=line))
    return areas


def _outlines(classified: list[_Classified], grid: Grid, supersample: int) -> Outlines:
    """Return the shapes of `items` in integer coordinates, in this order."""
    import shapely

    geometries = np.array([feature.geometry for feature in classified], dtype=object)
    shape_of_part = np.empty(0, np.int64)
    if len(classified) and classified[0].geometry.geom_type.endswith("String"):
        lines, shape_of_part = shapely.get_parts(geometries, return_index=True)
    else:
        polygons, owner = shapely.get_parts(geometries, return_index=True)
        lines, polygon_of_ring = shapely.get_rings(polygons, return_index=True)
        shape_of_part = owner[polygon_of_ring]
    points, part_of_point = shapely.get_coordinates(lines, return_index=True)
    # Integers from here on, so that a pixel centre is inside or outside independently of the tile.
    step = grid.gsd_m / supersample / UNITS
    xy = np.rint((points - grid.origin) / (step, -step)).astype(np.int64)
    parts = np.searchsorted(part_of_point, np.arange(len(lines) + 1))
    shapes = np.searchsorted(shape_of_part, np.arange(len(classified) + 1))
    first = parts[shapes[:-1]]
    low = np.minimum.reduceat(xy, first) if len(classified) else np.empty((0, 2), np.int64)
    high = np.maximum.reduceat(xy, first) if len(classified) else np.empty((0, 2), np.int64)
    return Outlines(
        xy=xy,
        parts=parts.astype(np.int64),
        shapes=shapes.astype(np.int64),
        bounds=np.hstack([low, high]),
        label=np.array([feature.rule.label for feature in classified], np.uint8),
        source=np.array([LINE if feature.is_line else POLYGON for feature in classified], np.uint8),
    )


# --- from outlines to pixels ---------------------------------------------------------------


def paint(drawing: Drawing, window: Window) -> tuple[Array, Array]:
    """Paint a window.

    A tie between classes goes to that of the last painted shape in the pixel, so to the smaller polygon; a tie with
    unmapped ground goes to the class.

    Args:
        drawing: Outlines to paint.
        window: Window of the drawing's grid.

    Returns:
        Labels and their sources, (H, W) uint8 each; 255 and 0 for unmapped ground.
    """
    n = drawing.supersample
    row, col, height, width = window.row * n, window.col * n, window.height * n, window.width * n
    filled, touched = drawing.filled, drawing.touched
    # Ranks of shapes, not classes, since ties below depend on the shape painted last.
    fine = np.zeros((height, width), np.int32)
    _fill(fine, filled.xy, filled.parts, filled.shapes, _shapes_near(filled, row, col, fine.shape), row, col)
    labels, source = _vote(fine, filled.label, filled.source, n)
    ranks = np.zeros(labels.shape, np.int32)
    near = _shapes_near(touched, row, col, fine.shape)
    _touch(ranks, touched.xy, touched.parts, touched.shapes, near, (window.row, window.col, n * UNITS))
    painted = ranks > 0
    labels[painted] = touched.label[ranks[painted] - 1]
    source[painted] = touched.source[ranks[painted] - 1]
    return labels, source


def _shapes_near(outlines: Outlines, row: int, col: int, shape: tuple[int, int]) -> Array:
    """Return the indices, in order, of the shapes whose bounds meet a window of fine pixels."""
    west, north, east, south = outlines.bounds.T
    meets = (west <= (col + shape[1]) * UNITS) & (east >= col * UNITS)
    return np.flatnonzero(meets & (north <= (row + shape[0]) * UNITS) & (south >= row * UNITS))


@numba.njit(cache=True, nogil=True)
def _fill(fine: Array, xy: Array, parts: Array, shapes: Array, near: Array, row: int, col: int) -> None:
    """Write index + 1 of each shape into the fine pixels whose centre is inside it (even-odd), in order."""
    half, unit = UNITS // 2, UNITS
    height, width = fine.shape
    for s in near:
        low, high = parts[shapes[s]], parts[shapes[s + 1]]
        west, east = xy[low:high, 0].min(), xy[low:high, 0].max()
        north, south = xy[low:high, 1].min(), xy[low:high, 1].max()
        top, bottom = max(north // unit - row, 0), min(south // unit + 1 - row, height)
        left, right = max(west // unit - col, 0), min(east // unit + 1 - col, width)
        if top >= bottom or left >= right:
            continue
        # An edge flips every pixel centre to the right of it: mark the first one, then accumulate along each row.
        flips = np.zeros((bottom - top, right - left), np.bool_)
        for part in range(shapes[s], shapes[s + 1]):
            for i in range(parts[part], parts[part + 1] - 1):
                x1, y1, x2, y2 = xy[i, 0], xy[i, 1], xy[i + 1, 0], xy[i + 1, 1]
                if y1 > y2:
                    x1, y1, x2, y2 = x2, y2, x1, y1
                rise = y2 - y1
                first = max(-((half - y1) // unit), row + top)
                last = min(-((half - y2) // unit), row + bottom)
                for r in range(first, last):
                    # First column whose centre is not left of the edge: a ceiling division, exact.
                    above = (half - x1) * rise - (r * unit + half - y1) * (x2 - x1)
                    c = -(above // (rise * unit)) - col - left
                    if c < right - left:
                        c = max(c, 0)
                        flips[r - row - top, c] = not flips[r - row - top, c]
        for r in range(bottom - top):
            inside = False
            for c in range(right - left):
                inside ^= flips[r, c]
                if inside:
                    fine[top + r, left + c] = s + 1


@numba.njit(cache=True, nogil=True)
def _vote(fine: Array, label: Array, source: Array, n: int) -> tuple[Array, Array]:
    """Return the class of most of the n x n parts of each pixel, ties to the last painted, and its source."""
    height, width = fine.shape[0] // n, fine.shape[1] // n
    labels = np.full((height, width), np.uint8(UNMAPPED))
    sources = np.zeros((height, width), np.uint8)
    count, last = np.zeros(256, np.int32), np.zeros(256, np.int32)
    for row in range(height):
        for col in range(width):
            block = fine[row * n : row * n + n, col * n : col * n + n]
            for rank in block.flat:
                klass = label[rank - 1] if rank else UNMAPPED
                count[klass] += 1
                last[klass] = max(last[klass], rank)
            # Over the parts, not the 256 classes: few classes meet in one pixel.
            best = UNMAPPED
            for rank in block.flat:
                klass = label[rank - 1] if rank else UNMAPPED
                if count[klass] > count[best] or (count[klass] == count[best] and last[klass] > last[best]):
                    best = klass
            if best != UNMAPPED:
                labels[row, col], sources[row, col] = best, source[last[best] - 1]
            for rank in block.flat:
                klass = label[rank - 1] if rank else UNMAPPED
                count[klass], last[klass] = 0, 0
    return labels, sources


@numba.njit(cache=True, nogil=True)
def _touch(ranks: Array, xy: Array, parts: Array, shapes: Array, near: Array, place: tuple[int, int, int]) -> None:
    """Write index + 1 of each line into every pixel it passes through; `place` is row, col, units per pixel."""
    row, col, unit = place
    height, width = ranks.shape
    for s in near:
        for part in range(shapes[s], shapes[s + 1]):
            for i in range(parts[part], parts[part + 1] - 1):
                x1, y1, x2, y2 = xy[i, 0], xy[i, 1], xy[i + 1, 0], xy[i + 1, 1]
                if y1 > y2:
                    x1, y1, x2, y2 = x2, y2, x1, y1
                # In each row the line enters at one column and leaves at another; all between are touched.
                rise = max(y2 - y1, 1)
                for r in range(max(y1 // unit, row), min(y2 // unit + 1, row + height)):
                    enter, leave = max(r * unit, y1), min((r + 1) * unit, y2)
                    a = (x1 * rise + (enter - y1) * (x2 - x1)) // (rise * unit)
                    b = (x1 * rise + (leave - y1) * (x2 - x1)) // (rise * unit) if y2 > y1 else x2 // unit
                    for c in range(max(min(a, b), col), min(max(a, b) + 1, col + width)):
                        ranks[r - row, c - col] = s + 1
