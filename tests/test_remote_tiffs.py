"""Test the block reader of GeoTIFFs on servers: pixels as from GDAL, one request per joined range, faults by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import served
from rasterio.transform import from_origin

from sgdata.composite import gdal_files, remote_tiffs
from sgdata.composite.scene_files import SceneFile, WindowRequest
from sgdata.scenes.types import Asset
from sgdata.types import Array, Bounds, Window

CRS = "EPSG:32632"
SHAPE = (620, 530)
BOUNDS: Bounds = (601000.0, 5395000.0, 603000.0, 5399000.0)


def pixels(dtype: str = "uint16") -> Array:
    values = np.random.Generator(np.random.Philox(key=1)).integers(1, 400, SHAPE).astype(dtype)
    values[100:300], values[::7, ::5] = 0, 9
    return values


def write(path: Path, values: Array, **options: Any) -> Path:
    about = {"driver": "COG", "count": 1, "crs": CRS, "transform": from_origin(600000, 5400000, 10, 10), **options}
    about |= {"dtype": values.dtype, "height": values.shape[0], "width": values.shape[1]}
    with rasterio.open(path, "w", **about) as dataset:
        dataset.write(values, 1)
    return path


def request_for(href: str, folder: Path, **changes: Any) -> WindowRequest:
    request = WindowRequest(name="x B02", asset=Asset(href=href), crs=CRS, bounds=BOUNDS, target=folder / "window")
    return replace(request, **changes)


def whole(file: SceneFile) -> Array:
    return np.concatenate([strip.copy() for strip in file.rows()])


def chosen(driver: str, **options: Any) -> dict[str, Any]:
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 256} if options.pop("tiles", False) else {}
    return {"driver": driver, **(tiles if driver == "GTiff" else {"blocksize": 128}), **options}


TAKEN = [
    *(chosen("COG", compress=name) for name in ("DEFLATE", "LZW", "ZSTD", "NONE")),
    chosen("COG", compress="DEFLATE", predictor="STANDARD", nodata=9, bigtiff="YES"),
    chosen("COG", compress="LZW", predictor="STANDARD", sparse_ok=True, nodata=9),
    chosen("GTiff", compress="DEFLATE", predictor=2, endianness="BIG", tiles=True),
    chosen("GTiff", compress="ZSTD", bigtiff="YES", endianness="BIG", nodata=9, tiles=True, sparse_ok=True),
    chosen("GTiff", compress="LZW", predictor=2, nodata=9, blockysize=100),
    chosen("GTiff", sparse_ok=True, blockysize=64),
]


@pytest.mark.parametrize("options", TAKEN, ids=lambda options: "-".join(map(str, options.values())))
def test_pixels_are_those_of_gdal(options: dict[str, Any], tmp_path: Path) -> None:
    """Every layout that is taken, in both data types, and any part of the window."""
    for dtype in ("uint16", "uint8"):
        values = pixels(dtype)
        if options.get("sparse_ok"):
            values[256:] = 0
        path = write(tmp_path / f"{dtype}.tif", values, **options)
        with served.serving(tmp_path) as server:
            request = request_for(f"{server.url}/{path.name}", tmp_path)
            with gdal_files.open_with_gdal(request, request.asset.href) as file:
                expected = whole(file)
            with remote_tiffs.open_remote_tiff(request, request.asset.href) as own:
                assert replace(own, strips=file.strips, identity="") == replace(file, identity="")
                np.testing.assert_array_equal(whole(own), expected)
                part = Window(row=60, col=70, height=200, width=33)
                found = np.concatenate(list(own.strips(part)))
                np.testing.assert_array_equal(found, expected[60:260, 70:103])
