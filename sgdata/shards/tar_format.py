"""Write and read samples as deterministic WebDataset tars with a sidecar index for random access.

A sample `KEY` is a run of tar members: `KEY.<array>.<codec>` for each array (`image`, `mask`, `image_before`,
`image_10m`, ...), `KEY.label.json` if it has labels, and `KEY.meta.json`. Codec `blosc` is one Blosc1 chunk of the
little-endian C-ordered bytes (lz4 after bitshuffle, or lz4hc after shuffle if `effort` is "dense"; fixed block size).
Shape and dtype are in `meta.json`, in the index and in a trailer after the chunk, whose length its own header gives:
so a member can be decoded alone (`decode_member`). Codec `npy` is NumPy's format 1.0. The index has the CRC-32 of each
member, trailer included, which readers compare. Headers are ustar, members
sorted, with mode 0644, mtime 0, no user and no group, so equal samples give equal tars.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from sgdata import files, output_names, parquet_tables, safe_names
from sgdata.errors import SourceError
from sgdata.types import Array, Codec, Effort, Sample, Shard

Row = dict[str, Any]

IMAGES = ("image", "image_before", "image_after", "image_10m")
FORMAT = 1
STORED = {"uint8": "|u1", "uint16": "<u2", "float32": "<f4", "int32": "<i4"}
LARGEST_RATIO = 1024
"""Bytes of an array per byte of its member: lz4 reaches 255, and bitshuffle adds nothing to that."""
_COMPLETE: dict[str, parquet_tables.ColumnKind] = {
    **dict.fromkeys(("key", "split", "shard", "sha256"), "text"),
    **dict.fromkeys(("meta_offset", "meta_size"), "count"),
}
_OPTIONAL: dict[str, parquet_tables.ColumnKind] = {
    **dict.fromkeys(("west", "south", "east", "north"), "number"), "crs": "text", "date": "text", "labels": "counts",
}  # fmt: skip
_LARGEST_TAR = 2**50
_ENDINGS: dict[str, parquet_tables.ColumnKind] = {
    "_offset": "count", "_size": "count", "_dtype": "text", "_shape": "counts", "_crc32": "count",
}  # fmt: skip

# Fits the first-level cache of common processors; 16 to 128 KiB differ by less than 1 % in bytes and speed.
_BLOCK_BYTES = 32_768
_BLOSC = struct.Struct("<4xI4xI")  # nbytes and cbytes of a Blosc1 header


# --- arrays <-> bytes ----------------------------------------------------------------------


def encode(array: Array, codec: Codec, effort: Effort = "quick") -> bytes:
    """Return an array as the content of a tar member.

    Args:
        array: Array of uint8, uint16, float32 or int32.
        codec: `blosc` or `npy`.
        effort: `quick` or `dense` (smaller, slower to write); any Blosc1 reader decodes both. Ignored by `npy`.

    Raises:
        SourceError: The format does not store the dtype.
    """
    if array.dtype.name not in STORED:
        raise SourceError(f"array of dtype {array.dtype}: shards store {', '.join(STORED)}")
    stored = np.ascontiguousarray(array, dtype=STORED[array.dtype.name])
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
        target: Array = np.empty(tuple(shape), STORED[dtype]) if out is None else out
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


def decode_member(key: str, data: bytes) -> Array | None:
    """Return the array in a member named `*.blosc`; a handler for WebDataset's `.decode(...)`.

    Args:
        key: Name of the member.
        data: Content of the member, with the trailer.

    Returns:
        The array, or None for a member of another suffix, which WebDataset then passes to its next handler.

    Raises:
        SourceError: The content is damaged.
    """
    if not key.endswith(".blosc"):
        return None
    try:
        (size,) = struct.unpack_from("<I", data, 12)  # cbytes of the Blosc1 header
        axes = data[-1]
        shape = struct.unpack_from(f"<{axes}I", data, size)
        dtype = data[size + 4 * axes : -1].decode("ascii")
        name = {stored: name for name, stored in STORED.items()}[dtype]
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise SourceError(f"member {key}: no shape after the chunk in its {len(data)} bytes: {error!r}") from None
    if math.prod(shape) * np.dtype(dtype).itemsize != struct.unpack_from("<I", data, 4)[0]:
        raise SourceError(f"member {key}: its chunk does not hold {dtype} {shape}; run sgdata verify")
    return decode(data[:size], shape, name, "blosc")


def _trailer(array: Array) -> bytes:
    """Return shape and dtype for `decode_member`: sizes as uint32, three letters of dtype, number of sizes."""
    return struct.pack(f"<{array.ndim}I3sB", *array.shape, STORED[array.dtype.name].encode(), array.ndim)


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


def _from_npy(buffer: bytes | memoryview, expected: Array) -> Array:
    """Return the array in NumPy's format 1.0. Raises ValueError if its header is not that of `expected`."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(expected))
    start = header.tell()
    # Compared, not parsed: NumPy's parser evaluates text and raises many kinds of errors if it is damaged.
    if bytes(buffer[:start]) != header.getvalue():
        raise ValueError(f"begins with {bytes(buffer[:start])!r:.120}")
    return np.frombuffer(buffer, expected.dtype, expected.size, start).reshape(expected.shape)


