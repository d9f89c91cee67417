"""Read windows of GeoTIFF and JP2 files."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sgdata import files, urls
from sgdata.errors import SourceError
from sgdata.rasters import allowed_formats, grids
from sgdata.remote.allowed_addresses import Access, access_of
from sgdata.types import Array, Grid, Window

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

    from sgdata.rasters.resample import Kernel

STRIP_BYTES = 1 << 22
"""Files are read in strips of about this size, cut at the file's own blocks."""

WARPING = threading.Lock()
"""Rasterio suppresses a warning while it warps, with `warnings.catch_warnings`, which is not thread-safe."""

READING = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # else one listing of a bucket per file
    "GDAL_HTTP_MAX_RETRY": "5",  # 429, 502, 503, 504 and dropped connections; finite
    "GDAL_HTTP_RETRY_DELAY": "1",
    # No limit of the whole time, which would cut a slow but steady transfer: only one that stalls is given up.
    "GDAL_HTTP_LOW_SPEED_LIMIT": "100",  # bytes a second
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "VSI_CACHE": "TRUE",
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/",  # else a second try meets the failure of the first
}
"""Options of GDAL with which files are read, unless the user sets them."""
SAFE = {
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_NUM_THREADS": "1",  # errors of several threads that decode JPEG 2000 are lost: a cut file would have no data
}

