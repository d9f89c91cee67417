"""Test reading windows and writing COGs: positions of pixels, equal bytes, and errors that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine

from sgdata import files
from sgdata.errors import OutputError, SourceError
from sgdata.rasters import cog, geotiff, grids
from sgdata.types import Array, Grid, Window

GRID = Grid(crs="EPSG:32632", origin=(600000.0, 5400000.0), gsd_m=10.0, shape=(700, 530))


def pixels(bands: int, seed: int = 1, dtype: type = np.uint16) -> Array:
    rng = np.random.Generator(np.random.Philox(key=seed))
    return rng.integers(0, 200, (bands, *GRID.shape)).astype(dtype)


def pieces(values: Array, size: int) -> list[tuple[Window, Array]]:
    return [(w, values[(slice(None), *w.slices)]) for w in grids.cut_tiles(GRID.shape, size)]


def write_plain(path: Path, values: Array, **changes: Any) -> Path:
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": values.dtype, "count": 1, "height": values.shape[0], "width": values.shape[1],
        "crs": "EPSG:32632", "transform": Affine(10, 0, 600000, 0, -10, 5400000), "tiled": True, "blockxsize": 64,
        "blockysize": 64, "compress": "deflate",
    }  # fmt: skip
    with rasterio.open(path, "w", **(profile | changes)) as dataset:
        dataset.write(values, 1)
    return path


def test_a_cog_contains_the_written_pixels(tmp_path: Path) -> None:
    values = pixels(3)
    style = cog.RasterStyle(descriptions=("B02", "B03", "B04"), nodata=0)
    cog.write(tmp_path / "a.tif", GRID, pieces(values, 256), style=style)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), values)
        assert dataset.descriptions == ("B02", "B03", "B04")
        assert (dataset.nodata, dataset.crs.to_epsg(), dataset.block_shapes[0]) == (0, 32632, (512, 512))
        assert dataset.overviews(1) == [2]
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert tuple(dataset.transform)[:6] == GRID.transform
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_equal_pixels_give_equal_bytes_however_they_come(tmp_path: Path) -> None:
    values, style = pixels(2), cog.RasterStyle(descriptions=("B02", "B03"), nodata=0)
    cog.write(tmp_path / "one.tif", GRID, pieces(values, 256), style=style)
    cog.write(tmp_path / "other.tif", GRID, pieces(values, 100)[::-1], style=style)
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "other.tif").read_bytes()


def test_the_pixel_hash_sees_pixels_and_place_only(tmp_path: Path) -> None:
    values, style = pixels(1), cog.RasterStyle(descriptions=("B02",))
    cog.write(tmp_path / "cog.tif", GRID, pieces(values, 512), style=style)
    plain = write_plain(tmp_path / "plain.tif", values[0], compress="lzw")
    promised = geotiff.hash_pixels(plain)
    assert geotiff.hash_pixels(tmp_path / "cog.tif") == promised
    values[0, 699, 529] ^= 1
    assert geotiff.hash_pixels(write_plain(tmp_path / "b.tif", values[0])) != promised
    values[0, 699, 529] ^= 1
    moved = write_plain(tmp_path / "c.tif", values[0], transform=Affine(10, 0, 600010, 0, -10, 5400000))
    assert geotiff.hash_pixels(moved) != promised


def test_classes_get_palette_tags_and_sidecar(tmp_path: Path) -> None:
    classes = {0: ("Street network", "#cc0000"), 255: ("unmapped", "#ffffff")}
    style = cog.RasterStyle(descriptions=("labels",), dtype="uint8", overviews="mode", classes=classes)
    cog.write(tmp_path / "l.tif", GRID, pieces(pixels(1, dtype=np.uint8), 512), style=style)
    with rasterio.open(tmp_path / "l.tif") as dataset:
        assert dataset.colormap(1)[0] == (204, 0, 0, 255)
        assert dataset.tags()["class_000"] == "Street network"
        assert dataset.tags()["class_255"] == "unmapped"
    sidecar = (tmp_path / "l.tif.aux.xml").read_text()
    assert sidecar.count("<Category") == 257
    assert "<Category>unmapped</Category>" in sidecar


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), strip=st.sampled_from([1, 1 << 14, 1 << 25]))
def test_strips_put_the_window_together(
    tmp_path: Path, data: st.DataObject, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geotiff, "STRIP_BYTES", strip)
    path, values = tmp_path / "s.tif", pixels(1)[0]
    if not path.exists():
        write_plain(path, values)
    row, col = data.draw(st.integers(0, 699)), data.draw(st.integers(0, 529))
    size = (data.draw(st.integers(1, 700 - row)), data.draw(st.integers(1, 530 - col)))
    window = Window(row=row, col=col, height=size[0], width=size[1])
    with geotiff.open_raster(str(path)) as dataset:
        found = np.concatenate([strip.copy() for strip in geotiff.read_strips(dataset, window)])
    np.testing.assert_array_equal(found, values[window.slices])


def test_a_foreign_nodata_tag_becomes_zero(tmp_path: Path) -> None:
    values = pixels(1)[0]
    values[5, 6] = 65535
    path = write_plain(tmp_path / "n.tif", values, nodata=65535)
    with geotiff.open_raster(str(path)) as dataset:
        (found,) = geotiff.read_strips(dataset, Window(row=0, col=0, height=700, width=530))
    assert (found[5, 6], found[6, 6]) == (0, values[6, 6])


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((600000, 5399000, 601000, 5400000), (0, 0, 100, 100)),
        ((600015, 5399985, 600021, 5399992), (0, 1, 2, 2)),
        ((599000, 5399900, 600010, 5401000), (0, 0, 10, 1)),
        ((700000, 5399900, 700100, 5401000), (0, 530, 10, 0)),
    ],
)
def test_the_window_over_bounds(bounds: tuple[float, ...], expected: tuple[int, ...]) -> None:
    window = grids.window_over(GRID, bounds, margin=0)  # type: ignore[arg-type]
    assert (window.row, window.col, window.height, window.width) == expected


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing.tif"), geotiff.open_raster(str(tmp_path / "nothing.tif")):
        pass


def test_a_truncated_file_is_an_error_and_never_nodata(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "t.tif", pixels(1)[0])
    path.write_bytes(path.read_bytes()[:-20_000])
    window = Window(row=0, col=0, height=700, width=530)
    with pytest.raises(SourceError, match=r"t\.tif: cannot be read"), geotiff.open_raster(str(path)) as dataset:
        list(geotiff.read_strips(dataset, window))


def test_rotated_pixels_are_refused(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "r.tif", pixels(1)[0], transform=Affine(10, 1, 600000, 0, -10, 5400000))
    with pytest.raises(SourceError, match="north-up"), geotiff.open_raster(str(path)) as dataset:
        geotiff.read_header(dataset)


def test_an_output_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((OutputError, OSError)):
        cog.write(tmp_path / "file" / "a.tif", GRID, [], style=cog.RasterStyle(descriptions=("B02",)))
    assert files.sha256((tmp_path / "file").read_bytes()) == files.sha256(b"")


def test_a_damaged_block_is_an_error(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.tif", pixels(1)[0], predictor=2)
    with rasterio.open(path) as dataset:
        at = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[at : at + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(SourceError, match="cannot be read"), geotiff.open_raster(str(path)) as dataset:
        list(geotiff.read_strips(dataset, Window(row=0, col=0, height=128, width=128)))