# --- writing -------------------------------------------------------------------------------


def write_tar(
    path: Path, samples: Iterable[tuple[Sample, str]], *, codec: Codec, effort: Effort = "quick"
) -> tuple[Shard, list[Row]]:
    """Write samples as one tar, renamed into place when complete.

    Args:
        path: The tar.
        samples: Pairs of a sample as stored and the hash of the decoded sample (`sample_hash`).
        codec: Codec of the arrays.
        effort: `quick` or `dense` compression.

    Returns:
        Name, hash and size of the tar, and one index row per sample.

    Raises:
        SourceError: The format does not allow a key or an array.
        OutputError: The tar cannot be written.
    """
    # Not at the top: webdataset imports torch if installed, which takes 1.2 s of processor time and 220 MB in each
    # process that packs. Without torch it is 0.15 s and 36 MB.
    from webdataset import TarWriter

    rows: list[Row] = []
    with files.replacing(path) as temporary, temporary.open("wb") as handle:
        sink = _HashingSink(handle)
        with TarWriter(sink, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
            for sample, digest in samples:
                contents, row = encode_sample(sample, tar.tarstream.offset, codec=codec, effort=effort)
                tar.write({"__key__": sample.key, **contents})
                rows.append({**row, "shard": path.name, "sha256": digest})
    return Shard(name=path.name, sha256=sink.digest.hexdigest(), samples=len(rows), bytes=sink.size), rows


class _HashingSink:
    """Binary file to write to, with size and SHA-256 of the bytes passed: `verify` then finds faults of the disk."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes) -> None:
        self._handle.write(content)
        self.digest.update(content)
        self.size += len(content)


def encode_sample(
    sample: Sample, start: int, *, codec: Codec, effort: Effort = "quick"
) -> tuple[dict[str, bytes], Row]:
    """Encode a sample as tar members.

    Args:
        sample: Sample as stored.
        start: Position of its first header in the tar, in bytes.
        codec: Codec of the arrays.
        effort: `quick` or `dense` compression.

    Returns:
        Contents by name of the member without the key, in the order in the tar, and the index row with the position of
        each content, without `shard` and `sha256`.

    Raises:
        SourceError: The format does not allow the key or an array.
    """
    if not safe_names.KEY.fullmatch(sample.key):
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
    # Null if the dataset has none: a default would read as a fact.
    row |= {"crs": sample.meta.get("crs"), "date": sample.meta.get("date")}
    row |= {name: sample.meta[name] for name in ("budgets", "place") if name in sample.meta}
    for name, content in sorted(contents.items()):
        member = name.partition(".")[0]
        start += tarfile.BLOCKSIZE  # the header
        row |= {f"{member}_offset": start, f"{member}_size": len(content)}
        row |= {f"{member}_{key}": value for key, value in shapes.get(member, {}).items()}
        if name.endswith(".blosc"):
            contents[name] += _trailer(sample.arrays[member])
        row[f"{member}_crc32"] = crc32(contents[name])
        start += len(contents[name]) + -len(contents[name]) % tarfile.BLOCKSIZE
    return dict(sorted(contents.items())), row


def shard_name(dataset: str, split: str, number: int) -> str:
    """Return the name of a tar, `<dataset>-<split>-000000.tar`, for any dataset and split."""
    return safe_names.file_name(f"{dataset}-{split}-{number:06d}") + ".tar"


def whole_images(sample: Sample) -> list[Array]:
    """Return the images of a sample on the common grid, for statistics: one, or both dates of a pair."""
    return [sample.arrays[name] for name in ("image", "image_before", "image_after") if name in sample.arrays]


# --- reading -------------------------------------------------------------------------------


def read_index(folder: Path) -> Any:
    """Read the index of a folder of shards.

    Args:
        folder: Folder of shards.

    Returns:
        A `pyarrow.Table` with one row per sample: key, split, tar, position, size, dtype and shape of each member,
        labels, bounding box (degrees), CRS, date and hash.

    Raises:
        SourceError: The folder is unfinished, or the index is missing or damaged.
    """
    path = files.require_file(folder / output_names.INDEX, "the index of a folder written by 'sgdata shard'")
    files.require_finished(folder)
    table = parquet_tables.read(path, _COMPLETE)
    # Samples need not all have the same members: rows without one have nulls.
    # Of samples without a label budget, as of shards that were split by hand, and of a single place.
    extra: dict[str, parquet_tables.ColumnKind] = {"budgets": "texts", "place": "text"}
    extra = {name: kind for name, kind in extra.items() if name in table.column_names}
    parts = {name: kind for name in table.column_names for end, kind in _ENDINGS.items() if name.endswith(end)}
    parquet_tables.check(table, _OPTIONAL | extra | parts, str(path), complete=False)
    keys = table["key"].to_pylist()
    if strange := next((key for key in keys if not safe_names.KEY.fullmatch(key)), ""):
        raise SourceError(f"{path}: key {strange!r:.90} cannot be that of a sample; pack again")
    if len(set(keys)) < len(keys):
        raise SourceError(f"{path}: {len(keys) - len(set(keys))} keys occur twice, expected each once; pack again")
    for name in sorted(part.removesuffix("_offset") for part in parts if part.endswith("_offset")):
        _check_member(table, name, folder, str(path))
    return table


def _check_member(table: Any, name: str, folder: Path, origin: str) -> None:
    """Check positions, types and shapes of one member of all samples. Raises SourceError."""
    import pyarrow.compute as pc

    columns = [f"{name}{end}" for end in _ENDINGS if f"{name}{end}" in table.column_names]
    absent = [table[column].is_null() for column in columns]
    described = {f"{name}_shape", f"{name}_dtype"} & set(columns)
    if f"{name}_size" not in columns or len(described) == 1 or any(not mask.equals(absent[0]) for mask in absent):
        raise SourceError(f"{origin}: some samples have a part of {', '.join(columns)} only; pack again")
    rows = table.select(["shard", *columns]).drop_null()
    if not len(rows):
        return
    offset, size = (rows[f"{name}_{part}"] for part in ("offset", "size"))
    if max(pc.max(offset).as_py(), pc.max(size).as_py()) > _LARGEST_TAR:
        raise SourceError(f"{origin}: '{name}' is at byte {pc.max(offset)}, of {pc.max(size)} bytes; pack again")
    ends = (
        rows.select(["shard"]).append_column("end", pc.add(offset, size)).group_by("shard").aggregate([("end", "max")])
    )
    for shard, end in zip(ends["shard"].to_pylist(), ends["end_max"].to_pylist(), strict=True):
        tar = folder / shard
        # A tar that is elsewhere or missing is reported where it is opened.
        if safe_names.is_safe(shard) and tar.is_file() and end > tar.stat().st_size:
            raise SourceError(f"{tar}: has {tar.stat().st_size} bytes, '{name}' ends at {end}; run sgdata verify")
    if not described:
        return
    axes = pc.list_value_length(rows[f"{name}_shape"]).to_numpy()
    types = rows[f"{name}_dtype"].to_pylist()
    unknown = set(types) - STORED.keys()
    if unknown or axes.min() < 1:
        raise SourceError(f"{origin}: '{name}' has type {min(unknown, default='none')!r:.40} or no axis; pack again")
    sides = pc.list_flatten(rows[f"{name}_shape"]).to_numpy().astype(float)
    bytes_ = np.multiply.reduceat(sides, np.cumsum(axes) - axes) * [np.dtype(of).itemsize for of in types]
    if sides.min() < 1 or (bytes_ > LARGEST_RATIO * size.to_numpy()).any():
        raise SourceError(f"{origin}: '{name}' has shapes that cannot be in its bytes; pack again")


def check_size(shape: Sequence[int], dtype: str, size: int) -> None:
    """Refuse an array that cannot be in a member of `size` bytes, before memory is taken for it.

    Raises:
        SourceError: Unsupported dtype, or an array with more bytes than compression could explain.
    """
    if dtype not in STORED:
        raise SourceError(f"dtype {dtype!r:.40}: shards store {', '.join(STORED)}")
    stored = math.prod(shape) * np.dtype(dtype).itemsize
    if min(shape, default=0) < 1 or stored > LARGEST_RATIO * size:
        raise SourceError(f"shape {tuple(shape)} of {dtype} cannot be in {size} bytes")


def samples(folder: Path, split: str | None = None) -> Iterator[Sample]:
    """Read samples one by one, for inspection; `sgmodel.data.loader` is the loader for training.

    Args:
        folder: Folder of shards.
        split: Name of the split; default all.

    Yields:
        Samples as stored, in the order of the index.

    Raises:
        SourceError: The index or a sample is missing or damaged.
    """
    for row in read_index(folder).to_pylist():
        if split in (None, row["split"]):
            yield read_sample(folder, row)


def read_sample(folder: Path, row: Row) -> Sample:
    """Read one sample as stored.

    Args:
        folder: Folder of shards.
        row: Its row of the index.

    Returns:
        The sample, with its arrays by name and its metadata.

    Raises:
        SourceError: The tar is missing or the sample is damaged.
    """
    path = safe_names.member(folder, row["shard"])

    def content(member: str, trailer: int = 0) -> bytes:
        offset, size = row[f"{member}_offset"], row[f"{member}_size"]
        if offset + size > path.stat().st_size:  # before memory is taken for it
            raise ValueError(f"{member} is at bytes {offset} to {offset + size}, beyond the end of the tar")
        handle.seek(offset)
        stored = handle.read(size + trailer)
        check_crc32(stored, row.get(f"{member}_crc32"), member)
        return stored[:size]

    with path.open("rb") as handle:
        try:
            meta = files.parse_json(content("meta"))
            arrays = {}
            for name, array in meta["arrays"].items():
                stored = content(name, trailer_bytes(meta["codec"], len(array["shape"])))
                check_size(array["shape"], array["dtype"], len(stored))
                arrays[name] = decode(stored, array["shape"], array["dtype"], meta["codec"])
        except (ValueError, KeyError, TypeError, AttributeError, OSError, SourceError) as error:
            raise SourceError(f"{path}: sample '{row['key']}' is damaged: {error}; run sgdata verify") from None
    own = {key: value for key, value in meta.items() if key not in ("key", "split", "codec", "arrays")}
    return Sample(key=row["key"], split=row["split"], arrays=arrays, meta=own)
