"""Encode arrays as the content of tar members, and decode them.

Codec `blosc` is one Blosc1 chunk of the little-endian C-ordered bytes (lz4 after bitshuffle, or lz4hc after shuffle if
`effort` is "dense"; fixed block size), and a trailer of shape and dtype. Codec `npy` is NumPy's format 1.0. The index
has the CRC-32 of each member, trailer included.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from sgdata.errors import SourceError
from sgdata.types import Array, Codec, Effort

STORED_DTYPES = {"uint8": "|u1", "uint16": "<u2", "float32": "<f4", "int32": "<i4"}
LARGEST_RATIO = 1024
"""Bytes of an array per byte of its member: lz4 reaches 255, and bitshuffle adds nothing to that."""

# Fits the first-level cache of common processors; 16 to 128 KiB differ by less than 1 % in bytes and speed.
_BLOCK_BYTES = 32_768
_BLOSC = struct.Struct("<4xI4xI")  # nbytes and cbytes of a Blosc1 header


def encode(array: Array, codec: Codec, effort: Effort = "quick") -> bytes:
    """Return an array as the content of a tar member.

    Args:
        array: Array of uint8, uint16, float32 or int32.
        codec: `blosc` or `npy`.
        effort: `quick` or `dense` (smaller, slower to write); any Blosc1 reader decodes both. Ignored by `npy`.

    Raises:
        SourceError: The format does not store the dtype.
    """
    if dtype_name(array.dtype) not in STORED_DTYPES:
        raise SourceError(f"array of dtype {array.dtype}, expected one of {', '.join(STORED_DTYPES)}")
    stored = np.ascontiguousarray(array, dtype=STORED_DTYPES[dtype_name(array.dtype)])
    if codec == "npy":
        # Version 1.0 explicitly: the default depends on the installed NumPy.
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, stored, version=(1, 0), allow_pickle=False)
        return buffer.getvalue()
    import imagecodecs  # here, so that codec "npy" works without it

    chunk = imagecodecs.blosc_encode(
        # The array, not its bytes: the item size for the shuffle comes from it, `typesize` has no effect.
        stored,  # type: ignore[arg-type]  # the stub lacks arrays
        # lz4: 9 is about 1.5 % smaller than 5 at the same speed. lz4hc: above 5 each per cent doubles the time.
        9 if effort == "quick" else 5,
        compressor="lz4" if effort == "quick" else "lz4hc",
        # Long matches among bytes decode at twice the speed of short ones among bits, but only lz4hc finds them.
        shuffle="bitshuffle" if effort == "quick" else "shuffle",
        blocksize=_BLOCK_BYTES if effort == "quick" else 4 * _BLOCK_BYTES,
        numthreads=1,
    )
    return bytes(chunk)


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a type, which NumPy puts together anew each time."""
    return dtype.name


def decode(
    buffer: bytes | memoryview, shape: Sequence[int], dtype: str, codec: Codec, out: Array | None = None
) -> Array:
    """Return the array of a tar member; codec `blosc` releases the GIL.

    Args:
        buffer: Content of the member, without the trailer.
        shape: Shape of the array, from the index.
        dtype: Dtype of the array, from the index.
        codec: `blosc` or `npy`.
        out: C-contiguous array to decode into and return, instead of a new one.

    Raises:
        SourceError: The bytes are damaged or do not hold exactly `shape` x `dtype`.
    """
    try:
        target: Array = np.empty(tuple(shape), STORED_DTYPES[dtype]) if out is None else out
        if codec == "npy":
            target[...] = _from_npy(buffer, target)
            return target
        decode_into(buffer, memoryview(target.data).cast("B"))  # TypeError if not contiguous: a copy would be lost
    except (ValueError, KeyError, SourceError) as error:
        raise SourceError(f"{codec} member expected to hold {dtype} {tuple(shape)}: {error}") from None
    return target


def decode_into(chunk: bytes | memoryview, target: memoryview) -> None:
    """Decode a Blosc chunk into `target` without allocating, for the loader's inner loop.

    Args:
        chunk: Blosc1 chunk.
        target: Writable bytes, of exactly the decoded size.

    Raises:
        SourceError: The chunk is damaged or holds another number of bytes.
    """
    import imagecodecs  # see `encode`; importing a loaded module takes 0.2 us

    try:
        # Blosc does not check the sizes in the header and would read beyond the buffer of a truncated chunk.
        decoded, stored = _BLOSC.unpack_from(chunk)
        if decoded != target.nbytes or stored > len(chunk):
            raise SourceError(f"holds {decoded} bytes in {stored}, expected {target.nbytes} in {len(chunk)}")
        imagecodecs.blosc_decode(chunk, out=target, numthreads=1)  # type: ignore[arg-type]
    except (ValueError, RuntimeError, EOFError, struct.error) as error:
        raise SourceError(f"damaged chunk: {error}") from None


def _from_npy(buffer: bytes | memoryview, expected: Array) -> Array:
    """Return the array in NumPy's format 1.0. Raises ValueError if its header is not that of `expected`."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(expected))
    start = header.tell()
    # Compared, not parsed: NumPy's parser evaluates text and raises many kinds of errors if it is damaged.
    if bytes(buffer[:start]) != header.getvalue():
        raise ValueError(f"begins with {bytes(buffer[:start])!r:.120}")
    return np.frombuffer(buffer, expected.dtype, expected.size, start).reshape(expected.shape)


def trailer(array: Array) -> bytes:
    """Return shape and dtype, which follow the chunk: sizes as uint32, three letters of dtype, number of sizes."""
    return struct.pack(f"<{array.ndim}I3sB", *array.shape, STORED_DTYPES[dtype_name(array.dtype)].encode(), array.ndim)


def trailer_bytes(codec: Codec, axes: int) -> int:
    """Return the number of bytes that follow an array of `axes` axes in its member."""
    return 4 * axes + 4 if codec == "blosc" else 0


def crc32(content: bytes | memoryview) -> int:
    """Return the CRC-32 of a member as zip files and `zlib.crc32` define it."""
    try:
        import imagecodecs  # see `encode`; 13 times as fast as zlib

        return int(imagecodecs.deflate_crc32(content))  # type: ignore[arg-type]  # the stub lacks memoryview
    except ImportError:
        return zlib.crc32(content)


def check_crc32(content: bytes | memoryview, expected: int | None, member: str) -> None:
    """Raise SourceError if a member differs from its CRC-32 in the index; None: the shards have none."""
    if expected is not None and (actual := crc32(content)) != expected:
        raise SourceError(f"member {member}: CRC-32 of its {len(content)} bytes is {actual}, expected {expected}")


def check_size(shape: Sequence[int], dtype: str, size: int) -> None:
    """Refuse an array that cannot be in a member of `size` bytes, before memory is taken for it.

    Raises:
        SourceError: Unsupported dtype, or an array with more bytes than compression could explain.
    """
    if dtype not in STORED_DTYPES:
        raise SourceError(f"dtype {dtype!r:.40}, expected one of {', '.join(STORED_DTYPES)}")
    stored = math.prod(shape) * np.dtype(dtype).itemsize
    if min(shape, default=0) < 1 or stored > LARGEST_RATIO * size:
        raise SourceError(f"shape {tuple(shape)} of {dtype} cannot be in {size} bytes; pack again")
