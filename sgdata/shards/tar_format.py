"""Samples as deterministic tars that any WebDataset reader opens, with a sidecar index for quick random access.

A sample `KEY` is a run of tar members: `KEY.<array>.<codec>` for each array (`image`, `mask`, `image_before`,
`image_10m`, ...), `KEY.label.json` where it has labels, `KEY.meta.json`. Codec `blosc` is one Blosc1 chunk (lz4 behind
bitshuffle or, where `effort` is "dense", behind shuffle; fixed block size) of the little-endian C-ordered bytes, its
shape and dtype in `meta.json` and in the index, and once more behind the chunk, which says itself where it ends: so a
member can be decoded alone (`decode_member`). Codec `npy` is NumPy's format 1.0. Headers are ustar: members sorted,
mode 0644, mtime 0, no user and no group, so equal samples give equal tars. The format lives here and only here.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import struct
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from sgdata import file_names, files, parquet_tables
from sgdata.errors import SourceError
from sgdata.types import Array, Codec, Effort, Sample, Shard

Row = dict[str, Any]

IMAGES = ("image", "image_before", "image_after", "image_10m")
FORMAT = 1
# A dot would end the key for WebDataset, which splits a name at its first dot; a slash would make a folder.
LARGEST_RATIO = 1024
"""Bytes of an array per byte of its member: lz4 reaches 255, and bitshuffle adds nothing to that."""
_MEMBER: dict[str, parquet_tables.ColumnKind] = {"meta_offset": "count", "meta_size": "count"}
_ENDINGS: dict[str, parquet_tables.ColumnKind] = {
    "_offset": "count", "_size": "count", "_dtype": "text", "_shape": "counts",
}  # fmt: skip
KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")

# Fits the first-level cache of anything; the sizes of 16 to 128 KiB differ by less than 1 % in bytes and speed.
_BLOCK_BYTES = 32_768
_BLOSC = struct.Struct("<4xI4xI")  # nbytes and cbytes of a Blosc1 header
_STORED = {"uint8": "|u1", "uint16": "<u2", "float32": "<f4", "int32": "<i4"}


# --- arrays <-> bytes ----------------------------------------------------------------------


def encode(array: Array, codec: Codec, effort: Effort = "quick") -> bytes:
    """The array as the content of a tar member; any Blosc1 reader decodes either `effort`.

    Raises SourceError on a dtype the format does not know.
    """
    if array.dtype.name not in _STORED:
        raise SourceError(f"array of dtype {array.dtype}: shards store {', '.join(_STORED)}")
    stored = np.ascontiguousarray(array, dtype=_STORED[array.dtype.name])
    if codec == "npy":
        # Version 1.0 by name: the newest would depend on the NumPy that is installed.
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, stored, version=(1, 0), allow_pickle=False)
        return buffer.getvalue()
    # The item size that bitshuffle needs is taken from the array: `typesize` has no effect, least of all on bytes.
    import imagecodecs  # here, so that codec "npy" works where it is not installed

    chunk = imagecodecs.blosc_encode(
        stored,  # type: ignore[arg-type]  # the stub forgets arrays
        # lz4: 9 is about 1.5 % smaller than 5, no slower. lz4hc: beyond 5 each per cent doubles the time.
        9 if effort == "quick" else 5,
        compressor="lz4" if effort == "quick" else "lz4hc",
        # Long matches among bytes decode at twice the speed of short ones among bits, but only lz4hc finds them.
        shuffle="bitshuffle" if effort == "quick" else "shuffle",
        blocksize=_BLOCK_BYTES if effort == "quick" else 4 * _BLOCK_BYTES,
        numthreads=1,
    )
    return bytes(chunk)


def decode(
    buffer: bytes | memoryview, shape: Sequence[int], dtype: str, codec: Codec, out: Array | None = None
) -> Array:
    """The array of a member; written into the C-contiguous `out` if given. Releases the GIL with codec `blosc`.

    Raises SourceError where the bytes are damaged or do not hold exactly `shape` x `dtype`.
    """
    try:
        target: Array = np.empty(tuple(shape), _STORED[dtype]) if out is None else out
        if codec == "npy":
            target[...] = _from_npy(buffer, target)
            return target
        decode_into(buffer, memoryview(target.data).cast("B"))  # TypeError if not contiguous: a copy would be lost
    except (ValueError, KeyError, SourceError) as error:
        raise SourceError(f"{codec} member expected to hold {dtype} {tuple(shape)}: {error}") from None
    return target


def decode_into(chunk: bytes | memoryview, target: memoryview) -> None:
    """A Blosc chunk into `target`, bytes of exactly its size; for a loader, to whom each microsecond counts.

    Raises SourceError where the chunk is damaged or holds another number of bytes.
    """
    import imagecodecs  # see `encode`; importing a loaded module takes 0.2 us

    try:
        # Blosc believes its header: of a chunk cut short it would read what lies behind the buffer.
        holds, stored = _BLOSC.unpack_from(chunk)
        if holds != target.nbytes or stored > len(chunk):
            raise SourceError(f"holds {holds} bytes in {stored}, {target.nbytes} in {len(chunk)} are expected")
        imagecodecs.blosc_decode(chunk, out=target, numthreads=1)  # type: ignore[arg-type]
    except (ValueError, RuntimeError, EOFError, struct.error) as error:
        raise SourceError(f"damaged chunk: {error}") from None


def decode_member(key: str, data: bytes) -> Array | None:
    """The array in a member named `*.blosc`, None for any other: a handler for WebDataset's `.decode(...)`.

    Raises SourceError.
    """
    if not key.endswith(".blosc"):
        return None
    try:
        (size,) = struct.unpack_from("<I", data, 12)  # cbytes of the Blosc1 header
        axes = data[-1]
        shape = struct.unpack_from(f"<{axes}I", data, size)
        dtype = data[size + 4 * axes : -1].decode("ascii")
        name = {stored: name for name, stored in _STORED.items()}[dtype]
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise SourceError(f"member {key}: no shape behind its {len(data)} bytes: {error!r}") from None
    if math.prod(shape) * np.dtype(dtype).itemsize != struct.unpack_from("<I", data, 4)[0]:
        raise SourceError(f"member {key}: {dtype} {shape} is not what its chunk holds; run sgdata verify")
    return decode(data[:size], shape, name, "blosc")


def _shape_behind(array: Array) -> bytes:
    """What `decode_member` reads: the sizes as uint32, the dtype in three letters, the number of sizes."""
    return struct.pack(f"<{array.ndim}I3sB", *array.shape, _STORED[array.dtype.name].encode(), array.ndim)


def _from_npy(buffer: bytes | memoryview, expected: Array) -> Array:
    """The array in NumPy's format 1.0. Raises ValueError where its header is not that of `expected`."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(expected))
    start = header.tell()
    # Compared, not parsed: the parser evaluates text, and fails on a damaged one in a dozen ways.
    if bytes(buffer[:start]) != header.getvalue():
        raise ValueError(f"begins with {bytes(buffer[:start])!r:.120}")
    return np.frombuffer(buffer, expected.dtype, expected.size, start).reshape(expected.shape)


