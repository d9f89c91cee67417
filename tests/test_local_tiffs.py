"""Test the reader of GeoTIFFs on disks: the pixels of GDAL for every layout that it takes, and faults by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from sgdata.errors import OutputError, SourceError
from sgdata.rasters import geotiff
from sgdata.rasters.tiff_header import OtherLayoutError
from sgdata.scenes.types import Asset
from sgdata.staging import gdal_files, local_tiffs, window_staging
from sgdata.staging.scene_files import SceneFile, WindowRequest
from sgdata.types import Array, Bounds

CRS = "EPSG:32632"
HEIGHT, WIDTH = 150, 170
AREA: Bounds = (600000.0, 5398500.0, 601700.0, 5400000.0)
LAYOUTS: list[dict[str, Any]] = [
    *({"compress": name, "predictor": 2} for name in ("DEFLATE", "LZW", "ZSTD")),
    {"compress": "DEFLATE"},
    {"compress": "DEFLATE", "predictor": 2, "endianness": "BIG", "nodata": 3},
    {"compress": "DEFLATE", "predictor": 2, "tiled": False, "blockysize": 11},
    {"bigtiff": "YES", "nodata": 0},
    {"compress": "DEFLATE", "sparse_ok": True, "nodata": 3},
    {"sparse_ok": True},
]


def pixels(dtype: str) -> Array:
    values = np.random.Generator(np.random.Philox(key=4)).integers(0, 120, (HEIGHT, WIDTH)).astype(dtype)
    values[64:, 64:] = 0
    return values


def write(path: Path, values: Array, **options: Any) -> Path:
    about = {"driver": "GTiff", "count": 1, "crs": CRS, "transform": from_origin(600000, 5400000, 10, 10)}
    if options.get("tiled", True):
        about |= {"tiled": True, "blockxsize": 64, "blockysize": 32}
    about |= {"dtype": values.dtype, "height": HEIGHT, "width": WIDTH, **options}
    with rasterio.open(path, "w", **about) as dataset:
        dataset.write(values, 1)
    return path


def request_for(path: Path, bounds: Bounds = AREA) -> WindowRequest:
    return WindowRequest(
        name="x B02", asset=Asset(href=str(path)), crs=CRS, bounds=bounds, target=path.with_name("window")
    )


def whole(file: SceneFile) -> Array:
    return np.concatenate([strip.copy() for strip in file.rows()])


@pytest.mark.parametrize("strip", [1, 1 << 14, 1 << 25])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout.values())))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pixels_are_those_of_gdal(
    layout: dict[str, Any], strip: int, tmp_path: Path, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any window of every layout, in both data types."""
    monkeypatch.setattr(geotiff, "STRIP_BYTES", strip)
    left, top = data.draw(st.integers(0, WIDTH - 2)), data.draw(st.integers(0, HEIGHT - 2))
    right, bottom = data.draw(st.integers(left + 1, WIDTH)), data.draw(st.integers(top + 1, HEIGHT))
    bounds = (600000.0 + 10 * left, 5400000.0 - 10 * bottom, 600000.0 + 10 * right, 5400000.0 - 10 * top)
    for dtype in ("uint16", "uint8"):
        request = request_for(write(tmp_path / f"{dtype}.tif", pixels(dtype), **layout), bounds)
        href = request.asset.href
        assert local_tiffs.can_read(href)
        with local_tiffs.open_local_tiff(request, href) as own, gdal_files.open_with_gdal(request, href) as other:
            assert (own.grid, own.dtype, own.block, own.identity) == (
                other.grid, other.dtype, other.block, other.identity,
            )  # fmt: skip
            np.testing.assert_array_equal(whole(own), whole(other))
            last = own.grid.shape[0]
            np.testing.assert_array_equal(
                np.concatenate([strip.copy() for strip in own.rows(last // 2, last)]), whole(other)[last // 2 :]
            )


@pytest.mark.parametrize("layout", [{"compress": "LZMA"}, {"nbits": 7}, {"crs": "EPSG:4326"}, {"compress": "JPEG"}])
def test_other_layouts_are_left_to_gdal(layout: dict[str, Any], tmp_path: Path) -> None:
    request = request_for(write(tmp_path / "a.tif", pixels("uint8"), **layout))
    with (
        pytest.raises(OtherLayoutError),
        local_tiffs.open_local_tiff(request, request.asset.href),
    ):
        pass
    with window_staging.open_scene_file(replace(request, kernel="nearest"), request.asset.href) as source:
        whole(source)


def test_addresses_for_gdal_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_tiffs.can_read("/data/B02.tif") and local_tiffs.can_read("data/B02.TIFF")
    for href in ("https://a.example/B02.tif", "s3://bucket/B02.tif", "/vsizip/a.zip/B02.tif", "/data/B02.JP2"):
        assert not local_tiffs.can_read(href)
    monkeypatch.setenv("GDAL_DISABLE_READDIR_ON_OPEN", "FALSE")
    assert not local_tiffs.can_read("/data/B02.tif")


def test_damaged_missing_and_short_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "B02.tif", pixels("uint16"), compress="DEFLATE", predictor=2)
    content = path.read_bytes()
    with rasterio.open(path) as dataset:
        at = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    path.write_bytes(content[:at] + b"\xff" * 40 + content[at + 40 :])
    with pytest.raises(SourceError, match=r"B02\.tif: cannot be read: block \(1, 1\) of .* is damaged"):
        window_staging.stage(request_for(path))
    path.write_bytes(content[: at + 10])
    with pytest.raises(SourceError, match=r"B02\.tif: cannot be read"):
        window_staging.stage(request_for(path))
    path.unlink()
    with pytest.raises(SourceError, match=r"B02\.tif: cannot be read"):
        window_staging.stage(request_for(path))


def test_a_failed_write_is_not_a_failed_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "B02.tif", pixels("uint16"), compress="DEFLATE")

    def full(values: Array) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(geotiff, "little_endian", full)
    with pytest.raises(OutputError):
        window_staging.stage(request_for(path))
