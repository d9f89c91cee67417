"""Test OpenStreetMap data of every kind: orders, JOSM, old multipolygons, inline coordinates, coastlines, osmnx."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import osmium
import osmnx
import pandas as pd
import pytest
import rasterio
import shapely
from stac_wrap import Wrapped, wrap
from test_osm import NODES, RULES, answer, by_id, document
from test_real_labels import EXTRACTS, drawn, whole
from test_real_labels import RULES as STREETS
from typer.testing import CliRunner

from sgdata import files, package_data
from sgdata.builds import pipeline
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.cli import app
from sgdata.errors import ExitCode, SgdataError, SourceError
from sgdata.labels import coastline, lost_features, osm_features, rasterize, tag_rules
from sgdata.scenes import lock
from sgdata.scenes.aoi import Area, in_degrees
from sgdata.types import Grid

AREA = shapely.box(11.0, 48.0, 11.01, 48.01)
RING, HOLE = [1, 2, 3, 4, 1], [11, 12, 13, 14, 11]
FOREST = {"landuse": "forest"}
WAYS = {1: (RING, FOREST), 2: (HOLE, {"natural": "water"}), 3: ([1, 3], {"highway": "primary"})}
EXPECTED = {("way", 1, "polygon"): 1e-4, ("way", 2, "polygon"): 4e-6, ("way", 3, "line"): 0}


def read(path: Path, **more: Any) -> osm_features.OsmFeatures:
    return osm_features.read(path, AREA, rules=RULES, **more)


def areas(found: osm_features.OsmFeatures) -> dict[tuple[str, int, str], float]:
    return {key: round(shape.area, 12) for key, shape in by_id(found).items()}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# --- orders and repeats --------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_objects_come_in_any_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    relation = {7: ([(1, "outer"), (2, "inner")], {"type": "multipolygon", "leisure": "park"})}
    lines = document(NODES, WAYS, relation).splitlines()
    groups = [[line for line in lines if line.startswith(f"<{kind} ")] for kind in ("node", "way", "relation")]
    random.Random(3).shuffle(groups[0])
    body = [line for i in order for line in groups[i]]
    path = written(tmp_path / "a.osm", "\n".join(['<osm version="0.6">', *body, "</osm>"]))
    found = read(path)
    assert areas(found) == EXPECTED | {("relation", 7, "polygon"): 9.6e-5}
    assert found.losses == {}
    with osmium.SimpleWriter(str(tmp_path / "a.osm.pbf")) as writer:
        for item in osmium.FileProcessor(str(path)):
            writer.add(item)
    assert areas(read(tmp_path / "a.osm.pbf")) == areas(found)


@pytest.mark.parametrize("extra", ['<way id="1" version="1">{}</way>', '<way id="1" version="1"/>'])
@pytest.mark.parametrize("first", [False, True])
def test_repeated_objects_are_merged(tmp_path: Path, extra: str, first: bool) -> None:
    text = document(NODES, WAYS)
    extra = extra.format("".join(f'<nd ref="{ref}"/>' for ref in RING))
    place = text.index('<way id="1"') if first else text.index("</osm>")
    found = read(written(tmp_path / "a.osm", text[:place] + extra + text[place:]))
    assert areas(found) == EXPECTED


def test_the_newest_version_counts(tmp_path: Path) -> None:
    newer = '<way id="1" version="2"><nd ref="1"/><nd ref="3"/><tag k="highway" v="primary"/></way>'
    gone = '<way id="2" version="3" visible="false"/>'
    text = document(NODES, WAYS).replace("</osm>", f"{newer}{gone}</osm>")
    assert sorted(areas(read(written(tmp_path / "a.osm", text)))) == [("way", 1, "line"), ("way", 3, "line")]


# --- JOSM ----------------------------------------------------------------------------------


def test_new_and_deleted_objects_of_josm(tmp_path: Path) -> None:
    negative = {-i: place for i, place in NODES.items()}
    ways = {-5: ([-ref for ref in RING], FOREST), -9: ([-ref for ref in HOLE], {"natural": "water"}), 4: (RING, FOREST)}
    text = document({**negative, **NODES}, ways).replace('<way id="-9"', '<way id="-9" action="delete"')
    found = read(written(tmp_path / "a.osm", text))
    assert areas(found) == {("way", -5, "polygon"): 1e-4, ("way", 4, "polygon"): 1e-4}
    assert found.losses == {}


def test_a_lost_object_of_josm_is_named_by_its_own_id(tmp_path: Path) -> None:
    text = document({-i: place for i, place in NODES.items()}, {-6: ([-1, -2, -77, -1], FOREST)})
    assert read(written(tmp_path / "a.osm", text)).losses == {"way/-6": "lost: nodes of the ring are not in the data"}


# --- multipolygons of before 2017 ----------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"created_by": "JOSM", "name": "Wood"}])
@pytest.mark.parametrize("split", [False, True])
def test_tags_on_outer_ways_are_those_of_the_multipolygon(tmp_path: Path, split: bool, more: dict[str, str]) -> None:
    ways = {1: ([1, 2, 3] if split else RING, {**FOREST, "source": "a"}), 2: (HOLE, {"natural": "water"})}
    members = [(1, "outer"), (2, "inner")]
    if split:
        ways[3] = ([3, 4, 1], {**FOREST, "source": "b"})
        members.append((3, "outer"))
    text = document(NODES, ways, {7: (members, {"type": "multipolygon", **more})})
    found = read(written(tmp_path / "a.osm", text))
    assert areas(found) == {("relation", 7, "polygon"): 9.6e-5, ("way", 2, "polygon"): 4e-6}
    assert found.losses == {}


@pytest.mark.parametrize(
    ("relation", "outer"),
    [
        ({"type": "multipolygon", "building": "yes"}, FOREST),  # has tags of its own
        ({"type": "boundary"}, FOREST),
        ({"type": "multipolygon"}, {"highway": "residential"}),  # streets around a block
    ],
)
def test_other_relations_take_no_tags_of_their_ways(
    tmp_path: Path, relation: dict[str, str], outer: dict[str, str]
) -> None:
    text = document(NODES, {1: (RING, outer), 2: (HOLE, {})}, {7: ([(1, "outer"), (2, "inner")], relation)})
    found = by_id(read(written(tmp_path / "a.osm", text)))
    assert found["way", 1, "polygon" if outer == FOREST else "line"].bounds == AREA.bounds
    assert not [tags for tags in found if tags[0] == "relation" and relation.get("building") is None]


def test_an_old_multipolygon_cut_by_an_extract_keeps_what_closes(tmp_path: Path) -> None:
    ways = {1: (RING, FOREST), 2: (HOLE, {})}
    text = document(NODES, ways, {7: ([(1, "outer"), (2, "inner"), (99, "outer")], {"type": "multipolygon"})})
    found = read(written(tmp_path / "a.osm", text))
    assert areas(found) == {("relation", 7, "polygon"): 9.6e-5}
    assert found.losses == {"relation/7": "mended: 1 of 3 members are not in the data"}


# --- coordinates inside objects ------------------------------------------------------------


def points(refs: list[int]) -> list[dict[str, float]]:
    return [{"lat": NODES[ref][1], "lon": NODES[ref][0]} for ref in refs]


MEMBERS = [
    {"type": "way", "ref": 1, "role": "outer", "geometry": points([1, 2, 3])},
    {"type": "way", "ref": 2, "role": "outer", "geometry": points([3, 4, 1])},
    {"type": "way", "ref": 3, "role": "inner", "geometry": points(HOLE)},
]


def test_inline_geometry_of_overpass_is_read_in_json_and_xml(tmp_path: Path) -> None:
    elements = [
        {"type": "way", "id": 9, "geometry": points(HOLE), "tags": {"natural": "water"}},  # without ids of nodes
        {"type": "relation", "id": 7, "members": MEMBERS, "tags": {"type": "multipolygon", **FOREST}},
    ]
    (tmp_path / "a.json").write_bytes(answer(elements))
    expected = {("relation", 7, "polygon"): 9.6e-5, ("way", 9, "polygon"): 4e-6}
    found = read(tmp_path / "a.json")
    assert areas(found) == expected
    assert found.losses == {}

    def inline(geometry: list[dict[str, float]]) -> str:
        return "".join(f'<nd lat="{point["lat"]}" lon="{point["lon"]}"/>' for point in geometry)

    members = "".join(
        f'<member type="way" ref="{m["ref"]}" role="{m["role"]}">{inline(m["geometry"])}</member>'  # type: ignore[arg-type]
        for m in MEMBERS
    )
    text = (
        f'<osm version="0.6"><way id="9"><bounds/>{inline(points(HOLE))}<tag k="natural" v="water"/></way>'
        f'<relation id="7">{members}<tag k="type" v="multipolygon"/><tag k="landuse" v="forest"/></relation></osm>'
    )
    assert areas(read(written(tmp_path / "a.osm", text))) == expected


def test_points_outside_the_box_of_an_answer_are_missing(tmp_path: Path) -> None:
    geometry = [*points([1, 2]), None, *points([4, 1])]
    (tmp_path / "a.json").write_bytes(answer([{"type": "way", "id": 9, "geometry": geometry, "tags": FOREST}]))
    assert read(tmp_path / "a.json").losses == {"way/9": "lost: nodes of the ring are not in the data"}


def test_locations_on_ways_are_read(tmp_path: Path) -> None:
    plain = written(tmp_path / "a.osm", document(NODES, WAYS))
    target = osmium.io.File(str(tmp_path / "a.osm.pbf"), "pbf,locations_on_ways=true")
    with osmium.SimpleWriter(target) as writer:
        for item in osmium.FileProcessor(str(plain)).with_locations():
            if not item.is_node():
                writer.add(item)
    assert areas(read(tmp_path / "a.osm.pbf")) == EXPECTED


# --- the sea -------------------------------------------------------------------------------

SIDE = AREA.bounds[2] - AREA.bounds[0]
SHORE = [(10.99, 48.004), (11.003, 48.006), (11.02, 48.004)]
NORTH = shapely.Polygon([(11.0, 48.0), *SHORE[:-1], (11.01, 48.0)])
ISLAND = shapely.box(11.004, 48.004, 11.006, 48.006)


def coast(points: list[tuple[float, float]]) -> shapely.LineString:
    return shapely.LineString(points)


def test_water_lies_right_of_a_coastline() -> None:
    south, _ = coastline.sea([coast(SHORE)], AREA)
    north, _ = coastline.sea([coast(SHORE[::-1])], AREA)
    assert south.contains(shapely.Point(11.005, 48.001))
    assert north.contains(shapely.Point(11.005, 48.009))
    assert shapely.union(south, north).symmetric_difference(AREA).area < 1e-12
    # In parts, of which two meet in the area, and one lies outside.
    parts = [coast([SHORE[0], SHORE[1]]), coast(SHORE[1:]), coast([(0, 0), (1, 1)])]
    assert coastline.sea(parts, AREA)[0].symmetric_difference(south).area < 1e-12


def test_islands_and_enclosed_seas() -> None:
    ring = coast(list(ISLAND.exterior.coords))
    land_left = ring if shapely.is_ccw(ring) else coast(list(ring.coords)[::-1])
    sea, gaps = coastline.sea([land_left], AREA)
    assert sea.symmetric_difference(AREA.difference(ISLAND)).area < 1e-12
    assert gaps == ""
    assert coastline.sea([coast(list(land_left.coords)[::-1])], AREA)[0].symmetric_difference(ISLAND).area < 1e-12


@pytest.mark.parametrize(
    "lines",
    [
        [coast(SHORE[:2])],  # ends in the area
        [coast([(10.99, 48.003), (11.02, 48.003)]), coast([(10.99, 48.007), (11.02, 48.007)])],  # sea or land between?
    ],
)
def test_coastlines_that_end_or_contradict_each_other_are_reported(lines: list[Any]) -> None:
    _, gaps = coastline.sea(lines, AREA)
    assert "1 piece" in gaps


def test_coastlines_that_end_beyond_the_core_are_used(tmp_path: Path) -> None:
    """Extracts are cut at the area, features are read with a margin around it."""
    nodes = {31: (11.001, 48.004), 32: (11.005, 48.006), 33: (11.009, 48.004)}
    path = written(tmp_path / "a.osm", document(nodes, {1: ([31, 32, 33], {"natural": "coastline"})}))
    whole = read(path)
    assert "1 pieces of ground" in whole.losses["coastline/0"]
    core = shapely.box(11.002, 48.002, 11.008, 48.008)
    found = read(path, core=core)
    assert not found.losses
    water = by_id(found)["sea", 0, "polygon"]
    assert water.contains(shapely.Point(11.005, 48.003))
    assert water.difference(core).is_empty
    assert not water.contains(shapely.Point(11.005, 48.007))
    # None of it crosses the core: whether that is sea stays open.
    assert read(path, core=shapely.box(11.002, 48.0075, 11.008, 48.009)).losses == whole.losses


def test_without_coastlines_there_is_no_sea() -> None:
    assert coastline.sea([], AREA)[0].is_empty
    assert coastline.sea([coast([(0, 0), (1, 1)])], AREA) == (shapely.Polygon(), "")


def test_the_sea_is_painted_below_everything_and_a_file_replaces_coastlines(tmp_path: Path) -> None:
    nodes = {**NODES, 31: SHORE[0], 32: SHORE[1], 33: SHORE[2]}
    ways = {1: ([31, 32, 33], {"natural": "coastline"}), 2: (HOLE, {"landuse": "harbour", "leisure": "park"})}
    path = written(tmp_path / "a.osm", document(nodes, ways))
    found = read(path)
    assert by_id(found)["sea", 0, "polygon"].contains(shapely.Point(11.005, 48.001))
    rules = tag_rules.with_sea(RULES)
    water = rules["polygon", tag_rules.SEA, "yes"].label
    assert water == RULES["polygon", "natural", "water"].label
    sea = tag_rules.match(rules, "polygon", {tag_rules.SEA: "yes"}, is_way=False)
    assert sea is not None
    assert tag_rules.match(rules, "polygon", {"natural": "coastline"}, is_way=True) is None  # islands are no water
    geopandas.GeoDataFrame(geometry=[shapely.box(10, 47, 11.002, 49)], crs=4326).to_file(tmp_path / "sea.gpkg")
    by_file = read(path, sea=tmp_path / "sea.gpkg")
    assert by_id(by_file)["sea", 0, "polygon"].bounds == (11.0, 48.0, 11.002, 48.01)
    assert set(by_file.sha256) == {"a.osm", "sea.gpkg"}


# --- losses --------------------------------------------------------------------------------


def test_a_share_of_losses_is_a_message() -> None:
    losses = {f"way/{n}": "lost: nodes of the ring are not in the data" for n in range(6)}
    assert "6 of 100 OpenStreetMap features are lost (way/0: nodes" in lost_features.describe_many_lost(losses, 94)
    assert lost_features.describe_many_lost(losses, 200) == ""
    assert lost_features.describe_many_lost({"way/1": "mended: its ring crosses itself"}, 0) == ""


# --- tables of osmnx -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(real: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Extracts as osmnx reads them."""
    folder = tmp_path_factory.mktemp("osmnx")
    keys = sorted({*tag_rules.keys(STREETS, "polygon"), *tag_rules.keys(STREETS, "line")})
    tables = {}
    for place in ("munich", "dreieich"):
        with osmium.SimpleWriter(str(folder / f"{place}.osm")) as writer:
            for item in osmium.FileProcessor(str(real / "osm" / EXTRACTS[place][0])):
                writer.add(item)
        tables[place] = osmnx.features_from_xml(folder / f"{place}.osm", tags=dict.fromkeys(keys, True))
    return tables


