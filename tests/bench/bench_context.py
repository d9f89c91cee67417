"""Measure how much of the simulated city's classes is in single pixels, and how much more in their neighbourhood.

    python tests/bench/bench_context.py BUILD     of a build that is there; without one, of a new city

Every model is a stack of convolutions that differ only in how much ground they see, trained alike on the composite
and the labels of a build. Blocks of the area are dealt to training and test in a checkerboard; test pixels lie so far
inside their block that no model sees a training block from them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bench_truth
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata.builds import build_recipe, pipeline
from sgdata.simulation import archive as archives
from sgdata.simulation import compare_truth

SIZE_KM, SEED = 8.0, 1
BLOCK_PX, CLASSES, IGNORED = 64, 13, 255
WIDTH, EPOCHS, BATCH = 32, 40, 2
# Dilations of 3 x 3 convolutions: each adds twice its dilation to the field. () sees single pixels.
FIELDS: dict[str, tuple[int, ...]] = {
    "single pixels, MLP": (),
    "7 x 7 px": (1, 1, 1),
    "15 x 15 px": (1, 2, 3, 1),
    "31 x 31 px": (1, 2, 4, 5, 2, 1),
}
REACH = {"single pixels, linear": "< 0.25", "single pixels, MLP": "< 0.40"}


class Wider(nn.Module):
    """Add to features what a 3 x 3 convolution with a dilation finds around them."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.find = nn.Conv2d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = functional.gelu(self.norm(self.find(x)))
        return x + found


def network(dilations: tuple[int, ...], bands: int) -> nn.Module:
    """Build a network that sees 1 + 2 x the sum of `dilations` pixels."""
    pixel = [nn.Conv2d(bands, WIDTH, 1), nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 1), nn.GELU()]
    return nn.Sequential(*pixel, *map(Wider, dilations), nn.Conv2d(WIDTH, CLASSES, 1))


def blocks(shape: tuple[int, int]) -> tuple[list[tuple[slice, slice]], np.ndarray]:
    """Return the training blocks, and where (H, W) test pixels are: 15 px or more inside the other blocks."""
    rows, cols = (np.arange(size) for size in shape)
    inner = [(at % BLOCK_PX >= 15) & (at % BLOCK_PX < BLOCK_PX - 15) for at in (rows, cols)]
    odd = (rows[:, None] // BLOCK_PX + cols[None] // BLOCK_PX) % 2 == 1
    starts = [(i, j) for i in range(shape[0] // BLOCK_PX) for j in range(shape[1] // BLOCK_PX) if (i + j) % 2 == 0]
    train = [tuple(slice(k * BLOCK_PX, (k + 1) * BLOCK_PX) for k in start) for start in starts]
    return train, odd & inner[0][:, None] & inner[1][None]


def normalised(image: np.ndarray) -> Tensor:
    """Return log DN at mean 0 and variance 1 per band, (1, C, H, W)."""
    logs = torch.from_numpy(np.log(np.maximum(image, 1).astype(np.float32)))
    mean, std = logs.mean(dim=(1, 2), keepdim=True), logs.std(dim=(1, 2), keepdim=True)
    return ((logs - mean) / std)[None]


def train(model: nn.Module, images: Tensor, labels: Tensor, *, lr: float, epochs: int = EPOCHS) -> None:
    """Train on blocks (N, C, h, w) and labels (N, h, w), in random order and turned at random."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH):
            turns, flip = int(torch.randint(4, ())), bool(torch.randint(2, ()))
            x, y = (torch.rot90(part[chosen], turns, (-2, -1)) for part in (images, labels))
            x, y = (part.flip(-1) if flip else part for part in (x, y))
            loss = functional.cross_entropy(model(x), y, ignore_index=IGNORED)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def iou(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the IoU of each class that the labels or the predictions have, NaN for the others."""
    counts = np.bincount(labels.astype(np.int64) * CLASSES + predicted, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    hits, either = np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts)
    return np.where(either > 0, hits / np.maximum(either, 1), np.nan)


def figures(image: np.ndarray, labels: np.ndarray) -> Iterator[tuple[str, np.ndarray, float]]:
    """Train each model on an image (C, H, W) and labels (H, W); yield its name, IoU per class and CPU seconds."""
    whole = normalised(image)
    parts, tested = blocks(labels.shape)
    tested &= labels != IGNORED
    x = torch.cat([whole[..., rows, cols] for rows, cols in parts])
    y = torch.stack([torch.from_numpy(labels[rows, cols].astype(np.int64)) for rows, cols in parts])
    models = {"single pixels, linear": nn.Conv2d(len(image), CLASSES, 1)}
    for name, model in (models | {name: network(field, len(image)) for name, field in FIELDS.items()}).items():
        torch.manual_seed(0)
        start = time.process_time()
        train(model, x, y, lr=0.03 if "linear" in name else 0.006)
        model.eval()
        with torch.no_grad():
            predicted = model(whole)[0].argmax(dim=0).numpy()
        yield name, iou(predicted[tested], labels[tested]), time.process_time() - start


def built(folder: Path) -> Path:
    """Simulate a city of the context ground and build it."""
    archive = archives.simulate(folder / "archive", seed=SEED, size_km=SIZE_KM, ground="context")
    places = build_recipe.BuildPaths(
        out=folder / "build", stac=str(archive), osm=str(archive / "osm" / "city.osm"), scratch=folder / "scratch"
    )
    settings = bench_truth.recipe(archive)
    # Blocks of the demo: 8 km are too few for those of a real city.
    pipeline.build(replace(settings, split=replace(settings.split, block_px=200, gap_px=32)), places)
    return folder / "build"


def rows(build: Path | None = None) -> Iterator[tuple[str, str, str, str]]:
    """Yield the mIoU of each model on the test blocks."""
    with tempfile.TemporaryDirectory() as name:
        folder = build or built(Path(name))
        image, labels = (compare_truth.read(folder / file) for file in ("image.tif", "labels.tif"))
        for model, by_class, seconds in figures(image, labels[0]):
            reach = REACH.get(model, ">= 0.15 above the MLP")
            yield (
                f"context ground, {model}",
                "labels of test blocks",
                reach,
                f"mIoU {np.nanmean(by_class):.3f} ({seconds:.0f} s)",
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in rows(*(Path(word).resolve() for word in sys.argv[1:])):
        print(*row, sep=" | ", flush=True)
