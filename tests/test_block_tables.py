"""Test that headers of TIFFs with impossible values are left to GDAL, and that all others give every pixel."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio

from sgdata.rasters import tiff_blocks, tiff_header
from sgdata.types import Window

VALUES = np.arange(64 * 80, dtype=np.uint16).reshape(64, 80)


def written(path: Path, big: str) -> bytes:
    profile = {"height": 64, "width": 80, "count": 1, "dtype": "uint16", "crs": "EPSG:32632", "BIGTIFF": big}
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate", "predictor": 2}
    transform = rasterio.transform.from_origin(6e5, 5.4e6, 10, 10)
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **profile, **tiles) as target:
        target.write(VALUES, 1)
    return path.read_bytes()


@pytest.mark.parametrize("big", ["NO", "YES"])
def test_blocks_of_a_header_hold_every_pixel(tmp_path: Path, big: str) -> None:
    content = written(tmp_path / "band.tif", big)
    table = tiff_header.parse({0: content}, len(content), "band")
    out = np.zeros((64, 80), np.uint16)
    whole = Window(row=0, col=0, height=64, width=80)
    for span in tiff_blocks.plan_ranges(table, [whole]):
        for row in tiff_blocks.rows_of(table, whole):
            tiff_blocks.decode_blocks(table, span, memoryview(content)[span.start : span.stop], whole, out, row=row)
    np.testing.assert_array_equal(out, VALUES)


@pytest.mark.parametrize("offset", [2**63, 2**64 - 1])
def test_an_offset_that_no_file_can_have_is_left_to_gdal(tmp_path: Path, offset: int) -> None:
    content = written(tmp_path / "band.tif", "YES")
    first, second = tiff_header.parse({0: content}, len(content), "band").offsets[0, :2].tolist()
    place = content.index(struct.pack("<2Q", first, second))
    damaged = content[:place] + struct.pack("<Q", offset) + content[place + 8 :]
    with pytest.raises(tiff_header.OtherLayoutError, match="at no place"):
        tiff_header.parse({0: damaged}, len(damaged), "band")
