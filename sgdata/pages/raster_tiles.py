"""Write raster values as scripts, which a page opened from disk can load: `fetch` fails on file://.

A piece is one call, `sg.put("folder/name", [planes, height, width, bytes], text)`. Each value is predicted from its
left, upper and upper-left neighbours by the median rule of LOCO-I (JPEG-LS, ISO/IEC 14495-1); the differences are
folded to unsigned, all high bytes before all low ones, deflated, written 15 bits to a character. `page.js` undoes it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgdata import files
from sgdata.rasters import geotiff, grids
from sgdata.safe_names import file_name
from sgdata.types import Array

TILE = 256
# As wide as a screen: more would only slow the first look down.
OVERVIEW_PX = 1024
# The first of 32,768 characters that hold no quote, no backslash, no line end and no half of a surrogate pair.
_FIRST = 0x2A00


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One band of one raster.

    Attributes:
        name: Name on the page.
        path: The raster.
        band: Number of the band, from 1.
    """

    name: str
    path: Path
    band: int = 1


@dataclass(frozen=True, kw_only=True)
class TilePyramid:
    """Planes as stored in a folder.

    Attributes:
        shape: Height and width in pixels.
        step: The overview has every `step`-th value; where it exceeds 1, tiles have all values.
        overview: Overview by name of the plane.
    """

    shape: tuple[int, int]
    step: int
    overview: dict[str, Array]


def write(folder: Path, planes: Sequence[Plane]) -> TilePyramid:
    """Write `o-<plane>.js` for each plane and, where that leaves values out, `t-<row>-<column>.js` with all planes."""
    with geotiff.open_raster(str(planes[0].path)) as first:
        shape: tuple[int, int] = first.shape
    step = max(1, -(-max(shape) // OVERVIEW_PX))
    kept = []
    for row, strip in _strips(planes, shape):
        kept.append(strip[:, -row % step :: step, ::step])
        if step > 1:
            _write_tiles(folder, row, strip)
    whole = np.concatenate(kept, axis=1)
    overview = dict(zip((plane.name for plane in planes), whole, strict=True))
    for name, values in overview.items():
        write_piece(folder, f"o-{name}", values[None])
    return TilePyramid(shape=shape, step=step, overview=overview)


def _strips(planes: Sequence[Plane], shape: tuple[int, int]) -> Iterator[tuple[int, Array]]:
    """Yield the first row and (P, h, W) uint16 of 512 rows, the blocks of our files, so that each is decoded once."""
    from rasterio.windows import Window

    with ExitStack() as stack:
        datasets = {
            path: stack.enter_context(geotiff.open_raster(str(path))) for path in {plane.path for plane in planes}
        }
        for strip in grids.cut_tiles(shape, 512, shape[1]):
            window = Window(0, strip.row, strip.width, strip.height)
            yield strip.row, np.stack([datasets[p.path].read(p.band, window=window).astype(np.uint16) for p in planes])


def _write_tiles(folder: Path, row: int, strip: Array) -> None:
    for tile in grids.cut_tiles(strip.shape[1:], TILE):
        rows, columns = tile.slices
        write_piece(folder, f"t-{(row + tile.row) // TILE}-{tile.col // TILE}", strip[:, rows, columns])


def write_piece(folder: Path, name: str, values: Array) -> None:
    """Write one script with a (P, h, w) uint16 array."""
    packed = zlib.compress(_folded(values).tobytes(), 6)
    shape = (*values.shape, len(packed))
    # UTF-16 with its mark: 15 of 16 bits carry data, where Base64 in UTF-8 carries 6 of 8.
    call = (
        f'\ufeffsg.put("{folder.name}/{name}",{list(shape)},"'.encode("utf-16-le"),
        _characters(packed),
        '")\n'.encode("utf-16-le"),
    )
    files.write(folder / f"{file_name(name)}.js", b"".join(call))


def _folded(values: Array) -> Array:
    """Return the residuals of the prediction of (P, h, w) uint16 as (2, P, h, w) uint8, high and low bytes."""
    value = values.astype(np.int32)
    around = np.pad(value, ((0, 0), (1, 0), (1, 0)))
    left, up, corner = around[:, 1:, :-1], around[:, :-1, 1:], around[:, :-1, :-1]
    low, high = np.minimum(left, up), np.maximum(left, up)
    # The median of left, up and their plane through the corner: an edge is followed, a slope is continued.
    missed = (value - np.clip(left + up - corner, low, high)).astype(np.int16).astype(np.int32)
    # 0 -1 1 -2 2 -> 0 1 2 3 4: small differences of either sign have a high byte of zero.
    folded = (missed << 1 ^ missed >> 15).astype(np.uint16)
    return np.stack([folded >> 8, folded & 255]).astype(np.uint8)


def _characters(packed: bytes) -> bytes:
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    groups = np.pad(bits, (0, -len(bits) % 15)).reshape(-1, 15)
    numbers = np.packbits(np.pad(groups, ((0, 0), (1, 0))), axis=1).view(">u2")
    return (numbers.ravel() + _FIRST).astype("<u2").tobytes()
