"""Read small TIFFs, such as patches, from memory: pixels as (C, H, W) and their georeference."""

from __future__ import annotations

import io
import logging
import math
import struct
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from sgdata.errors import SourceError
from sgdata.limits import IMAGE_PAGES, IMAGE_STRIPS, IMAGE_VALUES
from sgdata.types import Array, Bounds

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _OFFSETS, _SAMPLES, _COUNTS, _PLANAR = 256, 257, 258, 259, 273, 277, 279, 284
_PREDICTOR, _TILES, _FORMAT = 317, 322, 339
# Classic TIFF only, which all these datasets use; BigTIFF is read by tifffile.
_KINDS = {1: "B", 2: "s", 3: "H", 4: "I", 12: "d"}  # the types of the tags used here: BYTE, ASCII, SHORT, LONG, DOUBLE
_SCALE, _TIEPOINT, _MATRIX, _GEOKEYS, _NODATA = 33550, 33922, 34264, 34735, 42113
_GEOGRAPHIC_CODE, _PROJECTED_CODE = 2048, 3072
_USED = {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _OFFSETS, _SAMPLES, _COUNTS, _PLANAR, _PREDICTOR, _TILES, _FORMAT}
_USED |= {_SCALE, _TIEPOINT, _MATRIX, _GEOKEYS, _NODATA}
_LONGEST_HEAD = 4096
_DECODED = {1, 5, 8, 32773, 32946, 34925, 50000}
"""Compressions that decode into as many bytes as the strip declares: none, LZW, deflate, PackBits, LZMA and zstd."""


@dataclass(frozen=True, kw_only=True)
class Georeference:
    """Georeference of an image.

    Attributes:
        epsg: EPSG code.
        transform: Affine coefficients a, b, c, d, e, f.
    """

    epsg: int
    transform: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TiffImage:
    """Pixels of a TIFF and their georeference.

    Attributes:
        pixels: (C, H, W) in the file's own dtype, native byte order.
        georeference: Georeference; None if there is none.
    """

    pixels: Array
    georeference: Georeference | None


def read(content: bytes) -> TiffImage:
    """Read the one image in the bytes of a TIFF. Raises SourceError for any other content.

    Pages may be interleaved, planar or of a single band. So-called shaped series of tifffile, (H, W, C) arrays written
    as H pages, are read whole, unlike by GDAL, which returns the first page only. An image with pixels of another
    no-data number than 0 is refused: in the datasets of such files only 0 marks missing data, and not even that in all.
    """
    plain = _plain(content)
    if plain is not None:
        return plain
    _check_pages(content)
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs damage to stderr as well as raising
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as tiff:
            if len(tiff.series) != 1:
                raise SourceError(f"TIFF holds {len(tiff.series)} images, expected one")
            series = tiff.series[0]
            _check_declared(series, len(content))
            pixels = _bands_first(series.asarray(), series.axes, series.kind)
            tags = {tag.code: tag.value for tag in tiff.pages.first.tags}
            _check_no_data(pixels, tags.get(_NODATA))
            georeference = _georeference(tags)
    except SourceError:
        raise
    except Exception as error:  # damaged bytes make tifffile raise errors of many types
        raise SourceError(
            f"not a readable TIFF: {type(error).__name__}: {error!s:.120}; fetch or write it again"
        ) from None
    return TiffImage(pixels=np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("=")), georeference=georeference)


def _check_pages(content: bytes) -> None:
    """Follow the chain of pages, which tifffile follows without end where it is a circle. Raises SourceError."""
    order = {b"II": "<", b"MM": ">"}.get(content[:2], "<")
    bigtiff = content[2:4] in (b"\x2b\x00", b"\x00\x2b")
    # TIFF 6.0, section 2: a count of entries, the entries, then the offset of the next page; BigTIFF has wider ones.
    start, count, entry_bytes, link = (8, "Q", 20, "Q") if bigtiff else (4, "H", 12, "I")
    visited: set[int] = set()
    try:
        (page,) = struct.unpack_from(f"{order}{link}", content, start)
        while page:
            if page in visited:
                raise SourceError(f"TIFF has {len(visited)} pages that follow each other in a circle, expected an end")
            visited.add(page)
            IMAGE_PAGES.check(len(visited), "TIFF claims")
            (entries,) = struct.unpack_from(f"{order}{count}", content, page)
            end = page + struct.calcsize(f"{order}{count}") + entry_bytes * entries
            (page,) = struct.unpack_from(f"{order}{link}", content, end)
    except (struct.error, OverflowError):  # cut short: tifffile reads the pages that are there, or says what is wrong
        return