def sample_hash(sample: Sample) -> str:
    """SHA-256 over the decoded arrays (name, dtype, shape, little-endian bytes) and the canonical metadata."""
    digest = hashlib.sha256()
    for name, array in sorted(sample.arrays.items()):
        stored = np.ascontiguousarray(array, dtype=_STORED[array.dtype.name])
        digest.update(files.canonical_json([name, array.dtype.name, array.shape]))
        digest.update(stored.data)
    # Of the decoded arrays, so that neither codec nor layout changes the identity of a sample.
    digest.update(files.canonical_json([sample.key, sample.split, sample.meta]))
    return digest.hexdigest()


# --- writing -------------------------------------------------------------------------------


def write_tar(
    path: Path, samples: Iterable[tuple[Sample, str]], *, codec: Codec, effort: Effort = "quick"
) -> tuple[Shard, list[Row]]:
    """Write (stored sample, hash of the decoded one) pairs as one tar, renamed into place when complete.

    Raises OutputError, and SourceError on a key or array that the format does not allow.
    """
    rows: list[Row] = []
    with files.replacing(path) as temporary, temporary.open("wb") as handle:
        tar = _Hashing(handle)
        for sample, digest in samples:
            rows.append({**_put(tar, sample, codec, effort), "shard": path.name, "sha256": digest})
        tar.write(b"\0" * 1024)
        tar.write(b"\0" * (-tar.at % tarfile.RECORDSIZE))
    return Shard(name=path.name, sha256=tar.digest.hexdigest(), samples=len(rows), bytes=tar.at), rows


