"""Test that an area becomes one grid, snapped outward to 60 m in the right UTM zone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgdata.errors import SettingError
from sgdata.rasters import vectors
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
        (Area(grid=MUNICH, feature="north"), "give --aoi FILE with --feature"),
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
    with pytest.raises(SettingError, match="coordinate is 5100000, in no CRS"):
        aoi.resolve(Area(aoi=str(path)))


# --- files with outlines -------------------------------------------------------------------

SQUARE = [[10.372, 48.725], [10.392, 48.725], [10.392, 48.738], [10.372, 48.738], [10.372, 48.725]]
TRIANGLE = [[10.372, 48.725], [10.392, 48.725], [10.372, 48.738], [10.372, 48.725]]


def feature(ring: list[list[float]] | None, **properties: object) -> dict[str, object]:
    geometry = None if ring is None else {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def written(path: Path, *features: dict[str, object], **members: object) -> str:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **members}))
    return str(path)


def test_one_of_several_features_is_chosen_by_name_or_number(tmp_path: Path) -> None:
    far = [[x + 1, y] for x, y in SQUARE]
    path = written(tmp_path / "a.geojson", feature(SQUARE, Name="north"), feature(far, Name="south"), feature(None))
    with pytest.raises(SettingError, match=r"3 features \('north', 'south', '3'\).*--feature NAME"):
        aoi.resolve(Area(aoi=path))
    expected = aoi.resolve(Area(aoi=written(tmp_path / "b.geojson", feature(far))))
    for name in ("south", "2"):
        assert aoi.resolve(Area(aoi=path, feature=name)) == expected
    assert Area(aoi=path, feature="south").name == "south"
    for name, words in (("west", "named 'west'"), ("3", "'3' has no geometry")):
        with pytest.raises(SettingError, match=words):
            aoi.resolve(Area(aoi=path, feature=name))


def test_rows_without_geometry_are_no_places(tmp_path: Path) -> None:
    path = written(tmp_path / "a.geojson", feature(None), feature(SQUARE), feature(None))
    assert aoi.resolve(Area(aoi=path)) == aoi.resolve(Area(aoi=written(tmp_path / "b.geojson", feature(SQUARE))))


def test_an_area_across_the_date_line_is_named_as_such(tmp_path: Path) -> None:
    sides = [[[[x, -17], [x + 0.1, -17], [x + 0.1, -16.9], [x, -16.9], [x, -17]]] for x in (179.9, -180)]
    one = {"type": "Feature", "properties": {}, "geometry": {"type": "MultiPolygon", "coordinates": sides}}
    with pytest.raises(SettingError, match="across the date line; build each side"):
        aoi.resolve(Area(aoi=written(tmp_path / "a.geojson", one)))


@pytest.mark.parametrize("driver", ["GPKG", "ESRI Shapefile", "KML", "GeoJSON", "Parquet", "crs member", "EPSG member"])
def test_every_format_and_crs_gives_one_grid(driver: str, tmp_path: Path) -> None:
    import geopandas
    import shapely

    frame = geopandas.GeoDataFrame({"Name": ["x"]}, geometry=[shapely.Polygon(SQUARE)], crs=4326)
    grid = aoi.resolve(Area(aoi=written(tmp_path / "a.geojson", feature(SQUARE))))
    moved = frame if driver in {"KML", "GeoJSON"} else frame.to_crs(25832)
    path = str(tmp_path / {"ESRI Shapefile": "b.shp", "GPKG": "b.gpkg"}.get(driver, "b"))
    if driver == "Parquet":
        moved.to_parquet(path)
    elif driver.endswith("member"):
        ring = [list(point) for point in moved.geometry.iloc[0].exterior.coords]
        name = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::25832"}}
        code = {"type": "EPSG", "properties": {"code": 25832}}
        written(tmp_path / "b", feature(ring), crs=name if driver == "crs member" else code)
    else:
        moved.to_file(path, driver=driver)
    area = Area(aoi=path)
    assert aoi.resolve(area) == grid
    assert aoi.outline(area, grid) is None  # a rectangle, in degrees at first


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ({"type": "link", "properties": {"href": "http://example.org/crs"}}, "crs of type 'link'"),
        ({"type": "name", "properties": {"name": "my CRS"}}, "cannot be read"),
        ({"type": "name"}, "cannot be read"),
    ],
)
def test_a_crs_that_is_not_understood_is_refused(member: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=words) as caught:
        aoi.resolve(Area(aoi=written(tmp_path / "a.geojson", feature(SQUARE), crs=member)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["LineString", "Point", "null", "empty", "no area", "layers"])
def test_what_is_no_polygon_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    import geopandas
    import shapely

    shapes = {
        "LineString": shapely.LineString(SQUARE), "Point": shapely.Point(SQUARE[0]), "null": None,
        "empty": shapely.Polygon(), "no area": shapely.Polygon([SQUARE[0], SQUARE[1], SQUARE[0]]),
        "layers": shapely.Polygon(SQUARE),
    }  # fmt: skip
    frame = geopandas.GeoDataFrame(geometry=[shapes[kind]], crs=4326)
    frame.to_file(tmp_path / "a.gpkg", layer="one")
    if kind == "layers":
        frame.to_file(tmp_path / "a.gpkg", layer="two")
    with pytest.raises(SettingError, match="expected a polygon|give --aoi a polygon") as caught:
        aoi.resolve(Area(aoi=str(tmp_path / "a.gpkg")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("crs", "words"), [("EPSG:2229", "US survey foot"), ("EPSG:4326", "degree"), ("no CRS", "in none")]
)
def test_a_crs_without_metres_is_refused(crs: str, words: str) -> None:
    with pytest.raises(SettingError, match=f"area.crs.*{words}"):
        aoi.resolve(Area(bbox=(10.372, 48.725, 10.392, 48.738), crs=crs))


def test_an_outline_is_kept_where_it_is_no_rectangle(tmp_path: Path) -> None:
    import shapely

    area = Area(aoi=written(tmp_path / "a.geojson", feature(TRIANGLE)))
    grid = aoi.resolve(area)
    outline = aoi.outline(area, grid)
    half = aoi.area_polygon(grid, outline).area
    assert half == pytest.approx(shapely.area(aoi.area_polygon(grid)) / 2, rel=0.12)
    inside = vectors.rasterize_outline(str(outline), grid)
    assert int(inside.sum()) == pytest.approx(half / 100, rel=0.01)
    assert inside[-20, 20] and not inside[20, -20]
    # As a lock and a recipe keep it.
    again = Area(grid=grid, outline=outline)
    assert (aoi.resolve(again), aoi.outline(again, grid)) == (grid, outline)
    # Also of a rectangle that is turned, and with a hole.
    turned = [[10.382, 48.725], [10.392, 48.7315], [10.382, 48.738], [10.372, 48.7315], [10.382, 48.725]]
    assert aoi.outline(Area(aoi=written(tmp_path / "b.geojson", feature(turned))), grid)
