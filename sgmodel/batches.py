"""Shards to batches: memory-mapped tars, the index for random access, threads decoding into reused buffers.

Samples flow as one endless stream: epoch 0 in its order, then epoch 1 in its own, and so on. Step s of a run
takes places [s B, (s + 1) B) of the stream, so the step alone says where a run stands, no sample is dropped,
and a data set smaller than a batch needs no special case. Values stay as stored until the device.
"""

from __future__ import annotations

import itertools
import json
import mmap
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdata import contracts, shards
from sgdata.errors import SettingError, SourceError
from sgdata.types import Array, Contract
from sgmodel import draws, lattice

AHEAD = 2
"""Batches decoded while one is in use."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples on the host. `arrays` are (N, ...) as stored, padded at the end to the largest of the batch;
    `extent` (N, 2) is the real height and width; `samples` and `epoch` (N,) int64 seed every draw.

    The arrays are views of a buffer that is filled anew once the next batch has been asked for.
    """

    keys: tuple[str, ...]
    samples: Tensor
    epoch: Tensor
    extent: Tensor
    arrays: dict[str, Tensor]

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in `count` nearly equal parts (fewer where it has fewer samples)."""
        bounds = np.linspace(0, len(self.keys), min(count, len(self.keys)) + 1).astype(int)
        for start, stop in itertools.pairwise(bounds):
            cut = slice(int(start), int(stop))
            yield Batch(
                keys=self.keys[cut],
                samples=self.samples[cut],
                epoch=self.epoch[cut],
                extent=self.extent[cut],
                arrays={name: array[cut] for name, array in self.arrays.items()},
            )


# --- which samples: pure -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Places:
    """One batch of the stream: sample numbers and the epoch of each, (N,) int64."""

    samples: NDArray[np.int64]
    epoch: NDArray[np.int64]


def stream(count: int, batch: int, *, seed: int, first: int, last: int) -> Iterator[Places]:
    """The global batches of steps [first, last) over `count` samples: a pure function of the arguments."""
    epoch, order = -1, np.empty(0, np.int64)
    for step in range(first, last):
        places = np.arange(step * batch, (step + 1) * batch)
        samples = np.empty(batch, np.int64)
        for wanted in np.unique(places // count):
            if wanted != epoch:
                epoch, order = int(wanted), draws.order(count, seed=seed, epoch=int(wanted))
            here = places // count == wanted
            samples[here] = order[places[here] % count]
        yield Places(samples=samples, epoch=places // count)


def in_order(count: int, batch: int) -> Iterator[Places]:
    """Every sample once, in the index's order; the last batch may be smaller."""
    for start in range(0, count, batch):
        samples = np.arange(start, min(start + batch, count))
        yield Places(samples=samples, epoch=np.zeros_like(samples))


def share(places: Places, *, rank: int, world: int) -> Places:
    """The part of a global batch that one of `world` equal ranks takes. Raises SettingError."""
    if len(places.samples) % world:
        raise SettingError(f"batch {len(places.samples)} does not divide among {world} processes; change batch")
    size = len(places.samples) // world
    cut = slice(rank * size, (rank + 1) * size)
    return Places(samples=places.samples[cut], epoch=places.epoch[cut])


# --- reading -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Member:
    """Where one array of every sample lies, (N,) each, and what it is."""

    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    shape: list[tuple[int, ...]]
    dtype: str


class Samples:
    """One split of a folder of shards, opened for random access by sample number (the index's order)."""

    def __init__(self, folder: Path, split: str, members: Sequence[str]) -> None:
        """Raises SettingError, SourceError: no such split, arrays of mixed types, a shard missing or cut short."""
        self.folder, self.split = folder, split
        self.contract: Contract = contracts.read(folder)
        table = shards.read_index(folder)
        known = sorted(set(table["split"].to_pylist()))
        if split not in known:
            raise SettingError(f"{folder}: no split '{split}'; it has {', '.join(known)}")
        rows = table.filter(np.array(table["split"].to_pylist()) == split)
        self.keys: list[str] = rows["key"].to_pylist()
        self.shard: list[str] = rows["shard"].to_pylist()
        stored = {name.removesuffix("_offset") for name in rows.column_names if name.endswith("_offset")}
        # A native image lies in groups of bands; the finest first, whose size is that of the sample.
        groups = [name for name in lattice.GROUPS if name in stored and "image" not in stored]
        wanted = [part for name in members for part in (groups if name == "image" and groups else [name])]
        self.members = {name: _member(rows, name, folder) for name in wanted}
        self.tars = {name: _map(folder / name) for name in sorted(set(self.shard))}
        self.codec = self._codec(rows)

    def _codec(self, rows: Any) -> shards.Codec:
        """All samples of a folder have the codec of its first."""
        start, size = rows["meta_offset"][0].as_py(), rows["meta_size"][0].as_py()
        try:
            codec: shards.Codec = json.loads(self.tars[self.shard[0]][start : start + size])["codec"]
        except (ValueError, KeyError) as error:
            where = f"{self.folder / self.shard[0]}: meta.json of sample '{self.keys[0]}'"
            raise SourceError(f"{where} is damaged: {error!r}; run sgdata verify {self.folder}") from None
        return codec

    def __len__(self) -> int:
        return len(self.keys)

    def extent(self, sample: int) -> tuple[int, int]:
        """Height and width of a sample's first array."""
        return next(iter(self.members.values())).shape[sample][-2:]  # type: ignore[return-value]

    def read(self, sample: int, name: str, out: Array | None = None) -> Array:
        """One array of a sample, into the C-contiguous `out` if given. Raises SourceError naming the sample."""
        member, tar = self.members[name], self.tars[self.shard[sample]]
        start, size = int(member.offset[sample]), int(member.size[sample])
        with memoryview(tar) as view, view[start : start + size] as content:
            try:
                return shards.decode(content, member.shape[sample], member.dtype, self.codec, out=out)
            except SourceError as error:
                where = f"{self.folder / self.shard[sample]}: sample '{self.keys[sample]}'"
                raise SourceError(f"{where}: {error}; run sgdata verify {self.folder}") from None


