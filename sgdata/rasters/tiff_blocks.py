"""Join the blocks of windows into byte ranges, and decode them. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgdata import limits
from sgdata.rasters.tiff_header import BlockTable
from sgdata.types import Array, Window

RANGE_BYTES = 1 << 23
"""Most bytes of one range, unless one block is larger."""
GAP_SHARE = 0.08
"""Bytes between blocks that may be read as well to save requests, as a share of the bytes needed."""
GAP_BYTES = 1 << 16
"""Largest gap that is read over: a request costs about as much time."""


class DamagedBlockError(Exception):
    """A block does not decode to its pixels; the message says which."""


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """A byte range of a file, and the blocks inside it.

    Attributes:
        start: First byte.
        stop: End, exclusive.
        blocks: Row and column of each block.
    """

    start: int
    stop: int
    blocks: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start

    @property
    def first_row(self) -> int:
        """First row of blocks of which the range has some."""
        return min(row for row, _ in self.blocks)

    @property
    def last_row(self) -> int:
        """Last such row."""
        return max(row for row, _ in self.blocks)


def rows_of(table: BlockTable, window: Window) -> range:
    """Return the rows of blocks that a window touches."""
    return range(window.row // table.block[0], -(-(window.row + window.height) // table.block[0]))


def cols_of(table: BlockTable, window: Window) -> range:
    """Return the columns of blocks that a window touches."""
    return range(window.col // table.block[1], -(-(window.col + window.width) // table.block[1]))


def plan_ranges(table: BlockTable, windows: Sequence[Window]) -> list[ByteRange]:
    """Return the ranges that hold all blocks of some windows, in the order of their first rows of blocks.

    Blocks that lie beside each other in the file come in one range, also over small gaps while these are few bytes in
    all. Blocks that the file leaves out are in no range.
    """
    wanted = {(i, j) for window in windows for i in rows_of(table, window) for j in cols_of(table, window)}
    stored = sorted(
        (int(table.offsets[i, j]), int(table.sizes[i, j]), i, j)
        for i, j in wanted
        if table.offsets[i, j] and table.sizes[i, j]
    )
    bridged = _bridged(stored)
    joined: list[ByteRange] = []
    group: list[tuple[int, int]] = []
    start = stop = 0
    for offset, size, i, j in stored:
        joins = group and (offset <= stop or offset in bridged) and max(stop, offset + size) - start <= RANGE_BYTES
        if group and not joins:
            joined.append(ByteRange(start=start, stop=stop, blocks=tuple(group)))
            group = []
        if not group:
            start = stop = offset
        stop = max(stop, offset + size)
        group.append((i, j))
    if group:
        joined.append(ByteRange(start=start, stop=stop, blocks=tuple(group)))
    return sorted(joined, key=lambda span: (span.first_row, span.start))


def _bridged(stored: list[tuple[int, int, int, int]]) -> set[int]:
    """Return where the blocks begin whose distance from the block before is read over: the smallest gaps first."""
    gaps = sorted(
        (offset - (before[0] + before[1]), offset)
        for before, (offset, *_) in itertools.pairwise(stored)
        if 0 < offset - (before[0] + before[1]) <= GAP_BYTES
    )
    left = GAP_SHARE * sum(size for _, size, *_ in stored)
    chosen = set()
    for gap, offset in gaps:
        left -= gap
        if left < 0:
            break
        chosen.add(offset)
    return chosen


def check_sizes(table: BlockTable, joined: list[ByteRange], size: int, name: str) -> None:
    """Compare ranges with the size of their file and the limit of a block. Raises DamagedBlockError or SourceError."""
    for span in joined:
        if span.stop > size:
            raise DamagedBlockError(f"its blocks end at byte {span.stop:,} of {size:,}")
        for index in span.blocks:
            limits.BLOCK_BYTES.check(int(table.sizes[index]), name)


def decode_blocks(
    table: BlockTable, span: ByteRange, content: memoryview, window: Window, out: Array, *, row: int
) -> None:
    """Decode the blocks of a range in one row of blocks that `window` touches, and copy what lies in it to `out`.

    Raises DamagedBlockError.
    """
    cols = cols_of(table, window)
    for index in span.blocks:
        if index[0] == row and index[1] in cols:
            first = int(table.offsets[index]) - span.start
            values = decode(table, index, content[first : first + int(table.sizes[index])])
            _copy_block(window, table.block, index, values, out)


def fill_left_out(table: BlockTable, row: int, window: Window, out: Array) -> None:
    """Set the pixels in `window` of blocks that the file leaves out, in a row of blocks, to its nodata, else to 0."""
    nodata = table.nodata
    known = nodata is not None and nodata.is_integer() and 0 <= nodata <= np.iinfo(out.dtype).max
    empty = np.full((1, 1), int(nodata) if known and nodata is not None else 0, out.dtype)
    for col in cols_of(table, window):
        if not (table.offsets[row, col] and table.sizes[row, col]):
            _copy_block(window, table.block, (row, col), np.broadcast_to(empty, table.block), out)


def _copy_block(window: Window, block: tuple[int, int], at: tuple[int, int], values: Array, out: Array) -> None:
    """Copy the part of a block that lies in `window` to `out`, whose pixels are those of `window`."""
    top, left = at[0] * block[0], at[1] * block[1]
    first, last = max(top, window.row), min(top + values.shape[0], window.row + window.height)
    near, far = max(left, window.col), min(left + values.shape[1], window.col + window.width)
    if first < last and near < far:
        there = out[first - window.row : last - window.row, near - window.col : far - window.col]
        there[...] = values[first - top : last - top, near - left : far - left]


def decode(table: BlockTable, at: tuple[int, int], content: memoryview) -> Array:
    """Return the pixels of one block. Raises DamagedBlockError."""
    values = _inflated(table, at, content, np.empty(table.block, table.dtype))
    if table.predicted:
        _undo_differences(values, values)
    return values


def decode_part(
    table: BlockTable, at: tuple[int, int], content: memoryview, window: Window, out: Array, *, room: Array
) -> None:
    """Decode what lies in `window` of one block into `out`, whose pixels are those of `window`.

    Args:
        table: Table of the file.
        at: Row and column of the block.
        content: Its bytes.
        window: Pixels of the file.
        out: Array of the window's shape.
        room: Array of the shape and type of a block, which is overwritten: new memory takes as long as inflating.

    Raises:
        DamagedBlockError: It does not decode to its pixels.
    """
    values = _inflated(table, at, content, room)
    top, left = at[0] * table.block[0], at[1] * table.block[1]
    first, last = max(top, window.row), min(top + values.shape[0], window.row + window.height)
    near, far = max(left, window.col), min(left + values.shape[1], window.col + window.width)
    if first >= last or near >= far:
        return
    there = out[first - window.row : last - window.row, near - window.col : far - window.col]
    part = values[first - top : last - top, : far - left]
    if table.predicted and near == left:
        _undo_differences(part, there)
        return
    if table.predicted:
        _undo_differences(part, part)
    there[...] = part[:, near - left :]


def _undo_differences(values: Array, out: Array) -> None:
    """Sum up differences along rows, modulo the type: TIFF predictor 2."""
    import imagecodecs

    imagecodecs.delta_decode(values, axis=1, out=out)


def _inflated(table: BlockTable, at: tuple[int, int], content: memoryview, room: Array) -> Array:
    """Return the values of one block in the byte order of this machine, in `room`, before differences are undone."""
    import imagecodecs

    if table.strips:
        room = room[: min(table.block[0], table.grid.shape[0] - at[0] * table.block[0])]
    flat = room.reshape(-1).view(np.uint8)
    try:
        got: Any
        if table.compression == "none":
            got = content[: room.nbytes]
            flat[: len(got)] = np.frombuffer(got, np.uint8)
        else:
            # Into memory of the right size, so that no block grows beyond what its header declares.
            got = getattr(imagecodecs, f"{table.compression}_decode")(content, out=flat)
    except Exception as error:  # of one type per codec
        raise DamagedBlockError(f"block {at} of {len(content):,} bytes is damaged: {error!s:.80}") from error
    if len(got) != room.nbytes:
        raise DamagedBlockError(f"block {at} has {len(got):,} bytes of pixels, expected {room.nbytes:,}")
    return room.astype(room.dtype.newbyteorder("="), copy=False)
