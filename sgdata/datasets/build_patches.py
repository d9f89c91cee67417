"""List the patches of a build as samples, and cut them from its rasters."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, output_names
from sgdata.builds.patch_table import read
from sgdata.datasets.types import SampleRef, SourceMember
from sgdata.errors import SettingError, SourceError
from sgdata.rasters import allowed_formats, geotiff
from sgdata.types import Array

CACHE_MB = 512
"""Memory for decoded blocks: neighbouring patches share them."""


def list_patches(path: Path, members: tuple[SourceMember, ...], pixel_bytes: float) -> tuple[SampleRef, ...]:
    """List the patches of a build as samples to be cut from its rasters.

    Args:
        path: Table of the patches.
        members: The rasters.
        pixel_bytes: Bytes that a pixel will take in a shard, estimated.

    Raises:
        SourceError: The table is missing or damaged.
    """
    rows = read(path)
    windows = rows[["row", "col", "height", "width"]].to_numpy().tolist()
    # To 1e-7 degree (a centimetre), as `small_tiff.bounds` gives them.
    boxes = rows.bounds.round(7).to_numpy().tolist()
    return tuple(
        SampleRef(
            key=key,
            split=split,
            members=members,
            bytes=int(window[2] * window[3] * pixel_bytes),
            meta={"window": window, "bounds": box},
        )
        for key, split, window, box in zip(rows["key"], rows["split"], windows, boxes, strict=True)
    )


def place_of(build: Path) -> str:
    """Return the place that a build carries, "" if it has none. Raises SettingError."""
    recipe = build / output_names.RECIPE
    place = files.read_plain(recipe).get("place", "") if recipe.is_file() else ""
    if not isinstance(place, str):
        raise SettingError(f"{recipe}: place is {place!r:.60}, expected a name; build it again")
    return place


def open_raster(path: Path, *, use: allowed_formats.Use = "output") -> AbstractContextManager[Any]:
    """Open a raster to read patches from it. Raises SourceError."""
    return geotiff.open_raster(str(path), use=use, cache_mb=CACHE_MB)


def read_window(raster: Any, window: Sequence[int]) -> Array:
    """Read an open raster in a window of row, column, height, width. Raises SourceError.

    Returns:
        (C, height, width), a masked array that is masked where the raster has no data.
    """
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    row, col, height, width = window
    gdal_window = Window(col, row, width, height)
    try:
        pixels = raster.read(geotiff.data_bands(raster), window=gdal_window)
        valid = geotiff.read_valid_mask(raster, pixels, gdal_window)
    except (RasterioError, CPLE_BaseError) as error:
        raise SourceError(f"window {window} cannot be read: {error}") from None
    return np.ma.MaskedArray(pixels, ~valid)
