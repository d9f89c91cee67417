"""Parse the metadata of a Zarr array, format 2 or 3, as untrusted input. Pure.

Only what rasters have is read: one or two dimensions in C order, integers and floats, regular chunks, and codecs that
compress bytes. Everything else is refused by name; no codec runs code of the file, as pickle would.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sgdata import limits
from sgdata.errors import SourceError

CODECS = ("blosc", "zstd", "gzip", "zlib", "crc32c")
"""Codecs of chunks that are read, by their names in both formats."""
_TYPES_3 = {"uint8": "|u1", "int8": "|i1", "bool": "|u1"} | {
    f"{kind}{bits}": f"<{kind[0]}{bits // 8}" for kind in ("uint", "int", "float") for bits in (16, 32, 64)
}


@dataclass(frozen=True, kw_only=True)
class ZarrShards:
    """The chunks inside each chunk of a sharded array.

    Attributes:
        chunks: Shape of the inner chunks.
        codecs: Codecs of the inner chunks, in order of encoding.
        index_codecs: Codecs of the index.
        index_first: Whether the index is in front of the chunks, rather than behind them.
    """

    chunks: tuple[int, ...]
    codecs: tuple[str, ...]
    index_codecs: tuple[str, ...]
    index_first: bool


@dataclass(frozen=True, kw_only=True)
class ZarrArray:
    """Metadata of one array.

    Attributes:
        shape: Size of each dimension.
        chunks: Shape of a chunk, that is of one file.
        dtype: NumPy type of the values, with the order of their bytes.
        fill: Value of chunks that do not exist; None if the array does not say.
        codecs: Codecs of a chunk, in order of encoding.
        prefix: Beginning of the keys of chunks.
        separator: Text between the numbers in the keys of chunks.
        attributes: Attributes of the user.
        shards: Chunks inside the chunks; None if each file is one chunk.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    fill: float | None
    codecs: tuple[str, ...]
    prefix: str = ""
    separator: str = "."
    attributes: dict[str, Any] = field(default_factory=dict)
    shards: ZarrShards | None = None

    @property
    def inner(self) -> tuple[int, ...]:
        """Shape of the chunks that are decoded alone."""
        return self.shards.chunks if self.shards else self.chunks

    @property
    def inner_codecs(self) -> tuple[str, ...]:
        """Codecs of the chunks that are decoded alone."""
        return self.shards.codecs if self.shards else self.codecs

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return math.prod(self.inner) * np.dtype(self.dtype).itemsize

    def key(self, place: tuple[int, ...]) -> str:
        """Return the key of the chunk with these numbers, below the array."""
        return self.prefix + self.separator.join(map(str, place))


def parse_v2(about: Any, attributes: Any, origin: str) -> ZarrArray:
    """Parse a `.zarray` and its `.zattrs`.

    Args:
        about: Parsed `.zarray`.
        attributes: Parsed `.zattrs`, an empty dict without one.
        origin: Name of the array, for messages.

    Raises:
        SourceError: The metadata are malformed, or of a kind that is not read.
    """
    about, attributes = _dict(about, ".zarray", origin), _dict(attributes, ".zattrs", origin)
    if about.get("zarr_format") != 2:
        raise SourceError(f"{origin}: zarr_format is {about.get('zarr_format')!r:.40}, expected 2; leave it out")
    if about.get("filters"):
        names = ", ".join(repr(_name(one)) for one in _list(about["filters"], "filters", origin))
        raise SourceError(f"{origin}: filters {names:.60}, expected none; leave it out")
    if about.get("order", "C") != "C":
        raise SourceError(f"{origin}: order {about['order']!r:.40}, expected 'C'; leave it out")
    compressor = about.get("compressor")
    array = ZarrArray(
        shape=_sizes(about.get("shape"), "shape", origin),
        chunks=_sizes(about.get("chunks"), "chunks", origin),
        dtype=_dtype(about.get("dtype"), origin),
        fill=_fill(about.get("fill_value"), origin),
        codecs=() if compressor is None else (_codec(compressor, origin),),
        separator=_separator(about.get("dimension_separator", "."), origin),
        attributes=attributes,
    )
    return _checked(array, origin)


def parse_v3(about: Any, origin: str) -> ZarrArray:
    """Parse the `zarr.json` of an array. Arguments and errors are as of `parse_v2`."""
    about = _dict(about, "zarr.json", origin)
    if about.get("zarr_format") != 3 or about.get("node_type") != "array":
        what = f"zarr_format {about.get('zarr_format')!r:.40} and node_type {about.get('node_type')!r:.40}"
        raise SourceError(f"{origin}: {what}, expected 3 and 'array'; leave it out")
    if about.get("storage_transformers"):
        raise SourceError(f"{origin}: has storage_transformers, expected none; leave it out")
    name, grid = _named(about.get("chunk_grid"), "chunk_grid", origin)
    if name != "regular":
        raise SourceError(f"{origin}: chunk_grid {name!r:.40}, expected 'regular'; leave it out")
    encoding, keys = _named(about.get("chunk_key_encoding"), "chunk_key_encoding", origin)
    if encoding not in {"default", "v2"}:
        raise SourceError(f"{origin}: chunk_key_encoding {encoding!r:.40}, expected 'default' or 'v2'; leave it out")
    kind = about.get("data_type")
    if not isinstance(kind, str) or kind not in _TYPES_3:
        raise SourceError(f"{origin}: data_type {kind!r:.40}, expected integers or floats; leave it out")
    separator = _separator(keys.get("separator", "/" if encoding == "default" else "."), origin)
    codecs, big, shards = _chain(about.get("codecs"), origin)
    array = ZarrArray(
        shape=_sizes(about.get("shape"), "shape", origin),
        chunks=_sizes(grid.get("chunk_shape"), "chunk_shape", origin),
        dtype=_TYPES_3[kind].replace("<", ">") if big else _TYPES_3[kind],
        fill=_fill(about.get("fill_value"), origin),
        codecs=codecs,
        prefix=f"c{separator}" if encoding == "default" else "",
        separator=separator,
        attributes=_dict(about.get("attributes", {}), "attributes", origin),
        shards=shards,
    )
    return _checked(array, origin)


