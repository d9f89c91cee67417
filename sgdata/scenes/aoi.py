"""Resolve an area, given as box, file, place or grid, to the grid that it is built on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgdata.errors import SettingError, SourceError
from sgdata.rasters import grids
from sgdata.sentinel2 import MSI
from sgdata.types import Bounds, Grid


@dataclass(frozen=True, kw_only=True)
class Area:
    """An area, given by exactly one of `grid`, `bbox`, `aoi` and `place`.

    All but `grid` are snapped outward to multiples of six pixels (60 m at 10 m).

    Attributes:
        grid: grid to use unchanged.
        bbox: west, south, east and north in degrees.
        aoi: path of a GeoJSON file in degrees.
        place: name of a place, whose outline a geocoder finds.
        gsd_m: pixel size in metres.
        crs: CRS of the grid; None for the UTM zone of the centre.
    """

    grid: Grid | None = None
    bbox: Bounds | None = None
    aoi: str | None = None
    place: str | None = None
    gsd_m: float = 10.0
    crs: str | None = None


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
        raise SettingError(f"area: {', '.join(given) or 'nothing'} given; expected one of grid, bbox, aoi, place")
    if area.grid is not None:
        return area.grid
    if area.bbox is not None:
        return _over(_edges(area.bbox), area)
    if area.aoi is not None:
        return _over(corners(Path(area.aoi)), area)
    raise SettingError(f"area: place {area.place!r} is only a name; expected its outline (osm.located)")


def in_degrees(grid: Grid) -> Bounds:
    """Return the bounds of a grid in EPSG:4326, with densified edges."""
    from pyproj import Transformer

    # always_xy: the axis order of EPSG:4326 is latitude first.
    transformer = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    west, south, east, north = transformer.transform_bounds(*grid.bounds, densify_pts=51)
    return (west, south, east, north)


def corners(path: Path) -> list[tuple[float, float]]:
    """Return (longitude, latitude) of all vertices in a vector file. Raises SettingError."""
    import shapely

    from sgdata.rasters import vectors

    try:
        vertices = [(float(x), float(y)) for x, y in shapely.get_coordinates(vectors.read_geometries(path))]
    except OSError as error:
        raise SettingError(f"{path}: cannot be read as GeoJSON: {error}; expected a polygon in WGS84") from None
    except SourceError as error:
        raise SettingError(f"{error}; expected a polygon in WGS84") from None
    if len(vertices) < 3 or not all(abs(x) <= 180 and abs(y) <= 90 for x, y in vertices):
        raise SettingError(f"{path}: holds {len(vertices)} vertices in degrees; expected a polygon in WGS84")
    return vertices


def _edges(bbox: Bounds) -> list[tuple[float, float]]:
    """Return points along the edges of a box, since parallels are curved in a projection."""
    west, south, east, north = bbox
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise SettingError(
            f"area: bbox {bbox}: expected WEST SOUTH EAST NORTH in degrees, west < east, south < north; "
            "one across the date line has no single grid: build its two sides"
        )
    # 20 segments a side: over a city the curvature between two points is far below a pixel.
    sides = np.linspace(west, east, 21), np.linspace(south, north, 21)
    return [(float(x), float(y)) for x in sides[0] for y in sides[1] if x in {west, east} or y in {south, north}]


def _over(points: list[tuple[float, float]], area: Area) -> Grid:
    from pyproj import Transformer

    lons, lats = zip(*points, strict=True)
    lon, lat = (min(lons) + max(lons)) / 2, (min(lats) + max(lats)) / 2
    if abs(lat) > 80 or max(lons) - min(lons) > 6:
        raise SettingError(
            f"area: centre {lat:.3f} N {lon:.3f} E, {max(lons) - min(lons):.1f} degrees wide; expected at most "
            "6 degrees of longitude below 80 degrees of latitude (one UTM zone; none at the poles or the date line)"
        )
    # By the centre alone, without the exceptions of Norway and Svalbard, which Sentinel-2 tiles do not follow either.
    zone = min(int((lon + 180) // 6) + 1, 60)
    crs = area.crs or f"EPSG:{326 if lat >= 0 else 327}{zone:02d}"
    # 10 cm: the rounding of degrees to seven decimals must not push an edge over the next multiple of 60 m.
    xs, ys = (
        [round(value, 1) for value in axis]
        for axis in Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lons, lats)
    )
    return grids.covering(
        (min(xs), min(ys), max(xs), max(ys)), crs, gsd_m=area.gsd_m, snap_m=MSI.nesting_px * area.gsd_m
    )
