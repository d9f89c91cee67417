"""Open a file of a scene through GDAL, which takes every layout and warps pixels of another CRS.

GDAL asks a server for one part of a JPEG 2000 file after the other: one of which most is needed is fetched before, with
all its ranges at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rasterio.io import DatasetReader

from sgdata import urls
from sgdata.errors import SourceError
from sgdata.rasters import gdal_requests, geotiff, grids
from sgdata.remote import identity, ranges
from sgdata.remote.access import access_of
from sgdata.scenes import signing
from sgdata.scenes.types import MASK_NODATA
from sgdata.staging import scene_files
from sgdata.staging.scene_files import SceneFile, WindowRequest
from sgdata.types import Array, Window

WHOLE_SHARE = 0.5
"""Share of the tiles of a JPEG 2000 file from which on it is fetched as a whole."""
WHOLE_BYTES = 1 << 28
"""Largest file that is; bands of a tile of Sentinel-2 have at most some 130 MB."""
FIRST_BYTES, PART_BYTES = 1 << 15, 1 << 22


@contextmanager
def open_with_gdal(request: WindowRequest, href: str) -> Iterator[SceneFile]:
    """Open the file of a window and compare its header with its item. Raises SourceError, also while it is read."""
    # Before it is opened, so that a change meanwhile is noticed later.
    identified = identity.identify_address(href, request.access) or ""
    with geotiff.open_raster(href, use="scene", access=request.access) as dataset:
        band = scene_files.choose_band(request, geotiff.data_bands(dataset))
        header = geotiff.read_header(dataset, band)
        scene_files.check(request, header)
        beyond = MASK_NODATA if header.dtype == "uint8" else 0  # 0 is a value in masks
        grid, window = scene_files.find_window(request, header, geographic=dataset.crs.is_geographic)
        if window is None:
            block = Window(row=0, col=0, height=grid.shape[0], width=grid.shape[1])

            def read(part: Window) -> Iterator[Array]:
                return geotiff.read_warped(dataset, grids.crop(grid, part), request.kernel, band=band, beyond=beyond)
        else:
            row, col = window.row, window.col
            block = scene_files.block_at(window, dataset.block_shapes[band - 1])

            def read(part: Window) -> Iterator[Array]:
                inside = Window(row=row + part.row, col=col + part.col, height=part.height, width=part.width)
                if _is_mostly_needed(dataset, inside, href) and (content := _fetch(request, href)) is not None:
                    with _open_content(content, href) as copy:
                        yield from geotiff.read_strips(copy, inside, band=band, beyond=beyond)
                    return
                yield from geotiff.read_strips(dataset, inside, band=band, beyond=beyond)

        strips = partial(scene_files.one_by_one, read)
        yield SceneFile(grid=grid, dtype=header.dtype, block=block, strips=strips, identity=identified)


def _is_mostly_needed(dataset: DatasetReader, window: Window, href: str) -> bool:
    """Return whether most tiles of a remote JPEG 2000 file are needed, by requests that no setting changes."""
    if not dataset.driver.startswith("JP2") or not gdal_requests.can_request(href):
        return False
    height, width = dataset.block_shapes[0]
    rows = -(-(window.row + window.height) // height) - window.row // height
    cols = -(-(window.col + window.width) // width) - window.col // width
    tiles = -(-dataset.height // height) * -(-dataset.width // width)
    return bool(rows * cols >= WHOLE_SHARE * tiles)


def _fetch(request: WindowRequest, href: str) -> bytes | None:
    """Return a file on a server; None if it is too large, or its server gives no ranges. Raises SourceError."""
    access, retries = request.access or access_of(href), gdal_requests.retries()
    sign = signing.signer(request.asset.href, request.tokens)
    try:
        opened = ranges.open_file(href, access, first_bytes=FIRST_BYTES, retries=retries, sign=sign)
        if opened is None or opened[0].size > WHOLE_BYTES:
            return None
        file, first = opened
        starts = range(len(first), file.size, PART_BYTES)
        pending = [
            ranges.fetchers().submit(ranges.read, file, start, min(start + PART_BYTES, file.size), retries)
            for start in starts
        ]
        return b"".join([first, *(part.result() for part in pending)])
    except ranges.NoRangesError:
        return None
    except ranges.ChangedError as error:
        reason = "it changed while it was read"
        raise SourceError(f"{urls.without_secrets(href)}: cannot be read: {reason}; fetch it again") from error


@contextmanager
def _open_content(content: bytes, href: str) -> Iterator[DatasetReader]:
    """Open a file in memory; errors name its address. Raises SourceError, also while it is read."""
    from rasterio.io import MemoryFile

    with MemoryFile(content, ext=".jp2") as memory:
        try:
            with geotiff.open_raster(memory.name, use="scene") as dataset:
                yield dataset
        except SourceError as error:
            message = str(error).replace(memory.name, urls.without_secrets(href))
            raise SourceError(message) from error.__cause__
