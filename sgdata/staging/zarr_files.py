"""Open a band of a scene in a Zarr store, such as ESA's EOPF products: rows of chunks, or of the blocks inside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

from sgdata import urls
from sgdata.errors import SourceError
from sgdata.rasters import geotiff, grids, zarr_addresses, zarr_store
from sgdata.rasters.zarr_chunks import ChunkReader
from sgdata.remote import file_identity
from sgdata.scenes import eopf_items
from sgdata.scenes.types import MASK_NODATA
from sgdata.sentinel2 import MSI
from sgdata.staging import scene_files
from sgdata.staging.scene_files import SceneFile, WindowRequest
from sgdata.types import Array, Bounds, Grid, Window

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
    source = file_identity.identify_address(href, request.access) or ""  # before, so that a change meanwhile is noticed
    reader = zarr_store.open_array(href, request.access, request.headers)
    dtype = np.dtype(reader.array.dtype).name
    attributes = reader.array.attributes
    if zarr_addresses.locate(href).path.startswith(eopf_items.REFLECTANCE):
        # The offset is decided for the scene as a whole; no other scale is ever undone.
        eopf_items.offset_in_dn(
            attributes.get("scale_factor"), attributes.get("add_offset"), urls.without_secrets(href)
        )
    whole = zarr_store.read_grid(reader, href, request.asset.crs)
    nodata = _nodata(reader, href)
    header = geotiff.RasterHeader(grid=whole, dtype=dtype, nodata=nodata, bands=1)
    scene_files.check(request, header)
    beyond = MASK_NODATA if dtype == "uint8" else 0  # 0 is a value in masks
    grid, window = scene_files.find_window(request, header, geographic=False)
    if window is None:
        block = Window(row=0, col=0, height=grid.shape[0], width=grid.shape[1])

        def read(part: Window) -> Iterator[Array]:
            return _warped(reader, request, header, grids.crop(grid, part), beyond)
    else:
        row, col = window.row, window.col
        block = scene_files.block_at(window, _block_shape(reader))

        def read(part: Window) -> Iterator[Array]:
            inside = Window(row=row + part.row, col=col + part.col, height=part.height, width=part.width)
            return _native(reader, inside, nodata, beyond)

    part = _find_source(whole, grid) if window is None else window
    if "://" in href:
        source = reader.identify(part)
    _check_absent(reader, request, href, whole, part)
    strips = partial(scene_files.one_by_one, read)
    return SceneFile(grid=grid, dtype=dtype, block=block, strips=strips, identity=source)


def _check_absent(reader: ChunkReader, request: WindowRequest, href: str, whole: Grid, window: Window) -> None:
    """Compare chunks that do not exist with other arrays of the product: where those have data, one was lost.

    A band is compared with the classification, without which it would count as dark ground; the classification, without
    which the date would be left out, with the bands. Raises SourceError.
    """
    where = zarr_addresses.locate(href)
    paths = eopf_items.array_paths()
    layer = paths[MSI.classes.layer]
    if where.path == layer:
        others = {path: 0 for path in paths.values() if path.startswith(eopf_items.REFLECTANCE)}
    elif where.path.startswith(eopf_items.REFLECTANCE):
        others = {layer: MSI.classes.no_data}
    else:
        return
    for key, part in reader.absent(window):
        bounds = grids.crop(whole, part).bounds
        for path, no_data in others.items():
            if _has_data(urls.joined(where.store, path), request, whole.crs, bounds, no_data):
                lost = urls.without_secrets(reader.folder.at(key))
                other = "the classification" if path == layer else path.rpartition("/")[2].upper()
                reason = f"does not exist, but {other} has data there"
                raise SourceError(f"{lost}: {reason}; fetch it again or leave it out")


def _has_data(href: str, request: WindowRequest, crs: str, bounds: Bounds, no_data: int) -> bool:
    """Return whether more than half of the pixels of an array in an area have data. Raises SourceError."""
    other = zarr_store.find_array(href, request.access, request.headers)
    if other is None:  # level 1C has no classification
        return False
    grid = zarr_store.read_grid(other, href, request.asset.crs)
    over = grids.window_over(grid, bounds, margin=0)
    filled = sum(int(np.count_nonzero(values != no_data)) for values in other.strips(over, no_data))
    # Not at a single pixel: the bands of a swath end some pixels apart.
    return grid.crs == crs and filled > over.height * over.width / 2


def _block_shape(reader: ChunkReader) -> tuple[int, int]:
    """Return the shape of what is read alone: a chunk, or some rows of it where its blocks are addressed."""
    height, width = reader.array.inner
    if reader.array.inner_codecs not in {("blosc",), ()}:
        return height, width
    parts = next(n for n in range(-(-height // BLOCK_ROWS), height + 1) if height % n == 0)
    return height // parts, width


def _nodata(reader: ChunkReader, href: str) -> float | None:
    """Return the value of pixels without data; the classification of ESA's products declares none, but has a class."""
    if zarr_addresses.locate(href).path.endswith("/scl"):
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
    reader: ChunkReader, request: WindowRequest, header: geotiff.RasterHeader, part: Grid, beyond: int
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
