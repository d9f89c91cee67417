"""Read the header of a TIFF without GDAL: grid, layout, and where each block lies in the file. Pure.

Only layouts that `sgdata.rasters.tiff_blocks` decodes are taken: one band of uint8 or uint16, in blocks that are plain
or compressed by Deflate, LZW or Zstandard, on a projected CRS with an EPSG code (TIFF 6.0, BigTIFF, OGC GeoTIFF 1.1).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgdata import limits
from sgdata.types import Array, Grid

COMPRESSIONS = {1: "none", 5: "lzw", 8: "deflate", 32946: "deflate", 50000: "zstd"}
HEADER_BYTES = 1 << 15
"""Bytes to read of a file first: headers of COGs with blocks of 1024 have some 2 kB, with blocks of 256 some 30 kB."""
MORE_HEADERS, MORE_BYTES = 4, 1 << 22
"""Further reads of a header that is not in one piece, and their bytes, before a file is left to GDAL."""
DIRECTORIES = 32
"""Directories of a file that are looked through for masks; a COG has one for each overview."""

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
_STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _PREDICTOR = 273, 277, 278, 279, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _FORMAT = 322, 323, 324, 325, 339
_SCALE, _TIEPOINT, _GEOKEYS, _NODATA = 33550, 33922, 34735, 42113
_OTHER = {34264: "transformation matrix", 50844: "rational polynomials", 347: "JPEG tables"}
_KINDS = {
    1: "B",
    2: "s",
    3: "H",
    4: "I",
    6: "b",
    7: "s",
    8: "h",
    9: "i",
    11: "f",
    12: "d",
    13: "I",
    16: "Q",
    17: "q",
    18: "Q",
}
_NEEDED = (
    *(_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES),
    *(
        _FILL_ORDER,
        _PREDICTOR,
        _TILE_WIDTH,
        _TILE_HEIGHT,
        _TILES,
        _TILE_BYTES,
        _FORMAT,
        _SCALE,
        _TIEPOINT,
        _GEOKEYS,
        _NODATA,
    ),
)
# Keys of GeoTIFF that leave a CRS what its EPSG code says, with the values that do; None: any.
_GEOKEY_VALUES: dict[int, int | None] = {
    1024: 1, 1025: 1, 1026: None, 2048: None, 2049: None, 2054: 9102, 3072: None, 3073: None, 3076: 9001,
}  # fmt: skip
_USER_DEFINED = 32767


class OtherLayoutError(Exception):
    """A file has a layout that is left to GDAL; the message names it."""


class MissingBytesError(Exception):
    """The header needs bytes `start` to `stop` of the file, which were not given."""

    def __init__(self, start: int, stop: int) -> None:
        """Store the range."""
        super().__init__(f"bytes {start} to {stop}")
        self.start, self.stop = start, stop


@dataclass(frozen=True, kw_only=True)
class BlockTable:
    """Layout of a file, with which any window of it can be read.

    Attributes:
        grid: Grid of the file.
        dtype: NumPy type of the values, with byte order.
        block: Rows and columns of a block; a strip is as wide as the file.
        compression: `none`, `deflate`, `lzw` or `zstd`.
        predicted: Whether values are differences along rows (predictor 2).
        nodata: Value of pixels without data; None if there is none.
        offsets: (rows, columns) of blocks: first byte; 0 where a block is left out, and its pixels are nodata.
        sizes: (rows, columns) of blocks: bytes.
        strips: Whether blocks are strips, of which the last ends with the file's last row.
    """

    grid: Grid
    dtype: str
    block: tuple[int, int]
    compression: str
    predicted: bool
    nodata: float | None
    offsets: Array
    sizes: Array
    strips: bool


def read_table(read: Callable[[int, int], bytes], parts: dict[int, bytes], size: int, name: str) -> BlockTable:
    """Parse the header of a TIFF, and read what more of it is needed.

    Args:
        read: Returns the bytes of the file from a first to before a last one.
        parts: Bytes of the file by where they begin, those at 0 among them; what is read is added.
        size: Bytes of the whole file.
        name: Of the file, for messages.

    Returns:
        The table of the first image.

    Raises:
        OtherLayoutError: It is no TIFF, or of a layout for GDAL, or its header is in too many pieces.
        SourceError: It declares more than the limits allow.
    """
    for _ in range(MORE_HEADERS):
        try:
            return parse(parts, size, name)
        except MissingBytesError as error:
            stop = min(max(error.stop, error.start + HEADER_BYTES), size)
            if stop - error.start > MORE_BYTES:
                raise OtherLayoutError(f"header of {stop - error.start:,} bytes") from None
            parts[error.start] = read(error.start, stop)
    raise OtherLayoutError(f"header in more than {MORE_HEADERS} pieces")


def parse(parts: Mapping[int, bytes], size: int, name: str) -> BlockTable:
    """Parse the header of a TIFF.

    Args:
        parts: Bytes of the file by where they begin; those at 0 come first.
        size: Bytes of the whole file.
        name: Of the file, for messages.

    Returns:
        The table of the first image.

    Raises:
        MissingBytesError: More bytes are needed.
        OtherLayoutError: It is no TIFF, or of a layout for GDAL.
        SourceError: It declares more than the limits allow.
    """
    source = _Source(parts=parts, size=size)
    order = {b"II": "<", b"MM": ">"}.get(source.take(0, 2))
    if order is None:
        raise OtherLayoutError("no TIFF")
    (version,) = struct.unpack(f"{order}H", source.take(2, 2))
    if version not in (42, 43):
        raise OtherLayoutError("no TIFF")
    form = _Form(order=order, big=version == 43)
    (start,) = struct.unpack(f"{order}{form.link}", source.take(8 if form.big else 4, form.link_bytes))
    tags, following = _directory(source, form, start)
    _check_no_masks(source, form, following)
    return _table(tags, form.order, name)


@dataclass(frozen=True, kw_only=True)
class _Form:
    """Byte order and field widths of a file."""

    order: str
    big: bool

    @property
    def link(self) -> str:
        return "Q" if self.big else "I"

    @property
    def link_bytes(self) -> int:
        return 8 if self.big else 4


@dataclass(frozen=True, kw_only=True)
class _Source:
    parts: Mapping[int, bytes]
    size: int

    def take(self, start: int, count: int) -> bytes:
        """Return bytes of the file. Raises MissingBytesError, or OtherLayoutError where the file ends before."""
        for first, content in self.parts.items():
            if first <= start and start + count <= first + len(content):
                return content[start - first : start - first + count]
        if start + count > self.size:
            raise OtherLayoutError("header that leads beyond the end of the file")
        raise MissingBytesError(start, start + count)


def _entries(source: _Source, form: _Form, start: int) -> tuple[bytes, int]:
    """Return the entries of a directory, and the start of the next directory (0: none)."""
    count_form, count_bytes, width = ("Q", 8, 20) if form.big else ("H", 2, 12)
    (count,) = struct.unpack(f"{form.order}{count_form}", source.take(start, count_bytes))
    if not 0 < count < 1000:
        raise OtherLayoutError(f"directory of {count} entries")
    content = source.take(start + count_bytes, count * width + form.link_bytes)
    (following,) = struct.unpack(f"{form.order}{form.link}", content[count * width :])
    return content[: count * width], following


def _directory(source: _Source, form: _Form, start: int) -> tuple[dict[int, Any], int]:
    content, following = _entries(source, form, start)
    tags: dict[int, Any] = {}
    width, room = (20, 8) if form.big else (12, 4)
    for at in range(0, len(content), width):
        tag, kind = struct.unpack_from(f"{form.order}HH", content, at)
        (count,) = struct.unpack_from(f"{form.order}{form.link}", content, at + 4)
        if tag in _OTHER:
            raise OtherLayoutError(_OTHER[tag])
        if tag not in _NEEDED:
            continue
        if kind not in _KINDS or not 0 < count < 2**22:
            raise OtherLayoutError(f"tag {tag} of type {kind} with {count} values")
        values = struct.Struct(f"{form.order}{count}{_KINDS[kind]}")
        place = at + width - room
        if values.size > room:
            (offset,) = struct.unpack_from(f"{form.order}{form.link}", content, place)
            tags[tag] = values.unpack(source.take(offset, values.size))
        else:
            tags[tag] = values.unpack_from(content, place)
    return tags, following


def _check_no_masks(source: _Source, form: _Form, start: int) -> None:
    """Raise OtherLayoutError if a directory behind the first is a mask, which hides pixels."""
    for _ in range(DIRECTORIES):
        if start == 0:
            return
        content, following = _entries(source, form, start)
        width, room = (20, 8) if form.big else (12, 4)
        for at in range(0, len(content), width):
            tag, kind = struct.unpack_from(f"{form.order}HH", content, at)
            if tag == _SUBFILE and kind in (3, 4):
                (what,) = struct.unpack_from(f"{form.order}{_KINDS[kind]}", content, at + width - room)
                if what & 4:
                    raise OtherLayoutError("mask")
        start = following
    raise OtherLayoutError(f"more than {DIRECTORIES} directories")


def _table(tags: dict[int, Any], order: str, name: str) -> BlockTable:
    def one(tag: int, default: int = 1) -> int:
        value = tags.get(tag, (default,))
        if len(value) != 1 or not isinstance(value[0], int):
            raise OtherLayoutError(f"tag {tag} of {value!s:.40}")
        return value[0]

    if one(_SAMPLES) != 1:
        raise OtherLayoutError(f"{one(_SAMPLES)} bands")
    bits, compression, predictor = one(_BITS), one(_COMPRESSION), one(_PREDICTOR)
    if bits not in (8, 16) or one(_FORMAT) != 1:
        raise OtherLayoutError(f"values of {bits} bits in format {one(_FORMAT)}")
    if compression not in COMPRESSIONS:
        raise OtherLayoutError(f"compression {compression}")
    if predictor not in (1, 2) or one(_PHOTOMETRIC) != 1 or one(_FILL_ORDER) != 1:
        raise OtherLayoutError(f"predictor {predictor}, photometric kind {one(_PHOTOMETRIC)}, or reversed bits")
    height, width = one(_HEIGHT, 0), one(_WIDTH, 0)
    strips = _TILES not in tags
    block = (min(one(_ROWS, height), height), width) if strips else (one(_TILE_HEIGHT, 0), one(_TILE_WIDTH, 0))
    if min(height, width, *block) <= 0:
        raise OtherLayoutError(f"{height} x {width} pixels in blocks of {block}")
    limits.RASTER_PIXELS.check(height * width, name)
    limits.BLOCK_BYTES.check(block[0] * block[1] * bits // 8, name)
    blocks = (-(-height // block[0]), -(-width // block[1]))
    offsets, sizes = (tags.get(tag, ()) for tag in ((_STRIPS, _STRIP_BYTES) if strips else (_TILES, _TILE_BYTES)))
    if len(offsets) != math.prod(blocks) or len(sizes) != len(offsets):
        raise OtherLayoutError(f"{len(offsets)} blocks of {len(sizes)} sizes, expected {math.prod(blocks)}")
    if not all(0 <= value < 2**63 for value in (*offsets, *sizes)):
        raise OtherLayoutError("blocks at no place that a file can have")
    if any(size and not offset for offset, size in zip(offsets, sizes, strict=True)):
        raise OtherLayoutError("blocks with bytes at no place")  # neither left out nor readable: GDAL reports them
    nodata = _nodata(tags.get(_NODATA))
    return BlockTable(
        grid=_grid(tags, (height, width)),
        dtype=f"{order}u{bits // 8}" if bits == 16 else "u1",
        block=block,
        compression=COMPRESSIONS[compression],
        predicted=predictor == 2,
        nodata=nodata,
        offsets=np.array(offsets, np.int64).reshape(blocks),
        sizes=np.array(sizes, np.int64).reshape(blocks),
        strips=strips,
    )


def _nodata(value: tuple[bytes, ...] | None) -> float | None:
    if value is None:
        return None
    try:
        return float(value[0].rstrip(b"\0").decode("ascii"))
    except (ValueError, AttributeError):
        raise OtherLayoutError(f"nodata {value!s:.40}") from None


def _grid(tags: dict[int, Any], shape: tuple[int, int]) -> Grid:
    keys = tags.get(_GEOKEYS, ())
    if len(keys) < 4 or len(keys) != 4 + 4 * keys[3]:
        raise OtherLayoutError("no keys of GeoTIFF")
    values = {}
    for key, where, _, value in (keys[at : at + 4] for at in range(4, len(keys), 4)):
        if key not in _GEOKEY_VALUES or _GEOKEY_VALUES[key] not in (None, value):
            raise OtherLayoutError(f"key {key} of GeoTIFF with {value}")
        if where == 0:
            values[key] = value
    code = values.get(3072, _USER_DEFINED)
    # In a file that leaves out the kinds of model and of pixels, GDAL guesses.
    if code == _USER_DEFINED or not {1024, 1025} <= values.keys():
        raise OtherLayoutError("CRS without the code of a projected one")
    scale, tie = tags.get(_SCALE, ()), tags.get(_TIEPOINT, ())
    if len(scale) != 3 or len(tie) != 6 or scale[0] != scale[1] or not 0 < scale[0] < math.inf:
        raise OtherLayoutError(f"pixels of {scale!s:.60} at {tie!s:.120}")
    origin = (tie[3] - tie[0] * scale[0], tie[4] + tie[1] * scale[1])
    if not all(map(math.isfinite, origin)):
        raise OtherLayoutError(f"origin {origin}")
    return Grid(crs=f"EPSG:{code}", origin=origin, gsd_m=float(scale[0]), shape=shape)
