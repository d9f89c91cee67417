"""Batches of stored patches (12 bands, 128 px) as uint16 tensors: our loader against webdataset on the same tars."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from synthetic_shards import contract

from sgdata import shards
from sgdata.types import Sample
from sgmodel import batches

SAMPLES, BATCH, REPEATS = 512, 64, 3


def patches(count: int) -> Iterable[Sample]:
    """Smooth ground with noise, so that the codec has something to do."""
    for number in range(count):
        rng = np.random.Generator(np.random.Philox(key=number))
        coarse = rng.normal(1500, 400, (12, 16, 16)).repeat(8, 1).repeat(8, 2)
        image = (coarse + rng.normal(0, 40, coarse.shape)).clip(1, 65535).astype(np.uint16)
        yield Sample(key=f"p-{number:05d}", split="train", arrays={"image": image}, meta={"bounds": None})


def ours(folder: Path, threads: int) -> int:
    source = batches.Samples(folder, "train", ("image",))
    plan = batches.stream(len(source), BATCH, seed=1, first=0, last=SAMPLES // BATCH)
    return sum(len(batch.arrays["image"]) for batch in batches.load(source, plan, threads=threads))


def rival(folder: Path) -> int:
    """webdataset as its manual has it: tar stream, decoder, batches collated into a tensor; one process."""
    import webdataset

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    data: Any = webdataset.WebDataset(tars, shardshuffle=False).shuffle(256).decode(shards.decode_member)
    data = data.map(lambda sample: sample["image.blosc"]).batched(BATCH, collation_fn=np.stack)
    return sum(len(torch.from_numpy(batch)) for batch in data)


def rate(work: Callable[[], int]) -> float:
    """Samples a second, the best of some passes: the least disturbed one."""
    best = 0.0
    for _ in range(REPEATS):
        started = time.perf_counter()
        best = max(best, work() / (time.perf_counter() - started))
    return best


def rows() -> list[tuple[str, str, str, str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards.write(patches(SAMPLES), folder, contract=contract(128))
        one, two = (rate(lambda threads=threads: ours(folder, threads)) for threads in (1, 2))  # type: ignore[misc]
        against = "webdataset on the same tars"
        try:
            theirs = rate(lambda: rival(folder))
        except ImportError as missing:
            return [("loader", against, ">= 6x", f"not installed: {missing.name}")]
    figure = f"{max(one, two) / theirs:.1f}x ({one:,.0f}/s one thread, {two:,.0f}/s two, against {theirs:,.0f}/s)"
    return [("loader", against, ">= 6x", figure)]


if __name__ == "__main__":
    print(*rows()[0], sep=" | ")
