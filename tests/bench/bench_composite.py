"""Composites of 12 dates, 2048 px square, 10 bands and SCL: against odc-stac with dask threads, bare decode, numpy."""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stac_wrap import Wrapped, wrap

from sgdata import catalog, composite, files, grid, observe, rasters, stac
from sgdata.areas import Area
from sgdata.datasets import segmunich
from sgdata.sentinel2 import BAND
from sgdata.types import Array, Grid

DATES, SIDE, REPEATS = 12, 2048, 3
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
LATTICE = Grid(crs="EPSG:32632", origin=(600000.0, 5400000.0), gsd_m=10.0, shape=(SIDE, SIDE))


def archive(folder: Path) -> Path:
    """Twelve dates of four different noisy pictures (deflate ratio about 1.5) as the providers store them."""
    scenes = []
    for number in range(DATES):
        rng = np.random.Generator(np.random.Philox(key=number % 4))
        layers: dict[str, tuple[Any, float]] = {}
        for band in BANDS:
            side = SIDE * 10 // BAND[band].gsd_m
            ramp = np.add.outer(np.arange(side), np.arange(side)) // 8
            layers[band] = ((ramp + rng.normal(600, 40, (side, side))).astype(np.uint16), float(BAND[band].gsd_m))
        scl = np.kron(rng.choice([4, 5, 9], (SIDE // 64, SIDE // 64)), np.ones((32, 32)))
        layers["SCL"] = (scl.astype(np.uint8), 20.0)
        day = f"2019-{number + 1:02d}-01"
        scenes.append(
            Wrapped(id=f"S2A_32UPU_{day.replace('-', '')}_0_L2A", time=f"{day}T10:00:00Z", layers=layers, block=1024)
        )
    return wrap(folder, scenes)


def recipe(method: composite.Method) -> segmunich.BuildRecipe:
    published = files.read(segmunich.BuildRecipe, catalog.folder("recipes") / "build" / "segmunich.toml")
    return replace(
        published,
        bands=BANDS,
        dates="2019-01-01/2019-12-31",
        resampling="nearest",
        area=Area(grid=LATTICE),
        composite=replace(published.composite, method=method),
    )


def ours(folder: Path, method: composite.Method) -> Array:
    """From the catalogue to the composite in memory, in one process."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        places = segmunich.Places(out=Path(scratch), stac=str(folder / "a"))
        settings = recipe(method)
        _, scenes = segmunich.fetch(settings, segmunich.plan(settings, places), places)
        job = observe.Job(
            grid=LATTICE,
            bands=BANDS,
            kernel="nearest",
            method=method,
            mask=settings.mask,
            scenes=scenes,
            folder=Path(scratch),
        )
        image = np.empty((len(BANDS), SIDE, SIDE), np.uint16)
        for window in grid.tiles(LATTICE.shape, observe.tile_size(DATES, len(BANDS), 512)):
            image[(slice(None), *window.slices)] = np.load(observe.composite_tile(job, window))[: len(BANDS)]
    return image


def decoded(folder: Path) -> int:
    """Every block of every file through GDAL, nothing kept."""
    total = 0
    for path in sorted((folder / "a").rglob("*.tif")):
        with rasters.opened(str(path)) as dataset:
            total += sum(
                values.size
                for values in rasters.strips(
                    dataset, rasters.window_over(rasters.header(dataset).lattice, LATTICE.bounds, margin=0)
                )
            )
    return total


def odc(folder: Path) -> Array:
    """The same median by odc-stac, dask threads and xarray."""
    import odc.stac
    import pystac

    items = list(pystac.Catalog.from_file(str(folder / "a" / "catalog.json")).get_items(recursive=True))
    keys = [stac.EARTH_SEARCH[band] for band in BANDS]
    west, south, east, north = LATTICE.bounds
    data = odc.stac.load(
        items,
        bands=[*keys, "scl"],
        crs=LATTICE.crs,
        resolution=10,
        chunks={"x": 1024, "y": 1024},
        resampling="nearest",
        x=(west, east),
        y=(south, north),
    )
    clear = ~data["scl"].isin(recipe("median").mask.drop)
    median = data[keys].where(clear & (data[keys] > 0)).chunk({"time": -1}).median("time")
    return np.stack([median[key].compute().to_numpy() for key in keys])


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    with warnings.catch_warnings(action="ignore"):
        work()
    return time.perf_counter() - started


def rows() -> list[tuple[str, str, str, str]]:
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive(folder / "a")
        ours(folder, "median")  # compiles
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pairs = [(timed(lambda: ours(folder, "median")), timed(lambda: decoded(folder))) for _ in range(REPEATS)]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        median, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
        row = "composite, median, 12 dates"
        found.append(
            (row, "bare decode of the same blocks", "", f"{median / bare:.2f}x ({median:.2f} s against {bare:.2f} s)")
        )
        found.append((row, "peak memory", "", f"{max(memory, before) / 1024:.0f} MB (whole process)"))
        try:
            rival = timed(lambda: odc(folder))
            found.append(
                (row, "odc-stac + dask threads", "", f"{rival / median:.1f}x ({median:.2f} s against {rival:.2f} s)")
            )
        except ImportError as missing:
            found.append((row, "odc-stac + dask threads", "", f"not installed: {missing.name}"))
    found.append(("medoid", "numpy reference", "", medoid_kernel()))
    return found


def medoid_kernel() -> str:
    rng = np.random.Generator(np.random.Philox(key=1))
    stack = rng.integers(1, 5000, (DATES, len(BANDS), 512, 512)).astype(np.uint16)
    usable = rng.random((DATES, 512, 512)) < 0.7
    distance = (0, 1, 2, 6, 8, 9)

    def kernel() -> Any:
        return composite.reduce(stack, usable, method="medoid", distance=distance)

    kernel()
    fast = statistics.median(timed(kernel) for _ in range(REPEATS))
    slow = timed(lambda: composite.reference_medoid(stack, usable, distance))
    return f"{slow / fast:.0f}x ({fast:.2f} s against {slow:.2f} s, 512 px square)"


if __name__ == "__main__":
    for line in rows():
        print(line)
