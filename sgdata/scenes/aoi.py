"""An area as people give it (box, file, place or grid) -> the lattice it is built on. Pure but for the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgdata.errors import SettingError
from sgdata.rasters import grid
from sgdata.sentinel2 import MSI
from sgdata.types import Bounds, Grid


@dataclass(frozen=True, kw_only=True)
class Area:
    """Exactly one of `grid` (data, taken as it is), `bbox` (degrees), `aoi` (GeoJSON file), `place` (a name).

    All but `grid` are snapped outward to six pixels of `gsd_m` (60 m at 10 m), in `crs` or, without one, in the
    UTM zone of their centre.
    """

    grid: Grid | None = None
    bbox: Bounds | None = None
    aoi: str | None = None
    place: str | None = None
    gsd_m: float = 10.0
    crs: str | None = None


def resolve(area: Area) -> Grid:
    """The lattice of an area. Raises SettingError."""
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


def in_degrees(lattice: Grid) -> Bounds:
    """Bounds of a lattice in EPSG:4326, edges densified."""
    from pyproj import Transformer

    # always_xy: EPSG:4326 itself says latitude first.
    transformer = Transformer.from_crs(lattice.crs, "EPSG:4326", always_xy=True)
    west, south, east, north = transformer.transform_bounds(*lattice.bounds, densify_pts=51)
    return (west, south, east, north)


def corners(path: Path) -> list[tuple[float, float]]:
    """The (longitude, latitude) of all vertices in a GeoJSON file. Raises SettingError."""
    import shapely

    try:
        found = [(float(x), float(y)) for x, y in shapely.get_coordinates(shapely.from_geojson(path.read_bytes()))]
    except (OSError, ValueError, shapely.GEOSException) as error:
        raise SettingError(f"{path}: cannot be read as GeoJSON: {error}; expected a polygon in WGS84") from None
    if len(found) < 3 or not all(abs(x) <= 180 and abs(y) <= 90 for x, y in found):
        raise SettingError(f"{path}: holds {len(found)} vertices in degrees; expected a polygon in WGS84")
    return found


def _edges(bbox: Bounds) -> list[tuple[float, float]]:
    """Points along the box: its parallels bulge in a projection."""
    west, south, east, north = bbox
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise SettingError(
            f"area: bbox {bbox}: expected WEST SOUTH EAST NORTH in degrees, west < east, south < north; "
            "one across the date line has no single lattice: build its two sides"
        )
    # 20 pieces a side: over a city the bulge between two points is far below a pixel.
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
    # By the centre alone; Norway's and Svalbard's wider zones are not followed, as Sentinel-2's tiles do not either.
    zone = min(int((lon + 180) // 6) + 1, 60)
    crs = area.crs or f"EPSG:{326 if lat >= 0 else 327}{zone:02d}"
    # 10 cm: what degrees with seven decimals lose must not push an edge over the next multiple of 60 m.
    xs, ys = (
        [round(value, 1) for value in axis]
        for axis in Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lons, lats)
    )
    return grid.covering(
        (min(xs), min(ys), max(xs), max(ys)), crs, gsd_m=area.gsd_m, snap_m=MSI.nesting_px * area.gsd_m
    )
