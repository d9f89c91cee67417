"""Test class tables: the two that come with the package, and those of users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sgdata import output_names, package_data
from sgdata.builds import build_folder
from sgdata.class_colours import default_colours
from sgdata.datasets import cards
from sgdata.errors import ExitCode, SettingError
from sgdata.labels import class_tables, make_labels, rasterize, tag_rules
from sgdata.pages import tables
from sgdata.rasters import geotiff
from sgdata.simulation import archive
from sgdata.types import Grid

ROOT = Path(__file__).resolve().parents[1]
TIERS, GROUPS = ("core", "ext"), ("drive",)
HEAD = "\t".join((*class_tables.COLUMNS, "half_width_m"))
OWN = f"""{HEAD}
Forest\t31\t#4dff00\tlanduse=forest;natural=wood\tpolygon\t5\t
River\t51\t#00ccf2\twaterway=river\tline\t3\t4
Forest\t31\t#4dff00\tnatural=tree_row\tline\t6\t3
"""


def named(table: class_tables.ClassTable, kind: tag_rules.Kind, **of: str) -> str:
    rule = tag_rules.match(table.rules, kind, of, is_way=False)
    return "" if rule is None else table.space.names[rule.label]


def test_segmunich_has_thirteen_classes_and_corine_level_two_fifteen() -> None:
    ours = class_tables.read("segmunich-osm", tiers=TIERS, groups=GROUPS)
    corine = class_tables.read("corine", tiers=TIERS, groups=GROUPS)
    assert (len(ours.space.ids), len(corine.space.ids)) == (13, 15)
    assert ours.space == cards.label_space("segmunich", "segmunich-osm")
    assert corine.codes[51] == corine.space.names.index("Inland waters")


def test_a_tag_is_mapped_by_each_table() -> None:
    ours = class_tables.read("segmunich-osm", tiers=TIERS, groups=GROUPS)
    corine = class_tables.read("corine", tiers=TIERS, groups=GROUPS)
    assert named(ours, "line", highway="primary") == "Street network"
    assert named(corine, "line", highway="primary") == "Industrial, commercial and transport units"
    assert named(ours, "polygon", natural="water") == "Surface water"
    assert named(corine, "polygon", natural="water") == "Inland waters"


def test_every_active_rule_of_corine_has_the_second_level_of_its_code() -> None:
    corine = class_tables.read("corine", tiers=tag_rules.TIERS, groups=GROUPS)
    codes = {at: code for code, at in corine.codes.items()}
    rows = {
        (r["geometry"], r["osm_key"], r["osm_value"]): r["corine_code"]
        for r in package_data.table(class_tables.TAG_TABLE)
    }
    active = {place: rule for place, rule in corine.rules.items() if rule.active}
    assert len(active) > 150
    for place, rule in active.items():
        assert rows[place].startswith(str(codes[rule.label]))


def test_the_released_labels_are_a_separate_label_space() -> None:
    released, ours = (cards.label_space("segmunich", f"segmunich-{name}") for name in ("released", "osm"))
    assert released != ours
    assert "outside" in released.names[0]
    assert ours.names[0] == "Street network"


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "woods.tsv"
    path.write_text(OWN)
    table = class_tables.read(str(path), tiers=TIERS, groups=GROUPS)
    assert table.space.name == "woods"
    assert table.space.names == ("Forest", "River")
    assert table.space.colours == ("#4dff00", "#00ccf2")
    assert table.codes == {31: 0, 51: 1}
    assert named(table, "polygon", natural="wood") == "Forest"
    assert named(table, "line", waterway="river") == "River"
    assert named(table, "polygon", natural="water") == ""
    rule = tag_rules.match(table.rules, "line", {"waterway": "river"}, is_way=True)
    assert rule is not None
    assert rule.half_width_m == 4
    assert make_labels.read_classes(rasterize.LabelSettings(classes=str(path))) == table
    before = class_tables.sha256(str(path))
    path.write_text(OWN.replace("natural=wood", "natural=*"))
    assert class_tables.sha256(str(path)) != before
    assert named(class_tables.read(str(path), tiers=TIERS, groups=GROUPS), "polygon", natural="heath") == "Forest"


def test_labels_are_painted_in_the_classes_of_ones_own_table(tmp_path: Path) -> None:
    import pyproj

    grid = Grid(crs="EPSG:32632", origin=(600060.0, 5399940.0), gsd_m=10.0, shape=(20, 20))
    there = pyproj.Transformer.from_crs(32632, 4326, always_xy=True)
    # A wood over the western half of the area, and a river from north to south through the eastern one.
    corners = [(600060, 5399940), (600160, 5399940), (600160, 5399740), (600060, 5399740)]
    points = [*corners, (600215, 5399990), (600215, 5399690)]
    places = [there.transform(*xy) for xy in points]
    nodes = "".join(f'<node id="{n}" lon="{x:.9f}" lat="{y:.9f}"/>' for n, (x, y) in enumerate(places, 1))
    wood, river = ("".join(f'<nd ref="{n}"/>' for n in refs) for refs in ((1, 2, 3, 4, 1), (5, 6)))
    city = tmp_path / "city.osm"
    city.write_text(
        f'<osm version="0.6">{nodes}<way id="1">{wood}<tag k="natural" v="wood"/></way>'
        f'<way id="2">{river}<tag k="waterway" v="river"/></way></osm>'
    )
    own = tmp_path / "woods.tsv"
    own.write_text(OWN)
    source = make_labels.OsmSource(address=str(city), date="2020-04-01", store=tmp_path)
    settings = rasterize.LabelSettings(classes=str(own))
    painted = make_labels.label(grid, source, settings).painted
    build_folder.write_labels(tmp_path, grid, make_labels.read_classes(settings).space, rasterize.SOURCES, painted)
    with geotiff.open_raster(str(tmp_path / "labels.tif")) as dataset:
        stored = dataset.read(1)
        written_tags = dataset.tags()
    assert (stored[:, :10] == 0).all()
    # 4 m to each side of 600215 is less than a pixel of 10 m, which a line covers at least.
    assert (stored[:, 15] == 1).all()
    assert set(stored[:, 10:15].ravel()) == {tag_rules.IGNORE}
    assert (written_tags["class_000"], written_tags["class_001"]) == ("Forest", "River")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\tcode", "\tnumber", "expected the tab-separated columns"),
        ("#4dff00\tlanduse", "green\tlanduse", "colour='green'"),
        ("Forest\t31\t#4dff00\tnatural", "Forest\t31\t#000000\tnatural", "keep one"),
        ("River\t51", "River\t31", "code 31"),
        ("landuse=forest;", "landuse;", "tag 'landuse'"),
        ("polygon\t5", "area\t5", "geometry='area'"),
        ("polygon\t5", "polygon\tfirst", "priority='first'"),
        ("line\t3\t4", "line\t3\t", "half its width"),
        ("natural=wood", "landuse=forest", "is there twice"),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "own.tsv"
    path.write_text(OWN.replace(old, new, 1))
    with pytest.raises(SettingError, match=message):
        class_tables.sha256(str(path))


def test_a_name_that_is_neither_table_nor_file_is_refused() -> None:
    with pytest.raises(SettingError, match="'corinne': expected segmunich-osm, corine or a file"):
        class_tables.read("corinne", tiers=TIERS, groups=GROUPS)


def test_a_table_without_colours_gets_a_palette(tmp_path: Path) -> None:
    own = tmp_path / "own.tsv"
    rows = ["name\tcode\tcolour\ttags\tgeometry\tpriority", "Forest\t\t\tlanduse=forest\tpolygon\t2"]
    own.write_text("\n".join([*rows, "Water\t\t\tnatural=water\tpolygon\t1"]))
    space = class_tables.read(str(own), tiers=("core",), groups=()).space
    assert space.colours == ()
    assert space.palette == {0: default_colours(2)[0], 1: default_colours(2)[1]}
    labels = np.array([[0, 1], [1, 255]], np.uint8)
    grid = Grid(crs="EPSG:32632", origin=(690_000, 5_340_000), gsd_m=10, shape=(2, 2))
    build_folder.write_labels(tmp_path, grid, space, rasterize.SOURCES, (labels, np.ones_like(labels)))
    with geotiff.open_raster(str(tmp_path / output_names.LABELS)) as raster:
        assert {value: "#{:02x}{:02x}{:02x}".format(*raster.colormap(1)[value]) for value in (0, 1)} == space.palette
    (bars,) = (tables.build_shares(space, {"all": {0: 1, 1: 2, 255: 1}}).bars[:2],)
    assert [bar[1] for bar in bars] == list(space.palette.values())


@pytest.mark.slow
def test_a_table_without_colours_goes_from_the_build_to_training(tmp_path: Path) -> None:
    rows = [
        *("name\tcode\tcolour\ttags\tgeometry\tpriority", "Forest\t\t\tlanduse=forest;natural=wood\tpolygon\t3"),
        *("Water\t\t\tnatural=water\tpolygon\t1", "Fields\t\t\tlanduse=farmland;landuse=meadow\tpolygon\t4"),
    ]
    (tmp_path / "own.tsv").write_text("\n".join(rows))
    archive.simulate(tmp_path / "city", size_km=3, dates=4)

    def run(program: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"{program}.cli", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (ExitCode.DONE, ExitCode.FINDINGS), done.stderr

    settings = (
        "labels.classes=own.tsv",
        "patches.size=64",
        "patches.stride=32",
        "split.block_px=100",
        "split.gap_px=0",
    )
    run(
        *("sgdata", "build", "segmunich", "--aoi", "city/aoi.geojson", "--stac", "city/catalog.json", "--out", "build"),
        *("--osm", "city/osm/city.osm", "--dates", "2019-04-01/2020-03-31"),
        *(word for setting in settings for word in ("--set", setting)),
    )
    run("sgdata", "shard", "segmunich", "--source", "build", "--out", "shards")
    run("sgdata", "show", "build", "--out", "page-of-build")
    run("sgdata", "show", "shards", "--out", "page-of-shards")
    recipe = str(package_data.folder("recipes") / "train" / "segment-demo-linear.toml")
    shorter = ("--set", "training.epochs=1", "--set", "training.batch=16")
    run("sgmodel", "segment", recipe, "--shards", "shards", "--out", "run", *shorter)
    run("sgdata", "show", "run", "--out", "page-of-run")
    scores = json.loads((tmp_path / "run" / "results.json").read_text())["per_class_iou"]
    assert list(scores) == sorted(("Forest", "Water", "Fields"))
    for page in ("page-of-build", "page-of-shards", "page-of-run"):
        assert all(colour in (tmp_path / page / "index.html").read_text() for colour in default_colours(3)), page
