"""Open a GeoTIFF on a server or in a bucket without GDAL: its header in one request, then the blocks of the window."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from sgdata import urls
from sgdata.errors import SourceError
from sgdata.rasters import gdal_requests, tiff_blocks, tiff_header
from sgdata.rasters.tiff_header import BlockTable, OtherLayoutError
from sgdata.remote import file_identity, kept_headers, ranges, retry
from sgdata.remote.allowed_addresses import access_of, check_host
from sgdata.remote.ranges import RangeRetries, RemoteFile
from sgdata.scenes import signing
from sgdata.staging import scene_files
from sgdata.staging.scene_files import SceneFile, WindowRequest
from sgdata.types import Array, Window

AHEAD_BYTES = 3 << 25
"""Bytes of all files that are requested before their pixels are used, beside the range that each file waits for."""


def can_read(href: str) -> bool:
    """Return whether an address may be that of a file for this reader: its layout is known only once it is open."""
    return not href.partition("?")[0].lower().endswith(".jp2") and gdal_requests.can_request(href)


@contextmanager
def open_remote_tiff(request: WindowRequest, href: str) -> Iterator[SceneFile]:
    """Open the file of a window and compare its header with its item.

    Raises:
        OtherLayoutError: The file is left to GDAL; before anything is yielded.
        SourceError: It cannot be read or differs from its item, also while it is read.
    """
    shown = urls.without_secrets(href)
    try:
        opened = _open(request, href, shown)
        table = opened.table
        grid, window = scene_files.locate_blocks(request, table)
        row, col = window.row, window.col

        def strips(parts: Iterable[Window]) -> Iterator[tuple[Window, Array]]:
            inside = [replace(part, row=row + part.row, col=col + part.col) for part in parts]
            for part, values in _read_strips(opened, inside, shown):
                yield replace(part, row=part.row - row, col=part.col - col), values

        block = scene_files.block_at(window, table.block)
        about = opened.file
        # Of files in buckets pixels are compared, as `file_identity.identify_address` says.
        source = file_identity.of_headers(about.etag, about.modified, about.size) if urls.is_http(href) else ""
        yield SceneFile(grid=grid, dtype=np.dtype(table.dtype).name, block=block, strips=strips, identity=source)
    except ranges.ChangedError as error:
        if request.headers:
            kept_headers.path_of(request.headers, href).unlink(missing_ok=True)
        reason = "it changed while it was read, or since its header was kept"
        raise SourceError(f"{shown}: cannot be read: {reason}; fetch it again or leave it out") from error
    except tiff_blocks.DamagedBlockError as error:
        raise SourceError(f"{shown}: cannot be read: {error}; fetch it again or leave it out") from error
    except ranges.NoRangesError as error:
        raise OtherLayoutError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class _RemoteTiff:
    file: RemoteFile
    table: BlockTable
    retries: RangeRetries


# --- header --------------------------------------------------------------------------------


def _open(request: WindowRequest, href: str, shown: str) -> _RemoteTiff:
    """Return a file with its header, as an earlier run kept it or from its server."""
    access, tries = request.access or access_of(href), gdal_requests.retries()
    kept = request.headers and kept_headers.path_of(request.headers, href)
    sign = signing.signer(request.asset.href, request.tokens)
    if kept is not None and (known := kept_headers.read(kept, href, access, sign)) is not None:
        file, parts = known
        check_host(href, access)
        return _RemoteTiff(file=file, table=tiff_header.parse(parts, file.size, shown), retries=tries)
    opened = ranges.open_file(href, access, first_bytes=tiff_header.HEADER_BYTES, retries=tries, sign=sign)
    if opened is None:
        absent = retry.RefusedError(404)
        raise SourceError(ranges.unreadable(href, absent)) from absent
    file, first = opened
    parts = {0: first}
    table = tiff_header.read_table(
        lambda start, stop: bytes(ranges.read(file, start, stop, tries)), parts, file.size, shown
    )
    if kept is not None:
        kept_headers.write(kept, href, file, parts)
    return _RemoteTiff(file=file, table=table, retries=tries)


# --- pixels --------------------------------------------------------------------------------


class _PrefetchBudget:
    """Bytes that were requested and whose pixels are not used yet, of all files of this process."""

    def __init__(self) -> None:
        self.bytes, self._lock = 0, threading.Lock()

    def reserve(self, count: int, *, needed: bool) -> bool:
        """Add bytes to the count if there is room for them, or they are needed now."""
        with self._lock:
            if not needed and self.bytes + count > AHEAD_BYTES:
                return False
            self.bytes += count
            return True

    def release(self, count: int) -> None:
        """Take bytes whose pixels are used from the count."""
        with self._lock:
            self.bytes -= count


_prefetch = _PrefetchBudget()


def _read_strips(opened: _RemoteTiff, windows: list[Window], shown: str) -> Iterator[tuple[Window, Array]]:
    """Yield windows in strips, one for each row of blocks, while further ranges are on their way."""
    table = opened.table
    joined = tiff_blocks.plan_ranges(table, windows)
    tiff_blocks.check_sizes(table, joined, opened.file.size, shown)
    pending = deque(joined)
    requested: deque[tuple[tiff_blocks.ByteRange, Future[memoryview]]] = deque()
    arrived: list[tuple[tiff_blocks.ByteRange, memoryview]] = []
    rows: dict[int, list[Window]] = {}
    for window in windows:
        for row in tiff_blocks.rows_of(table, window):
            rows.setdefault(row, []).append(_part(table, row, window))
    try:
        for row, parts in sorted(rows.items()):
            while pending and _prefetch.reserve(pending[0].size, needed=pending[0].first_row <= row):
                span = pending.popleft()
                requested.append((span, ranges.fetchers().submit(_fetch, opened, span)))
            while requested and requested[0][0].first_row <= row:
                arrived.append((requested[0][0], requested[0][1].result()))
                _prefetch.release(requested.popleft()[0].size)
            for part in parts:
                yield part, _decode_part(table, arrived, part, row)
            arrived = [(span, content) for span, content in arrived if span.last_row > row]
    finally:
        for span, future in requested:
            future.cancel()
            _prefetch.release(span.size)


def _decode_part(
    table: BlockTable, arrived: list[tuple[tiff_blocks.ByteRange, memoryview]], part: Window, row: int
) -> Array:
    """Return the pixels of a part in one row of blocks."""
    out = np.empty((part.height, part.width), np.dtype(table.dtype).newbyteorder("="))
    for span, content in arrived:
        tiff_blocks.decode_blocks(table, span, content, part, out, row=row)
    tiff_blocks.fill_left_out(table, row, part, out)
    if table.nodata and out.dtype == np.uint16:  # not in masks, where 0 means clear
        out[out == table.nodata] = 0
    return out


def _fetch(opened: _RemoteTiff, span: tiff_blocks.ByteRange) -> memoryview:
    return ranges.read(opened.file, span.start, span.stop, opened.retries)


def _part(table: BlockTable, row: int, window: Window) -> Window:
    """Return the part of a window in one row of blocks."""
    height = table.block[0]
    first = max(row * height, window.row)
    last = min((row + 1) * height, window.row + window.height)
    return Window(row=first, col=window.col, height=last - first, width=window.width)
