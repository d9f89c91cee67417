"""Test that an area becomes one grid, snapped outward to 60 m in the right UTM zone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgdata.errors import SettingError
from sgdata.scenes import aoi
from sgdata.scenes.aoi import Area
from sgdata.types import Grid

MUNICH = Grid(crs="EPSG:32632", origin=(671280.0, 5349540.0), gsd_m=10.0, shape=(2958, 3847))


def polygon(path: Path, grid: Grid, decimals: int) -> Path:
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    west, south, east, north = grid.bounds
    corners = [(west, south), (east, south), (east, north), (west, north), (west, south)]
    ring = [[round(v, decimals) for v in to_degrees.transform(*corner)] for corner in corners]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def test_a_grid_is_taken_as_it_is() -> None:
    assert aoi.resolve(Area(grid=MUNICH)) is MUNICH


@pytest.mark.parametrize("decimals", [7, 15])
def test_a_polygon_of_60_m_corners_gives_its_own_grid_back(tmp_path: Path, decimals: int) -> None:
    grid = Grid(crs="EPSG:32632", origin=(680040.0, 5340360.0), gsd_m=10.0, shape=(1200, 600))
    assert aoi.resolve(Area(aoi=str(polygon(tmp_path / "a.geojson", grid, decimals)))) == grid


@pytest.mark.parametrize(
    ("bbox", "crs"),
    [
        ((11.4, 48.0, 11.7, 48.2), "EPSG:32632"),
        ((-70.7, -33.5, -70.6, -33.4), "EPSG:32719"),
        ((179.0, -17.0, 179.5, -16.5), "EPSG:32760"),
    ],
)
def test_a_box_is_covered_in_its_zone(bbox: tuple[float, float, float, float], crs: str) -> None:
    grid = aoi.resolve(Area(bbox=bbox))
    assert grid.crs == crs
    assert all(edge % 60 == 0 for edge in grid.bounds)
    west, south, east, north = aoi.in_degrees(grid)
    assert west <= bbox[0] and south <= bbox[1] and east >= bbox[2] and north >= bbox[3]


@pytest.mark.parametrize(
    ("area", "words"),
    [
        (Area(), "nothing given"),
        (Area(grid=MUNICH, bbox=(1, 2, 3, 4)), "grid, bbox given"),
        (Area(bbox=(12.0, 48.0, 11.0, 49.0)), "west < east"),
        (Area(bbox=(179.9, -17.0, -179.9, -16.9)), "across the date line"),
        (Area(bbox=(0.0, 84.0, 1.0, 85.0)), "below 80 degrees"),
        (Area(bbox=(0.0, 40.0, 20.0, 41.0)), "20.0 degrees wide"),
        (Area(place="Atlantis"), "'Atlantis'"),
        (Area(aoi="nowhere.geojson"), "nowhere.geojson"),
    ],
)
def test_an_area_that_cannot_be_is_refused_by_value(area: Area, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        aoi.resolve(area)


def test_an_area_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text('{"type": "Polygon", "coordinates": [[[NaN, 48.7], [10.4, 48.0], [10.5, 48.7], [10.3, 48.7]]]}')
    with pytest.raises(SettingError, match="cannot be read as GeoJSON"):
        aoi.resolve(Area(aoi=str(path)))


def test_a_file_in_metres_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.geojson"
    ring = [[6e5, 5e6], [6.1e5, 5e6], [6e5, 5.1e6], [6e5, 5e6]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    with pytest.raises(SettingError, match="4 vertices in degrees"):
        aoi.resolve(Area(aoi=str(path)))