def _chain(codecs: Any, origin: str, *, inside: bool = False) -> tuple[tuple[str, ...], bool, ZarrShards | None]:
    """Return the codecs of bytes, whether values are big-endian, and the shards if chunks are such."""
    chain = [_named(one, "codecs", origin) for one in _list(codecs, "codecs", origin)]
    if not chain:
        raise SourceError(f"{origin}: has no codecs, expected 'bytes' or 'sharding_indexed'; leave it out")
    if chain[0][0] == "transpose" and list(chain[0][1].get("order", ())) in ([0], [0, 1]):
        chain = chain[1:]
    (name, settings), rest = chain[0], tuple(_codec({"id": name}, origin) for name, _ in chain[1:])
    if name == "bytes":
        endian = settings.get("endian", "little")
        if endian not in ("little", "big"):
            raise SourceError(f"{origin}: endian {endian!r:.40}, expected 'little' or 'big'; leave it out")
        return rest, endian == "big", None
    if name != "sharding_indexed":
        raise SourceError(f"{origin}: codec {name!r:.40} is not read, expected one of {_known()}; leave it out")
    if rest or inside:
        raise SourceError(f"{origin}: shards inside shards, or compressed as a whole; leave it out")
    inner, big, _ = _chain(settings.get("codecs"), origin, inside=True)
    index, index_big, _ = _chain(settings.get("index_codecs"), origin, inside=True)
    if index_big or not set(index) <= {"crc32c"}:
        raise SourceError(f"{origin}: the index of shards is compressed or big-endian; leave it out")
    location = settings.get("index_location", "end")
    if location not in ("start", "end"):
        raise SourceError(f"{origin}: index_location {location!r:.40}, expected 'start' or 'end'; leave it out")
    chunks = _sizes(settings.get("chunk_shape"), "chunk_shape", origin)
    shards = ZarrShards(chunks=chunks, codecs=inner, index_codecs=index, index_first=location == "start")
    return inner, big, shards


def _checked(array: ZarrArray, origin: str) -> ZarrArray:
    """Compare the sizes of an array with each other and with the limits. Raises SourceError."""
    sizes = (len(array.shape), len(array.chunks), len(array.inner))
    if not 1 <= sizes[0] <= 2 or len(set(sizes)) > 1:
        raise SourceError(
            f"{origin}: shape {array.shape} in chunks {array.chunks}, expected 1 or 2 dimensions; leave it out"
        )
    limits.RASTER_PIXELS.check(math.prod(array.shape), origin)
    limits.BLOCK_BYTES.check(array.chunk_bytes, origin)
    if any(outer % inner for outer, inner in zip(array.chunks, array.inner, strict=True)):
        raise SourceError(f"{origin}: shards of {array.chunks} in chunks of {array.inner}; leave it out")
    if array.shards:
        limits.SHARD_CHUNKS.check(math.prod(array.chunks) // math.prod(array.inner), origin)
    return array


# --- parts ---------------------------------------------------------------------------------


def _known() -> str:
    return ", ".join(CODECS)


def _dict(value: Any, what: str, origin: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SourceError(f"{origin}: {what} is {value!r:.40}, expected an object; leave it out")
    return value


def _list(value: Any, what: str, origin: str) -> list[Any]:
    if not isinstance(value, list):
        raise SourceError(f"{origin}: {what} is {value!r:.40}, expected a list; leave it out")
    return value


def _named(value: Any, what: str, origin: str) -> tuple[str, Mapping[str, Any]]:
    """Return name and configuration, as format 3 describes most things."""
    if isinstance(value, str):
        return value, {}
    settings = _dict(value, what, origin)
    return str(settings.get("name")), _dict(settings.get("configuration") or {}, what, origin)


def _name(value: Any) -> str:
    return str(value.get("id") if isinstance(value, dict) else value)


def _codec(value: Any, origin: str) -> str:
    name = _name(value)
    if name not in CODECS:
        raise SourceError(f"{origin}: codec {name!r:.40} is not read, expected one of {_known()}; leave it out")
    return name


def _sizes(value: Any, what: str, origin: str) -> tuple[int, ...]:
    sizes = _list(value, what, origin)
    if not sizes or any(type(size) is not int or not 0 < size < 2**40 for size in sizes):
        raise SourceError(f"{origin}: {what} is {value!r:.60}, expected positive whole numbers; leave it out")
    return tuple(sizes)


def _dtype(value: Any, origin: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[<>][uif][248]|[|<>]?[ui]1|\|b1", value) or "f1" in value:
        raise SourceError(f"{origin}: dtype {value!r:.40}, expected integers or floats; leave it out")
    return value.replace("b1", "u1")


def _separator(value: Any, origin: str) -> str:
    if value not in (".", "/"):
        raise SourceError(f"{origin}: separator of chunk keys is {value!r:.40}, expected '.' or '/'; leave it out")
    return str(value)


def _fill(value: Any, origin: str) -> float | None:
    if value is None:
        return None
    if value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if not isinstance(value, int | float):
        raise SourceError(f"{origin}: fill_value is {value!r:.40}, expected a number or null; leave it out")
    return value
