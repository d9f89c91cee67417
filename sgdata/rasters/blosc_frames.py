"""Address the blocks inside a Blosc frame, so that a few rows of a large chunk can be read and decoded alone. Pure.

A frame of Blosc 1 is a header of 16 bytes, a table with the start of each block, and the blocks, in any order, each
compressed on its own. The blocks that hold some bytes of the chunk, with a header and a table of their own, are a frame
again, which the library decodes. Format: c-blosc, `README_CHUNK_FORMAT.rst`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgdata.errors import SourceError

HEADER_BYTES = 16
VERSION = 2
"""Version of the format of Blosc 1; Blosc 2 has 3 and more."""
_STORED, _UNSPLIT = 0x02, 0x10
"""Flags: the bytes follow the header as they are; the blocks are not split by byte of the values."""


@dataclass(frozen=True, kw_only=True)
class BloscFrame:
    """Header of a frame.

    Attributes:
        prefix: Version, version of the codec, flags and bytes per value.
        size: Bytes of the decoded chunk.
        block: Bytes of a decoded block; the last may be smaller.
        stored: Bytes of the frame.
    """

    prefix: bytes
    size: int
    block: int
    stored: int

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.size // self.block)

    @property
    def is_raw(self) -> bool:
        """Whether the bytes follow the header uncompressed, without a table."""
        return bool(self.prefix[2] & _STORED)

    @property
    def data_start(self) -> int:
        """Position of the first byte behind the header and the table."""
        return HEADER_BYTES + (0 if self.is_raw else 4 * self.count)


def parse_header(content: bytes, size: int, origin: str) -> BloscFrame:
    """Parse the header of a frame.

    Args:
        content: At least the first 16 bytes.
        size: Bytes that the decoded chunk must have.
        origin: Name of the chunk, for messages.

    Raises:
        SourceError: It is no Blosc frame, or one of another size.
    """
    if len(content) < HEADER_BYTES:
        raise SourceError(f"{origin}: chunk of {len(content)} bytes is no Blosc frame; fetch it again or leave it out")
    decoded, block, stored = struct.unpack_from("<III", content, 4)
    if content[0] != VERSION:
        raise SourceError(f"{origin}: Blosc format {content[0]}, expected {VERSION} as of Blosc 1; leave it out")
    if decoded != size:
        raise SourceError(f"{origin}: chunk decodes to {decoded:,} bytes, its array says {size:,}; leave it out")
    if not 0 < block <= decoded or not content[3] or stored < HEADER_BYTES:
        raise SourceError(f"{origin}: Blosc header with blocks of {block:,} of {decoded:,} bytes; leave it out")
    frame = BloscFrame(prefix=content[:4], size=decoded, block=block, stored=stored)
    if stored < frame.data_start or (frame.is_raw and stored != HEADER_BYTES + decoded):
        raise SourceError(f"{origin}: Blosc frame of {stored:,} bytes is too short for its blocks; leave it out")
    return frame


def find_blocks(frame: BloscFrame, table: bytes, origin: str) -> tuple[tuple[int, int], ...]:
    """Return the first and one past the last byte of each block in a compressed frame.

    Args:
        frame: Its header.
        table: The bytes between header and blocks.
        origin: Name of the chunk, for messages.

    Raises:
        SourceError: The table leads outside the frame.
    """
    starts = np.frombuffer(table, "<u4", count=frame.count).astype(np.int64)
    if starts.min() < frame.data_start or starts.max() >= frame.stored:
        raise SourceError(f"{origin}: table of Blosc blocks leads outside the chunk; leave it out")
    # Threads append blocks in the order in which they finish: a block ends where the next one in the file begins.
    order = np.append(np.unique(starts), frame.stored)
    ends = order[np.searchsorted(order, starts, side="right")]
    return tuple(zip(starts.tolist(), ends.tolist(), strict=True))


def assemble(frame: BloscFrame, blocks: Sequence[bytes | memoryview], first: int) -> bytes:
    """Return a frame of consecutive blocks of a compressed one.

    Args:
        frame: Header of the whole.
        blocks: The bytes of each block.
        first: Number of the first block.
    """
    last = first + len(blocks) == frame.count
    rest = frame.size % frame.block if last else 0
    size = len(blocks) * frame.block - (frame.block - rest if rest else 0)
    prefix, block = frame.prefix, frame.block
    if size < block:
        # The last block alone, which may not be smaller than the size of blocks in the header; it is never split.
        block = size
        prefix = prefix[:2] + bytes([prefix[2] | _UNSPLIT]) + prefix[3:]
    starts, position = [], HEADER_BYTES + 4 * len(blocks)
    for content in blocks:
        starts.append(position)
        position += len(content)
    return b"".join([prefix, struct.pack(f"<III{len(blocks)}I", size, block, position, *starts), *blocks])
