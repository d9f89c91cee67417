"""Test labels from coded rasters: codes of three products and of one's own, streets on top, agreement with the tags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from rasterio.transform import from_origin
from test_left_out_items import archive, recipe  # noqa: F401 - fixtures

from sgdata import files
from sgdata.builds import build_folder, pipeline
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe, recipe_for
from sgdata.errors import SettingError, SourceError
from sgdata.labels import class_tables, land_cover, rasterize
from sgdata.rasters import geotiff
from sgdata.scenes import lock
from sgdata.types import Grid

GRID = Grid(crs="EPSG:32632", origin=(600060.0, 5399940.0), gsd_m=10.0, shape=(120, 120))
SEGMUNICH = class_tables.read("segmunich-osm", tiers=("core", "ext"), groups=("drive",))
CORINE = class_tables.read("corine", tiers=("core", "ext"), groups=("drive",))


def raster(path: Path, codes: np.ndarray, gsd_m: float = 10.0, crs: str = "EPSG:32632") -> Path:
    profile = {"driver": "GTiff", "dtype": codes.dtype, "count": 1, "height": codes.shape[0], "width": codes.shape[1]}
    with rasterio.open(path, "w", **profile, crs=crs, transform=from_origin(600060, 5399940, gsd_m, gsd_m)) as out:
        out.write(codes, 1)
    return path


def osm(path: Path) -> Path:
    """Write a wood over the western half, a meadow in the north-east, and a street from west to east through both."""
    there = pyproj.Transformer.from_crs(32632, 4326, always_xy=True)
    west, north = 600060, 5399940
    wood = [(0, 0), (600, 0), (600, -1200), (0, -1200)]
    meadow = [(600, 0), (1200, 0), (1200, -400), (600, -400)]
    places = [there.transform(west + x, north + y) for x, y in (*wood, *meadow, (-50, -605), (1250, -605))]
    nodes = "".join(f'<node id="{n}" lon="{x:.9f}" lat="{y:.9f}"/>' for n, (x, y) in enumerate(places, 1))
    ways = (
        ((1, 2, 3, 4, 1), "natural", "wood"),
        ((5, 6, 7, 8, 5), "landuse", "meadow"),
        ((9, 10), "highway", "primary"),
    )
    text = ""
    for number, (refs, key, value) in enumerate(ways, 1):
        text += f'<way id="{number}">' + "".join(f'<nd ref="{ref}"/>' for ref in refs)
        text += f'<tag k="{key}" v="{value}"/></way>'
    path.write_text(f'<osm version="0.6">{nodes}{text}</osm>')
    return path


@pytest.mark.parametrize(
    ("name", "table", "expected"),
    [
        ("", SEGMUNICH, {31: "Forests", 5: "Surface water"}),
        ("worldcover", SEGMUNICH, {10: "Forests", 40: "Arable land", 80: "Surface water", 95: "Wetlands"}),
        ("worldcover", CORINE, {10: "Forests", 80: "Inland waters", 95: "Maritime wetlands"}),
        ("corine", SEGMUNICH, {112: "Urban fabric", 2: "Urban fabric", 523: "Surface water", 44: "Surface water"}),
        ("corine", CORINE, {312: "Forests", 23: "Forests", 523: "Marine waters"}),
    ],
)
def test_codes_of_known_rasters_have_classes(
    name: str, table: class_tables.ClassTable, expected: dict[int, str]
) -> None:
    of = land_cover.codes(name, table)
    names = dict(zip(table.space.ids, table.space.names, strict=True))
    assert {code: names[of[code]] for code in expected} == expected


def test_heterogeneous_agriculture_is_no_class_of_segmunich() -> None:
    assert land_cover.codes("corine", SEGMUNICH)[242] == rasterize.UNMAPPED


def test_a_table_of_ones_own_names_classes_or_ids(tmp_path: Path) -> None:
    path = tmp_path / "codes.tsv"
    path.write_text("code\tclass\n7\tForests\n8\t1\n")
    assert land_cover.codes(str(path), SEGMUNICH) == {7: 4, 8: 1}
    faults = {"code\tclass\n7\tWoods\n": "line 2.*'Woods'", "a\tb\n1\t2\n": "line 2", "code\tclass\n": "no codes"}
    for text, words in faults.items():
        path.write_text(text)
        with pytest.raises(SettingError, match=words):
            land_cover.codes(str(path), SEGMUNICH)
    with pytest.raises(SettingError, match="expected corine, worldcover"):
        land_cover.codes("worldcove", SEGMUNICH)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_rasters_of_any_whole_numbers_are_read(dtype: type, tmp_path: Path) -> None:
    codes = np.full((12, 12), 31, dtype)
    codes[:6] = 0
    classes = land_cover.read(raster(tmp_path / "a.tif", codes, 100), GRID, SEGMUNICH.codes)
    assert (classes[:60] == rasterize.UNMAPPED).all()
    assert (classes[60:] == 4).all()
    with pytest.raises(SourceError, match=r"holds codes \[99\]"):
        land_cover.read(raster(tmp_path / "b.tif", np.full((12, 12), 99, dtype), 100), GRID, SEGMUNICH.codes)


def test_a_raster_of_several_bands_is_refused(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", np.full((9, 9), 31, np.uint8))
    with rasterio.open(path) as dataset:
        profile, codes = dataset.profile | {"count": 2}, dataset.read(1)
    with rasterio.open(path, "w", **profile) as out:
        out.write(np.stack([codes, codes]))
    with pytest.raises(SourceError, match="has 2 bands, expected one of class codes"):
        land_cover.read(path, GRID, {31: 4})


def test_floats_are_no_codes(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="float32"):
        land_cover.read(raster(tmp_path / "a.tif", np.ones((12, 12), np.float32), 100), GRID, SEGMUNICH.codes)


def test_a_build_takes_classes_from_a_raster_and_streets_from_openstreetmap(
    recipe: BuildRecipe,  # noqa: F811
    archive: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    codes = np.full((120, 120), 10, np.uint8)  # trees
    codes[:, 60:] = 40  # cropland
    codes[100:] = 0
    land = raster(tmp_path / "worldcover.tif", codes)
    paths = BuildPaths(out=tmp_path / "b", stac=str(archive), osm=str(osm(tmp_path / "city.osm")), raster=land)
    of_raster = replace(recipe, labels=replace(recipe.labels, source="raster", codes="worldcover"))
    pipeline.build(of_raster, paths)
    with (
        geotiff.open_raster(str(tmp_path / "b" / "labels.tif")) as labels,
        geotiff.open_raster(str(tmp_path / "b" / "label_source.tif")) as sources,
    ):
        classes, source, tags = labels.read(1), sources.read(1), sources.tags()
    # Street, forest, arable land and nothing; the meadow of OpenStreetMap does not show.
    assert (classes[60, 5], classes[20, 20], classes[20, 100], classes[110, 20]) == (0, 4, 1, 255)
    assert (source[60, 5], source[20, 20], source[110, 20]) == (2, 4, 0)
    assert tags["class_004"] == "land cover raster"
    assert lock.read(tmp_path / "b").answers["worldcover.tif"] == files.sha256_file(land)
    rows = files.read_plain(tmp_path / "b" / build_folder.AGREEMENT)
    assert rows["Forests"]["iou"] > 0.95
    assert (rows["Arable land"]["raster"] > 2000, rows["Arable land"]["both"]) == (True, 0)
    assert (rows["Pastures"]["raster"], rows["Pastures"]["rules"] > 2000) == (0, True)
    # `--gap-fill` fills what the raster lacks.
    pipeline.build(of_raster, replace(paths, out=tmp_path / "c", gap_fill=raster(tmp_path / "g.tif", codes * 0 + 21)))
    with geotiff.open_raster(str(tmp_path / "c" / "label_source.tif")) as sources:
        assert sources.read(1)[110, 20] == 3
    for wrong in (replace(paths, raster=None), replace(paths, osm="none")):
        with pytest.raises(SettingError, match="raster"):
            pipeline.build(of_raster, replace(wrong, out=tmp_path / "d"))
    with pytest.raises(SettingError, match=r"labels\.source is osm"):
        pipeline.build(recipe, replace(paths, out=tmp_path / "d"))


def test_the_option_sets_the_source() -> None:
    assert recipe_for("segmunich", {"labels": "raster"}).labels.source == "raster"
