"""Test what GDAL and GIS programs read of the rasters of a build: colours, units, wavelengths, classes, statistics."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp

from sgdata import files, sentinel2, verification
from sgdata.builds import build_folder
from sgdata.rasters import cog
from sgdata.types import BandStatistics, Grid, LabelSpace, Window
from sgmodel.inference import output_files
from tests import synthetic_build

SHAPE = (300, 420)
NAMES = ("dark", "left", "right", "bright")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the rasters of a build as `sgdata build` does."""
    out = tmp_path_factory.mktemp("gis") / "build"
    synthetic_build.write(out, SHAPE, patch=64)
    whole = Window(row=0, col=0, height=SHAPE[0], width=SHAPE[1])
    grid = Grid(crs="EPSG:32632", origin=(680040.0, 5340360.0), gsd_m=10.0, shape=SHAPE)
    style = build_folder.image_style(sentinel2.L2A_BANDS)
    cog.write(out / "image.tif", grid, [(whole, synthetic_build.dn(whole))], style=style)
    quantiles = dict.fromkeys(("p1", "p50", "p99"), 0.0) | {"p2": 350.0, "p98": 2650.0}
    band = BandStatistics(count=9, mean=0, std=1, min=0, max=9, **quantiles)
    build_folder.write_image_style(out, sentinel2.L2A_BANDS, dict.fromkeys(sentinel2.L2A_BANDS, band))
    (out / "audit.json").unlink()
    files.write(out / "recipe.toml", b'name = "toy"\n')
    files.write_sums(out)
    return out


def as_vrt(path: Path, folder: Path) -> ET.Element:
    """Return what GDAL reads of a raster and of the files beside it, as its VRT states it."""
    rasterio.shutil.copy(path, folder / "seen.vrt", driver="VRT")
    return ET.parse(folder / "seen.vrt").getroot()


def test_gdal_reads_colours_scale_unit_and_wavelengths_of_the_image(build: Path) -> None:
    with rasterio.open(build / "image.tif") as dataset:
        assert dataset.descriptions == sentinel2.L2A_BANDS
        colours = dict(zip(dataset.descriptions, dataset.colorinterp, strict=True))
        assert colours.pop("B04") == ColorInterp.red
        assert colours.pop("B03") == ColorInterp.green
        assert colours.pop("B02") == ColorInterp.blue
        assert set(colours.values()) == {ColorInterp.undefined}
        assert set(dataset.scales) == {1e-4} and set(dataset.offsets) == {0.0}
        assert set(dataset.units) == {"reflectance"}
        assert dataset.nodata == 0 and dataset.dtypes[0] == "uint16"
        for number, name in enumerate(dataset.descriptions, 1):
            imagery = dataset.tags(number, ns="IMAGERY")
            assert float(imagery["CENTRAL_WAVELENGTH_UM"]) == pytest.approx(sentinel2.BAND[name].wavelength_nm / 1000)
            assert float(imagery["FWHM_UM"]) == pytest.approx(sentinel2.BANDWIDTHS_NM[name] / 1000)
        np.testing.assert_array_equal(
            dataset.read(), synthetic_build.dn(Window(row=0, col=0, height=SHAPE[0], width=SHAPE[1]))
        )


def test_qgis_gets_a_style_in_true_colour_in_reflectance(build: Path) -> None:
    (renderer,) = ET.parse(build / "image.qml").getroot().iter("rasterrenderer")
    assert renderer.get("type") == "multibandcolor"
    with rasterio.open(build / "image.tif") as dataset:
        shown = [dataset.descriptions[int(renderer.get(f"{name}Band", "0")) - 1] for name in ("red", "green", "blue")]
    assert shown == ["B04", "B03", "B02"]
    limits = [
        (float(node.findtext("minValue", "")), float(node.findtext("maxValue", "")))
        for node in renderer
        if node.tag.endswith("ContrastEnhancement")
    ]
    assert limits == [(0.035, 0.265)] * 3


def test_an_image_without_red_green_and_blue_has_no_colours(tmp_path: Path) -> None:
    bands = ("B05", "B8A")
    grid = Grid(crs="EPSG:32632", origin=(680040.0, 5340360.0), gsd_m=10.0, shape=(20, 20))
    whole = Window(row=0, col=0, height=20, width=20)
    style = build_folder.image_style(bands)
    cog.write(tmp_path / "image.tif", grid, [(whole, np.ones((2, 20, 20), np.uint16))], style=style)
    build_folder.write_image_style(tmp_path, bands, {})
    assert [path.name for path in tmp_path.iterdir()] == ["image.tif"]
    with rasterio.open(tmp_path / "image.tif") as dataset:
        assert ColorInterp.red not in dataset.colorinterp
        assert dataset.tags(2, ns="IMAGERY") == {"CENTRAL_WAVELENGTH_UM": "0.8647", "FWHM_UM": "0.021"}


