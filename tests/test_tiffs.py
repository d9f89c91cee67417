from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from sgdata.errors import SourceError
from sgdata.rasters import small_tiff
from sgdata.types import Array

PIXELS = np.random.default_rng(1).integers(0, 5000, (3, 20, 30)).astype(np.uint16)


def written(pixels: Array, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="minisblack", **options)
    return buffer.getvalue()


def geotiff(path: Path, crs: str, **options: object) -> bytes:
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 3, "height": 20, "width": 30}
    with rasterio.open(
        path, "w", crs=crs, transform=from_origin(690000, 5340000, 10, 9.5), **profile, **options
    ) as out:
        out.write(PIXELS)
    return path.read_bytes()


@pytest.mark.parametrize("bands", [3, 13])
def test_planes_of_tifffile_are_bands(bands: int) -> None:
    planes = np.random.default_rng(2).integers(0, 5000, (bands, 20, 30)).astype(np.uint16)
    assert np.array_equal(small_tiff.read(written(planes, planarconfig="separate")).pixels, planes)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("rowsperstrip", [None, 3])
def test_the_fast_reader_equals_tifffile(byteorder: str, dtype: str, rowsperstrip: int | None) -> None:
    cube = np.moveaxis(PIXELS, 0, -1).astype(dtype)
    content = written(cube, byteorder=byteorder, rowsperstrip=rowsperstrip, planarconfig="contig", metadata=None)
    assert small_tiff._plain(content) is not None
    np.testing.assert_array_equal(small_tiff.read(content).pixels, np.moveaxis(cube, -1, 0))
    plane = written(cube[..., 0], byteorder=byteorder, metadata=None)
    np.testing.assert_array_equal(small_tiff.read(plane).pixels, cube[None, ..., 0])


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "deflate"},
        {"compression": "deflate", "predictor": True},
        {"tile": (16, 16)},
        {"planarconfig": "separate"},
    ],
)
def test_other_layouts_go_the_general_way(options: dict[str, object]) -> None:
    cube = PIXELS if options.get("planarconfig") else np.moveaxis(PIXELS, 0, -1)
    content = written(cube, **({"planarconfig": "contig"} | options), metadata=None)
    assert small_tiff._plain(content) is None
    np.testing.assert_array_equal(small_tiff.read(content).pixels, PIXELS)


def test_a_shaped_series_of_pages_is_one_image() -> None:
    cube = np.moveaxis(PIXELS, 0, -1).astype(np.float32)
    content = written(cube)
    assert len(tifffile.TiffFile(io.BytesIO(content)).pages) == 20
    np.testing.assert_array_equal(small_tiff.read(content).pixels, PIXELS)


@pytest.mark.parametrize("options", [{}, {"compress": "deflate"}, {"interleave": "pixel"}])
def test_the_georeference_equals_that_of_rasterio(tmp_path: Path, options: dict[str, object]) -> None:
    picture = small_tiff.read(geotiff(tmp_path / "it.tif", "EPSG:32632", **options))
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    assert picture.georeference == small_tiff.Georeference(epsg=32632, transform=(10, 0, 690000, 0, -9.5, 5340000))
    with rasterio.open(tmp_path / "it.tif") as held:
        expected = transform_bounds(held.crs, "EPSG:4326", *held.bounds)
    np.testing.assert_allclose(small_tiff.bounds(picture.georeference, (20, 30)), expected, atol=1e-6)
    assert small_tiff.place_metadata(picture)["crs"] == "EPSG:32632"


@pytest.mark.parametrize("options", [{}, {"compress": "deflate"}, {"interleave": "pixel"}])
def test_pixels_that_the_file_marks_as_missing(tmp_path: Path, options: dict[str, object]) -> None:
    """0 marks missing data in these datasets; another number would be learned from as a value."""
    held = int(PIXELS[1, 3, 4])
    for nodata, refused in ((held, True), (0, False), (60_000, False), (None, False)):
        content = geotiff(tmp_path / f"{nodata}.tif", "EPSG:32632", nodata=nodata, **options)
        if refused:
            with pytest.raises(SourceError, match=f"values are {held}, which the tag GDAL_NODATA marks as missing"):
                small_tiff.read(content)
        else:
            np.testing.assert_array_equal(small_tiff.read(content).pixels, PIXELS)


def test_an_image_without_georeference_has_none() -> None:
    assert small_tiff.place_metadata(small_tiff.read(written(PIXELS[0]))) == {}


def test_every_real_file_reads_as_rasterio_reads_it(real: Path) -> None:
    paths = [
        *real.glob("bigearthnet/v?/**/*_B*.tif"),
        *real.glob("eurosat/**/*.tif"),
        *real.glob("fmow_sentinel/*.tif"),
    ]
    assert len(paths) > 40
    quick = 0
    for path in paths:
        content = path.read_bytes()
        picture = small_tiff.read(content)
        quick += small_tiff._plain(content) is not None
        with rasterio.open(path) as held:
            np.testing.assert_array_equal(picture.pixels, held.read())
            assert picture.georeference is not None
            assert picture.georeference.epsg == held.crs.to_epsg()
            np.testing.assert_allclose(picture.georeference.transform, tuple(held.transform)[:6], rtol=1e-14)
    assert quick == len(paths) - 1  # fMoW's are deflated


@pytest.mark.parametrize("order", ["<", ">"])
def test_pages_in_a_circle_are_refused(order: str) -> None:
    cube = np.moveaxis(PIXELS, 0, -1)
    content = bytearray(written(cube, planarconfig="contig", compression="deflate", metadata=None, byteorder=order))
    first = struct.unpack_from(f"{order}I", content, 4)[0]
    entries = struct.unpack_from(f"{order}H", content, first)[0]
    struct.pack_into(f"{order}I", content, first + 2 + 12 * entries, first)
    with pytest.raises(SourceError, match="in a circle"):
        small_tiff.read(bytes(content))


@pytest.mark.filterwarnings("ignore")  # tifffile may warn on damage before it raises
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), st.data())
def test_damage_is_a_source_error_or_other_pixels(compressed: bool, data: st.DataObject) -> None:
    cube = np.moveaxis(PIXELS, 0, -1)
    place = [(33550, "d", 3, (10.0, 10.0, 0.0)), (33922, "d", 6, (0, 0, 0, 690000.0, 5340000.0, 0))]
    keys = (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32632))
    tags = [(*tag, True) for tag in (*place, keys)]
    deflated = "deflate" if compressed else None
    content = bytearray(written(cube, planarconfig="contig", compression=deflated, metadata=None, extratags=tags))
    assert small_tiff.place_metadata(small_tiff.read(bytes(content)))["crs"] == "EPSG:32632"
    for _ in range(data.draw(st.integers(0, 5))):
        # Half of the damage in the header and the tags, where it leads astray.
        limit = data.draw(st.sampled_from([450, len(content)]))
        content[data.draw(st.integers(0, limit - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    for candidate in (cut, bytes(content)):
        try:
            picture = small_tiff.read(candidate)
            assert picture.pixels.ndim == 3
            small_tiff.place_metadata(picture)
        except SourceError:
            continue