REFUSED = re.compile(r"\b40[13]\b|forbidden|access ?denied|invalidaccesskey|signature|credentials", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class RasterHeader:
    """Header of a raster file.

    Attributes:
        grid: Grid of the whole file.
        dtype: Type of the values.
        nodata: Value of pixels without data; None if there is none.
        bands: Number of bands.
    """

    grid: Grid
    dtype: str
    nodata: float | None
    bands: int


@contextmanager
def open_raster(
    href: str, *, use: allowed_formats.Use = "output", access: Access | None = None, cache_mb: int = 16
) -> Iterator[DatasetReader]:
    """Open a raster at a path or URL; every raster that this project reads is opened here.

    Args:
        href: Path or URL, admitted by `access.admit` where a document names it.
        use: Purpose, which decides the formats.
        access: Hosts that may be asked; default: those of an address that the user named.
        cache_mb: Memory for decoded blocks; little, where every block is read once.

    Yields:
        The open dataset.

    Raises:
        SourceError: The file may not be opened or cannot be read, now or inside the context; a failed read is an
            error, never nodata.
    """
    import rasterio
    from rasterio._err import CPLE_BaseError  # errors of GDAL that rasterio does not translate
    from rasterio.errors import RasterioError

    shown, where = urls.without_secrets(href), href
    if urls.is_http(href):
        from sgdata.remote import web  # not at the top: local rasters need no HTTP

        where = web.range_probe(href, access or access_of(href))
    elif "://" not in href and not href.startswith("/vsi"):
        allowed_formats.check_local(href, use)
        where = os.path.abspath(href)  # noqa: PTH100 - an absolute path has no prefix of a driver
    _silence_gdal()
    options = {**gdal_options(href), **SAFE, "GDAL_CACHEMAX": cache_mb << 20}
    if use == "user":
        options["GDAL_DISABLE_READDIR_ON_OPEN"] = "FALSE"  # for a mask beside the file
    try:
        with rasterio.Env(**options), allowed_formats.open_with(where, allowed_formats.DRIVERS[use]) as dataset:
            allowed_formats.check_declared(dataset, shown)
            yield dataset
    except (RasterioError, CPLE_BaseError, MemoryError, UnicodeDecodeError) as error:
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        # GDAL names the file with or without its folder: a signature must not be shown or stored in either case.
        for address in (where, href):
            query = address.partition("?")[2]
            reason = reason.replace(address, shown).replace(f"?{query}" if query else "?", "")
        wanted = urls.wanted(href) if REFUSED.search(reason) else ""
        raise SourceError(f"{shown}: cannot be read: {reason:.200}{wanted}; fetch it again or leave it out") from error


def gdal_options(href: str) -> dict[str, str]:
    """Return the options of GDAL with which a file is read, without those that the user chose."""
    from rasterio._env import get_gdal_config

    options = READING
    if href.startswith("s3://"):
        from sgdata.remote import buckets  # not at the top: most rasters lie in no bucket

        options = options | buckets.s3_options(href)
    # Of the environment, of GDAL's configuration file, or of a rasterio.Env around the call.
    return {name: value for name, value in options.items() if get_gdal_config(name) is None}


@cache
def _silence_gdal() -> None:
    """Keep GDAL's messages off stderr, unless the user set a level: each that matters is raised as an exception."""
    log = logging.getLogger("rasterio")
    if log.level == logging.NOTSET:
        log.setLevel(logging.CRITICAL)


def data_bands(dataset: DatasetReader) -> list[int]:
    """Return the numbers of the bands that are no alpha."""
    from rasterio.enums import ColorInterp

    return [band for band, kind in zip(dataset.indexes, dataset.colorinterp, strict=True) if kind != ColorInterp.alpha]


def _alpha_bands(dataset: DatasetReader) -> list[int]:
    """Return the numbers of the bands that mask the others; GDAL takes them for masks in files of two or four only."""
    return sorted(set(dataset.indexes) - set(data_bands(dataset)))


def _has_mask(dataset: DatasetReader, band: int) -> bool:
    """Return whether a band has a mask in the file or beside it; a nodata tag is no mask, since 0 may be a value."""
    return not {flag.name for flag in dataset.mask_flag_enums[band - 1]} & {"all_valid", "nodata"}


def read_header(dataset: DatasetReader, band: int = 1) -> RasterHeader:
    """Return the header, with the data type of `band`.

    Raises SourceError unless pixels are square and north-up and the CRS has an EPSG code.
    """
    a, b, _, d, e, _ = tuple(dataset.transform)[:6]
    code = dataset.crs and dataset.crs.to_epsg()
    finite = math.isfinite(a) and math.isfinite(dataset.transform.c) and math.isfinite(dataset.transform.f)
    if not code or b or d or not math.isclose(a, -e) or a <= 0 or not finite:
        raise SourceError(
            f"{dataset.name}: CRS {dataset.crs} with transform {tuple(dataset.transform)[:6]}; "
            "expected an EPSG code and square north-up pixels; warp it to such a grid"
        )
    origin = (float(dataset.transform.c), float(dataset.transform.f))
    grid = Grid(crs=f"EPSG:{code}", origin=origin, gsd_m=float(a), shape=dataset.shape)
    return RasterHeader(grid=grid, dtype=dataset.dtypes[band - 1], nodata=dataset.nodata, bands=dataset.count)


def read_valid_mask(dataset: DatasetReader, values: Array, window: Any) -> Array:
    """Return which `values` (C, h, w) of `data_bands` in a window of rasterio hold data.

    No data is marked by a number, NaN, a mask in the file or beside it, or an alpha band.
    """
    numbers = data_bands(dataset)
    valid = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    for at, number in enumerate(numbers):
        nodata = dataset.nodatavals[number - 1]
        if nodata is not None:
            valid[at] &= values[at] != nodata
        # Masks only where a file has its own: GDAL also computes them from the number, which takes as long as reading.
        if _has_mask(dataset, number):
            valid[at] &= dataset.read_masks(number, window=window) != 0
    for number in _alpha_bands(dataset):
        valid &= dataset.read(number, window=window) != 0
    return valid


def read_strips(dataset: DatasetReader, window: Window, *, band: int = 1, beyond: int = 0) -> Iterator[Array]:
    """Yield the window of a band from top to bottom in (h, W) strips that end where the file's blocks end.

    Each block is decoded once, and memory does not grow with the window. DN equal to the nodata tag become 0, and what
    a mask or alpha in the file covers becomes `beyond`. Strips may share memory: copy those that must outlive the next
    one.
    """
    import rasterio.windows

    block, dtype = dataset.block_shapes[band - 1][0], dataset.dtypes[band - 1]
    is_masked, alphas = _has_mask(dataset, band), _alpha_bands(dataset)
    row_bytes = max(window.width, 1) * np.dtype(dtype).itemsize
    rows = max(STRIP_BYTES // (row_bytes * block), 1) * block
    row, end = window.row, window.row + window.height
    while row < end:
        stop = min((row // rows + 1) * rows, end)
        part = Window(row=row, col=window.col, height=stop - row, width=window.width)
        place = rasterio.windows.Window(part.col, part.row, part.width, part.height)
        values = dataset.read(band, window=place)
        if dataset.nodata and values.dtype == np.uint16:  # not in masks, where 0 means clear
            values[values == dataset.nodata] = 0
        if is_masked:
            values[dataset.read_masks(band, window=place) == 0] = beyond
        for alpha in alphas:
            values[dataset.read(alpha, window=place) == 0] = beyond
        yield values
        row = stop


def read_warped(
    dataset: DatasetReader, grid: Grid, kernel: Kernel, *, band: int = 1, beyond: int = 0
) -> Iterator[Array]:
    """Yield a band on a grid of another CRS, in strips as of `read_strips`, `beyond` where there is no data.

    The transformer is exact and kernels have the size of one source pixel, so that results do not depend on the strips
    (except that float32 may round by 1 DN differently). A pixel is nodata if its nearest source is, as in `resample`.
    """
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.transform import Affine
    from rasterio.warp import reproject

    for strip in grids.cut_strips(grid.shape, STRIP_BYTES):
        part = grids.crop(grid, strip)
        nearest, values = (np.zeros(part.shape, dataset.dtypes[band - 1]) for _ in range(2))
        for out, how in ((nearest, "nearest"), (values, kernel)):
            # Without XSCALE the kernel widens with the rotation between two zones and with the size of the part. A
            # WarpedVRT would need no strips, but rasterio cannot make one with an exact transformer.
            with WARPING:
                reproject(
                    rasterio.band(dataset, band), out, resampling=Resampling[how], tolerance=0, XSCALE=1, YSCALE=1,
                    dst_crs=grid.crs, dst_transform=Affine(*part.transform), dst_nodata=beyond,
                    src_nodata=dataset.nodata if beyond else dataset.nodata or 0,  # 0 is a value in masks
                    src_alpha=next(iter(_alpha_bands(dataset)), 0), SRC_ALPHA_MAX=1,  # all but 0 is visible
                )  # fmt: skip
        yield np.where((nearest == beyond) | (values == beyond), nearest, values)


def digest_start(grid: Grid, bands: int, dtype: str) -> bytes:
    """Return the start of a pixel hash: shape, dtype, CRS code and transform of the pixels that follow."""
    shape = (bands, *grid.shape)
    return files.canonical_json({"shape": shape, "dtype": dtype, "crs": grid.crs, "transform": grid.transform})


def little_endian(values: Array) -> memoryview:
    """Return the C-order little-endian bytes of an array, without a copy if it is stored so."""
    if not values.size:  # such as a window beside the file, of which Python makes no view
        return memoryview(b"")
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data.cast("B")


def hash_pixels(path: Path) -> str:
    """Return the pixel hash of a raster: SHA-256 over the header and one SHA-256 per band of its C-order bytes.

    It does not depend on compression, blocks or library versions, as the hash of the file does.
    """
    with open_raster(str(path)) as dataset:
        about = read_header(dataset)
        hashes = [hashlib.sha256() for _ in range(about.bands)]
        for strip in grids.cut_tiles(about.grid.shape, 512, about.grid.shape[1]):  # a row of the blocks that we write
            _add(hashes, dataset.read(window=strip.slices))
        start = digest_start(about.grid, about.bands, about.dtype)
        return files.sha256(start + b"".join(digest.digest() for digest in hashes))


def _add(hashes: list[Any], image: Array) -> None:
    """Update one hash per band. A function, so that no loop variable keeps a strip while the next is read."""
    for digest, values in zip(hashes, image, strict=True):
        digest.update(little_endian(values))