@pytest.mark.parametrize("place", ["munich", "dreieich"])
def test_osmnx_and_pyosmium_give_the_same_map(tables: dict[str, Any], real: Path, tmp_path: Path, place: str) -> None:
    found, _, grid = drawn(real, place)
    area = shapely.box(*EXTRACTS[place][1:])
    other = osm_features.read(tables[place], area, rules=STREETS)
    ours, theirs = by_id(found), by_id(other)
    # osmnx leaves out, without a word, the relations that extracts cut.
    mended = {key for key in ours if found.losses.get(f"{key[0]}/{key[1]}", "").startswith("mended")}
    assert set(theirs) == set(ours) - mended
    assert all(shapely.equals(shapely.normalize(theirs[key]), shapely.normalize(ours[key])) for key in theirs)
    kept = found.table[
        [key not in mended for key in zip(found.table.osm_type, found.table.osm_id, found.table.kind, strict=True)]
    ]
    settings = rasterize.LabelSettings()
    masks = [whole(rasterize.prepare(table, STREETS, grid, settings))[0] for table in (kept, other.table)]
    assert np.array_equal(*masks)
    for name in ("a.gpkg", "a.parquet"):
        frame = tables[place]
        frame.to_file(tmp_path / name) if name == "a.gpkg" else frame.to_parquet(tmp_path / name)
        stored = osm_features.read(tmp_path / name, area, rules=STREETS)
        assert stored.table.drop(columns=["geometry", "tags"]).equals(other.table.drop(columns=["geometry", "tags"]))
        assert np.array_equal(whole(rasterize.prepare(stored.table, STREETS, grid, settings))[0], masks[1])


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (geopandas.GeoDataFrame({"element": ["way"], "id": [1]}, geometry=[AREA]), "no CRS"),
        (geopandas.GeoDataFrame({"landuse": ["forest"]}, geometry=[AREA], crs=4326), "no columns element and id"),
    ],
)
def test_a_table_of_another_kind_is_refused(frame: Any, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        osm_features.read(frame, AREA, rules=STREETS)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gpkg").write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    with pytest.raises(SourceError, match="expected GeoPackage or GeoParquet"):
        read(tmp_path / "a.gpkg")


# --- in a build ----------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Return the recipe of a build of one scene, which lies beside it."""
    layers: dict[str, tuple[Any, float]] = {
        "B02": (np.full((120, 120), 400, np.uint16), 10.0), "SCL": (np.full((60, 60), 4, np.uint8), 20.0)
    }  # fmt: skip
    wrap(tmp_path / "archive", [Wrapped(id="S2A_32UPU_20190601_0_L2A", time="2019-06-01T10:00:00Z", layers=layers)])
    published = files.read(BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    small = replace(
        published,
        dates="2019-06-01/2019-06-30",
        area=Area(grid=GRID),
        bands=("B02",),
        patches=replace(published.patches, size=16, stride=16),
        split=replace(published.split, block_px=16, gap_px=0),
        composite=replace(published.composite, method="median"),
    )
    (tmp_path / "recipe.toml").write_bytes(files.toml(small))
    return tmp_path / "recipe.toml"


GRID = Grid(crs="EPSG:32632", origin=(600060.0, 5399940.0), gsd_m=10.0, shape=(80, 80))
WEST, SOUTH, EAST, NORTH_EDGE = in_degrees(GRID)


def town(lost: int) -> str:
    """Return a wood over the west of the area, and lakes of which so many lack a node."""
    middle = (WEST + EAST) / 2
    corners = ((WEST - 1, SOUTH - 1), (middle, SOUTH - 1), (middle, NORTH_EDGE + 1), (WEST - 1, NORTH_EDGE + 1))
    nodes = dict(enumerate(corners, 1)) | {9: (middle + 1e-3, SOUTH + 1e-3)}
    ways: dict[int, Any] = {1: (RING, FOREST)}
    return document(nodes, ways | {10 + n: ([9, 77, 1, 9], {"natural": "water"}) for n in range(lost)})


def build(recipe: Path, *more: str) -> Any:
    where = ["--recipe", str(recipe), "--stac", str(recipe.parent / "archive"), "--out", str(recipe.parent / "out")]
    return CliRunner().invoke(app, ["build", *where, *more])


def test_a_build_that_loses_labels_lists_them_and_exits_with_3(recipe: Path, tmp_path: Path) -> None:
    written(tmp_path / "a.osm", town(lost=2))
    result = build(recipe, "--osm", str(tmp_path / "a.osm"))
    assert result.exit_code == ExitCode.FINDINGS, result.output
    assert "2 of 3 OpenStreetMap features are lost (way/10: nodes of the ring" in result.output
    document = json.loads((tmp_path / "out" / lost_features.LOSSES).read_text())
    assert document["features"] == 1
    assert document["losses"]["way/11"] == "lost: nodes of the ring are not in the data"
    with rasterio.open(tmp_path / "out" / "labels.tif") as dataset:
        assert (dataset.read(1)[:, :38] == RULES["polygon", "landuse", "forest"].label).all()


def test_a_build_without_losses_is_content(recipe: Path, tmp_path: Path) -> None:
    written(tmp_path / "a.osm", town(lost=0))
    assert build(recipe, "--osm", str(tmp_path / "a.osm")).exit_code == 0
    assert json.loads((tmp_path / "out" / lost_features.LOSSES).read_text())["losses"] == {}


def test_a_build_takes_a_table_of_osmnx_and_a_sea(recipe: Path, tmp_path: Path) -> None:
    box = shapely.box(WEST - 1, SOUTH - 1, (WEST + EAST) / 2, NORTH_EDGE + 1)
    index = pd.MultiIndex.from_tuples([("way", 1)], names=["element", "id"])
    frame = geopandas.GeoDataFrame({"landuse": ["forest"]}, index=index, geometry=[box], crs=4326)
    sea = tmp_path / "sea.gpkg"
    geopandas.GeoDataFrame(geometry=[shapely.box(WEST - 1, SOUTH - 1, EAST + 1, NORTH_EDGE + 1)], crs=4326).to_file(sea)
    paths = BuildPaths(out=tmp_path / "out", stac=str(tmp_path / "archive"), osm=frame, sea=sea)
    pipeline.build(files.read(BuildRecipe, recipe), paths)
    with rasterio.open(tmp_path / "out" / "labels.tif") as dataset:
        labels = dataset.read(1)
    assert (labels[:, :38] == RULES["polygon", "landuse", "forest"].label).all()
    assert (labels[:, 42:] == RULES["polygon", "natural", "water"].label).all()
    assert set(lock.read(tmp_path / "out").answers) == {"GeoDataFrame", "sea.gpkg"}


def test_inputs_are_checked_before_pixels(recipe: Path, tmp_path: Path) -> None:
    written(tmp_path / "a.osm", town(lost=0)[:300])
    for more in (["--osm", str(tmp_path / "a.osm")], ["--osm", "none", "--sea", str(tmp_path / "no.gpkg")]):
        result = build(recipe, *more)
        assert isinstance(result.exception, SgdataError)
        assert not list((tmp_path / "out").rglob("*.bin"))
