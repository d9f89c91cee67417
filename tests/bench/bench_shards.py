"""Benchmark sharding of BigEarthNet-like TIFFs against rasterio (open, resample, save each band); compare sizes.

The patches are generated: reflectance with the texture of land (a random field whose spectrum falls as real scenes'
does) and sensor noise, in files as the makers write them. `python tests/bench/bench_shards.py 20000` also packs and
reads back a generated `tar.gz` of that many patches.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import synthetic

from sgdata.packing import pack as packing
from sgdata.packing import select_samples
from sgdata.shards import tar_format
from sgdata.types import Array, HashMode

PATCHES, OF_PEER, REPEATS = 1000, 100, 3
# Targets by mode of hashing: with the hash of every sample, and with checksums of members alone.
HASHES: dict[HashMode, str] = {"full": ">= 5x", "fast": ">= 10x"}
WAVELENGTHS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
MEANS = {"B01": 341, "B02": 430, "B03": 614, "B04": 590, "B05": 951, "B06": 1792, "B07": 2075, "B08": 2219,
         "B8A": 2266, "B09": 2246, "B11": 1594, "B12": 1009}  # fmt: skip


def land(seed: int) -> Array:
    """Return (120, 120) float noise of mean 0 and std 1 whose amplitude falls with frequency to the power 1.7."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    frequency = np.hypot(np.fft.fftfreq(120)[:, None], np.fft.fftfreq(120)[None])
    frequency[0, 0] = 1.0
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(120, 120))) / frequency**1.7).real
    return np.asarray((field - field.mean()) / field.std())


def source(folder: Path, count: int, *, different: int = 50) -> Path:
    """Write v1 patch folders; `different` of them are distinct, the others are copies under other names."""
    top = folder / "BigEarthNet-v1.0"
    for number in range(count):
        name = _name(number)
        if number < different:
            synthetic.bigearthnet_patch(top / name, name, seed=number, nodata=None)
            _painted(top / name, number)
            labels = '{"labels": ["Pastures"], "acquisition_date": "2017-09-24 09:30:20", "tile_source": "S2B.SAFE"}'
            (top / name / f"{name}_labels_metadata.json").write_text(labels)
        else:
            model = _name(number % different)
            (top / name).mkdir(parents=True)
            for file in (top / model).iterdir():
                shutil.copyfile(file, top / name / file.name.replace(model, name))
    return folder


def _name(number: int) -> str:
    """Return a v1 patch name: 90 x 90 steps of 1200 m per scene, one scene per day."""
    return f"S2B_MSIL2A_201709{number // 8100 + 10}T93020_{number % 90}_{number // 90 % 90}"


def _painted(patch: Path, seed: int) -> None:
    import rasterio

    shape = land(seed)
    rng = np.random.Generator(np.random.Philox(key=seed + 10**6))
    for path in patch.glob("*.tif"):
        mean = MEANS[path.stem.rpartition("_")[2]]
        with rasterio.open(path, "r+") as file:
            cell = 120 // file.width
            coarse = shape.reshape(file.height, cell, file.width, cell).mean((1, 3))
            noise = rng.normal(0, 4 + mean / 150, coarse.shape)  # the sensor's, at its native size
            file.write((mean * (1 + 0.3 * coarse) + noise).clip(1).astype(np.uint16), 1)


def peer(folder: Path, out: Path) -> int:
    """Open each band, resample it on read, stack and save as npy, the usual baseline; return the bytes written."""
    import rasterio
    from rasterio.enums import Resampling

    out.mkdir()
    written = 0
    for patch in sorted((folder / "BigEarthNet-v1.0").iterdir())[:OF_PEER]:
        planes = []
        for band in WAVELENGTHS:
            with rasterio.open(patch / f"{patch.name}_{band}.tif") as file:
                planes.append(file.read(1, out_shape=(120, 120), resampling=Resampling.bilinear))
        np.save(out / f"{patch.name}.npy", np.stack(planes))
        written += (out / f"{patch.name}.npy").stat().st_size
    return written


