"""Resolve an area, given as box, file, place or grid, to the grid that it is built on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from sgdata.errors import SettingError, SourceError
from sgdata.rasters import grids
from sgdata.sentinel2 import MSI
from sgdata.types import Bounds, Grid

CORNER_DEGREES = 1e-6
"""Tolerance for the corners of a rectangle, a tenth of a metre: coordinates are rounded."""

OUTLINES = "give --aoi a polygon in GeoJSON, GeoPackage, Shapefile, KML or GeoParquet"


@dataclass(frozen=True, kw_only=True)
class Area:
    """An area, given by exactly one of `grid`, `bbox`, `aoi` and `place`.

    All but `grid` are snapped outward to multiples of six pixels (60 m at 10 m).

    Attributes:
        grid: Grid to use unchanged.
        bbox: West, south, east and north in degrees.
        aoi: Path of a file with a polygon, as GeoJSON, GeoPackage, Shapefile, KML or GeoParquet.
        place: Name of a place, whose outline a geocoder finds.
        feature: Name, or number from 1, of the feature of `aoi` to use; None where it has only one.
        outline: Outline that goes with `grid`, as WKT in its CRS; None for all of it.
        gsd_m: Pixel size in metres.
        crs: CRS of the grid; None for the UTM zone of the centre.
    """

    grid: Grid | None = None
    bbox: Bounds | None = None
    aoi: str | None = None
    place: str | None = None
    feature: str | None = None
    outline: str | None = None
    gsd_m: float = 10.0
    crs: str | None = None

    @property
    def name(self) -> str:
        """Name of the place, feature or file; "" if the area has none."""
        return self.place or self.feature or (Path(self.aoi).stem if self.aoi else "")


def resolve(area: Area) -> Grid:
    """Return the grid of an area.

    Args:
        area: The area, by exactly one of `grid`, `bbox` and `aoi`; the name of a place must be resolved before.

    Raises:
        SettingError: Not exactly one of them is given, the box or file is invalid, or the area is more than 6 degrees
            of longitude wide or centred beyond 80 degrees of latitude.
    """
    given = [name for name in ("grid", "bbox", "aoi", "place") if getattr(area, name) is not None]
    if len(given) != 1:
        raise SettingError(f"area: {', '.join(given) or 'nothing'} given; give one of --place, --bbox and --aoi")
    if area.feature is not None and area.aoi is None:
        raise SettingError(f"area.feature is {area.feature!r}, of no file; give --aoi FILE with --feature")
    if area.grid is not None:
        return area.grid
    if area.bbox is not None:
        return _over(_edges(area.bbox), area)
    if area.aoi is not None:
        vertices = shapely.get_coordinates(_polygon(Path(area.aoi), area.feature))
        return _over([(float(x), float(y)) for x, y in vertices], area)
    raise SettingError(f"area: place {area.place!r} is only a name, expected an outline; give it to locate_place first")


def outline(area: Area, grid: Grid) -> str | None:
    """Return the outline of an area as WKT in the CRS of its grid; None for a rectangle, which fills its grid.

    Raises SettingError, as `resolve` does.
    """
    if area.grid is not None or area.aoi is None:
        return area.outline
    polygon = _polygon(Path(area.aoi), area.feature)
    if _is_rectangle(polygon, CORNER_DEGREES) or _is_rectangle(_projected(polygon, grid.crs), grid.gsd_m):
        return None
    # Straight in degrees, as GeoJSON defines it, is curved in the grid: a vertex every kilometre follows it.
    curved = _projected(shapely.segmentize(polygon, 0.01), grid.crs)
    return str(shapely.to_wkt(curved, rounding_precision=1, trim=True))


def area_polygon(grid: Grid, outline: str | None = None) -> Any:
    """Return the polygon that is built, in the CRS of the grid."""
    return shapely.from_wkt(outline) if outline else shapely.box(*grid.bounds)


def _projected(shape: Any, crs: str) -> Any:
    from pyproj import Transformer

    move = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    return shapely.transform(shape, move.transform, interleaved=False)


def _is_rectangle(shape: Any, tolerance: float) -> bool:
    return bool(shapely.hausdorff_distance(shape, shapely.box(*shape.bounds)) < tolerance)


def in_degrees(grid: Grid) -> Bounds:
    """Return the bounds of a grid in EPSG:4326, with densified edges."""
    from pyproj import Transformer

    # always_xy: the axis order of EPSG:4326 is latitude first.
    transformer = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    west, south, east, north = transformer.transform_bounds(*grid.bounds, densify_pts=51)
    return (west, south, east, north)


def _polygon(path: Path, feature: str | None) -> Any:
    """Return the polygon of one feature of a file in degrees, in two dimensions and valid. Raises SettingError."""
    from sgdata.rasters import vectors

    try:
        features = vectors.read_features(path)
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error}; {OUTLINES}") from None
    except SourceError as error:
        raise SettingError(f"{error}; {OUTLINES}") from None
    # Rows of tables without a geometry are no places.
    chosen = [one for one in features if one.geometry is not None and not one.geometry.is_empty] or features
    if feature is not None:
        numbered = [one for number, one in enumerate(features, 1) if str(number) == feature]
        chosen = [one for one in features if one.name == feature] or numbered
    if len(chosen) != 1:
        names = ", ".join(repr(one.name) for one in features[:8])
        which = f"none or several named {feature!r}" if feature is not None else "several places"
        raise SettingError(f"{path}: holds {len(features)} features ({names}), {which}; give --feature NAME of one")
    shape = chosen[0].geometry
    if shape is None or shape.geom_type not in {"Polygon", "MultiPolygon"} or shape.is_empty:
        geometry_type = "no geometry" if shape is None or shape.is_empty else f"a {shape.geom_type}"
        raise SettingError(
            f"{path}: feature {chosen[0].name!r} has {geometry_type}, expected a polygon; draw its outline"
        )
    vertices = shapely.get_coordinates(shape)
    if not (np.abs(vertices) <= (180, 90)).all():
        raise SettingError(
            f"{path}: a coordinate is {np.abs(vertices).max():.0f}, in no CRS, expected degrees; choose a file with "
            "its CRS, or save it in WGS84"
        )
    parts = shapely.get_parts(shapely.make_valid(shapely.force_2d(shape)))
    polygons = [part for part in shapely.get_parts(parts) if part.geom_type == "Polygon"]
    if not polygons:
        raise SettingError(f"{path}: feature {chosen[0].name!r} has no area, expected a polygon; draw its outline")
    return polygons[0] if len(polygons) == 1 else shapely.multipolygons(polygons)


def _edges(bbox: Bounds) -> list[tuple[float, float]]:
    """Return points along the edges of a box, since parallels are curved in a projection."""
    west, south, east, north = bbox
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise SettingError(
            f"area: bbox {bbox}: expected WEST SOUTH EAST NORTH in degrees, west < east, south < north; "
            "correct it; of one across the date line build each side"
        )
    # 20 segments a side: over a city the curvature between two points is far below a pixel.
    sides = np.linspace(west, east, 21), np.linspace(south, north, 21)
    return [(float(x), float(y)) for x in sides[0] for y in sides[1] if x in {west, east} or y in {south, north}]


def _over(points: list[tuple[float, float]], area: Area) -> Grid:
    from pyproj import CRS, Transformer
    from pyproj.exceptions import CRSError

    lons, lats = zip(*points, strict=True)
    lon, lat = (min(lons) + max(lons)) / 2, (min(lats) + max(lats)) / 2
    if min(lons) < -90 and max(lons) > 90:
        raise SettingError(
            f"area: from {min(lons):.3f} to {max(lons):.3f} degrees E, across the date line; build each side of it, "
            "with --bbox or --aoi"
        )
    if abs(lat) > 80 or max(lons) - min(lons) > 6:
        raise SettingError(
            f"area: centre {lat:.3f} N {lon:.3f} E, {max(lons) - min(lons):.1f} degrees wide; expected at most "
            "6 degrees of longitude below 80 degrees of latitude (one UTM zone); choose a smaller area, or its parts"
        )
    # By the centre alone, without the exceptions of Norway and Svalbard, which Sentinel-2 tiles do not follow either.
    zone = min(int((lon + 180) // 6) + 1, 60)
    crs = area.crs or f"EPSG:{326 if lat >= 0 else 327}{zone:02d}"
    try:
        axes = CRS.from_user_input(crs).axis_info
    except CRSError:
        axes = []
    if {axis.unit_name for axis in axes} != {"metre"} or len(axes) != 2 or not crs.upper().startswith("EPSG:"):
        units = ", ".join(sorted({axis.unit_name for axis in axes})) or "none"
        raise SettingError(f"area.crs: {crs} has axes in {units}; give a projected CRS in metres, as EPSG:CODE")
    # 10 cm: the rounding of degrees to seven decimals must not push an edge over the next multiple of 60 m.
    xs, ys = (
        [round(value, 1) for value in axis]
        for axis in Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lons, lats)
    )
    return grids.snap_outward(
        (min(xs), min(ys), max(xs), max(ys)), crs, gsd_m=area.gsd_m, snap_m=MSI.nesting_px * area.gsd_m
    )
