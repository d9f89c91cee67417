"""Test that the outline of an area counts: outside it no data, no labels, no patch, and no tile that only it needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer
from stac_wrap import wrap
from test_left_out_items import DAYS, build, plan, recipe, wrapped  # noqa: F401 - a fixture
from typer.testing import CliRunner

from sgdata import files, output_names
from sgdata.builds import build_folder, patch_table
from sgdata.builds.build_recipe import BuildRecipe
from sgdata.cli import app
from sgdata.errors import ExitCode, SettingError
from sgdata.rasters import geotiff, vectors
from sgdata.scenes import lock
from sgdata.scenes.aoi import Area

CORNERS = ((600060, 5398740), (601260, 5398740), (600060, 5399940))
"""Of a triangle over the lower left half of the ground of the archive."""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return wrap(tmp_path / "archive", [wrapped(day) for day in DAYS])


@pytest.fixture
def triangle(recipe: BuildRecipe, tmp_path: Path) -> BuildRecipe:  # noqa: F811
    to_degrees = Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    ring = [to_degrees.transform(*corner) for corner in (*CORNERS, CORNERS[0])]
    (tmp_path / "triangle.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return replace(recipe, area=Area(aoi=str(tmp_path / "triangle.geojson")))


def test_nothing_is_built_outside_the_outline(triangle: BuildRecipe, archive: Path, tmp_path: Path) -> None:
    whole = build(
        replace(triangle, area=Area(grid=plan(triangle, archive, tmp_path / "p").grid)), archive, tmp_path / "w"
    )
    made = build(triangle, archive, tmp_path / "b")
    assert made.outline is not None
    assert whole.outline is None
    inside = vectors.rasterize_outline(made.outline, made.grid)
    for name, outside in (("image.tif", {0}), ("provenance.tif", {0, 65535})):
        with (
            geotiff.open_raster(str(tmp_path / "b" / name)) as ours,
            geotiff.open_raster(str(tmp_path / "w" / name)) as theirs,
        ):
            ours, theirs = ours.read(), theirs.read()
        assert np.array_equal(ours[:, inside], theirs[:, inside])
        assert set(np.unique(ours[:, ~inside]).tolist()) == outside
    usage = files.read_plain(tmp_path / "b" / output_names.USAGE)
    assert (usage["nodata_pixels"], build_folder.describe_nodata(tmp_path / "b")) == (0, "")
    rows = patch_table.read(tmp_path / "b" / output_names.PATCHES)
    assert 0 < len(rows) < len(patch_table.read(tmp_path / "w" / output_names.PATCHES))
    assert all(inside[r.row : r.row + r.height, r.col : r.col + r.width].all() for r in rows.itertuples())
    # The lock alone repeats it, also without the file of the area.
    (tmp_path / "triangle.geojson").unlink()
    again = build(triangle, archive, tmp_path / "c", locked=lock.read(tmp_path / "b"))
    assert (again.outputs, again.outline) == (made.outputs, made.outline)


def test_a_tile_outside_the_outline_is_not_read(triangle: BuildRecipe, tmp_path: Path) -> None:
    # The tile in the north-east alone has the upper right corner, which the triangle leaves out.
    east = [replace(wrapped(day, tile="32UQU"), origin=(600500.0, 5400900.0)) for day in DAYS]
    west = [replace(wrapped(day), origin=(599900.0, 5399700.0)) for day in DAYS]
    archive = wrap(tmp_path / "archive", [*east, *west])
    grid = plan(triangle, archive, tmp_path / "p").grid
    assert {item.scene.tile for item in plan(triangle, archive, tmp_path / "a").items} == {"32UPU"}
    whole = replace(triangle, area=Area(grid=grid))
    assert {item.scene.tile for item in plan(whole, archive, tmp_path / "b").items} == {"32UPU", "32UQU"}


def test_an_outline_without_a_patch_is_refused_before_the_search(triangle: BuildRecipe, tmp_path: Path) -> None:
    large = replace(triangle, patches=replace(triangle.patches, size=100, stride=100))
    with pytest.raises(SettingError, match="inside the outline .* no patch of 100"):
        plan(large, "http://127.0.0.1:9/", tmp_path / "p")


def test_a_plan_says_where_how_large_and_how_much_is_covered(
    triangle: BuildRecipe, archive: Path, tmp_path: Path
) -> None:
    common = (
        "--stac",
        str(archive),
        "--dates",
        "2019-05-01/2019-06-30",
        "--allow-holes",
        "--set",
        'bands=["B02","B04"]',
    )
    command = ["plan", "segmunich", "--aoi", str(triangle.area.aoi), *common, "--set", "patches.size=32"]
    shown = CliRunner().invoke(app, [*command, "--out", f"{tmp_path}/a"])
    assert shown.exit_code == ExitCode.DONE
    assert shown.output.startswith("triangle: centre 48.7")
    assert "0.72 km2, 120x120 pixels, EPSG:32632, 100.0% covered" in shown.output
    document = json.loads(CliRunner().invoke(app, [*command, "--out", f"{tmp_path}/b", "--json"]).output)
    assert document["area"]["covered"] == 1.0
    # The same ground, of which scenes cover a half.
    for path in archive.rglob("S2A*.json"):
        item = json.loads(path.read_text())
        west, south, _, north = item["bbox"]
        path.write_text(json.dumps(item | {"bbox": [west, south, 10.3668, north]}))
    shown = CliRunner().invoke(app, [*command, "--out", f"{tmp_path}/c"])
    share = float(shown.output.partition("EPSG:32632, ")[2].partition("%")[0])
    assert 50 < share < 90
    named = CliRunner().invoke(app, [*command, "--feature", "2", "--out", f"{tmp_path}/d"])
    assert isinstance(named.exception, SettingError)


def test_an_area_of_which_nothing_is_covered_is_refused(triangle: BuildRecipe, archive: Path, tmp_path: Path) -> None:
    to_degrees = Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    corner = to_degrees.transform_bounds(601150, 5399850, 601400, 5400000)
    for path in archive.rglob("S2A*.json"):
        item = json.loads(path.read_text())
        for asset in item["assets"].values():
            del asset["proj:transform"], asset["proj:shape"]
        path.write_text(json.dumps(item | {"bbox": corner}))
    with pytest.raises(SettingError, match="none of the 8 scenes .* covers any of it"):
        plan(triangle, archive, tmp_path / "p")
    assert not (tmp_path / "p" / lock.NAME).exists()
