"""Finish a build: write the contract of its image, labels and patches."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from sgdata import files, output_names
from sgdata.builds import patch_table
from sgdata.rasters import geotiff, grids
from sgdata.rasters.resample import VERSION as RESAMPLING_VERSION
from sgdata.rasters.resample import Kernel
from sgdata.sentinel2 import MSI, bands
from sgdata.shards import contracts, statistics
from sgdata.splits import block_split
from sgdata.types import CONTRACT_FORMAT, Contract, LabelSpace, Level

log = logging.getLogger("sgdata")

TILE_PX = 512
"""Side of the tiles in which the image is read, which bounds the memory; the counts do not depend on it."""


def write_contract(
    folder: Path, name: str, dates: str, level: Level, kernel: Kernel, *, space: LabelSpace, outputs: dict[str, str]
) -> None:
    """Write `contract.json` for the finished rasters, whose hashes are `outputs`, and patches.

    Statistics run over the ground of the train split, each pixel once, no-data pixels left out.
    """
    rows = patch_table.read(folder / output_names.PATCHES)
    with geotiff.open_raster(str(folder / output_names.IMAGE)) as dataset:
        names = tuple(dataset.descriptions)
        train = np.zeros(dataset.shape, bool)
        for row in rows[rows["split"] == "train"].itertuples():
            train[row.row : row.row + row.height, row.col : row.col + row.width] = True
        histogram = statistics.empty(len(names))
        for window in grids.cut_tiles(dataset.shape, TILE_PX):
            histogram += statistics.counts(dataset.read(window=window.slices)[:, train[window.slices]][:, None])
    labelled = (folder / output_names.LABELS).exists()
    splits = {split: int((rows["split"] == split).sum()) for split in block_split.SPLITS}
    side = int(rows["height"].iloc[0]) if len(rows) else 0
    identity = [outputs, rows["key"].tolist(), rows["split"].tolist()]
    contracts.write(
        folder,
        Contract(
            format=CONTRACT_FORMAT,
            dataset=name,
            version=dates,
            bands=bands(names),
            level=level,
            scale=MSI.scale,
            offset=0.0,
            nodata=MSI.nodata,
            resampling=kernel,
            resampling_version=RESAMPLING_VERSION,
            shape=(len(names), side, side) if len(rows) else None,
            label_space=space if labelled else LabelSpace(name="none", task="none"),
            statistics=statistics.summarise(histogram, names, MSI.nodata),
            splits={split: count for split, count in splits.items() if count},
            fingerprint=files.sha256(files.canonical_json(identity)),
        ),
    )
