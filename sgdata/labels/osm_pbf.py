"""Check the texts of OSM PBF files before libosmium reads them.

libosmium ends texts at a NUL: a key or value that contains one shifts all tags after it, up to reading beyond their
memory. The format is at https://wiki.openstreetmap.org/wiki/PBF_Format: messages in protocol buffers, of which only
those around the table of texts are read here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from sgdata.errors import SourceError
from sgdata.limits import PBF_BLOCK_BYTES, PBF_HEAD_BYTES


def check(path: Path) -> None:
    """Raise SourceError where a text of the file contains a NUL, or a block is damaged."""
    try:
        with path.open("rb") as handle:
            while size := handle.read(4):
                if int.from_bytes(size, "big") > PBF_HEAD_BYTES.most:
                    raise ValueError("no head of a block")
                head = dict(_fields(handle.read(int.from_bytes(size, "big"))))
                length = head.get(3, b"")
                PBF_BLOCK_BYTES.check(int(length), str(path))
                blob = handle.read(int(length))
                if head.get(1) == b"OSMData":
                    _check_block(blob, str(path))
    except (OSError, ValueError, IndexError, TypeError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be read as OSM PBF: {error!s:.100}; fetch it again") from None


def _check_block(blob: bytes, origin: str) -> None:
    """Check the tables of texts of one block, whichever way it is compressed."""
    sizes = [value for number, value in _fields(blob) if number == 2 and isinstance(value, int)]
    for number, content in _fields(blob):
        block = b""
        if number == 1:
            block = bytes(content)
        elif number == 3:
            block = zlib.decompressobj().decompress(bytes(content), PBF_BLOCK_BYTES.most)
        elif number == 6:
            import imagecodecs

            PBF_BLOCK_BYTES.check(max(sizes, default=0), origin)
            block = bytes(imagecodecs.lz4_decode(bytes(content), out=max(sizes, default=0)))
        for kind, table in _fields(block):
            # One text is empty, as its length of 0 says; of more zero bytes, some are inside texts.
            if kind == 1 and isinstance(table, bytes) and table.count(0) > 1:
                for _, text in _fields(table):
                    if isinstance(text, bytes) and 0 in text:
                        raise SourceError(f"{origin}: text {text!r:.60} contains a NUL; fetch the file again")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a message of protocol buffers. Raises ValueError, IndexError."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"field of type {kind}")
        size, position = _varint(message, position) if kind == 2 else ({1: 8, 5: 4}[kind], position)
        if position + size > len(message):
            raise ValueError("a field ends after its message")
        yield tag >> 3, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        value, position = value | (byte & 0x7F) << shift, position + 1
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than 64 bits")