class _Hashing:
    """A file being written, its position and the SHA-256 of what was meant: a disk that lies is found by `verify`."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.digest = hashlib.sha256()
        self.at = 0

    def write(self, content: bytes) -> None:
        self._handle.write(content)
        self.digest.update(content)
        self.at += len(content)


def _put(handle: _Hashing, sample: Sample, codec: Codec, effort: Effort) -> Row:
    """Append the members of one sample; the index row says where their contents lie."""
    if not KEY.fullmatch(sample.key):
        raise SourceError(f"sample key {sample.key!r}: expected 1 to 80 of the characters A-Z a-z 0-9 _ -")
    shapes = {name: {"dtype": a.dtype.name, "shape": list(a.shape)} for name, a in sample.arrays.items()}
    meta = {**sample.meta, "key": sample.key, "split": sample.split, "codec": codec, "arrays": shapes}
    contents = {f"{name}.{codec}": encode(array, codec, effort) for name, array in sample.arrays.items()}
    contents["meta.json"] = files.canonical_json(meta)
    if "labels" in sample.meta:
        labels = {name: sample.meta[name] for name in ("labels", "label_names") if name in sample.meta}
        contents["label.json"] = files.canonical_json(labels)
    west, south, east, north = sample.meta.get("bounds") or (None,) * 4
    row: Row = {"key": sample.key, "split": sample.split, "labels": sample.meta.get("labels", [])}
    row |= {"west": west, "south": south, "east": east, "north": north}
    # Null where the dataset tells none: a default would read as a fact.
    row |= {"crs": sample.meta.get("crs"), "date": sample.meta.get("date")}
    for name, content in sorted(contents.items()):
        member = name.partition(".")[0]
        behind = _shape_behind(sample.arrays[member]) if name.endswith(".blosc") else b""
        header = tarfile.TarInfo(f"{sample.key}.{name}")
        header.size = len(content) + len(behind)
        handle.write(header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        row |= {f"{member}_offset": handle.at, f"{member}_size": len(content)}
        row |= {f"{member}_{key}": value for key, value in shapes.get(member, {}).items()}
        handle.write(content + behind)
        handle.write(b"\0" * (-header.size % tarfile.BLOCKSIZE))
    return row


def shard_name(dataset: str, split: str, number: int) -> str:
    """`<dataset>-<split>-000000.tar`, for any dataset and split."""
    return file_names.file_name(f"{dataset}-{split}-{number:06d}") + ".tar"


def whole_images(sample: Sample) -> list[Array]:
    """The images of a sample on their common grid: one, or both dates of a pair. What statistics are made of."""
    return [sample.arrays[name] for name in ("image", "image_before", "image_after") if name in sample.arrays]


# --- the index -----------------------------------------------------------------------------


def write_index(path: Path, rows: Sequence[Row]) -> None:
    """One row a sample, its box a polygon for whoever reads GeoParquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, places = ("key", "split", "shard", "sha256", "crs", "date"), ("west", "south", "east", "north")
    kinds = dict.fromkeys(texts, pa.string()) | dict.fromkeys(places, pa.float64()) | {"labels": pa.list_(pa.int32())}
    endings = {"offset": pa.int64(), "size": pa.int64(), "dtype": pa.string(), "shape": pa.list_(pa.int32())}
    fields = [pa.field(name, kinds[name]) for name in ("key", "split", "shard")]
    members = sorted({name for row in rows for name in row} - set(kinds))
    fields += [pa.field(name, endings[name.rpartition("_")[2]]) for name in members]
    fields += [pa.field(name, kinds[name]) for name in ("labels", *places, "crs", "date", "sha256")]
    table = pa.table([pa.array([row.get(f.name) for row in rows], f.type) for f in fields], pa.schema(fields))
    # GeoParquet wants the column for all rows, and an empty one for none.
    boxes = [tuple(row[name] for name in places) for row in rows if row["west"] is not None]
    if boxes:
        outlines = [None if row["west"] is None else _wkb(*(row[name] for name in places)) for row in rows]
        table = table.append_column("geometry", pa.array(outlines, pa.binary()))
        table = table.replace_schema_metadata({"geo": _geo(boxes)})
    with files.replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _wkb(west: float, south: float, east: float, north: float) -> bytes:
    """A box as a counter-clockwise polygon in well-known binary (OGC 06-103r4, clause 8.2)."""
    ring = (west, south, east, south, east, north, west, north, west, south)
    return struct.pack("<BIII10d", 1, 3, 1, 5, *ring)