def _check_declared(series: Any, size: int) -> None:
    """Compare what a TIFF of `size` bytes declares with the limits, before it is decoded. Raises SourceError."""
    IMAGE_VALUES.check(math.prod(series.shape), f"TIFF claims {series.shape}")
    first = series.pages[0]
    if _OFFSETS in first.tags:
        expected = -(-first.imagelength // min(first.rowsperstrip or first.imagelength, first.imagelength))
        expected *= first.samplesperpixel if first.planarconfig == 2 else 1
        if first.tags[_OFFSETS].count != expected:
            raise SourceError(f"TIFF claims {first.tags[_OFFSETS].count} strips, its image has {expected}")
    stored = 0
    # Of plain pixels, one page after the other, only the first page is read.
    for page in series.pages if series.dataoffset is None else series.pages[:1]:
        if page.compression not in _DECODED:
            raise SourceError(f"TIFF in compression {int(page.compression)}, expected none, LZW, deflate or zstd")
        # A file may name the same bytes for every strip, and a strip may be larger than the image.
        IMAGE_STRIPS.check(len(page.dataoffsets), "TIFF claims")
        IMAGE_VALUES.check(math.prod(page.chunks), f"TIFF claims strips of {page.chunks}")
        stored += sum(page.databytecounts)
    if stored > size:
        raise SourceError(
            f"TIFF claims {stored} stored bytes in a file of {size}: its strips overlap or are cut short; "
            "fetch or write it again"
        )


def _plain(content: bytes) -> TiffImage | None:
    """Read one uncompressed interleaved image in strips (BigEarthNet, EuroSAT); return None for all other files.

    About 20 times as fast as the general reader, which tests for every variant of TIFF.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4])
    try:
        head = _head(content, order) if order else None
    except (struct.error, IndexError, ValueError, TypeError):  # damaged: the general reader names the reason
        return None
    if head is None:
        return None
    data = b"".join(content[offset : offset + count] for offset, count in head.strips)
    if not data or len(data) != head.size:
        return None
    pixels = np.frombuffer(data, head.dtype).reshape(head.shape).transpose(2, 0, 1)
    if head.nodata is not None:
        _check_no_data(pixels, head.nodata)
    return TiffImage(pixels=np.ascontiguousarray(pixels, head.dtype.newbyteorder("=")), georeference=head.georeference)


@dataclass(frozen=True, kw_only=True)
class _Head:
    """Bytes that precede the pixels of a plain image.

    Attributes:
        dtype: Type of the pixels in the file.
        shape: (H, W, C).
        size: Bytes of the pixels.
        strips: Offset and bytes of each strip.
        georeference: Georeference.
        nodata: Value of the tag GDAL_NODATA.
    """

    dtype: Any
    shape: tuple[int, ...]
    size: int
    strips: tuple[tuple[int, int], ...]
    georeference: Georeference | None
    nodata: object


def _head(content: bytes, order: str) -> _Head | None:
    """Return what precedes the pixels of a classic TIFF (revision 6.0, section 2); None if it is not a plain one."""
    start = struct.unpack_from(f"{order}I", content, 4)[0]
    entries = struct.unpack_from(f"{order}H", content, start)[0]
    end = start + 2 + 12 * entries
    if struct.unpack_from(f"{order}I", content, end)[0]:  # a second page
        return None
    layout = _layout(content[start + 2 : end], order)
    # Bands of one size have equal heads. Those of other programs end behind the pixels: too long to compare.
    if layout.end <= _LONGEST_HEAD:
        return _known_head(content[: max(end, layout.end)], order, layout)
    return _parse_head(content, order, layout)


def _parse_head(content: bytes, order: str, layout: _Layout) -> _Head | None:
    tags = dict(layout.inline) | {tag: form.unpack_from(content, start) for tag, form, start in layout.elsewhere}
    if not all(tags.values()):  # a tag without a value
        return None
    plain = _plain_format(order, tags)
    if plain is None:
        return None
    dtype, shape = plain
    size = math.prod(shape) * dtype.itemsize
    strips = tuple(zip(tags.get(_OFFSETS, ()), tags.get(_COUNTS, ()), strict=False))
    # Added up before they are joined: all strips of a file may name the same bytes.
    if sum(count for _, count in strips) != size:
        return None
    nodata = tags.get(_NODATA, (None,))[0]
    return _Head(dtype=dtype, shape=shape, size=size, strips=strips, georeference=_georeference(tags), nodata=nodata)


_known_head = lru_cache(maxsize=256)(_parse_head)


def _plain_format(order: str, tags: dict[int, tuple[Any, ...]]) -> tuple[Any, tuple[int, ...]] | None:
    """Return dtype and shape (H, W, C) of an image; None if it is not a plain one."""
    if _TILES in tags or tags.get(_COMPRESSION, (1,)) != (1,) or tags.get(_PREDICTOR, (1,)) != (1,):
        return None
    samples, bits, kinds = tags.get(_SAMPLES, (1,)), set(tags.get(_BITS, (1,))), set(tags.get(_FORMAT, (1,)))
    if tags.get(_PLANAR, (1,)) != (1,) or len(bits) != 1 or len(kinds) != 1 or not {_WIDTH, _HEIGHT} <= tags.keys():
        return None
    code = {(1, 8): "u1", (1, 16): "u2", (3, 32): "f4", (3, 64): "f8"}.get((kinds.pop(), bits.pop()))
    if code is None:
        return None
    return np.dtype(f"{order}{code}"), (tags[_HEIGHT][0], tags[_WIDTH][0], samples[0])


def _check_no_data(pixels: Array, stated: object) -> None:
    """Raise SourceError if pixels have the number, other than 0, that the tag GDAL_NODATA states as text."""
    try:
        number = float(stated.rstrip(b"\0") if isinstance(stated, bytes) else str(stated))
    except ValueError:  # no tag, or no number: GDAL ignores such a tag too
        return
    if number and (count := np.count_nonzero(pixels == number)):
        raise SourceError(f"{count} values are {number:g}, which the tag GDAL_NODATA marks as missing; expected 0")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layout:
    """Positions of the values of the tags of a directory; `end` is the end of those outside it.

    Attributes:
        inline: Values in the directory, by tag.
        elsewhere: (tag, form, offset in the file) of the others.
        end: End of the last of these in the file.
    """

    inline: tuple[tuple[int, tuple[Any, ...]], ...]
    elsewhere: tuple[tuple[int, struct.Struct, int], ...]
    end: int


# The files of a dataset are written by one program: their directories are equal but for the values they point at.
@lru_cache(maxsize=256)
def _layout(directory: bytes, order: str) -> _Layout:
    """Return the layout of the entries of a directory that this module uses."""
    inline, elsewhere = [], []
    for at in range(0, len(directory), 12):
        tag, kind, count = struct.unpack_from(f"{order}HHI", directory, at)
        if tag in _USED and kind in _KINDS and count < 2**20:
            form = struct.Struct(f"{order}{count}{_KINDS[kind]}")
            if form.size <= 4:
                inline.append((tag, form.unpack_from(directory, at + 8)))
            else:
                elsewhere.append((tag, form, struct.unpack_from(f"{order}I", directory, at + 8)[0]))
    end = max((start + form.size for _, form, start in elsewhere), default=0)
    return _Layout(inline=tuple(inline), elsewhere=tuple(elsewhere), end=end)


def _bands_first(pixels: Array, axes: str, kind: str) -> Array:
    if pixels.ndim == 2:
        return pixels[None]
    if pixels.ndim == 3 and axes == "SYX":  # planes; tifffile's own files are 'shaped' all the same
        return pixels
    if pixels.ndim == 3 and (axes == "YXS" or kind == "shaped"):
        return np.moveaxis(pixels, -1, 0)
    raise SourceError(f"TIFF of axes {axes} {pixels.shape}: expected one image of one or more bands")


def _georeference(tags: dict[int, Any]) -> Georeference | None:
    """Return the georeference in GeoTIFF tags (1.1, clauses 7.1 and 7.2): CRS code, and matrix or tie point."""
    keys = tags.get(_GEOKEYS, ())
    codes = {keys[i]: keys[i + 3] for i in range(4, len(keys) - 3, 4) if keys[i + 1] == 0}
    epsg = codes.get(_PROJECTED_CODE) or codes.get(_GEOGRAPHIC_CODE)
    if not epsg or epsg == 32767:  # 'user-defined'
        return None
    if _MATRIX in tags:
        m = tags[_MATRIX]
        return Georeference(epsg=epsg, transform=(m[0], m[1], m[3], m[4], m[5], m[7]))
    if _SCALE in tags and _TIEPOINT in tags:
        (across, down, _), (i, j, _, x, y, _) = tags[_SCALE], tags[_TIEPOINT][:6]
        return Georeference(epsg=epsg, transform=(across, 0.0, x - i * across, 0.0, -down, y + j * down))
    return None


def bounds(georeference: Georeference, shape: tuple[int, int]) -> Bounds:
    """Return west, south, east, north in EPSG:4326, to 1e-7 degree, of an image of `shape` (H, W).

    Raises SourceError where these are not on Earth.
    """
    a, b, c, d, e, f = georeference.transform
    corners = [(a * x + b * y + c, d * x + e * y + f) for x in (0, shape[1]) for y in (0, shape[0])]
    # All four corners: a UTM square is turned in degrees, and two corners would cut its sides.
    xs, ys = zip(*corners, strict=True)
    west, south, east, north = _to_wgs84(georeference.epsg).transform_bounds(min(xs), min(ys), max(xs), max(ys))
    if not all(map(math.isfinite, (west, south, east, north))):
        raise SourceError(
            f"image bounds {georeference.transform} in EPSG:{georeference.epsg} are not on Earth; correct them"
        )
    return (round(west, 7), round(south, 7), round(east, 7), round(north, 7))


@cache
def _to_wgs84(epsg: int) -> Any:
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        return Transformer.from_crs(epsg, 4326, always_xy=True)
    except ProjError:
        raise SourceError(f"image names EPSG:{epsg}, which is no known CRS; write it with another") from None


def place_metadata(picture: TiffImage) -> dict[str, Any]:
    """Return `crs` and `bounds` for the meta of a sample; empty without a georeference."""
    if picture.georeference is None:
        return {}
    height, width = picture.pixels.shape[1:]
    return {"crs": f"EPSG:{picture.georeference.epsg}", "bounds": list(bounds(picture.georeference, (height, width)))}
