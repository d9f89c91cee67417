"""Open a GeoTIFF on a disk without GDAL, which takes several milliseconds for each file and inflates more slowly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

import numpy as np

from sgdata import limits, urls
from sgdata.errors import SourceError
from sgdata.rasters import allowed_formats, geotiff, tiff_blocks, tiff_header
from sgdata.rasters.tiff_header import BlockTable, OtherLayoutError
from sgdata.remote import file_identity
from sgdata.staging import scene_files
from sgdata.staging.scene_files import SceneFile, WindowRequest
from sgdata.types import Array, Window


def can_read(href: str) -> bool:
    """Return whether an address may be that of a file for this reader: its layout is known only once it is open."""
    from rasterio._env import get_gdal_config

    is_path = "://" not in href and not href.startswith("/vsi") and not href.lower().endswith(".jp2")
    # A user who lets GDAL list folders may want masks beside the files.
    return is_path and get_gdal_config("GDAL_DISABLE_READDIR_ON_OPEN") is None


@contextmanager
def open_local_tiff(request: WindowRequest, href: str) -> Iterator[SceneFile]:
    """Open the file of a window and compare its header with its item.

    Raises:
        OtherLayoutError: The file is left to GDAL; before anything is yielded.
        SourceError: It cannot be read or differs from its item, also while it is read.
    """
    if not Path(href).is_file():
        raise OtherLayoutError("no file of its own")
    shown = urls.without_secrets(href)
    # Before it is opened, so that a change meanwhile is noticed later.
    identified = file_identity.identify_address(href, request.access) or ""
    allowed_formats.check_local(href, "scene")
    try:
        with _readable(href) as handle:
            opened = _open(handle, shown)
            table = opened.table
            grid, window = scene_files.locate_blocks(request, table)
            row, col = window.row, window.col

            def read(part: Window) -> Iterator[Array]:
                inside = Window(row=row + part.row, col=col + part.col, height=part.height, width=part.width)
                return _read_strips(opened, inside)

            strips = partial(scene_files.one_by_one, read)
            block = scene_files.block_at(window, table.block)
            dtype = np.dtype(table.dtype).name
            yield SceneFile(grid=grid, dtype=dtype, block=block, strips=strips, identity=identified)
    except tiff_blocks.DamagedBlockError as error:
        raise SourceError(f"{shown}: cannot be read: {error}; fetch it again or leave it out") from error


def _readable(href: str) -> FileIO:
    """Open a file to read. Raises OtherLayoutError where GDAL will say why it cannot be opened."""
    try:
        return Path(href).open("rb", buffering=0)
    except OSError as error:
        raise OtherLayoutError(f"a state in which it cannot be opened: {error}") from None


@dataclass(frozen=True, kw_only=True)
class _LocalTiff:
    file: FileIO
    size: int
    table: BlockTable
    shown: str


def _open(handle: FileIO, shown: str) -> _LocalTiff:
    size = os.fstat(handle.fileno()).st_size

    def read(start: int, stop: int) -> bytes:
        return os.pread(handle.fileno(), stop - start, start)

    parts = {0: read(0, tiff_header.HEADER_BYTES)}
    return _LocalTiff(file=handle, size=size, table=tiff_header.read_table(read, parts, size, shown), shown=shown)


def _read_strips(opened: _LocalTiff, window: Window) -> Iterator[Array]:
    """Yield a window from top to bottom in strips of about `geotiff.STRIP_BYTES` that end where blocks end."""
    table = opened.table
    height = table.block[0]
    row_bytes = max(window.width, 1) * np.dtype(table.dtype).itemsize
    rows = max(geotiff.STRIP_BYTES // (row_bytes * height), 1) * height
    # Taking memory takes as long as inflating into it: one strip, one block and its bytes serve the whole file.
    strip = np.empty((min(rows, window.height), window.width), np.dtype(table.dtype).newbyteorder("="))
    room, stored = np.empty(table.block, table.dtype), np.empty(_greatest_block(opened, window), np.uint8).data
    row, end = window.row, window.row + window.height
    while row < end:
        stop = min((row // rows + 1) * rows, end)
        part = Window(row=row, col=window.col, height=stop - row, width=window.width)
        out = strip[: part.height]
        for i in tiff_blocks.rows_of(table, part):
            tiff_blocks.fill_left_out(table, i, part, out)
            for j in tiff_blocks.cols_of(table, part):
                if table.offsets[i, j] and table.sizes[i, j]:
                    content = _read_block(opened, (i, j), stored)
                    tiff_blocks.decode_part(table, (i, j), content, part, out, room=room)
        if table.nodata and out.dtype == np.uint16:  # not in masks, where 0 means clear
            out[out == table.nodata] = 0
        yield out
        row = stop


def _greatest_block(opened: _LocalTiff, window: Window) -> int:
    """Return the most bytes of a block in a window. Raises DamagedBlockError or SourceError if that cannot be."""
    table = opened.table
    rows, cols = tiff_blocks.rows_of(table, window), tiff_blocks.cols_of(table, window)
    inside = np.s_[rows.start : rows.stop, cols.start : cols.stop]
    sizes, ends = table.sizes[inside], table.offsets[inside] + table.sizes[inside]
    if ends.max(initial=0) > opened.size:
        raise tiff_blocks.DamagedBlockError(f"its blocks end at byte {ends.max():,} of {opened.size:,}")
    greatest = int(sizes.max(initial=0))
    limits.BLOCK_BYTES.check(greatest, opened.shown)
    return greatest


def _read_block(opened: _LocalTiff, at: tuple[int, int], stored: memoryview) -> memoryview:
    """Read the bytes of one block into `stored`. Raises DamagedBlockError."""
    content = stored[: int(opened.table.sizes[at])]
    try:
        opened.file.seek(int(opened.table.offsets[at]))
        count = opened.file.readinto(content)
    except OSError as error:  # caught here, since those of writing pixels pass through the opener as well
        raise tiff_blocks.DamagedBlockError(f"block {at}: {error}") from error
    if count != len(content):
        raise tiff_blocks.DamagedBlockError(f"block {at} has {count:,} of its {len(content):,} bytes")
    return content
