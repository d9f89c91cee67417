"""Small TIFFs out of memory: pixels as (C, H, W) and where they lie. For patches; large rasters go by `rasters`."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sgdata.errors import SourceError
from sgdata.types import Array, Bounds

_SCALE, _TIEPOINT, _MATRIX, _GEOKEYS = 33550, 33922, 34264, 34735
_GEOGRAPHIC_CODE, _PROJECTED_CODE = 2048, 3072
_LARGEST_PIXELS = 2**28


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an image lies: EPSG code and the affine coefficients a, b, c, d, e, f."""

    epsg: int
    transform: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Pixels (C, H, W) in the file's own dtype, native byte order; `place` is None where the file tells none."""

    pixels: Array
    place: Place | None


def read(content: bytes) -> Picture:
    """The one image in a TIFF's bytes. Raises SourceError, whatever the bytes are.

    Of interleaved, planar and single-band pages; and of tifffile's 'shaped' series, an (H, W, C) array written
    as H pages, of which GDAL-type readers return the first page only.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells of damage on stderr as well as raising
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as tiff:
            if len(tiff.series) != 1:
                raise SourceError(f"TIFF holds {len(tiff.series)} images, expected one")
            series = tiff.series[0]
            if np.prod(series.shape, dtype=float) > _LARGEST_PIXELS:
                raise SourceError(f"TIFF claims {series.shape} values, more than {_LARGEST_PIXELS}")
            pixels = _bands_first(series.asarray(), series.axes, series.kind)
            place = _place({tag.code: tag.value for tag in tiff.pages.first.tags})
    except SourceError:
        raise
    except Exception as error:  # tifffile raises whatever the damaged bytes lead it into
        raise SourceError(f"not a readable TIFF: {type(error).__name__}: {error!s:.120}") from None
    return Picture(pixels=np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("=")), place=place)


def _bands_first(pixels: Array, axes: str, kind: str) -> Array:
    if pixels.ndim == 2:
        return pixels[None]
    if axes == "YXS" or (kind == "shaped" and pixels.ndim == 3):
        return np.moveaxis(pixels, -1, 0)
    if axes == "SYX":
        return pixels
    raise SourceError(f"TIFF of axes {axes} {pixels.shape}: expected one image of one or more bands")


def _place(tags: dict[int, Any]) -> Place | None:
    """GeoTIFF 1.1, clauses 7.1 and 7.2: the code of a known CRS, and a matrix or a tie point with a pixel scale."""
    keys = tags.get(_GEOKEYS, ())
    codes = {keys[i]: keys[i + 3] for i in range(4, len(keys) - 3, 4) if keys[i + 1] == 0}
    epsg = codes.get(_PROJECTED_CODE) or codes.get(_GEOGRAPHIC_CODE)
    if not epsg or epsg == 32767:  # 'user-defined'
        return None
    if _MATRIX in tags:
        m = tags[_MATRIX]
        return Place(epsg=epsg, transform=(m[0], m[1], m[3], m[4], m[5], m[7]))
    if _SCALE in tags and _TIEPOINT in tags:
        (across, down, _), (i, j, _, x, y, _) = tags[_SCALE], tags[_TIEPOINT][:6]
        return Place(epsg=epsg, transform=(across, 0.0, x - i * across, 0.0, -down, y + j * down))
    return None


def bounds(place: Place, shape: tuple[int, int]) -> Bounds:
    """West, south, east, north in EPSG:4326, to 1e-7 degree, of an image of `shape` (H, W) at `place`."""
    a, b, c, d, e, f = place.transform
    corners = [(a * x + b * y + c, d * x + e * y + f) for x in (0, shape[1]) for y in (0, shape[0])]
    xs, ys = zip(*corners, strict=True)
    west, south, east, north = _to_wgs84(place.epsg).transform_bounds(min(xs), min(ys), max(xs), max(ys))
    return (round(west, 7), round(south, 7), round(east, 7), round(north, 7))


@cache
def _to_wgs84(epsg: int) -> Any:
    from pyproj import Transformer

    return Transformer.from_crs(epsg, 4326, always_xy=True)


def located(picture: Picture) -> dict[str, Any]:
    """`crs` and `bounds` for the meta of a sample; empty where the file tells no place."""
    if picture.place is None:
        return {}
    height, width = picture.pixels.shape[1:]
    return {"crs": f"EPSG:{picture.place.epsg}", "bounds": list(bounds(picture.place, (height, width)))}
