"""Test that flipped bits in members of shards are found, locally and over HTTP, on the first read or on every one."""

from __future__ import annotations

import logging
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import served
from synthetic_shards import contract, sample, write

from sgdata import files, output_names
from sgdata.errors import SourceError
from sgdata.shards import shard_index, tar_format, write_shards
from sgdata.types import Codec
from sgmodel.data import loader, tar_source

TRIALS = 200
TAR = "toy-train-000000.tar"


def flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as handle:
        handle.seek(at)
        (old,) = handle.read(1)
        handle.seek(at)
        handle.write(bytes([old ^ (1 << bit)]))


def member_bytes(folder: Path, row: shard_index.Row, name: str) -> range:
    """Return the positions of a whole member in its tar, by the header before it."""
    start = row[f"{name}_offset"]
    header = (folder / row["shard"]).read_bytes()[start - 512 : start]
    return range(start, start + int(header[124:135], 8))


@contextmanager
def local(folder: Path, cache: Path) -> Iterator[Path]:
    yield folder


@contextmanager
def by_http(folder: Path, cache: Path) -> Iterator[Path]:
    with served.serving(folder) as server:
        yield tar_source.mirror(server.url, cache, cache_gb=0.1)


@pytest.mark.parametrize("codec", ["blosc", "npy"])
@pytest.mark.parametrize("way", [local, by_http])
def test_every_flipped_bit_is_found(way: Callable[..., Iterator[Path]], codec: Codec, tmp_path: Path) -> None:
    """Flip one bit at a random place of each of 200 images, trailers of the members included."""
    folder, rng = tmp_path / "shards", random.Random(5)
    write_shards.write([sample(n, "train", 8, 8) for n in range(TRIALS + 1)], folder, contract=contract(8), codec=codec)
    rows = shard_index.read_index(folder).to_pylist()
    assert len(member_bytes(folder, rows[1], "image")) == rows[1]["image_size"] + (16 if codec == "blosc" else 0)
    for row in rows[1:]:
        flip(folder / TAR, rng.choice(member_bytes(folder, row, "image")), rng.randrange(8))
    found = 0
    with way(folder, tmp_path / "cache") as place:  # type: ignore[attr-defined]
        source = loader.Samples(place, "train", ("image", "mask"))
        source.read(0, "image")
        # All members in one request, from which the reads below are answered.
        starts = [(m.start[n], m.size[n] + m.trailer) for m in source.members.values() for n in range(len(source))]
        source.tars.contents([tar_source.Span(TAR, start, start + size) for start, size in starts])
        for number in range(1, TRIALS + 1):
            source.read(number, "mask")
            with pytest.raises(SourceError, match=f"{TAR}: sample '{source.keys[number]}': member image: CRC-32"):
                source.read(number, "image")
            found += 1
    assert found == TRIALS
    with pytest.raises(SourceError, match="sample 'toy-00007' is damaged: member image: CRC-32"):
        tar_format.read_sample(folder, rows[7])


def test_labels_and_metadata_are_checked_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards")
    (row, *_) = shard_index.read_index(folder).to_pylist()
    flip(folder / TAR, member_bytes(folder, row, "mask")[9])
    with pytest.raises(SourceError, match="member mask: CRC-32"):
        loader.Samples(folder, "train", ("mask",)).read(0, "mask")
    flip(folder / TAR, (folder / TAR).read_bytes().index(b'"blosc"', row["meta_offset"]) + 1)
    with pytest.raises(SourceError, match="member meta: CRC-32"):
        loader.Samples(folder, "train", ("image",))


def test_later_reads_are_checked_only_if_asked(tmp_path: Path) -> None:
    """Damage that comes after the first read is found by `always`, and by any other process."""
    folder = write(tmp_path / "shards")
    once, always = (loader.Samples(folder, "train", ("mask",), verify=when) for when in ("first", "always"))  # type: ignore[arg-type]
    for source in (once, always):
        source.read(2, "mask")
    row = shard_index.read_index(folder).to_pylist()[2]
    flip(folder / TAR, member_bytes(folder, row, "mask")[-1])  # in the trailer: the pixels stay as they are
    once.read(2, "mask")
    for source in (always, pickle.loads(pickle.dumps(once))):
        with pytest.raises(SourceError, match="member mask: CRC-32"):
            source.read(2, "mask")


def test_shards_without_checksums_are_read_with_a_remark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "shards")
    table = pq.read_table(folder / output_names.INDEX)
    pq.write_table(
        table.drop_columns([name for name in table.column_names if name.endswith("_crc32")]),
        folder / output_names.INDEX,
    )
    files.write_sums(folder)
    with caplog.at_level(logging.WARNING, "sgdata"):
        image = loader.Samples(folder, "train", ("image",)).read(1, "image")
    assert "without checksums of members" in caplog.text
    assert (image == tar_format.read_sample(folder, table.to_pylist()[1]).arrays["image"]).all()
