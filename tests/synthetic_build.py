"""Write a whole build folder of any size from a formula in seconds, to test pages of large builds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sgdata import files, output_names, sentinel2
from sgdata.audits import findings
from sgdata.builds import build_folder, patch_table
from sgdata.rasters import cog
from sgdata.scenes import lock
from sgdata.scenes.lock import Item, Lock
from sgdata.scenes.types import Scene
from sgdata.shards import contracts, statistics
from sgdata.types import Array, Grid, Window
from tests import synthetic_shards

SCENES = ("S2A_32UPU_20190407_0_L2A", "S2B_32UPU_20190701_0_L2A", "S2A_32UPU_20190825_1_L2A")
DAYS = np.array([17993, 18078, 18133], np.uint16)


def write(out: Path, shape: tuple[int, int], *, patch: int = 128) -> Path:
    """Write every file of a build that the page reads: four classes, three scenes, a corner without data."""
    grid = Grid(crs="EPSG:32632", origin=(680040.0, 5340360.0), gsd_m=10.0, shape=shape)
    bands = sentinel2.L2A_BANDS
    image = cog.RasterStyle(descriptions=bands, nodata=0)
    cog.write(out / output_names.IMAGE, grid, ((w, dn(w)) for w in strips(shape)), style=image)
    provenance = cog.RasterStyle(descriptions=output_names.PROVENANCE_BANDS, nodata=65535)
    cog.write(out / output_names.PROVENANCE, grid, ((w, chosen(w)) for w in strips(shape)), style=provenance)
    whole = Window(row=0, col=0, height=shape[0], width=shape[1])
    labels = classes(whole)
    labels[:8] = 255
    space = synthetic_shards.contract(patch).label_space
    sources = {0: "none", 1: "OpenStreetMap polygon"}
    build_folder.write_labels(out, grid, space, sources, (labels, (labels < 255).astype(np.uint8)))
    build_folder.write_usage(out, [(name, 0.5) for name in SCENES])
    counts = statistics.counts(dn(Window(row=0, col=0, height=min(512, shape[0]), width=shape[1])))
    contract = dataclasses.replace(
        synthetic_shards.contract(patch),
        dataset="segmunich",
        statistics=statistics.summarise(counts, list(bands), 0),
    )
    contracts.write(out, contract)
    corners = [(r, c) for r in range(0, shape[0] - patch + 1, patch) for c in range(0, shape[1] - patch + 1, patch)]
    windows = [Window(row=r, col=c, height=patch, width=patch) for r, c in corners]
    parts = ["val" if window.row < patch else "train" for window in windows]
    held = np.ones((len(windows), 4), np.int64)
    patch_table.write(
        out / "patches.parquet", patch_table.table("toy", grid, windows, splits=parts, counts=held, ids=range(4))
    )
    lock.write(out / lock.NAME, locked(grid))
    check = findings.CheckResult(name="dead bands", state="finding", message="B09 is <constant>", where=("toy-r00000",))
    report = findings.AuditReport(
        subject="segmunich 1", kind="build", samples=len(windows), findings=1, checks=(check,),
    )  # fmt: skip
    files.write(out / findings.NAME, files.pretty_json(report))
    files.write_sums(out)
    return out


def strips(shape: tuple[int, int]) -> Iterator[Window]:
    for row in range(0, shape[0], 512):
        yield Window(row=row, col=0, height=min(512, shape[0] - row), width=shape[1])


def classes(window: Window) -> Array:
    """Return a map of ovals of four classes."""
    rows, cols = np.mgrid[window.slices]
    field = np.sin(rows / 47) + np.cos(cols / 61)
    return np.digitize(field, (-1, 0, 1)).astype(np.uint8)


def dn(window: Window) -> Array:
    """Return a spectrum per class with shading and sensor noise; no data in the corner of the first rows."""
    held = classes(window)
    steps = np.arange(12)
    spectra = np.stack([500 + 40 * steps, 700 + 250 * steps, 900 + 150 * steps, 2500 - 90 * steps])
    rng = np.random.Generator(np.random.Philox(key=[window.row, 5]))
    noise = rng.integers(-70, 70, (12, *held.shape), dtype=np.int16)
    rows, cols = np.mgrid[window.slices]
    image = spectra[held].transpose(2, 0, 1) + noise + (80 * np.sin(rows / 9) * np.sin(cols / 7)).astype(np.int16)
    image[:, (rows < 20) & (cols < 20)] = 0
    return image.astype(np.uint16)


def chosen(window: Window) -> Array:
    rows, cols = np.mgrid[window.slices]
    index = ((rows // 97 + cols // 83) % 3).astype(np.uint16)
    score = ((rows * 31 + cols * 17) % 10000).astype(np.uint16)
    target = ((rows % 90 < 25) & (cols % 90 < 25)) * np.uint16(2)
    out = np.stack([index, index + 4, DAYS[index], score, target])
    out[:4, (rows < 20) & (cols < 20)] = 65535
    return out


def locked(grid: Grid) -> Lock:
    def scene(name: str) -> Scene:
        stamp = f"{name[10:14]}-{name[14:16]}-{name[16:18]}T10:20:00Z"
        return Scene(
            id=name, collection="sentinel-2-l2a", provider="toy", time=stamp, platform=name[:3], tile="32UPU", orbit=65,
            datatake="", baseline="02.11", generated=stamp, crs=grid.crs, bbox=(11.4, 48.1, 11.6, 48.2),
            cloud_cover=10.0, assets={},
        )  # fmt: skip

    return Lock(
        format=lock.FORMAT, state="built", recipe_sha256="0" * 64, collection="sentinel-2-l2a",
        dates="2019-04-01/2019-09-30", osm_date="2019-09-30", grid=grid, dropped=(), tag_table_sha256="0" * 64,
        items=tuple(Item(scene=scene(name), expected_offset=0, offset=0) for name in SCENES),
    )  # fmt: skip
