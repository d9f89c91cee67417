"""Count the bytes that composites of large areas read by cells, against whole windows of every date."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_composite import BANDS, GRID
from stac_wrap import Wrapped, wrap

from sgdata import files, package_data
from sgdata.builds import build_recipe, fetch_scenes, pipeline
from sgdata.scenes.aoi import Area
from sgdata.sentinel2 import BAND, MSI
from sgdata.simulation import noise
from sgdata.staging import local_tiffs
from sgdata.types import Array

EXTENTS_PX, BLOCKS_PX, CLOUDS_M = (2048, 4096), (256, 1024), (600, 5000)
DAYS = ("04-05", "04-25", "05-10", "05-25", "06-04", "06-19", "07-04", "07-19", "08-03", "08-18", "09-02", "09-22")
COVER = (0.3, 0.95, 0.6, 0.05, 0.8, 0.35, 0.9, 0.5, 0.15, 1.0, 0.7, 0.45)
"""Share of clouds by date: 0.56 on average."""
RULES = (("bap", 0), ("median", 0), ("median", 6))
"""Method and max_obs."""


def classes(date: int, side: int, clouds_m: int) -> Array:
    """Return (side / 2, side / 2) classes: vegetation, clouds of `clouds_m`, a swath that ends on every third date."""
    at = np.arange(side // 2)
    fields = [clouds_m / 20 * octave for octave in (1, 0.5, 0.25, 0.125)]
    field = noise.fractal(date, at, at, [size for size in fields if size >= 2], 0.62)
    found = np.where(field > np.quantile(field, 1 - COVER[date]), 9, 4).astype(np.uint8)
    if date % 3 == 2:
        found[at[None] > 0.6 * len(at) - 0.2 * at[:, None]] = MSI.classes.no_data
    return found


def archive(folder: Path, side: int, block: int, clouds_m: int) -> Path:
    """Twelve dates of one year, with the bands of the first one: which of their blocks are read depends on classes."""
    scenes = []
    for date, day in enumerate(DAYS):
        layers: dict[str, tuple[Any, float]] = {"SCL": (classes(date, side, clouds_m), 20.0)}
        for number, band in enumerate(BANDS if date == 0 else ()):
            size = side * 10 // BAND[band].gsd_m
            line = 600 + 20 * number + np.arange(size) % 64
            layers[band] = (np.add.outer(line, line % 7).astype(np.uint16), float(BAND[band].gsd_m))
        name = f"S2A_32UPU_2019{day.replace('-', '')}_0_L2A"
        scenes.append(Wrapped(id=name, time=f"2019-{day}T10:00:00Z", layers=layers, block=block))
    wrap(folder, scenes)
    home = folder / "sentinel-2-l2a"
    assets = files.read_plain(home / scenes[0].id / f"{scenes[0].id}.json")["assets"]
    for scene in scenes[1:]:
        item = files.read_plain(home / scene.id / f"{scene.id}.json")
        item["assets"] = assets | item["assets"]
        (home / scene.id / f"{scene.id}.json").write_bytes(files.pretty_json(item))
        for band in BANDS:
            (home / scene.id / f"{band}.tif").hardlink_to(home / scenes[0].id / f"{band}.tif")
    return folder


def read_bytes(stac: Path, side: int, method: Any, max_obs: int) -> int:
    """Return the bytes of the bands' blocks that are read for a composite."""
    published = files.read(build_recipe.BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    composite = replace(published.composite, method=method, max_obs=max_obs)
    area = Area(grid=replace(GRID, shape=(side, side)))
    recipe = replace(published, bands=BANDS, dates="2019-04-01/2019-09-30", area=area, composite=composite)
    sizes: list[int] = []
    read_block = local_tiffs._read_block

    def counted(opened: Any, at: tuple[int, int], stored: memoryview) -> memoryview:
        content = read_block(opened, at, stored)
        sizes.append(0 if opened.shown.endswith("SCL.tif") else len(content))
        return content

    with tempfile.TemporaryDirectory(dir=stac) as scratch, mock.patch.object(local_tiffs, "_read_block", counted):
        paths = build_recipe.BuildPaths(out=Path(scratch), stac=str(stac))
        fetch_scenes.fetch_scenes(recipe, pipeline.plan(recipe, paths), paths)
    return sum(sizes)


def rows() -> Iterator[tuple[str, str, str, str]]:
    for side in EXTENTS_PX:
        for clouds_m in CLOUDS_M:
            found: dict[tuple[str, int], list[str]] = {rule: [] for rule in RULES}
            for block in BLOCKS_PX:
                with tempfile.TemporaryDirectory() as name:
                    stac = archive(Path(name) / "a", side, block, clouds_m)
                    whole = sum(path.stat().st_size for path in stac.rglob("B*.tif"))
                    for rule in RULES:
                        found[rule].append(f"{read_bytes(stac, side, *rule) / whole:.2f}")
            for (method, max_obs), shares in found.items():
                row = f"bytes of {method}" + (f", max_obs {max_obs} of {len(DAYS)}" if max_obs else "")
                against = f"whole windows, {side // 100} km, clouds of {clouds_m} m, blocks of 256 and 1024"
                yield row, against, "", " and ".join(shares)


if __name__ == "__main__":
    for row in rows():
        print(*row, sep=" | ", flush=True)
