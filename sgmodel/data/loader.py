"""Shards to batches: tars held open, the index for random access, threads decoding into reused buffers.

Samples form one endless stream: epoch 0 in its order, then epoch 1 in its own, and so on. Step s of a run takes
positions [s B, (s + 1) B) of the stream. The step alone therefore determines the next samples, no sample is dropped,
and a dataset smaller than a batch needs no special case. Values keep their stored type until they are on the device.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdata import files
from sgdata.errors import SettingError, SourceError
from sgdata.shards import array_codec, contracts, shard_index
from sgdata.types import Array, Codec, Contract
from sgmodel.data import seeded_random, tar_source, upsample
from sgmodel.data.member_layout import DATES, MemberLayout, sample_layout, to_tensor
from sgmodel.data.subset import subset

log = logging.getLogger("sgdata")
Verify = Literal["first", "always"]
AHEAD = 2
"""Batches decoded while one is in use."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """N samples on the host, whose arrays are views of a buffer that is overwritten once the next batch is requested.

    Attributes:
        keys: Key of each sample.
        samples: (N,) int64 sample numbers, which seed every random draw.
        epoch: (N,) int64 epoch of each sample, likewise.
        valid_size: (N, 2) height and width of each sample.
        arrays: (N, ...) arrays as stored, padded at the end to the largest sample of the batch.
    """

    keys: tuple[str, ...]
    samples: Tensor
    epoch: Tensor
    valid_size: Tensor
    arrays: dict[str, Tensor]

    def parts(self, count: int) -> Iterator[Batch]:
        """Yield the batch in `count` nearly equal parts (fewer if it has fewer samples).

        Args:
            count: Number of parts, at least 1.
        """
        bounds = np.linspace(0, len(self.keys), min(count, len(self.keys)) + 1).astype(int)
        for start, stop in itertools.pairwise(bounds):
            cut = slice(int(start), int(stop))
            yield Batch(
                keys=self.keys[cut],
                samples=self.samples[cut],
                epoch=self.epoch[cut],
                valid_size=self.valid_size[cut],
                arrays={name: array[cut] for name, array in self.arrays.items()},
            )


@dataclass(frozen=True, kw_only=True)
class BatchIndices:
    """Sample numbers of one batch, and the epoch of each, (N,) int64."""

    samples: NDArray[np.int64]
    epoch: NDArray[np.int64]


def stream(count: int, batch: int, *, seed: int, first: int, last: int) -> Iterator[BatchIndices]:
    """Yield the global batches of steps [first, last) over `count` samples: a pure function of the arguments.

    Args:
        count: Number of samples.
        batch: Number of samples in a global batch.
        seed: Seed of the order of each epoch.
        first: First step.
        last: Step to stop before.
    """

    def epoch(number: int) -> BatchIndices:
        samples = seeded_random.order(count, seed=seed, epoch=number)
        return BatchIndices(samples=samples, epoch=np.full_like(samples, number))

    return steps(count, batch, epoch, first=first, last=last)


def steps(
    length: int, batch: int, epoch: Callable[[int], BatchIndices], *, first: int, last: int
) -> Iterator[BatchIndices]:
    """Yield steps [first, last) of the stream of all epochs, each of which has `length` positions."""
    orders: dict[int, BatchIndices] = {}
    for step in range(first, last):
        epochs, at = np.divmod(np.arange(step * batch, (step + 1) * batch), length)
        orders = {number: orders.get(number) or epoch(number) for number in np.unique(epochs).tolist()}
        yield BatchIndices(
            samples=np.concatenate([order.samples[at[epochs == number]] for number, order in orders.items()]),
            epoch=np.concatenate([order.epoch[at[epochs == number]] for number, order in orders.items()]),
        )


def in_order(count: int, batch: int) -> Iterator[BatchIndices]:
    """Yield every sample once, in the order of the index; the last batch may be smaller.

    Args:
        count: Number of samples.
        batch: Number of samples in a batch.
    """
    for start in range(0, count, batch):
        samples = np.arange(start, min(start + batch, count))
        yield BatchIndices(samples=samples, epoch=np.zeros_like(samples))


def rank_part(batch: BatchIndices, *, rank: int, world: int) -> BatchIndices:
    """Return the part of a global batch that one of `world` ranks takes, all of them equal. Raises SettingError."""
    if len(batch.samples) % world:
        raise SettingError(f"batch {len(batch.samples)} does not divide among {world} processes; change batch")
    size = len(batch.samples) // world
    cut = slice(rank * size, (rank + 1) * size)
    return BatchIndices(samples=batch.samples[cut], epoch=batch.epoch[cut])


class SampleSource(Protocol):
    """A source of samples for `load`: one dataset (`Samples`), or several (`mixture.Mixture`)."""

    contract: Contract
    split: str
    keys: list[str]
    members: dict[str, MemberLayout]

    def __len__(self) -> int: ...

    def size(self) -> dict[str, int]:
        """Return the number of samples, and of windows if they are cut."""

    def valid_size(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return height and width (N, 2) of samples (N,)."""

    def extra_arrays(self, samples: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return further arrays of a batch, (N, ...) each, that are not stored as members."""

    def stream(self, batch: int, *, seed: int, first: int, last: int) -> Iterator[BatchIndices]:
        """Yield the global batches of steps [first, last)."""

    def fill(self, samples: Sequence[int], targets: Mapping[str, Sequence[Array]]) -> None:
        """Decode members `targets` of `samples`, each into a C-contiguous array of its own shape."""


class Samples:
    """One split of a folder of shards with random access by sample number, in the order of the index.

    As a map-style dataset of PyTorch it returns a dictionary of tensors as stored.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        members: Sequence[str],
        *,
        fraction: float = 1.0,
        seed: int = 0,
        verify: Verify = "first",
        keys: Sequence[str] | None = None,
    ) -> None:
        """Open a split.

        Args:
            folder: Folder of shards.
            split: Name of the split.
            members: Arrays to read, such as "image" and "mask"; of pairs, "image" alone is each date as a sample.
            fraction: Share of the samples to keep, see `subset`.
            seed: Seed that selects this share.
            verify: Whether to compare members with their checksums the first time that a process reads each, or always.
            keys: Keys of the samples to keep; None for all.

        Raises:
            SettingError: The split does not exist, or `fraction` is not in (0, 1].
            SourceError: Arrays have mixed types, or a shard is missing or truncated.
        """
        folder = Path(folder)
        self.folder, self.split = folder, split
        self.contract: Contract = contracts.read(folder)
        table = shard_index.read_index(folder)
        splits = sorted(set(table["split"].to_pylist()))
        if split not in splits:
            message = f"{folder}: no split '{split}'; it has {', '.join(splits)}"
            raise SettingError(
                f"{message}; set training.split and val_split to some of them, or pack the data with 'sgdata shard "
                "--split-list', whose lists 'sgdata split' proposes, or several places with --hold-out val=PLACE"
            )
        rows = table.filter(np.array(table["split"].to_pylist()) == split)
        if keys is not None:
            rows = rows.filter(np.isin(rows["key"].to_pylist(), list(keys)))
        if fraction != 1.0:
            rows = rows.take(subset(rows["key"].to_pylist(), fraction, seed=seed))
        self.keys: list[str] = rows["key"].to_pylist()
        self.shard: list[str] = rows["shard"].to_pylist()
        self.tars: tar_source.Tars
        if (folder / tar_source.MARK).is_file():
            self.tars = tar_source.RemoteTars(folder)
        else:
            self.tars = tar_source.LocalTars(folder, sorted(set(self.shard)))
        self.codec = self._codec(rows)
        self.members: dict[str, MemberLayout] = sample_layout(rows, members, folder, self.codec)
        if len(next(iter(self.members.values())).start) > len(self.keys):  # each date of pairs is a sample
            self.keys = [f"{key}-{name.removeprefix('image_')}" for key in self.keys for name in DATES]
            self.shard = [shard for shard in self.shard for _ in DATES]
        self.verify = verify
        self._verified = {name: bytearray(len(self)) for name in self.members}
        if not all(member.crc32 for member in self.members.values()):
            log.warning("%s: shards without checksums of members, so damage is not noticed; pack them again", folder)

    def _codec(self, rows: Any) -> Codec:
        """Return the codec of the first sample, which is that of all samples of a folder."""
        start, size = rows["meta_offset"][0].as_py(), rows["meta_size"][0].as_py()
        (content,) = self.tars.contents([tar_source.Span(self.shard[0], start, start + size)])
        try:
            if "meta_crc32" in rows.column_names:
                array_codec.check_crc32(content, rows["meta_crc32"][0].as_py(), "meta")
            codec: Codec = files.parse_json(bytes(content))["codec"]
        except (ValueError, KeyError, TypeError, SourceError) as error:
            where = f"{self.folder}/{self.shard[0]}: meta.json of sample '{self.keys[0]}'"
            raise SourceError(f"{where} is damaged: {error!r}; run sgdata verify {self.folder}") from None
        return codec

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Another process reads other bytes, over a network at least.
        self.__dict__.update(state)
        self._verified = {name: bytearray(len(self)) for name in self.members}

    def __len__(self) -> int:
        return len(self.keys)

    def size(self) -> dict[str, int]:
        """Return the number of samples, and of windows if they are cut."""
        return {"samples": len(self)}

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        """Return the arrays of a sample in types that torch's operators take.

        Images are floating-point numbers, native bands upsampled to one image; other arrays have their own type, or for
        uint16, uint32 and uint64 a signed one. Values are as stored, numbers for no data included (`contract.nodata`).
        """
        number = range(len(self))[sample]
        arrays = {name: to_tensor(name, self.read(number, name)) for name in self.members}
        native = {name: arrays.pop(name)[None] for name in upsample.GROUPS if name in arrays}
        if native:
            size = torch.from_numpy(self.valid_size(np.array([number])))
            arrays["image"] = upsample.images(native, size, self.contract, torch.device("cpu"))[0].float()
        return arrays

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands of an image, in its order."""
        return tuple(band.name for band in self.contract.bands)

    @property
    def mean(self) -> Tensor:
        """Mean (C,) of each band over the training samples, in stored units. Raises SettingError if there is none."""
        return self._statistic("mean")

    @property
    def std(self) -> Tensor:
        """Standard deviation (C,) of each band, as `mean`."""
        return self._statistic("std")

    def _statistic(self, name: str) -> Tensor:
        if missing := sorted(set(self.bands) - set(self.contract.statistics)):
            message = f"{self.folder}: no statistics of {' '.join(missing)}"
            raise SettingError(f"{message}, expected those of a split 'train'; compute them from the samples")
        return torch.tensor([getattr(self.contract.statistics[band], name) for band in self.bands])

    def valid_size(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return height and width (N, 2) of the first array of samples (N,), before padding.

        Args:
            samples: (N,) int64 sample numbers.
        """
        return next(iter(self.members.values())).shape[samples][:, -2:]

    def extra_arrays(self, samples: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return no arrays: the contract of a single dataset is complete.

        Args:
            samples: (N,) int64 sample numbers.
        """
        return {}

    def stream(self, batch: int, *, seed: int, first: int, last: int) -> Iterator[BatchIndices]:
        """Yield the global batches of steps [first, last), see the function `stream`.

        Args:
            batch: Number of samples in a global batch.
            seed: Seed of the order of each epoch.
            first: First step.
            last: Step to stop before.
        """
        return stream(len(self), batch, seed=seed, first=first, last=last)

    def read(self, sample: int, name: str) -> Array:
        """Return one array of a sample, in the type that represents the values of all samples.

        Args:
            sample: Number of the sample.
            name: Name of the array, such as "image"; one of `members`.

        Raises:
            SourceError: The sample is damaged or cannot be read.
        """
        member = self.members[name]
        array = np.empty(member.shape[sample], str(member.stored[sample]))
        self.fill([sample], {name: [array]})
        return array.astype(member.dtype, copy=False)

    def fill(self, samples: Sequence[int], targets: Mapping[str, Sequence[Array]]) -> None:
        """Decode members `targets` of `samples`, each into a C-contiguous array of its own shape and type.

        Args:
            samples: Numbers of the samples; those in the order of the files are read sequentially.
            targets: For each member, the arrays to fill, one per sample in the order of `samples`.

        Raises:
            SourceError: A sample is damaged or cannot be read.
        """
        spans: list[tar_source.Span] = []
        outputs: list[tuple[int, str, Array]] = []
        for i, sample in enumerate(samples):
            for name, arrays in targets.items():
                member = self.members[name]
                start = member.start[sample]
                stop = start + member.size[sample] + member.trailer
                spans.append(tar_source.Span(self.shard[sample], start, stop))
                outputs.append((sample, name, arrays[i]))
        for (sample, name, target), content in zip(outputs, self.tars.contents(spans), strict=True):
            try:
                # As little Python as possible per sample: it holds the lock for which the other threads wait.
                member, verified = self.members[name], self._verified[name]
                if member.crc32 and (not verified[sample] or self.verify == "always"):
                    array_codec.check_crc32(content, member.crc32[sample], name)
                    verified[sample] = 1
                if self.codec == "blosc":
                    array_codec.decode_into(content, target.data.cast("B"))
                else:
                    array_codec.decode(content, target.shape, target.dtype.name, self.codec, out=target)
            except SourceError as error:
                where = f"{self.folder}/{self.shard[sample]}: sample '{self.keys[sample]}'"
                raise SourceError(f"{where}: {error}; run sgdata verify {self.folder}") from None


def load(source: SampleSource, plan: Iterator[BatchIndices], *, threads: int, pinned: bool = False) -> Iterator[Batch]:
    """Yield the batches of `plan`, decoded while earlier ones are in use.

    Args:
        source: Source of the samples.
        plan: Sample numbers of each batch.
        threads: Threads that decode.
        pinned: Whether to use pinned memory, from which copies to a GPU are asynchronous.

    Yields:
        Batches, which stay as they are until the next but one is requested.
    """
    free: deque[dict[str, Tensor]] = deque({} for _ in range(AHEAD + 2))
    under_way: deque[tuple[Batch, dict[str, Tensor], list[Future[None]]]] = deque()
    with ThreadPoolExecutor(threads) as executor:
        try:
            for indices in plan:
                under_way.append(_begin(source, indices, free.popleft(), executor, threads, pinned))
                if len(under_way) > AHEAD:
                    yield from _finish(under_way, free)
            while under_way:
                yield from _finish(under_way, free)
        finally:
            executor.shutdown(cancel_futures=True)


def _begin(
    source: SampleSource,
    indices: BatchIndices,
    buffers: dict[str, Tensor],
    executor: ThreadPoolExecutor,
    threads: int,
    pinned: bool,
) -> tuple[Batch, dict[str, Tensor], list[Future[None]]]:
    samples = indices.samples
    arrays = {name: _buffer(member, samples, name, buffers, pinned) for name, member in source.members.items()}
    batch = Batch(
        keys=tuple(source.keys[sample] for sample in samples.tolist()),
        samples=torch.from_numpy(samples),
        epoch=torch.from_numpy(indices.epoch),
        valid_size=torch.from_numpy(source.valid_size(samples)),
        arrays=arrays | source.extra_arrays(samples),
    )
    # Samples are numbered in the order of the files, so that sorting makes each task read sequentially. One task per
    # thread, not per sample: the hand-over would cost as much as the decoding.
    parts = np.array_split(np.argsort(samples, kind="stable"), threads)
    work = [executor.submit(_fill, source, batch, part) for part in parts if len(part)]
    return batch, buffers, work


def _finish(
    under_way: deque[tuple[Batch, dict[str, Tensor], list[Future[None]]]], free: deque[dict[str, Tensor]]
) -> Iterator[Batch]:
    batch, buffers, work = under_way.popleft()
    for task in work:
        task.result()
    yield batch
    free.append(buffers)


def _buffer(of: MemberLayout, rows: NDArray[np.int64], name: str, buffers: dict[str, Tensor], pinned: bool) -> Tensor:
    """Return a (N, ...) view, large enough for every sample, of the reused buffer of `name`, which grows if needed."""
    largest = of.shape[rows].max(axis=0).tolist()
    needed = int(np.prod([len(rows), *largest]))
    if name not in buffers or buffers[name].numel() < needed:
        empty = torch.from_numpy(np.empty(needed, of.dtype))
        buffers[name] = empty.pin_memory() if pinned else empty
    return buffers[name][:needed].view(len(rows), *largest)


def _fill(source: SampleSource, batch: Batch, rows: NDArray[np.int64]) -> None:
    """Decode the `rows` of a batch, in place where a sample has the size and type of the buffer."""
    samples = batch.samples.numpy()[rows]
    targets: dict[str, list[Array]] = {}
    smaller: list[tuple[Array, Array]] = []
    for name, member in source.members.items():
        whole = batch.arrays[name].numpy()
        targets[name] = [whole[row] for row in rows]
        shapes, types = member.shape[samples], member.stored[samples]
        for i in np.flatnonzero((shapes != whole.shape[1:]).any(axis=1) | (types != member.dtype)):
            own = np.empty(shapes[i], str(types[i]))
            smaller.append((targets[name][i], own))
            targets[name][i] = own
    source.fill(samples.tolist(), targets)
    for target, own in smaller:
        target[...] = 0  # the buffer still holds an earlier batch
        target[tuple(slice(n) for n in own.shape)] = own