def _geo(boxes: Sequence[tuple[float, float, float, float]]) -> bytes:
    """The `geo` metadata of GeoParquet 1.1 for the column `geometry` in EPSG:4326."""
    from pyproj import CRS

    lows, highs = [min(side) for side in zip(*boxes, strict=True)], [max(side) for side in zip(*boxes, strict=True)]
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": CRS.from_epsg(4326).to_json_dict(),
        "orientation": "counterclockwise",
        "bbox": [*lows[:2], *highs[2:]],
    }
    document = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return files.canonical_json(document)


# --- reading -------------------------------------------------------------------------------


def read_index(folder: Path) -> Any:
    """The index of a folder of shards as a pyarrow.Table. Raises SourceError where it is missing or damaged."""
    path = files.existing(folder / files.INDEX, "the index of a folder written by 'sgdata shard'")
    table = parquet_tables.read(path, {"key": "text", "split": "text", "shard": "text", **_MEMBER})
    # Samples need not all have the same members: rows without one have nulls.
    parts = {name: kind for name in table.column_names for end, kind in _ENDINGS.items() if name.endswith(end)}
    parts |= {"labels": "counts"} if "labels" in table.column_names else {}
    parquet_tables.check(table, parts, str(path), complete=False)
    return table


def check_size(shape: Sequence[int], dtype: str, size: int) -> None:
    """Refuse an array that cannot be in a member of `size` bytes, before memory is taken for it.

    Raises:
        SourceError: The dtype is none of the format's, or the array has more bytes than compression could explain.
    """
    if dtype not in _STORED:
        raise SourceError(f"dtype {dtype!r:.40}: shards store {', '.join(_STORED)}")
    stored = math.prod(shape) * np.dtype(dtype).itemsize
    if min(shape, default=0) < 1 or stored > LARGEST_RATIO * size:
        raise SourceError(f"shape {tuple(shape)} of {dtype} cannot be in {size} bytes")


def samples(folder: Path, split: str | None = None) -> Iterator[Sample]:
    """Every sample of a split (of all where None), as stored, in index order. For inspection; training has its own."""
    for row in read_index(folder).to_pylist():
        if split in (None, row["split"]):
            yield read_sample(folder, row)


def read_sample(folder: Path, row: Row) -> Sample:
    """One sample as stored, by its index row. Raises SourceError where the bytes are damaged."""
    path = file_names.member(folder, row["shard"])

    def content(member: str) -> bytes:
        offset, size = row[f"{member}_offset"], row[f"{member}_size"]
        if offset + size > path.stat().st_size:  # before memory is taken for it
            raise ValueError(f"{member} is at bytes {offset} to {offset + size}, behind the end of the tar")
        handle.seek(offset)
        return handle.read(size)

    with path.open("rb") as handle:
        try:
            meta = files.parse_json(content("meta"))
            arrays = {}
            for name, held in meta["arrays"].items():
                stored = content(name)
                check_size(held["shape"], held["dtype"], len(stored))
                arrays[name] = decode(stored, held["shape"], held["dtype"], meta["codec"])
        except (ValueError, KeyError, TypeError, AttributeError, OSError, SourceError) as error:
            raise SourceError(f"{path}: sample '{row['key']}' is damaged: {error}; run sgdata verify") from None
    own = {key: value for key, value in meta.items() if key not in ("key", "split", "codec", "arrays")}
    return Sample(key=row["key"], split=row["split"], arrays=arrays, meta=own)
