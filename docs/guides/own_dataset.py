"""Write a dataset of your own as shards. Usage: python own_dataset.py DIR

Replace `samples` by a loop over your files. Name the arrays `image` (C, H, W) and, if
there are labels, `mask` (H, W).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sgdata import sentinel2
from sgdata.shards import write_shards
from sgdata.types import Contract, LabelSpace, Sample

BANDS = ("B02", "B03", "B04", "B08")
PX = 64


def contract() -> Contract:
    """Return what a reader must know of the pixels and the labels.

    Statistics, split counts and fingerprint are filled in when the shards are written.
    """
    return Contract(
        format=1,
        dataset="ponds",
        version="1",
        bands=sentinel2.bands(BANDS),
        level="L2A",
        scale=1e-4,
        offset=0.0,
        nodata=0,
        resampling="none",
        resampling_version=1,
        shape=(len(BANDS), PX, PX),
        label_space=LabelSpace(
            name="water",
            task="segmentation",
            ids=(0, 1),
            names=("land", "water"),
            colours=("#508030", "#3060c0"),
            ignore=255,
        ),
        statistics={},
        splits={},
        fingerprint="",
    )


def samples() -> Iterator[Sample]:
    """Yield simulated samples: a pond on a meadow, placed by the sample's number."""
    land, water = np.array([500, 800, 600, 3500]), np.array([700, 600, 400, 200])
    for number in range(24):
        rng = np.random.Generator(np.random.Philox(key=[number, 7]))
        row, col = rng.integers(16, PX - 16, 2)
        rows, cols = np.mgrid[:PX, :PX]
        mask = ((rows - row) ** 2 + (cols - col) ** 2 < 150).astype(np.uint8)
        noise = rng.integers(-90, 90, (len(BANDS), PX, PX))
        image = np.where(mask, water[:, None, None], land[:, None, None]) + noise
        # Bounds in degrees let `sgdata audit` and `sgdata split` examine the ground.
        west = 11.0 + number * 0.05
        yield Sample(
            key=f"pond-{number:03d}",
            split="train" if number < 16 else "val",
            arrays={"image": image.astype(np.uint16), "mask": mask},
            meta={
                "bounds": [west, 48.0, west + 0.0086, 48.0058],
                "crs": "EPSG:4326",
                "date": "2021-06-01",
            },
        )


if __name__ == "__main__":
    write_shards.write(samples(), Path(sys.argv[1]), contract=contract())
