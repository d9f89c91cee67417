"""Write and read samples as deterministic WebDataset tars.

A sample `KEY` is a run of tar members: `KEY.<array>.<codec>` for each array (`image`, `mask`, `image_before`,
`image_10m`, ...), `KEY.label.json` if it has labels, and `KEY.meta.json`. Codecs are those of `array_codec`. Shape and
dtype are in `meta.json`, in the index (`shard_index`) and in a trailer after a Blosc chunk, whose length its own header
gives: so a member can be decoded alone (`decode_member`). The index has the CRC-32 of each member, trailer included,
which readers compare. Headers are ustar, members sorted, with mode 0644, mtime 0, no user and no group, so equal
samples give equal tars.
"""

from __future__ import annotations

import math
import struct
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sgdata import files, safe_names
from sgdata.errors import SourceError
from sgdata.shards import array_codec, hashed_tar, shard_index
from sgdata.types import Array, Codec, Effort, Sample, Shard

IMAGES = ("image", "image_before", "image_after", "image_10m")
FORMAT = 1
_SAMPLES_BEHIND = 4  # in memory while the next one is read

# --- members ---------------------------------------------------------------------------------


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
        name = {stored: name for name, stored in array_codec.STORED_DTYPES.items()}[dtype]
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise SourceError(
            f"member {key}: no shape after the chunk in its {len(data)} bytes: {error!r}; run sgdata verify"
        ) from None
    if math.prod(shape) * np.dtype(dtype).itemsize != struct.unpack_from("<I", data, 4)[0]:
        raise SourceError(f"member {key}: its chunk does not hold {dtype} {shape}; run sgdata verify")
    return array_codec.decode(data[:size], shape, name, "blosc")


# --- writing -------------------------------------------------------------------------------


def write_tar(
    path: Path, samples: Iterable[tuple[Sample, str | None]], *, codec: Codec, effort: Effort = "quick"
) -> tuple[Shard, list[shard_index.Row]]:
    """Write samples as one tar, renamed into place when complete.

    Args:
        path: The tar.
        samples: Pairs of a sample as stored and the hash of the decoded sample (`sample_hash`), or None without.
        codec: Codec of the arrays.
        effort: `quick` or `dense` compression.

    Returns:
        Name, hash and size of the tar, and one index row per sample.

    Raises:
        SourceError: The format does not allow a key or an array.
        OutputError: The tar cannot be written.
    """
    rows: list[shard_index.Row] = []
    with files.replacing(path) as temporary, temporary.open("wb") as handle:
        tar = hashed_tar.HashedTar(handle)

        def append(sample: Sample, digest: str | None) -> None:
            contents, row = encode_sample(sample, tar.size, codec=codec, effort=effort)
            tar.add(sample.key, contents)
            rows.append({**row, "shard": path.name} | ({shard_index.HASH: digest} if digest else {}))

        # One thread, in order: it compresses, hashes and writes, mostly without the GIL, while the next sample is read.
        with ThreadPoolExecutor(1) as executor:
            pending: deque[Future[None]] = deque()
            for sample, digest in samples:
                pending.append(executor.submit(append, sample, digest))
                if len(pending) > _SAMPLES_BEHIND:
                    pending.popleft().result()
            for unfinished in pending:
                unfinished.result()
        tar.close()
    return Shard(name=path.name, sha256=tar.sha256, samples=len(rows), bytes=tar.size), rows


def encode_sample(
    sample: Sample, start: int, *, codec: Codec, effort: Effort = "quick"
) -> tuple[dict[str, bytes], shard_index.Row]:
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
    shapes = {
        name: {"dtype": array_codec.dtype_name(a.dtype), "shape": list(a.shape)} for name, a in sample.arrays.items()
    }
    meta = {**sample.meta, "key": sample.key, "split": sample.split, "codec": codec, "arrays": shapes}
    contents = {f"{name}.{codec}": array_codec.encode(array, codec, effort) for name, array in sample.arrays.items()}
    contents["meta.json"] = files.canonical_json(meta)
    if "labels" in sample.meta:
        labels = {name: sample.meta[name] for name in ("labels", "label_names") if name in sample.meta}
        contents["label.json"] = files.canonical_json(labels)
    west, south, east, north = sample.meta.get("bounds") or (None,) * 4
    row: shard_index.Row = {"key": sample.key, "split": sample.split, "labels": sample.meta.get("labels", [])}
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
            contents[name] += array_codec.trailer(sample.arrays[member])
        row[f"{member}_crc32"] = array_codec.crc32(contents[name])
        start += len(contents[name]) + -len(contents[name]) % tarfile.BLOCKSIZE
    return dict(sorted(contents.items())), row


def shard_name(dataset: str, split: str, number: int) -> str:
    """Return the name of a tar, `<dataset>-<split>-000000.tar`, for any dataset and split."""
    return safe_names.file_name(f"{dataset}-{split}-{number:06d}") + ".tar"


def whole_images(sample: Sample) -> list[Array]:
    """Return the images of a sample on the common grid, for statistics: one, or both dates of a pair."""
    return [sample.arrays[name] for name in ("image", "image_before", "image_after") if name in sample.arrays]


# --- reading -------------------------------------------------------------------------------


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
    for row in shard_index.read_index(folder).to_pylist():
        if split in (None, row["split"]):
            yield read_sample(folder, row)


def read_sample(folder: Path, row: shard_index.Row) -> Sample:
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
        array_codec.check_crc32(stored, row.get(f"{member}_crc32"), member)
        return stored[:size]

    with path.open("rb") as handle:
        try:
            meta = files.parse_json(content("meta"))
            arrays = {}
            for name, array in meta["arrays"].items():
                stored = content(name, array_codec.trailer_bytes(meta["codec"], len(array["shape"])))
                array_codec.check_size(array["shape"], array["dtype"], len(stored))
                arrays[name] = array_codec.decode(stored, array["shape"], array["dtype"], meta["codec"])
        except (ValueError, KeyError, TypeError, AttributeError, OSError, SourceError) as error:
            raise SourceError(f"{path}: sample '{row['key']}' is damaged: {error}; run sgdata verify") from None
    extra_meta = {key: value for key, value in meta.items() if key not in ("key", "split", "codec", "arrays")}
    return Sample(key=row["key"], split=row["split"], arrays=arrays, meta=extra_meta)