def pack(folder: Path, out: Path, layout: str, workers: int = 1, effort: str = "quick", mode: HashMode = "full") -> int:
    known = select_samples.recipe_for("bigearthnet")
    recipe = replace(known, edition="v1", layout=layout, effort=effort, hash=mode)  # type: ignore[arg-type]
    packing.pack("bigearthnet", source=folder, out=out, recipe=recipe, workers=workers)
    return sum(path.stat().st_size for path in out.glob("*.tar"))


def timed(work: Callable[[Path], int], repeats: int = REPEATS) -> tuple[float, float, int]:
    """Median wall and CPU seconds of several runs, each into a new folder, and what `work` returns."""
    walls, cpus, result = [], [], 0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as place:
            wall, cpu = time.perf_counter(), time.process_time()
            result = work(Path(place) / "out")
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus), result


def _speed(folder: Path, layout: str, mode: HashMode) -> tuple[str, str, str, str]:
    """Pack and do as the peer does in turn; the ratio of the medians of wall and of CPU seconds."""
    ours, theirs = [], []
    for _ in range(REPEATS):
        theirs.append(timed(lambda out: peer(folder, out), repeats=1)[:2])
        ours.append(timed(lambda out: pack(folder, out, layout, mode=mode), repeats=1)[:2])
    (wall, cpu), (other, other_cpu) = (map(statistics.median, zip(*runs, strict=True)) for runs in (ours, theirs))
    rate, slow = PATCHES / wall, OF_PEER / other
    figure = f"{rate / slow:.1f}x ({rate:,.0f} against {slow:,.0f} patches a second), "
    rate, slow = PATCHES / cpu, OF_PEER / other_cpu
    figure += f"{rate / slow:.1f}x per CPU second ({rate:,.0f} against {slow:,.0f})"
    label = "sharding BigEarthNet-like TIFFs" + ", native" * (layout == "native") + f", --hash {mode}"
    return label, "rasterio open + resample per band + npy", HASHES[mode], figure


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Rows of the speed table."""
    with tempfile.TemporaryDirectory() as place:
        folder = source(Path(place) / "ben", PATCHES)
        sizes = {
            (layout, effort): pack(folder, Path(place) / f"{layout}-{effort}", layout, effort=effort)
            for layout in ("resampled", "native")
            for effort in ("quick", "dense")
        }
        for layout, mode in itertools.product(("resampled", "native"), HASHES):
            yield _speed(folder, layout, mode)
        _, _, npy = timed(lambda out: peer(folder, out), repeats=1)
    raw = npy / OF_PEER * PATCHES
    for effort in ("quick", "dense"):
        shares = f"{sizes['resampled', effort] / raw:.2f} resampled, {sizes['native', effort] / raw:.2f} native"
        label = "shard bytes" + ", effort dense" * (effort == "dense")
        yield label, "npy, resampled", "<= 0.60 resampled, <= 0.30 native", shares


def archive(count: int) -> None:
    """Pack a generated tar.gz of `count` patches on two processes, read every sample back; prints seconds and rates."""
    with tempfile.TemporaryDirectory() as place:
        folder = source(Path(place) / "ben", count)
        path = Path(place) / "BigEarthNet-S2-v1.0.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for file in sorted(folder.rglob("*.*")):
                if file.is_file():
                    tar.add(file, file.relative_to(folder))
        shutil.rmtree(folder)
        notes: list[Any] = [f"{count} patches, {path.stat().st_size / 1e6:,.0f} MB"]
        start = time.perf_counter()
        size = pack(path, Path(place) / "out", "resampled", workers=2)
        notes.append(f"packed in {time.perf_counter() - start:.0f} s, {size / 1e6:,.0f} MB")
        start = time.perf_counter()
        read = sum(1 for _ in tar_format.samples(Path(place) / "out"))
        notes.append(f"{read} read in {time.perf_counter() - start:.0f} s")
        print("; ".join(notes))


if __name__ == "__main__":
    if sys.argv[1:]:
        archive(int(sys.argv[1]))
    else:
        for row in rows():
            print(" | ".join(row))
