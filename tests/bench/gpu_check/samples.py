"""Synthetic samples in shards of the product's format, opened without the libraries that the index needs."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gpu_check.trainings import SPLIT
from sgdata import sentinel2
from sgdata.shards import shard_index, tar_format
from sgdata.types import CONTRACT_FORMAT, BandStatistics, Codec, Contract, LabelSpace, Sample, Task
from sgmodel.data import loader, member_layout, tar_source

CLASSES = {"none": 0, "multi-label": 19, "segmentation": 13, "change": 2}
MEMBERS = {"change": ("image_before", "image_after", "mask"), "segmentation": ("image", "mask")}
# Of the samples below, about; nothing is normalised by them.
_STATISTICS = BandStatistics(
    count=1, mean=2200.0, std=1040.0, min=300.0, max=4100.0, p1=400.0, p2=440.0, p50=2200.0, p98=3960.0, p99=4000.0
)


class MemoryIndexed(loader.Samples):
    """Shards written in this process: tars are read as ever, the index is the writer's rows instead of a file."""

    def __init__(self, folder: Path, contract: Contract, rows: Sequence[shard_index.Row], codec: Codec):
        # Not the constructor of Samples, which needs pyarrow for the index and pydantic for the contract.
        self.folder, self.split, self.contract, self.codec = folder, SPLIT, contract, codec
        self.keys = [row["key"] for row in rows]
        self.shard = [row["shard"] for row in rows]
        members = MEMBERS.get(contract.label_space.task, ("image",))
        self.members = {name: _member(rows, name) for name in members}
        self.tars = tar_source.LocalTars(folder, sorted(set(self.shard)))
        self.verify, self._verified = "first", {name: bytearray(len(rows)) for name in members}


def _member(rows: Sequence[shard_index.Row], name: str) -> member_layout.MemberLayout:
    stored = np.array([row[f"{name}_dtype"] for row in rows])
    return member_layout.MemberLayout(
        start=[row[f"{name}_offset"] for row in rows],
        size=[row[f"{name}_size"] for row in rows],
        shape=np.array([row[f"{name}_shape"] for row in rows], np.int64),
        stored=stored,
        dtype=str(stored[0]),
    )


def write(folder: Path, task: Task, *, count: int, px: int) -> MemoryIndexed:
    """Write `count` samples of `px` pixels for `task` into `folder` and open them. Raises OutputError.

    Members are compressed as in any shard where imagecodecs is installed, else stored as `.npy`.
    """
    codec: Codec = "blosc" if importlib.util.find_spec("imagecodecs") else "npy"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / tar_format.shard_name("gpu-check", SPLIT, 0)
    rows: list[shard_index.Row] = []
    # Not `tar_format.write_tar`, which needs webdataset.
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in _samples(task, count, px):
            contents, row = tar_format.encode_sample(sample, tar.offset, codec=codec)
            for name, content in contents.items():
                header = tarfile.TarInfo(f"{sample.key}.{name}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
            rows.append({**row, "shard": path.name})
    return MemoryIndexed(folder, _contract(task, count, px), rows, codec)


def _samples(task: Task, count: int, px: int) -> Iterator[Sample]:
    for number in range(count):
        rng = np.random.default_rng([number, px])
        mask = rng.integers(0, max(CLASSES[task], 1), (px // 8, px // 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        arrays = {name: mask if name == "mask" else _image(rng, px) for name in MEMBERS.get(task, ("image",))}
        yield Sample(key=f"sample-{number:05d}", split=SPLIT, arrays=arrays, meta={"bounds": None})


def _image(rng: np.random.Generator, px: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """Return 12 bands of 8 px blocks with noise: compressible about as real reflectances are."""
    blocks = rng.integers(400, 4000, (12, px // 8, px // 8)).repeat(8, 1).repeat(8, 2)
    return (blocks + rng.integers(-100, 100, (12, px, px))).astype(np.uint16)


def _contract(task: Task, count: int, px: int) -> Contract:
    ids = tuple(range(CLASSES[task]))
    return Contract(
        format=CONTRACT_FORMAT,
        dataset="gpu-check",
        version="1",
        bands=sentinel2.bands(sentinel2.L2A_BANDS),
        level="L2A",
        scale=1e-4,
        offset=0.0,
        nodata=0,
        resampling="none",
        resampling_version=1,
        shape=(12, px, px),
        label_space=LabelSpace(
            name="gpu-check",
            task=task,
            ids=ids,
            names=tuple(f"class {label}" for label in ids),
            colours=("#808080",) * len(ids),
        ),
        statistics=dict.fromkeys(sentinel2.L2A_BANDS, _STATISTICS),
        splits={SPLIT: count},
        fingerprint="",
    )
