"""Open a file of a scene through GDAL, which takes every layout and warps pixels of another CRS.

GDAL asks a server for one part of a JPEG 2000 file after the other: one of which most is needed is fetched before, with
all its ranges at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
from rasterio.io import DatasetReader

from sgdata import urls
from sgdata.errors import SourceError
from sgdata.rasters import gdal_requests, geotiff, grids
from sgdata.remote import file_identity, ranges
from sgdata.remote.allowed_addresses import access_of
from sgdata.scenes import signing
from sgdata.scenes.types import MASK_NODATA
from sgdata.staging import scene_files
from sgdata.staging.scene_files import SceneFile, WindowRequest
from sgdata.types import Array, Window

WHOLE_SHARE = 0.5
"""Share of the tiles of a JPEG 2000 file from which on it is fetched as a whole."""
WHOLE_BYTES = 1 << 28
"""Bytes of all files that are held at a time; bands of a tile of Sentinel-2 have at most some 130 MB."""
FIRST_BYTES, PART_BYTES = 1 << 15, 1 << 22


@contextmanager
def open_with_gdal(request: WindowRequest, href: str) -> Iterator[SceneFile]:
    """Open the file of a window and compare its header with its item. Raises SourceError, also while it is read."""
    # Before it is opened, so that a change meanwhile is noticed later.
    identified = file_identity.identify_address(href, request.access) or ""
    with geotiff.open_raster(href, use="scene", access=request.access) as dataset, ExitStack() as stack:
        band = scene_files.choose_band(request, geotiff.data_bands(dataset))
        header = geotiff.read_header(dataset, band)
        scene_files.check(request, header)
        beyond = MASK_NODATA if header.dtype == "uint8" else 0  # 0 is a value in masks
        grid, window = scene_files.find_window(request, header, geographic=dataset.crs.is_geographic)
        if window is None:
            block = Window(row=0, col=0, height=grid.shape[0], width=grid.shape[1])

            def strips(parts: Iterable[Window]) -> Iterator[tuple[Window, Array]]:
                def read(part: Window) -> Iterator[Array]:
                    target = grids.crop(grid, part)
                    return geotiff.read_warped(dataset, target, request.kernel, band=band, beyond=beyond)

                return scene_files.one_by_one(read, parts)
        else:
            row, col = window.row, window.col
            block = scene_files.block_at(window, dataset.block_shapes[band - 1])
            chosen: list[DatasetReader] = []

            def strips(parts: Iterable[Window]) -> Iterator[tuple[Window, Array]]:
                inside = [replace(part, row=row + part.row, col=col + part.col) for part in parts]
                if not chosen:  # once for a file
                    chosen.append(_choose_dataset(stack, dataset, request, href, inside))
                read = partial(geotiff.read_strips, chosen[0], band=band, beyond=beyond)
                for part, values in scene_files.one_by_one(read, inside):
                    yield replace(part, row=part.row - row, col=part.col - col), values

        yield SceneFile(grid=grid, dtype=header.dtype, block=block, strips=strips, identity=identified)


def _choose_dataset(
    stack: ExitStack, dataset: DatasetReader, request: WindowRequest, href: str, parts: list[Window]
) -> DatasetReader:
    """Return what to read parts from: a copy in memory, open as long as `stack`, where most of the file is needed."""
    if not _is_mostly_needed(dataset, parts, href):
        return dataset
    content = _fetch(request, href, stack)
    return dataset if content is None else stack.enter_context(_open_content(content, href))


def _is_mostly_needed(dataset: DatasetReader, parts: Iterable[Window], href: str) -> bool:
    """Return whether most tiles of a remote JPEG 2000 file are needed, by requests that no setting changes."""
    if not dataset.driver.startswith("JP2") or not gdal_requests.can_request(href):
        return False
    height, width = dataset.block_shapes[0]
    needed = np.zeros((-(-dataset.height // height), -(-dataset.width // width)), np.bool_)
    for part in parts:
        down = slice(part.row // height, -(-(part.row + part.height) // height))
        needed[down, part.col // width : -(-(part.col + part.width) // width)] = True
    return bool(np.count_nonzero(needed) >= WHOLE_SHARE * needed.size)


def _fetch(request: WindowRequest, href: str, stack: ExitStack) -> memoryview | None:
    """Return a file on a server; None if it is too large, or its server gives no ranges. Raises SourceError.

    There is room for it until `stack` is closed.
    """
    access, retries = request.access or access_of(href), gdal_requests.retries()
    sign = signing.signer(request.asset.href, request.tokens)
    try:
        opened = ranges.open_file(href, access, first_bytes=FIRST_BYTES, retries=retries, sign=sign)
        if opened is None or opened[0].size > WHOLE_BYTES:
            return None
        file, first = opened
        stack.enter_context(_held.room_for(file.size))
        content = bytearray(file.size)
        content[: len(first)] = first
        starts = range(len(first), file.size, PART_BYTES)
        pending = deque(
            (start, ranges.fetchers().submit(ranges.read, file, start, min(start + PART_BYTES, file.size), retries))
            for start in starts
        )
        while pending:  # taken out, so that no part is held twice for long
            start, part = pending.popleft()
            content[start : start + PART_BYTES] = part.result()
        return memoryview(content)
    except ranges.NoRangesError:
        return None
    except ranges.ChangedError as error:
        reason = "it changed while it was read"
        raise SourceError(f"{urls.without_secrets(href)}: cannot be read: {reason}; fetch it again") from error


class _HeldBytes:
    """Bytes of the files that this process holds in memory."""

    def __init__(self) -> None:
        self.bytes, self._changed = 0, threading.Condition()

    @contextmanager
    def room_for(self, count: int) -> Iterator[None]:
        """Wait until WHOLE_BYTES have room for a file, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: self.bytes + count <= WHOLE_BYTES)
            self.bytes += count
        try:
            yield
        finally:
            with self._changed:
                self.bytes -= count
                self._changed.notify_all()


_held = _HeldBytes()


@contextmanager
def _open_content(content: memoryview, href: str) -> Iterator[DatasetReader]:
    """Open a file in memory; errors name its address. Raises SourceError, also while it is read."""
    from rasterio.io import MemoryFile

    with MemoryFile(content, ext=".jp2") as memory:
        try:
            with geotiff.open_raster(memory.name, use="scene") as dataset:
                yield dataset
        except SourceError as error:
            message = str(error).replace(memory.name, urls.without_secrets(href))
            raise SourceError(message) from error.__cause__