def _member(rows: Any, name: str, folder: Path) -> Member:
    columns = set(rows.column_names)
    if f"{name}_offset" not in columns:
        has = sorted(c.removesuffix("_offset") for c in columns if c.endswith("_offset"))
        raise SettingError(f"{folder}: samples have no '{name}'; they have {', '.join(has)}")
    column = {part: rows[f"{name}_{part}"] for part in ("offset", "size", "shape", "dtype")}
    dtypes = sorted(set(column["dtype"].to_pylist()))
    if len(dtypes) != 1:
        raise SettingError(f"{folder}: '{name}' has types {dtypes}, expected one in all samples")
    return Member(
        offset=column["offset"].to_numpy(),
        size=column["size"].to_numpy(),
        shape=[tuple(shape) for shape in column["shape"].to_pylist()],
        dtype=dtypes[0],
    )


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as handle:
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read ({error}), the index names it; run sgdata verify") from None


# --- decoding ahead ------------------------------------------------------------------------


def load(source: Samples, plan: Iterator[Places], *, threads: int) -> Iterator[Batch]:
    """The batches of `plan`, decoded by `threads` threads while the one before is in use."""
    free: deque[dict[str, Tensor]] = deque({} for _ in range(AHEAD + 1))
    under_way: deque[tuple[Batch, dict[str, Tensor], list[Future[None]]]] = deque()
    with ThreadPoolExecutor(threads) as executor:
        try:
            for places in plan:
                under_way.append(_begin(source, places, free.popleft(), executor, threads))
                if not free:
                    yield from _finish(under_way, free)
            while under_way:
                yield from _finish(under_way, free)
        finally:
            executor.shutdown(cancel_futures=True)


def _begin(
    source: Samples, places: Places, buffers: dict[str, Tensor], executor: ThreadPoolExecutor, threads: int
) -> tuple[Batch, dict[str, Tensor], list[Future[None]]]:
    samples = places.samples.tolist()
    arrays = {name: _buffer(source, name, samples, buffers) for name in source.members}
    batch = Batch(
        keys=tuple(source.keys[s] for s in samples),
        samples=torch.from_numpy(places.samples),
        epoch=torch.from_numpy(places.epoch),
        extent=torch.tensor([source.extent(s) for s in samples]),
        arrays=arrays,
    )
    # One task per thread, not per sample: the hand-over would cost as much as the decoding.
    work = [executor.submit(_fill, source, batch, list(range(t, len(samples), threads))) for t in range(threads)]
    return batch, buffers, work


def _finish(
    under_way: deque[tuple[Batch, dict[str, Tensor], list[Future[None]]]], free: deque[dict[str, Tensor]]
) -> Iterator[Batch]:
    batch, buffers, work = under_way.popleft()
    for task in work:
        task.result()
    yield batch
    free.append(buffers)


def _buffer(source: Samples, name: str, samples: list[int], buffers: dict[str, Tensor]) -> Tensor:
    """A (N, ...) view large enough for every sample, of the reused buffer of `name`, which grows where it must."""
    member = source.members[name]
    largest = np.max([member.shape[s] for s in samples], axis=0).tolist()
    needed = int(np.prod([len(samples), *largest]))
    if name not in buffers or buffers[name].numel() < needed:
        empty = torch.from_numpy(np.empty(needed, member.dtype))
        buffers[name] = empty.pin_memory() if torch.cuda.is_available() else empty
    return buffers[name][:needed].view(len(samples), *largest)


def _fill(source: Samples, batch: Batch, rows: list[int]) -> None:
    for name, array in batch.arrays.items():
        for row in rows:
            sample, target = int(batch.samples[row]), array[row].numpy()
            shape = source.members[name].shape[sample]
            if shape == target.shape:
                source.read(sample, name, out=target)
            else:
                # The buffer still holds an earlier batch.
                target[...] = 0
                target[tuple(slice(n) for n in shape)] = source.read(sample, name)
