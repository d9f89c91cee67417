"""Test labels of real OpenStreetMap extracts (2014 to 2023)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from pyproj import Transformer
from rasterio.features import rasterize
from rasterio.transform import Affine

from sgdata import package_data
from sgdata.labels import osm_features, tag_rules
from sgdata.labels import rasterize as label_raster
from sgdata.rasters import grids
from sgdata.types import Array, Grid, Window

CODES = {int(row["file_value"]): int(row["train_index"]) for row in package_data.table("segmunich_labels")}
RULES = tag_rules.rules(
    package_data.table("osm_lulc_tags"), CODES, tiers=("core", "ext"), groups=label_raster.LabelSettings().street_groups
)
# The boxes that the files themselves give: name, west, south, east, north.
EXTRACTS = {
    "munich": ("munich_milbertshofen_2020.osm", 11.5448666, 48.1815494, 11.5583554, 48.1905426),
    "dreieich": ("dreieich_2022.osm.pbf", 8.7006, 49.9935, 8.7256, 50.0099),
    "monaco": ("monaco_2023.osm.pbf", 7.409205, 43.72335, 7.448637, 43.75169),
}
STREET, FOREST, WATER, URBAN, INDUSTRY = 0, 4, 5, 11, 12


def drawn(real: Path, place: str, **chosen: Any) -> tuple[osm_features.OsmFeatures, label_raster.Drawing, Grid]:
    name, *bounds = EXTRACTS[place]
    found = osm_features.read(real / "osm" / name, shapely.box(*bounds), rules=RULES)
    project = Transformer.from_crs("EPSG:4326", "EPSG:32632", always_xy=True)
    grid = grids.snap_outward(project.transform_bounds(*bounds), "EPSG:32632")
    return found, label_raster.prepare(found.table, RULES, grid, label_raster.LabelSettings(**chosen)), grid


def whole(drawing: label_raster.Drawing) -> tuple[Array, Array]:
    height, width = drawing.grid.shape
    return label_raster.paint(drawing, Window(row=0, col=0, height=height, width=width))


@pytest.mark.parametrize(
    ("place", "shares"),
    [
        ("munich", {STREET: 0.20, INDUSTRY: 0.43, URBAN: 0.14, label_raster.UNMAPPED: 0.02}),
        ("dreieich", {STREET: 0.10, URBAN: 0.34, FOREST: 0.14, WATER: 0.006, label_raster.UNMAPPED: 0.03}),
        ("monaco", {STREET: 0.06, label_raster.UNMAPPED: 0.78}),  # two thirds of the box are France or sea
    ],
)
def test_the_extracts_look_like_the_places(real: Path, place: str, shares: dict[int, float]) -> None:
    found, drawing, grid = drawn(real, place)
    mask, source = whole(drawing)
    for number, share in shares.items():
        assert (mask == number).mean() == pytest.approx(share, abs=0.01)
    assert ((mask == label_raster.UNMAPPED) == (source == 0)).all()
    assert (source[mask == STREET] == label_raster.LINE).mean() > 0.9
    # Nothing vanishes: each feature read is drawn or counted.
    assert sum(drawing.counts.values()) - drawing.counts.get("mended", 0) == len(found.table)
    for window in grids.cut_tiles(grid.shape, 50):
        assert (label_raster.paint(drawing, window)[0] == mask[window.slices]).all()


@pytest.mark.parametrize("place", ["munich", "dreieich"])
def test_gdal_paints_the_same_map(real: Path, place: str) -> None:
    """GDAL's rasteriser on the same grid of 10 m, with rules and order implemented here."""
    found, drawing, grid = drawn(real, place, supersample=1)
    mask, _ = whole(drawing)
    shapes = []
    for row in found.table.to_crs(grid.crs).itertuples():
        rule = tag_rules.match(RULES, row.kind, row.tags, is_way=row.osm_type == "way")
        if rule is None or tag_rules.is_underground(row.tags, rule):
            continue
        shape, order = shapely.make_valid(row.geometry), 0
        if row.kind == "line":
            half = max((tag_rules.width_m(row.tags) or 2 * (rule.half_width_m or 0)) / 2, 5)
            shape, order = shape.buffer(half, quad_segs=2), {WATER: 1, INDUSTRY: 2, STREET: 3}[rule.label]
        shapes.append(((order, -shape.area, -rule.priority), shape, rule.label))
    shapes.sort(key=lambda item: item[0])
    expected = rasterize(
        [(shape, label) for _, shape, label in shapes],
        grid.shape,
        fill=label_raster.UNMAPPED,
        transform=Affine(*grid.transform),
        dtype="uint8",
    )
    assert (mask == expected).mean() > 0.999


def test_finer_painting_differs_only_at_edges(real: Path) -> None:
    coarse, fine = (whole(drawn(real, "dreieich", supersample=n)[1])[0] for n in (1, 5))
    differ = coarse != fine
    assert 0.001 < differ.mean() < 0.08
    inner = np.ones_like(differ)
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        inner &= (np.roll(fine, step, axis) == fine) & (np.roll(coarse, step, axis) == coarse)
    assert not (differ & inner)[1:-1, 1:-1].any()


def test_touched_streets_are_wider_than_their_carriageways(real: Path) -> None:
    by_width, touched = (whole(drawn(real, "dreieich", streets=rule)[1])[0] for rule in ("width", "touched"))
    assert (by_width == STREET).sum() < (touched == STREET).sum() < 2 * (by_width == STREET).sum()


def test_one_map_in_three_formats(real: Path) -> None:
    folder, everywhere = real / "osm" / "one_map_three_formats", shapely.box(-180, -90, 180, 90)
    xml = osm_features.read(folder / "map.osm", everywhere, rules=RULES)
    answer = osm_features.read(folder / "map.json", everywhere, rules=RULES)
    assert xml.table.drop(columns="geometry").equals(answer.table.drop(columns="geometry"))
    assert xml.table.geometry.geom_equals(answer.table.geometry).all()
    # A third opinion: what osm2geojson made of the same map.
    other = {
        (feature["properties"].get("type"), feature["properties"].get("id")): shapely.from_geojson(
            json.dumps(feature["geometry"])
        )
        for feature in json.loads((folder / "map.geojson").read_text())["features"]
    }
    polygons = xml.table[xml.table.kind == "polygon"]
    assert len(polygons) == 3
    for row in polygons.itertuples():
        assert row.geometry.symmetric_difference(other[row.osm_type, row.osm_id]).area < 1e-12


def test_an_old_answer_of_overpass_is_read(real: Path) -> None:
    found = osm_features.read(real / "osm" / "overpass_london_2014.json", shapely.box(-1, 51, 1, 52), rules=RULES)
    assert found.as_of == "2014-10-14T15:30:01Z"
    assert found.counts["lines"] == 74
    assert found.counts["polygons"] == 8


def test_objects_cut_by_the_extracts_are_named(real: Path) -> None:
    found, _, _ = drawn(real, "dreieich")
    assert found.losses["relation/6833156"].startswith("mended: ")
    assert len(found.losses) == found.counts["mended"] + found.counts["lost"] == 5
