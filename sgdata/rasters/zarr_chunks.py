"""Read rows of a Zarr array of two dimensions: whole chunks, or the Blosc blocks in them that hold the rows."""

from __future__ import annotations

import bisect
import math
import zlib
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from sgdata import files
from sgdata.errors import SourceError
from sgdata.rasters import blosc_frames, crc32c
from sgdata.rasters.zarr_metadata import ZarrArray
from sgdata.remote import ranges
from sgdata.remote.objects import HEAD_BYTES, ObjectFolder, StoredObject
from sgdata.types import Array, Window

STRIP_BYTES = 1 << 21
"""Rows of a chunk are decoded in strips of about this size, which stay in the caches of a processor."""
AHEAD_STRIPS = 8
"""Strips whose stored bytes are read at a time."""
GAP_BYTES = 1 << 16
"""Ranges that lie closer are read as one."""
CRC_BYTES = 4
ABSENT = 2**64 - 1
"""Offset and size, in the index of a shard, of a chunk that does not exist."""


@dataclass(frozen=True)
class ChunkLocation:
    """Storage of a chunk: an object, and its bytes there (all of it if `stop` is None)."""

    key: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """The blocks of a chunk that is one Blosc frame; no spans where it is stored uncompressed."""

    frame: blosc_frames.BloscFrame
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class _Held:
    """The stored bytes of some blocks of a chunk, from block `first` on."""

    first: int
    parts: list[memoryview]