def test_gdal_reads_exactly_the_classes_of_the_table(build: Path, tmp_path: Path) -> None:
    with rasterio.open(build / "labels.tif") as dataset:
        space = LabelSpace(name="toy", task="segmentation", ids=(0, 1, 2, 3), names=NAMES)
        palette = {value: tuple(bytes.fromhex(colour[1:])) for value, colour in space.palette.items()}
        assert dataset.nodata == 255
        assert dataset.colorinterp == (ColorInterp.palette,)
        stored = dataset.colormap(1)
        assert len({stored[value] for value in range(4)}) == 4
        assert {value: stored[value][:3] for value in range(4)}.keys() == palette.keys()
        assert set(np.unique(dataset.read(1, masked=True).compressed())) == {0, 1, 2, 3}
        assert dataset.read_masks(1)[:8].max() == 0  # unmapped rows
    named = [node.text or "" for node in as_vrt(build / "labels.tif", tmp_path).iter("Category")]
    assert {value: name for value, name in enumerate(named) if name} == {**dict(enumerate(NAMES)), 255: "unmapped"}
    (renderer,) = ET.parse(build / "labels.qml").getroot().iter("rasterrenderer")
    entries = [(int(e.get("value", "")), e.get("label"), e.get("color")) for e in renderer.iter("paletteEntry")]
    assert [(value, name) for value, name, _ in entries] == list(enumerate(NAMES))
    assert [colour for _, _, colour in entries] == [
        "#{:02x}{:02x}{:02x}".format(*stored[value][:3]) for value in range(4)
    ]


@pytest.mark.parametrize(("ids", "dtype"), [((0, 7), "uint8"), ((3, 300), "uint16"), ((-1, 70000), "int32")])
def test_maps_of_classes_have_the_same_files(ids: tuple[int, int], dtype: str, tmp_path: Path) -> None:
    space = LabelSpace(name="toy", task="segmentation", ids=ids, names=("a <b>", "c\x1b[31m\"'&"))
    assert output_files.class_type(space) == dtype
    grid = Grid(crs="EPSG:32632", origin=(680040.0, 5340360.0), gsd_m=10.0, shape=(20, 20))
    whole = Window(row=0, col=0, height=20, width=20)
    style = cog.RasterStyle(
        descriptions=("classes",), nodata=space.ignore_index, dtype=output_files.class_type(space), overviews="mode",
        classes=output_files.legend(space),
    )  # fmt: skip
    values = np.full((1, 20, 20), ids[1], dtype)
    values[:, :5] = space.ignore_index
    cog.write(tmp_path / "classes.tif", grid, [(whole, values)], style=style)
    with rasterio.open(tmp_path / "classes.tif") as dataset:
        assert dataset.nodata == 255 and dataset.dtypes == (dtype,)
        assert set(dataset.read(1, masked=True).compressed()) == {ids[1]}
    root = ET.parse(tmp_path / "classes.qml").getroot()
    assert [(e.get("value"), e.get("label")) for e in root.iter("paletteEntry")] == [
        (str(ids[0]), "a <b>"), (str(ids[1]), "c\\x1b[31m\"'&")
    ]  # fmt: skip
    if dtype != "int32":
        named = [node.text for node in as_vrt(tmp_path / "classes.tif", tmp_path).iter("Category")]
        assert named[ids[0]] == "a <b>" and named[ids[1]] == "c\\x1b[31m\"'&"
    output_files.remove_previous(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".vrt"] == []


def test_statistics_that_gdal_stores_are_remarks(build: Path, tmp_path: Path) -> None:
    looked_at = shutil.copytree(build, tmp_path / "build")
    before = (looked_at / "labels.tif.aux.xml").read_bytes()
    for path in sorted(looked_at.glob("*.tif")):
        with rasterio.open(path) as dataset:
            dataset.stats()
    assert (looked_at / "labels.tif.aux.xml").read_bytes() != before
    found = verification.inspect(looked_at)
    assert found.differences == ()
    assert [remark.partition(":")[0] for remark in found.remarks] == [
        "label_source.tif.aux.xml", "labels.tif.aux.xml", "image.tif.aux.xml", "provenance.tif.aux.xml"
    ]  # fmt: skip
    named = [node.text for node in as_vrt(looked_at / "labels.tif", tmp_path).iter("Category")]
    assert named[:4] == list(NAMES)


def test_hidden_files_of_macos_are_no_rasters_of_a_build(build: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(build, tmp_path / "copy"))
    grid = Grid(crs="EPSG:32632", origin=(680040.0, 5340360.0), gsd_m=10.0, shape=SHAPE)
    hashes = build_folder.hash_outputs(out)
    (out / "._image.tif").write_bytes(b"\0\5\x16\7")
    assert build_folder.hash_outputs(out) == hashes
    build_folder.write_stac(out, "toy", grid, "2019-04-01/2019-09-30", ["scene"])
    assert "image" in (out / "stac/toy.json").read_text()
    assert "._image" not in (out / "stac/toy.json").read_text()


def test_a_raster_that_is_written_again_loses_old_statistics_and_styles(tmp_path: Path) -> None:
    grid = Grid(crs="EPSG:32632", origin=(680040.0, 5340360.0), gsd_m=10.0, shape=(20, 20))
    whole = Window(row=0, col=0, height=20, width=20)
    style = build_folder.image_style(("B02", "B03", "B04"))
    contents = []
    for value in (1, 1):
        pixels = np.full((3, 20, 20), value, np.uint16)
        cog.write(tmp_path / "image.tif", grid, [(whole, pixels)], style=style)
        assert [path.name for path in tmp_path.iterdir()] == ["image.tif"]
        contents.append((tmp_path / "image.tif").read_bytes())
        (tmp_path / "image.qml").write_text("<qgis/>")
        with rasterio.open(tmp_path / "image.tif") as dataset:
            dataset.stats()
        assert (tmp_path / "image.tif.aux.xml").is_file()
    assert contents[0] == contents[1]
