"""Benchmark this package's loader against others, on BigEarthNet-like native patches as uint16 tensors.

Each rate is the best of several passes, the least disturbed one; CPU use is per sample, of all threads.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bench_shards
import numpy as np
import torch

from sgdata.shards import tar_format
from sgmodel.data import loader

SAMPLES, BATCH, REPEATS = 1024, 64, 5
ROUNDS = 200
EPOCHS = 4  # of ours in a pass: its buffers are made once a run, which is not once in a thousand samples
MEMBERS = ("image_10m", "image_20m", "image_60m")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A share of the CPU time by many paired measurements: their median, and its 95 % interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, shares: list[float]) -> Cost:
        """Return the median of measurements and its interval by order statistics, which assumes no distribution."""
        ordered, count = sorted(shares), len(shares)
        reach = 0.98 * count**0.5
        low, high = max(int(count / 2 - reach), 0), min(int(count / 2 + reach), count - 1)
        return cls(median=ordered[count // 2], low=ordered[low], high=ordered[high])

    def __str__(self) -> str:
        return f"{self.median:+.1%} ({self.low:+.1%} to {self.high:+.1%})"


def opened(folder: Path) -> loader.Samples:
    return loader.Samples(folder, "all", ("image",))


def ours(source: loader.Samples, threads: int, rank: int = 0, world: int = 1) -> int:
    plan = source.stream(BATCH * world, seed=1, first=0, last=EPOCHS * SAMPLES // BATCH // world)
    mine = (loader.rank_part(places, rank=rank, world=world) for places in plan)
    return sum(len(batch.arrays["image_10m"]) for batch in loader.load(source, mine, threads=threads))


def one_of_two(job: tuple[Path, int]) -> float:
    """Return the rate of one of two processes that read at the same time, each its share of every global batch."""
    source = opened(job[0])
    return rate(lambda: ours(source, 1, rank=job[1], world=2))[0]


def checksum_cost(folder: Path, rounds: int = ROUNDS) -> tuple[Cost, Cost]:
    """Return the CPU time that checksums add to the first epoch and to a later one."""
    source = opened(folder)
    plan = [np.arange(at, at + BATCH) for at in range(0, SAMPLES, BATCH)]
    members = source.members
    without = {name: replace(member, crc32=[]) for name, member in members.items()}

    def epoch(kind: str) -> float:
        """Return the CPU seconds of all threads for an epoch: without checksums, the first of a process, or later."""
        source.members = without if kind == "without" else members
        for name in members if kind == "first" else ():
            source._verified[name] = bytearray(SAMPLES)
        began = time.process_time()
        for samples in plan:
            targets = {name: [np.empty(m.shape[n], "uint16") for n in samples] for name, m in source.members.items()}
            source.fill(samples.tolist(), targets)
        return time.process_time() - began

    epoch("first")
    ratios: dict[str, list[float]] = {"first": [], "later": []}
    kinds = ("without", "first", "later")
    for number in range(rounds):
        # Each round compares epochs that follow each other, in every order: what else runs on the machine takes
        # caches and clock rate from all three alike.
        times = {kind: epoch(kind) for kind in (*kinds[number % 3 :], *kinds[: number % 3])}
        for kind, found in ratios.items():
            found.append(times[kind] / times["without"] - 1)
    return Cost.of(ratios["first"]), Cost.of(ratios["later"])


def webdataset(folder: Path) -> int:
    """Read with webdataset as in its manual: tar stream, decoder, batches collated into tensors; one process."""
    import webdataset

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    data: Any = webdataset.WebDataset(tars, shardshuffle=False).shuffle(256).decode(tar_format.decode_member)
    data = data.map(lambda sample: tuple(sample[f"{name}.blosc"] for name in MEMBERS))
    data = data.batched(BATCH, collation_fn=lambda batch: [torch.from_numpy(np.stack(each)) for each in zip(*batch)])  # noqa: B905
    return sum(len(batch[0]) for batch in data)


def litdata(folder: Path, chunks: Path) -> Callable[[], int]:
    """Read the same samples from litdata's own chunks, uncompressed and shuffled, in one process."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    source = opened(folder)
    writer = BinaryWriter(str(chunks), chunk_bytes="64MB")
    for number in range(len(source)):
        writer.add_item(number, source[number])
    writer.done()
    writer.merge()
    data = StreamingDataset(str(chunks), shuffle=True)
    return lambda: sum(len(batch[MEMBERS[0]]) for batch in StreamingDataLoader(data, batch_size=BATCH, num_workers=0))


def rate(work: Callable[[], int]) -> tuple[float, float]:
    """Samples a second, and microseconds of CPU per sample."""
    best, least = 0.0, float("inf")
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        count = work()
        best = max(best, count / (time.perf_counter() - wall))
        least = min(least, (time.process_time() - cpu) / count * 1e6)
    return best, least


def rows() -> list[tuple[str, str, str, str]]:
    found = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        patches = bench_shards.source(place / "ben", SAMPLES)
        for effort in ("quick", "dense"):
            folder = place / effort
            bench_shards.pack(patches, folder, "native", effort=effort)
            source = opened(folder)
            (one, cpu), (two, _) = rate(lambda s=source: ours(s, 1)), rate(lambda s=source: ours(s, 2))  # type: ignore[misc]
            notes = f"{one:,.0f}/s one thread, {two:,.0f}/s two, {cpu:.0f} us of CPU a sample"
            label = "loader" if effort == "quick" else "loader, effort dense"
            try:
                theirs, their_cpu = rate(lambda f=folder: webdataset(f))  # type: ignore[misc]
                figure = f"{max(one, two) / theirs:.1f}x, {one / theirs:.1f}x one thread "
                figure += f"({notes}; {theirs:,.0f}/s, {their_cpu:.0f} us)"
            except ImportError as missing:
                figure = f"not installed: {missing.name} ({notes})"
            found.append((label, "webdataset on the same tars", ">= 6x", figure))
        quick = place / "quick"
        first, later = checksum_cost(quick)
        figure = f"{first} in the first epoch, {later} in later ones"
        found.append(("loader with checksums", "without", "<= 30 %, <= 1 %", figure))
        source = opened(quick)
        two = rate(lambda: ours(source, 2))[0]
        try:
            theirs, _ = rate(litdata(quick, place / "chunks"))
            figure = f"{two / theirs:.1f}x (against {theirs:,.0f}/s)"
        except ImportError as missing:
            figure = f"not installed: {missing.name}"
        found.append(("loader", "litdata", ">= 2.5x", figure))
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            both = sum(pool.map(one_of_two, [(quick, rank) for rank in range(2)]))
        one, _ = rate(lambda: ours(source, 1))
        found.append(
            ("loader, 2 ranks on one machine", "one rank of one thread", "", f"{both / one:.2f}x ({both:,.0f}/s)")
        )
    return found


if __name__ == "__main__":
    for row in rows():
        print(*row, sep=" | ")
    sys.exit()