@dataclass(frozen=True, kw_only=True)
class ChunkReader:
    """Reads an array whose chunks lie in a folder.

    Attributes:
        array: The array.
        folder: Its folder.
    """

    array: ZarrArray
    folder: ObjectFolder
    _objects: dict[str, StoredObject | None] = field(default_factory=dict, init=False)
    _indices: dict[str, Array] = field(default_factory=dict, init=False)
    _blocks: dict[ChunkLocation, _Blocks] = field(default_factory=dict, init=False)
    _held: dict[ChunkLocation, _Held] = field(default_factory=dict, init=False)
    _stored: dict[ChunkLocation, bytes] = field(default_factory=dict, init=False)
    _whole: dict[ChunkLocation, bytes] = field(default_factory=dict, init=False)
    _room: list[Array] = field(default_factory=list, init=False)

    def strips(self, window: Window, fill: int) -> Iterator[Array]:
        """Yield the window of an array of two dimensions from top to bottom.

        Args:
            window: Pixels inside the array.
            fill: Value where a chunk does not exist.

        Yields:
            (h, W) strips in the byte order of this machine, which end where chunks end. They share memory: copy those
            that must outlive the next one.

        Raises:
            SourceError: A chunk cannot be read, or is not what its array says.
        """
        height, width = self.array.inner
        row_bytes = width * np.dtype(self.array.dtype).itemsize
        most = max(STRIP_BYTES // row_bytes, 1)
        bottom, right = window.row + window.height, window.col + window.width
        self._open_all(window)
        room = np.empty((min(most, window.height), window.width), np.dtype(self.array.dtype).newbyteorder("="))
        row = window.row
        while row < bottom:
            top = row // height * height
            stop = min(top + height, row + most, bottom)
            ahead = min(top + height, row + AHEAD_STRIPS * most, bottom)
            out = room[: stop - row]
            cols = range(window.col // width, -(-right // width) if window.width else 0)
            span = (row - top, stop - top, ahead - top)
            load = partial(self._load_rows, first=span[0], last=span[1], ahead=span[2])
            self._for_each([(row // height, j) for j in cols], load)
            for j in cols:
                left, far = max(j * width, window.col), min((j + 1) * width, right)
                values = self._rows((row // height, j), *span)
                there = np.s_[:, left - window.col : far - window.col]
                out[there] = fill if values is None else values[:, left - j * width : far - j * width]
            yield out
            if stop - top == height:  # the next strip is in other chunks
                for kept in (self._blocks, self._held, self._stored, self._whole):
                    kept.clear()
            row = stop

    def identify(self, window: Window) -> str:
        """Return what differs once an object with pixels of a window has changed; "" if the store does not say.

        Raises SourceError if one cannot be read.
        """
        self._open_all(window)
        height, width = self.array.chunks
        rows = range(window.row // height, -(-(window.row + window.height) // height) if window.height else 0)
        cols = range(window.col // width, -(-(window.col + window.width) // width) if window.width else 0)
        found = [self._open(self.array.key((i, j))) for i in rows for j in cols]
        known = [None if one is None else one.identity for one in found]
        return "" if "" in known else files.sha256(files.canonical_json([*known, repr(self.array)]))

    def absent(self, window: Window) -> Iterator[tuple[str, Window]]:
        """Yield the chunks of a window that do not exist: the key of each, or of its shard, and its part of the window.

        Raises SourceError if one cannot be read.
        """
        self._open_all(window)
        height, width = self.array.inner
        bottom, right = window.row + window.height, window.col + window.width
        for i in range(window.row // height, -(-bottom // height)):
            for j in range(window.col // width, -(-right // width)):
                found = self._find((i, j))
                if found is None or self._open(found.key) is None:
                    row, col = max(i * height, window.row), max(j * width, window.col)
                    last, far = min((i + 1) * height, bottom), min((j + 1) * width, right)
                    yield self._key((i, j)), Window(row=row, col=col, height=last - row, width=far - col)

    def line(self) -> Array:
        """Return the values of an array of one dimension. Raises SourceError."""
        parts = []
        for n in range(-(-self.array.shape[0] // self.array.inner[0])):
            values = self._values(self._find((n,)), 0, self.array.chunk_bytes, self.array.chunk_bytes)
            if values is None:
                raise SourceError(f"{self.folder.at(self.array.key((n,)))}: does not exist; leave it out")
            parts.append(values.copy())
        return np.concatenate(parts)[: self.array.shape[0]]

    # --- many at a time --------------------------------------------------------------------

    def _for_each(self, places: Collection[tuple[int, int]], load: Callable[[tuple[int, int]], object]) -> None:
        """Load something of several chunks; remote ones at a time, within the limits of their host."""
        if "://" in self.folder.href and len(places) > 1:
            loading = [ranges.fetchers().submit(load, place) for place in places]
            wait(loading)  # before an error is raised, so that nothing goes on loading into a reader that was given up
            for done in loading:
                done.result()

    def _open_all(self, window: Window) -> None:
        """Open the objects with chunks of a window, and read the indices of those that are shards."""
        height, width = self.array.chunks
        rows = range(window.row // height, -(-(window.row + window.height) // height) if window.height else 0)
        cols = range(window.col // width, -(-(window.col + window.width) // width) if window.width else 0)
        down, across = self._counts
        self._for_each([(i * down, j * across) for i in rows for j in cols], self._open_chunk)

    def _open_chunk(self, place: tuple[int, int]) -> None:
        self._open(self._key(place))
        self._find(place)

    def _load_rows(self, place: tuple[int, int], first: int, last: int, ahead: int) -> None:
        """Read the stored bytes of rows of a chunk, which `_rows` then decodes."""
        where = self._find(place)
        row_bytes = self.array.inner[1] * np.dtype(self.array.dtype).itemsize
        if where is None:
            return
        if self.array.inner_codecs == ("blosc",):
            self._load_blocks(where, first * row_bytes, last * row_bytes, ahead * row_bytes)
        elif self.array.inner_codecs:
            self._load_whole(where)

    def _rows(self, place: tuple[int, int], first: int, last: int, ahead: int) -> Array | None:
        """Return rows of a chunk, (last - first, W), and read those before `ahead`; None if it does not exist."""
        width = self.array.inner[1]
        row_bytes = width * np.dtype(self.array.dtype).itemsize
        values = self._values(self._find(place), first * row_bytes, last * row_bytes, ahead * row_bytes)
        return None if values is None else values.reshape(last - first, width)

    def _values(self, where: ChunkLocation | None, start: int, stop: int, ahead: int) -> Array | None:
        """Return the values in some of the decoded bytes of a chunk, up to the next call."""
        if where is None:
            return None
        content: bytes | memoryview | None
        codecs = self.array.inner_codecs
        if codecs == ("blosc",):
            content = self._from_blocks(where, start, stop, ahead)
        elif codecs == ():
            content = self._plain(where, start, stop)
        else:
            whole = self._decoded(where)
            content = None if whole is None else whole[start:stop]
        return None if content is None else np.frombuffer(content, self.array.dtype)

    # --- where chunks are ------------------------------------------------------------------

    def _find(self, place: tuple[int, ...]) -> ChunkLocation | None:
        """Return where a chunk is stored; None if the index of its shard says that it does not exist."""
        shards = self.array.shards
        if shards is None:
            return ChunkLocation(self.array.key(place))
        key, counts = self._key(place), self._counts
        stored = self._open(key)
        if stored is None:
            return None
        if key not in self._indices:
            self._indices[key] = self._read_index(stored, math.prod(counts))
        inside = np.ravel_multi_index(tuple(n % count for n, count in zip(place, counts, strict=True)), counts)
        start, size = map(int, self._indices[key][inside])
        if start == size == ABSENT:
            return None
        if start + size > stored.size:
            raise SourceError(f"{stored.shown}: shard has a chunk of {size:,} bytes at {start:,}; leave it out")
        return ChunkLocation(key, start, start + size)

    @property
    def _counts(self) -> tuple[int, ...]:
        """Chunks that are decoded alone in each object, by dimension."""
        return tuple(outer // inner for outer, inner in zip(self.array.chunks, self.array.inner, strict=True))

    def _key(self, place: tuple[int, ...]) -> str:
        """Return the key of the object of a chunk, itself or its shard."""
        return self.array.key(tuple(n // count for n, count in zip(place, self._counts, strict=True)))

    def _read_index(self, stored: StoredObject, count: int) -> Array:
        """Return the starts and sizes of the chunks in a shard, (count, 2)."""
        shards = self.array.shards
        assert shards is not None
        size = 16 * count + CRC_BYTES * len(shards.index_codecs)
        at = 0 if shards.index_first else stored.size - size
        content = stored.read(at, at + size)
        for _ in shards.index_codecs:
            content = _checked(content, stored.shown)
        return np.frombuffer(content, "<u8").reshape(count, 2)

    def _open(self, key: str) -> StoredObject | None:
        """Open an object of the array, once; None if it does not exist."""
        if key not in self._objects:
            self._objects[key] = self.folder.open(key)
        return self._objects[key]

    def _locate(self, where: ChunkLocation) -> tuple[StoredObject, int, int] | None:
        """Return the object of a chunk, and the first and one past the last of its bytes there; None without one."""
        stored = self._open(where.key)
        if stored is None:
            return None
        stop = stored.size if where.stop is None else where.stop
        # More than a chunk can take even where a codec expands it.
        if stop - where.start > 2 * self.array.chunk_bytes + HEAD_BYTES:
            size = f"{stop - where.start:,} bytes, decoded it has {self.array.chunk_bytes:,} by its array"
            raise SourceError(f"{stored.shown}: chunk of {size}; leave it out")
        return stored, where.start, stop

    # --- decoding --------------------------------------------------------------------------

    def _plain(self, where: ChunkLocation, start: int, stop: int) -> bytes | None:
        """Return bytes of a chunk that is not compressed."""
        found = self._locate(where)
        if found is None:
            return None
        stored, base, end = found
        if end - base != self.array.chunk_bytes:
            size = f"{end - base:,} bytes, its array says {self.array.chunk_bytes:,}"
            raise SourceError(f"{stored.shown}: chunk has {size}; leave it out")
        return stored.read(base + start, base + stop)

    def _load_whole(self, where: ChunkLocation) -> StoredObject | None:
        """Read all stored bytes of a chunk; return its object, None if it does not exist."""
        found = self._locate(where)
        if found is None:
            return None
        stored, base, end = found
        if where not in self._stored and where not in self._whole:
            self._stored[where] = stored.read(base, end)
        return stored

    def _decoded(self, where: ChunkLocation) -> bytes | None:
        """Return a chunk decoded as a whole."""
        if where not in self._whole:
            stored = self._load_whole(where)
            if stored is None:
                return None
            content = self._stored.pop(where)
            self._whole[where] = decode(content, self.array.inner_codecs, self.array.chunk_bytes, stored.shown)
        return self._whole[where]

    def _load_blocks(
        self, where: ChunkLocation, start: int, stop: int, ahead: int
    ) -> tuple[StoredObject, int, blosc_frames.BloscFrame] | None:
        """Read the blocks of a Blosc frame that hold some bytes of a chunk, and those up to `ahead`.

        Returns:
            The object, where the frame begins in it, and its header; None if the chunk does not exist.
        """
        found = self._locate(where)
        if found is None:
            return None
        stored, base, end = found
        if where not in self._blocks:
            self._blocks[where] = self._parse_blocks(stored, base, end)
        blocks = self._blocks[where]
        frame, held = blocks.frame, self._held.get(where)
        low, high = start // frame.block, -(-stop // frame.block)
        if not frame.is_raw and (held is None or not held.first <= low <= high <= held.first + len(held.parts)):
            spans = blocks.spans[low : -(-ahead // frame.block)]
            self._held[where] = _Held(first=low, parts=_read_spans(stored, base, spans))
        return stored, base, frame

    def _from_blocks(self, where: ChunkLocation, start: int, stop: int, ahead: int) -> bytes | memoryview | None:
        """Return bytes of a chunk that is a Blosc frame, of which only the blocks up to `ahead` are read."""
        found = self._load_blocks(where, start, stop, ahead)
        if found is None:
            return None
        stored, base, frame = found
        if frame.is_raw:
            base += blosc_frames.HEADER_BYTES
            return stored.read(base + start, base + stop)
        low, high = start // frame.block, -(-stop // frame.block)
        held = self._held[where]
        part = blosc_frames.assemble(frame, held.parts[low - held.first : high - held.first], low)
        size = min(high * frame.block, frame.size) - low * frame.block
        room = self._buffer(size)
        decode_blosc(part, room, stored.shown)
        return room.data[start - low * frame.block : stop - low * frame.block]

    def _buffer(self, size: int) -> Array:
        """Return `size` bytes, the same memory each time: taking new memory costs half as much as decoding into it."""
        if not self._room or self._room[0].size < size:
            self._room[:] = [np.empty(size, np.uint8)]
        return self._room[0][:size]

    def _parse_blocks(self, stored: StoredObject, base: int, end: int) -> _Blocks:
        head = stored.read(base, min(base + HEAD_BYTES, end))
        frame = blosc_frames.parse_header(head, self.array.chunk_bytes, stored.shown)
        if frame.stored > end - base:
            reason = f"chunk ends too soon, after {end - base:,} of {frame.stored:,} bytes"
            raise SourceError(f"{stored.shown}: {reason}; fetch it again or leave it out")
        if frame.is_raw:
            return _Blocks(frame=frame, spans=())
        table = head[blosc_frames.HEADER_BYTES : frame.data_start]
        if len(head) < frame.data_start:
            table += stored.read(base + len(head), base + frame.data_start)
        return _Blocks(frame=frame, spans=blosc_frames.find_blocks(frame, table, stored.shown))


def _read_spans(stored: StoredObject, base: int, spans: tuple[tuple[int, int], ...]) -> list[memoryview]:
    """Return the bytes of each span of a chunk that begins at `base`; those that lie close are read together."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if joined and start - joined[-1][1] <= GAP_BYTES:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    held = [memoryview(stored.read(base + start, base + stop)) for start, stop in joined]
    starts = [start for start, _ in joined]
    parts = []
    for start, stop in spans:
        at = bisect.bisect_right(starts, start) - 1
        parts.append(held[at][start - starts[at] : stop - starts[at]])
    return parts


def decode(content: bytes, codecs: tuple[str, ...], size: int, origin: str) -> bytes:
    """Decode a chunk.

    Args:
        content: Stored bytes.
        codecs: Codecs in order of encoding.
        size: Bytes that the decoded chunk must have.
        origin: Name of the chunk, for messages.

    Raises:
        SourceError: It is damaged, or decodes to another size.
    """
    for name in reversed(codecs):
        content = _checked(content, origin) if name == "crc32c" else _decompressed(content, name, size, origin)
    if len(content) != size:
        raise SourceError(f"{origin}: chunk decodes to {len(content):,} bytes, its array says {size:,}; leave it out")
    return content


def _checked(content: bytes, origin: str) -> bytes:
    """Return what a CRC-32C at the end is the checksum of. Raises SourceError if it differs."""
    body, end = content[:-CRC_BYTES], content[-CRC_BYTES:]
    if len(content) < CRC_BYTES or crc32c.crc32c(body) != int.from_bytes(end, "little"):
        raise SourceError(f"{origin}: checksum CRC-32C differs; fetch it again or leave it out")
    return body


def _decompressed(content: bytes, name: str, size: int, origin: str) -> bytes:
    import imagecodecs

    if name == "blosc":
        frame = blosc_frames.parse_header(content, size, origin)
        if frame.stored > len(content):
            raise SourceError(f"{origin}: chunk ends too soon; fetch it again or leave it out")
        room = np.empty(size, np.uint8)
        decode_blosc(content[: frame.stored], room, origin)
        return room.tobytes()
    try:
        if name == "zstd":
            out = bytearray(size)  # of the size that it must have: a frame may announce any
            return bytes(imagecodecs.zstd_decode(content, out=out))
        decoder = zlib.decompressobj(wbits=47)  # gzip or zlib
        return decoder.decompress(content, size + 1)
    except (imagecodecs.ZstdError, zlib.error, ValueError) as error:
        raise SourceError(f"{origin}: chunk cannot be decoded by {name}: {error!s:.80}; leave it out") from None


def decode_blosc(frame: bytes, out: Array, origin: str) -> None:
    """Decode a Blosc frame into `out`, bytes of the size that it must have. Raises SourceError."""
    import imagecodecs

    try:
        content = imagecodecs.blosc_decode(frame, numthreads=1, out=out.data)
    except (imagecodecs.BloscError, ValueError) as error:
        raise SourceError(f"{origin}: chunk cannot be decoded by Blosc: {error!s:.80}; leave it out") from None
    if len(content) != out.size:
        raise SourceError(f"{origin}: chunk decodes to {len(content):,} bytes, expected {out.size:,}; leave it out")
