"""Write small shards with a known relation of pixels and labels, to test the loader and the training programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from sgdata import sentinel2
from sgdata.shards import write_shards
from sgdata.types import Contract, LabelSpace, Sample, Task

CLASSES = 4


def contract(px: int) -> Contract:
    """Return a contract of twelve L2A bands and four classes; `finish.write` fills in the rest."""
    return Contract(
        format=1,
        dataset="toy",
        version="1",
        bands=sentinel2.bands(sentinel2.L2A_BANDS),
        level="L2A",
        scale=1e-4,
        offset=0.0,
        nodata=0,
        resampling="bilinear",
        resampling_version=1,
        shape=(12, px, px),
        label_space=LabelSpace(
            name="toy",
            task="segmentation",
            ids=tuple(range(CLASSES)),
            names=("dark", "left", "right", "bright"),
            colours=("#000000", "#3050a0", "#50a030", "#f0f0f0"),
            ignore=255,
        ),
        statistics={},
        splits={},
        fingerprint="",
    )


def sample(number: int, split: str, height: int, width: int) -> Sample:
    """Return a sample of blocks of 8 pixels, each a class with its spectrum and noise; one corner is unlabelled."""
    rng = np.random.Generator(np.random.Philox(key=[number, 2]))
    blocks = rng.integers(0, CLASSES, (-(-height // 8), -(-width // 8)))
    mask = blocks.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)
    bands = np.arange(12)
    spectra = np.stack([400 + 0 * bands, 3000 - 200 * bands, 800 + 200 * bands, 4000 + 0 * bands])
    image = spectra[mask].transpose(2, 0, 1) + rng.integers(-60, 60, (12, height, width))
    mask[:2, :2] = 255
    return Sample(
        key=f"toy-{number:05d}",
        split=split,
        arrays={"image": image.astype(np.uint16), "mask": mask},
        meta={"bounds": None},
    )


def write(out: Path, *, train: int = 6, val: int = 2, px: int = 32) -> Path:
    """Write a folder of shards of `train` + `val` samples and return it."""
    made = [sample(n, "train" if n < train else "val", px, px) for n in range(train + val)]
    write_shards.write(made, out, contract=contract(px))
    return out


def scene_contract(px: int, task: Task = "single-label") -> Contract:
    """Return a contract as `contract` does, for scenes of four classes."""
    space = dataclasses.replace(contract(px).label_space, task=task, ignore=None)
    return dataclasses.replace(contract(px), label_space=space)


def scene(number: int, split: str, px: int, task: Task = "single-label") -> Sample:
    """Return a scene of one class, or of two side by side; labels are in the metadata, as the readers write them."""
    rng = np.random.Generator(np.random.Philox(key=[number, 3]))
    labels = sorted({number % CLASSES, (number // CLASSES) % CLASSES} if task == "multi-label" else {number % CLASSES})
    bands = np.arange(12)
    spectra = np.stack([400 + 0 * bands, 3000 - 200 * bands, 800 + 200 * bands, 4000 + 0 * bands])
    mask = np.full((px, px), labels[0])
    mask[:, px // 2 :] = labels[-1]
    image = spectra[mask].transpose(2, 0, 1) + rng.integers(-60, 60, (12, px, px))
    meta = {"labels": labels, "bounds": None}
    return Sample(key=f"scene-{number:05d}", split=split, arrays={"image": image.astype(np.uint16)}, meta=meta)


def write_scenes(out: Path, *, train: int = 12, val: int = 8, px: int = 16, task: Task = "single-label") -> Path:
    """Write a folder of shards of labelled scenes and return it."""
    made = [scene(n, "train" if n < train else "val", px, task) for n in range(train + val)]
    write_shards.write(made, out, contract=scene_contract(px, task))
    return out


def pair_contract() -> Contract:
    """Return a contract as `contract` does, for pairs of scenes of many sizes."""
    space = LabelSpace(
        name="pairs",
        task="change",
        ids=(0, 1),
        names=("no change", "change"),
        colours=("#000000", "#ffffff"),
        ignore=255,
    )
    return dataclasses.replace(contract(32), shape=None, label_space=space)


def pair(key: str, split: str, height: int, width: int, *, seed: int) -> Sample:
    """Return two dates of a ground of blocks; the change is the blocks that are bright on the second date only."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 4]))
    blocks = (-(-height // 8), -(-width // 8))
    ground, new = (
        x.repeat(8, 0).repeat(8, 1)[:height, :width]
        for x in (rng.integers(400, 1500, blocks), rng.random(blocks) < 0.2)
    )
    before, after = (ground + rng.integers(-40, 40, (12, height, width)) for _ in range(2))
    after[:, new] += 2500
    arrays = {
        "image_before": before.astype(np.uint16),
        "image_after": after.astype(np.uint16),
        "mask": new.astype(np.uint8),
    }
    return Sample(key=key, split=split, arrays=arrays, meta={"bounds": None})


def write_pairs(out: Path) -> Path:
    """Write three cities to train on and two to score, each of another size; return the folder."""
    sizes = {"anna": (48, 40), "berta": (32, 32), "carla": (40, 56), "dora": (43, 37), "emma": (32, 48)}
    made = [pair(key, "train" if n < 3 else "test", *size, seed=n) for n, (key, size) in enumerate(sizes.items())]
    write_shards.write(made, out, contract=pair_contract())
    return out
