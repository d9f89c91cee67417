"""Test painting: agreement with GDAL, independence of the tiling, and the order of layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from rasterio.transform import Affine
from scipy import ndimage

from sgdata import package_data
from sgdata.errors import SettingError
from sgdata.labels import land_cover, osm_features, tag_rules
from sgdata.labels import rasterize as label_raster
from sgdata.rasters import grids
from sgdata.types import Array, Grid, Window

CODES = {int(row["file_value"]): int(row["train_index"]) for row in package_data.table("segmunich_labels")}
RULES = tag_rules.rules(
    package_data.table("osm_lulc_tags"), CODES, tiers=("core", "ext"), groups=label_raster.LabelSettings().street_groups
)
GRID = Grid(crs="EPSG:32632", origin=(671280, 5349540), gsd_m=10, shape=(64, 80))
FOREST, WATER, PARK, URBAN, INDUSTRY, STREET = 4, 5, 10, 11, 12, 0

Item = tuple[Any, dict[str, str]]


def features(*items: Item) -> Any:
    """Return a table like that of `osm_features.read`, from geometries in pixels (x east, y south) of GRID."""
    x, y = GRID.origin
    placed = shapely.transform([geometry for geometry, _ in items], lambda xy: xy * (GRID.gsd_m, -GRID.gsd_m) + (x, y))
    columns = {
        "osm_type": ["way"] * len(items),
        "osm_id": list(range(len(items))),
        "kind": ["line" if "Line" in geometry.geom_type else "polygon" for geometry, _ in items],
        "tags": [text for _, text in items],
    }
    return geopandas.GeoDataFrame(columns, geometry=list(placed), crs=GRID.crs).to_crs("EPSG:4326")


def painted(*items: Item, **chosen: Any) -> tuple[Array, Array, label_raster.Drawing]:
    drawing = label_raster.prepare(features(*items), RULES, GRID, label_raster.LabelSettings(**chosen))
    return *label_raster.paint(drawing, Window(row=0, col=0, height=64, width=80)), drawing


def a(key: str, value: str, **more: str) -> dict[str, str]:
    return {key: value, **more}


def star(seed: int) -> Any:
    """Return a jagged polygon with a hole, in or near the grid."""
    rng = np.random.default_rng(seed)
    turns = np.sort(rng.uniform(0, 2 * np.pi, 12))
    middle = rng.uniform((0, 0), (80, 64))
    ring = np.column_stack([np.cos(turns), np.sin(turns)]) * rng.uniform(6, 40, 12)[:, None]
    return shapely.make_valid(shapely.Polygon(middle + ring, [middle + ring * 0.4]))


@pytest.mark.parametrize("seed", range(12))
def test_a_polygon_is_filled_as_gdal_fills_it(seed: int) -> None:
    shape = star(seed)
    got, source, _ = painted((shape, a("landuse", "forest")), supersample=1)
    # GDAL after the same journey to WGS84 and back.
    there = features((shape, {})).to_crs(GRID.crs).geometry
    expected = rasterize(there, GRID.shape, transform=Affine(*GRID.transform)).astype(bool)
    assert ((got == FOREST) == expected).all()
    assert ((source == label_raster.POLYGON) == expected).all()


@pytest.mark.parametrize("seed", range(8))
def test_a_touched_line_covers_the_same_pixels_as_in_gdal(seed: int) -> None:
    line = shapely.LineString(np.random.default_rng(seed).uniform((-5, -5), (85, 70), (7, 2)))
    got, source, _ = painted((line, a("highway", "primary")), streets="touched")
    expected = np.zeros(GRID.shape, bool)
    for row, col in np.ndindex(GRID.shape):  # the definition, one pixel at a time
        expected[row, col] = line.intersects(shapely.box(col, row, col + 1, row + 1))
    assert ((got == STREET) == expected).mean() > 0.999
    there = features((line, {})).to_crs(GRID.crs).geometry
    gdal = rasterize(there, GRID.shape, transform=Affine(*GRID.transform), all_touched=True).astype(bool)
    assert ((got == STREET) == gdal).mean() > 0.995
    assert ((source == label_raster.LINE) == (got == STREET)).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 64), st.sampled_from([1, 2, 5]), st.sampled_from(["width", "touched"]))
def test_the_tiling_does_not_matter(seed: int, size: int, supersample: int, streets: Any) -> None:
    rng = np.random.default_rng(seed)
    kinds = [a("landuse", "forest"), a("landuse", "residential"), a("natural", "water"), a("leisure", "park")]
    items: list[Item] = [(star(seed * 10 + i), kinds[i % 4]) for i in range(6)]
    lines = [shapely.LineString(rng.uniform((-5, -5), (85, 70), (5, 2))) for _ in range(2)]
    items += [(lines[0], a("highway", "primary")), (lines[1], a("highway", "service"))]
    # Edges on pixel centres and borders are where roundings would show.
    items.append((shapely.box(10.5, 10.5, 20.5, 20.1), a("landuse", "farmland")))
    items.append((shapely.LineString([(3, 3), (60, 60)]), a("railway", "rail")))
    whole, source, drawing = painted(*items, supersample=supersample, streets=streets)
    for window in grids.cut_tiles(GRID.shape, size):
        part, part_source = label_raster.paint(drawing, window)
        assert (part == whole[window.slices]).all()
        assert (part_source == source[window.slices]).all()


def test_the_order_of_the_features_does_not_matter() -> None:
    items = [(star(i), a("landuse", ("forest", "meadow", "residential")[i % 3])) for i in range(9)]
    table = features(*items)
    one = label_raster.prepare(table, RULES, GRID, label_raster.LabelSettings())
    two = label_raster.prepare(table.iloc[::-1], RULES, GRID, label_raster.LabelSettings())
    window = Window(row=0, col=0, height=64, width=80)
    assert (label_raster.paint(one, window)[0] == label_raster.paint(two, window)[0]).all()


BIG, MIDDLE, SMALL = shapely.box(5, 5, 60, 60), shapely.box(20, 20, 40, 40), shapely.box(28, 28, 32, 32)


def test_the_smaller_polygon_is_on_top() -> None:
    got, _, _ = painted(
        (SMALL, a("natural", "water")), (BIG, a("landuse", "residential")), (MIDDLE, a("leisure", "park"))
    )
    assert (got[10, 10], got[25, 25], got[30, 30], got[2, 2]) == (URBAN, PARK, WATER, label_raster.UNMAPPED)


def test_the_full_size_counts_for_polygons_beyond_the_grid() -> None:
    river = shapely.box(-5000, 30, 20, 34)  # larger than the park, but not within the grid
    got, _, _ = painted((river, a("natural", "water")), (shapely.box(10, 0, 60, 60), a("leisure", "park")))
    assert (got[31, 5], got[31, 15]) == (WATER, PARK)


def test_by_priority_the_stronger_class_is_on_top() -> None:
    items = ((MIDDLE, a("landuse", "forest")), (BIG, a("landuse", "industrial")), (SMALL, a("natural", "water")))
    by_area, _, _ = painted(*items)
    by_priority, _, _ = painted(*items, overlap="priority")
    assert (by_area[25, 25], by_area[30, 30]) == (FOREST, WATER)
    assert (by_priority[25, 25], by_priority[30, 30]) == (INDUSTRY, INDUSTRY)


def test_equal_areas_are_decided_by_priority_then_by_id() -> None:
    twins = ((BIG, a("landuse", "residential")), (BIG, a("landuse", "forest")))
    assert painted(*twins)[0][30, 30] == painted(*reversed(twins))[0][30, 30] == URBAN
    later = ((BIG, a("natural", "scrub")), (BIG, a("natural", "heath")), (BIG, a("landuse", "grass")))
    assert painted(*later)[0][30, 30] == 6


def test_drawing_order_is_polygons_water_lines_rail_streets() -> None:
    def across(y: float) -> Any:
        return shapely.LineString([(0, y), (80, y)])

    down = shapely.LineString([(30.5, 0), (30.5, 64)])
    items = [
        (BIG, a("landuse", "forest")),
        (across(10.5), a("highway", "primary")),
        (across(20.5), a("railway", "rail")),
        (across(30.5), a("waterway", "river")),
    ]
    for crossing, expected in (
        (a("highway", "residential"), (STREET, STREET, STREET)),
        (a("railway", "rail"), (STREET, INDUSTRY, INDUSTRY)),
        (a("waterway", "canal"), (STREET, INDUSTRY, WATER)),
    ):
        got, source, _ = painted(*items, (down, crossing))
        assert tuple(got[[10, 20, 30], 30]) == expected
        assert set(source[[10, 20, 30], 30]) == {label_raster.LINE}
    hidden = (down, a("highway", "primary", tunnel="yes"))
    got, _, drawing = painted(*items, hidden)
    assert got[50, 30] == FOREST
    assert drawing.counts["under ground"] == 1
    assert painted(*items, (down, a("highway", "primary", bridge="yes", layer="1")))[0][50, 30] == STREET


def test_a_street_has_its_tagged_width_and_at_least_a_pixel() -> None:
    line = shapely.LineString([(40, -5), (40, 70)])

    def columns(**text: str) -> int:
        return int((painted((line, a("highway", "residential", **text)))[0][32] == STREET).sum())

    assert columns(width="40") == 4
    assert columns(lanes="12") == 4  # 39 m
    assert columns() in (1, 2)  # 8 m by the table, 10 m by the grid
    assert columns(width="2") in (1, 2)


def test_a_river_line_is_drawn_only_where_no_river_area_is() -> None:
    island = shapely.Polygon([(20, 20), (40, 20), (40, 40), (20, 40)])
    line = shapely.LineString([(0, 30.5), (80, 30.5)])
    got, source, _ = painted((island, a("natural", "water")), (line, a("waterway", "river", width="60")))
    assert (got[30] == WATER).all()
    assert set(source[30, 24:36]) == {label_raster.POLYGON}
    assert set(source[30, :18]) == {label_raster.LINE}
    assert source[28, 30] == label_raster.POLYGON


def test_the_majority_of_a_pixel_decides_and_ties_go_to_the_smaller_polygon() -> None:
    def pixel(left: float, **chosen: Any) -> int:
        forest = (shapely.box(0, 0, 30 + left, 50), a("landuse", "forest"))
        town = (shapely.box(30 + left, 0, 45, 50), a("landuse", "residential"))
        return int(painted(forest, town, **chosen)[0][20, 30])

    assert (pixel(0.41), pixel(0.61)) == (URBAN, FOREST)
    assert pixel(0.51, supersample=2) == URBAN
    lone = painted((shapely.box(10.51, 10, 12, 12), a("landuse", "forest")), supersample=2)[0]
    assert lone[11, 10] == FOREST  # half forest, half unmapped


def test_broken_geometry_is_mended_and_nothing_vanishes_silently() -> None:
    bow_tie = shapely.Polygon([(10, 10), (30, 30), (30, 10), (10, 30)])
    flat = shapely.Polygon([(10, 50), (20, 50), (30, 50)])
    far = shapely.box(5000, 5000, 5010, 5010)
    got, _, drawing = painted(
        (bow_tie, a("landuse", "forest")),
        (flat, a("landuse", "forest")),
        (far, a("landuse", "forest")),
        (BIG, a("landuse", "unheard-of")),
        (shapely.box(-9000, 40, 9000, 42), a("natural", "water")),
    )
    assert drawing.counts == {
        "lost: no extent": 1,
        "mended": 2,
        "outside the grid": 1,
        "polygons": 2,
        "without a rule": 1,
    }
    assert (got[20, 11], got[20, 28], got[11, 20], got[41, 70]) == (FOREST, FOREST, label_raster.UNMAPPED, WATER)


def test_an_empty_place_is_unmapped() -> None:
    got, source, drawing = painted((shapely.box(500, 500, 501, 501), a("landuse", "forest")))
    assert (got == label_raster.UNMAPPED).all()
    assert (source == 0).all()
    assert drawing.counts == {"outside the grid": 1}


def test_gaps_are_filled_from_another_map_and_marked() -> None:
    got, source, _ = painted((BIG, a("landuse", "forest")))
    other = np.full(got.shape, WATER, np.uint8)
    other[:3] = label_raster.UNMAPPED
    full, marked = land_cover.fill_gaps(got, source, other)
    assert (full[30, 30], full[30, 70], full[0, 0]) == (FOREST, WATER, label_raster.UNMAPPED)
    assert (marked[30, 30], marked[30, 70], marked[0, 0]) == (label_raster.POLYGON, label_raster.GAP_FILL, 0)


def test_a_grid_too_fine_is_refused() -> None:
    with pytest.raises(SettingError, match=r"labels\.supersample is 99"):
        painted((BIG, a("landuse", "forest")), supersample=99)


def test_the_simulated_city_is_labelled_as_it_truly_is(city: Path) -> None:
    with rasterio.open(city / "truth" / "land_cover.tif") as file:
        truth, origin, crs = file.read(1), (file.transform.c, file.transform.f), file.crs.to_string()
    with rasterio.open(city / "truth" / "osm_mapped.tif") as file:
        mapped = file.read(1) > 0
    grid = Grid(crs=crs, origin=origin, gsd_m=10, shape=truth.shape)
    got = []
    for name in ("city.osm", "overpass.json"):
        found = osm_features.read(city / "osm" / name, shapely.box(-180, -90, 180, 90), rules=RULES)
        drawing = label_raster.prepare(found.table, RULES, grid, label_raster.LabelSettings())
        got.append(label_raster.paint(drawing, Window(row=0, col=0, height=truth.shape[0], width=truth.shape[1]))[0])
    assert (got[0] == got[1]).all()
    inner = mapped & (ndimage.maximum_filter(truth, 3) == truth) & (ndimage.minimum_filter(truth, 3) == truth)
    assert (got[0] == truth)[inner].mean() > 0.99
    assert (got[0] == truth)[mapped].mean() > 0.97
    assert (got[0] == label_raster.UNMAPPED)[~mapped].mean() > 0.95
