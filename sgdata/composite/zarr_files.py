"""Open a band of a scene in a Zarr store, such as ESA's EOPF products: rows of chunks, or of the blocks inside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from sgdata import urls
from sgdata.composite import cloud_masks, scene_files
from sgdata.composite.scene_files import SceneFile, WindowRequest
from sgdata.errors import SourceError
from sgdata.rasters import geotiff, grids, zarr_store
from sgdata.rasters.zarr_chunks import ChunkReader
from sgdata.remote import identity
from sgdata.scenes import eopf_items
from sgdata.sentinel2 import MSI
from sgdata.types import Array, Grid, Window

BLOCK_ROWS = 512
"""Rows of a chunk that are at most called a block, where rows can be read alone."""
WARP_MARGIN_PX = 8
"""Pixels read around those that a warped window covers: kernels read up to 2 beyond, and zones are rotated."""


@contextmanager
def open_zarr(request: WindowRequest, href: str) -> Iterator[SceneFile]:
    """Open the array of a window and compare its metadata with its item. Raises SourceError, also while it is read."""
    try:
        yield _open(request, href)
    except SourceError as error:
        if str(error).startswith(request.name):
            raise
        # Addresses of chunks end with numbers: of a message without its folders those alone would be left.
        raise SourceError(f"{request.name}: {error}") from error.__cause__


def _open(request: WindowRequest, href: str) -> SceneFile:
    if href.startswith("/vsi"):
        raise SourceError(f"{urls.without_secrets(href)}: is a Zarr store in an archive; unpack it")
    source = identity.identify_address(href, request.access) or ""  # before, so that a change meanwhile is noticed
    reader = zarr_store.open_array(href, request.access)
    dtype = np.dtype(reader.array.dtype).name
    attributes = reader.array.attributes
    if zarr_store.locate(href).path.startswith(eopf_items.REFLECTANCE):
        # The offset is decided for the scene as a whole; no other scale is ever undone.
        eopf_items.offset_in_dn(
            attributes.get("scale_factor"), attributes.get("add_offset"), urls.without_secrets(href)
        )
    whole = zarr_store.read_grid(reader, href, request.asset.crs)
    nodata = _nodata(reader, href)
    header = geotiff.Header(grid=whole, dtype=dtype, nodata=nodata, bands=1)
    scene_files.check(request, header)
    beyond = cloud_masks.BEYOND if dtype == "uint8" else 0  # 0 is a value in masks
    grid, window = scene_files.find_window(request, header, geographic=False)
    if window is None:
        block = Window(row=0, col=0, height=grid.shape[0], width=grid.shape[1])

        def strips(part: Window) -> Iterator[Array]:
            return _warped(reader, request, header, grids.crop(grid, part), beyond)
    else:
        row, col = window.row, window.col
        block = scene_files.block_at(window, _block_shape(reader))

        def strips(part: Window) -> Iterator[Array]:
            inside = Window(row=row + part.row, col=col + part.col, height=part.height, width=part.width)
            return _native(reader, inside, nodata, beyond)

    part = _find_source(whole, grid) if window is None else window
    if "://" in href:
        source = reader.identify(part)
    _check_absent(reader, request, href, whole, part)
    return SceneFile(grid=grid, dtype=dtype, block=block, strips=strips, identity=source)


def _check_absent(reader: ChunkReader, request: WindowRequest, href: str, whole: Grid, window: Window) -> None:
    """Compare chunks of a band that do not exist with the classification: where that has data, one was lost.

    A band without data where others have some would count as dark ground. Raises SourceError.
    """
    where = zarr_store.locate(href)
    if not where.path.startswith(eopf_items.REFLECTANCE):
        return
    beside = eopf_items.in_store(where.store, eopf_items.array_paths()[MSI.classes.layer])
    for key, part in reader.absent(window):
        layer = zarr_store.find_array(beside, request.access)
        if layer is None:  # level 1C
            return
        grid = zarr_store.read_grid(layer, beside, request.asset.crs)
        over = grids.window_over(grid, grids.crop(whole, part).bounds, margin=0)
        no_data = MSI.classes.no_data
        filled = sum(int(np.count_nonzero(values != no_data)) for values in layer.strips(over, no_data))
        # Not at a single pixel: the bands of a swath end some pixels apart.
        if grid.crs == whole.crs and filled > over.height * over.width / 2:
            lost = urls.without_secrets(reader.folder.at(key))
            reason = "does not exist, but the classification has data there"
            raise SourceError(f"{lost}: {reason}; fetch it again or leave it out")


def _block_shape(reader: ChunkReader) -> tuple[int, int]:
    """Return the shape of what is read alone: a chunk, or some rows of it where its blocks are addressed."""
    height, width = reader.array.inner
    if reader.array.inner_codecs not in {("blosc",), ()}:
        return height, width
    parts = next(n for n in range(-(-height // BLOCK_ROWS), height + 1) if height % n == 0)
    return height // parts, width


def _nodata(reader: ChunkReader, href: str) -> float | None:
    """Return the value of pixels without data; the classification of ESA's products declares none, but has a class."""
    if zarr_store.locate(href).path.endswith("/scl"):
        return float(MSI.classes.no_data)
    fill = reader.array.fill
    dtype = np.dtype(reader.array.dtype)
    is_value = fill is not None and fill == fill // 1 and dtype.kind == "u" and 0 <= fill <= np.iinfo(dtype).max
    return fill if is_value else None


def _native(reader: ChunkReader, window: Window, nodata: float | None, beyond: int) -> Iterator[Array]:
    """Yield a window as `geotiff.read_strips` does; where a chunk does not exist there are no data."""
    for values in reader.strips(window, beyond):
        if nodata and values.dtype == np.uint16:  # not in masks, where 0 means clear
            values[values == nodata] = 0
        yield values


def _find_source(whole: Grid, part: Grid) -> Window:
    """Return the window of an array that a part of a grid of another CRS is warped from."""
    from rasterio.warp import transform_bounds

    bounds = transform_bounds(part.crs, whole.crs, *part.bounds, densify_pts=64)
    return grids.window_over(whole, bounds, margin=WARP_MARGIN_PX)


def _warped(
    reader: ChunkReader, request: WindowRequest, header: geotiff.Header, part: Grid, beyond: int
) -> Iterator[Array]:
    """Yield a part of a grid of another CRS, warped as files are: through a file in memory of the pixels around it."""
    from rasterio.io import MemoryFile
    from rasterio.transform import Affine
    from rasterio.windows import Window as RasterWindow

    window = _find_source(header.grid, part)
    height, width = header.grid.shape
    with MemoryFile() as memory:
        # Of the size of the whole array, so that positions are computed from the same numbers; only blocks that are
        # written take memory.
        with memory.open(
            driver="GTiff", height=height, width=width, count=1, dtype=header.dtype, crs=header.grid.crs,
            transform=Affine(*header.grid.transform), nodata=header.nodata, tiled=True, sparse_ok=True,
        ) as copy:  # fmt: skip
            row = window.row
            for values in reader.strips(window, beyond):
                copy.write(values, 1, window=RasterWindow(window.col, row, window.width, values.shape[0]))
                row += values.shape[0]
        with memory.open() as dataset:
            yield from geotiff.read_warped(dataset, part, request.kernel, beyond=beyond)
