"""Benchmark composites (12 dates, 2048 px, 10 bands and SCL) against odc-stac with dask threads, decoding and numpy."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sgdata.builds import build_recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import composite_reference
from stac_wrap import Wrapped, wrap

from sgdata import files, package_data, pool
from sgdata.builds import fetch_scenes, pipeline
from sgdata.composite import rules
from sgdata.composite import tiles as composite_tiles
from sgdata.rasters import geotiff, grids
from sgdata.scenes import parse_items
from sgdata.scenes.aoi import Area
from sgdata.sentinel2 import BAND
from sgdata.types import Array, Grid

DATES, SIDE, REPEATS = 12, 2048, 3
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
GRID = Grid(crs="EPSG:32632", origin=(600000.0, 5400000.0), gsd_m=10.0, shape=(SIDE, SIDE))


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


def recipe(method: rules.Method) -> build_recipe.BuildRecipe:
    published = files.read(build_recipe.BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    return replace(
        published,
        bands=BANDS,
        dates="2019-01-01/2019-12-31",
        resampling="nearest",
        area=Area(grid=GRID),
        composite=replace(published.composite, method=method),
    )


def ours(folder: Path, method: rules.Method) -> Array:
    """From the catalogue to the composite in memory, in one process."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        places = build_recipe.BuildPaths(out=Path(scratch), stac=str(folder / "a"))
        settings = recipe(method)
        fetched, scenes = fetch_scenes.fetch_scenes(settings, pipeline.plan(settings, places), places)
        masked = fetch_scenes.add_clear_masks(settings, scenes, fetched.grid, places)
        job = pipeline.composite_job(settings, fetched, masked, places.scratch_folder)
        image = np.empty((len(BANDS), SIDE, SIDE), np.uint16)
        windows = list(grids.cut_tiles(GRID.shape, *composite_tiles.tile_shape(job, places.tile_px)))
        tiles = pool.run(partial(composite_tiles.composite_tile, job), windows, workers=1, threads=build_recipe.THREADS)
        for window, tile in zip(windows, tiles, strict=True):
            image[(slice(None), *window.slices)] = np.load(tile, mmap_mode="r")[: len(BANDS)]
    return image


def decoded(folder: Path) -> int:
    """Decode every block of every file with GDAL and discard it."""
    total = 0
    for path in sorted((folder / "a").rglob("*.tif")):
        with geotiff.open_raster(str(path)) as dataset:
            for _, window in dataset.block_windows(1):
                total += dataset.read(1, window=window).size
    return total


def odc(folder: Path) -> Array:
    """Compute the same median by odc-stac, dask threads and xarray."""
    import odc.stac
    import pystac

    items = list(pystac.Catalog.from_file(str(folder / "a" / "catalog.json")).get_items(recursive=True))
    keys = [parse_items.asset_keys()["earth-search"][band] for band in BANDS]
    west, south, east, north = GRID.bounds
    data = odc.stac.load(
        items,
        bands=[*keys, "scl"],
        crs=GRID.crs,
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


def against(work: Callable[[], Any], other: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, str]:
    """Both take turns; the ratio of their median times, and both in words, with that of their work on all cores."""
    rounds = []
    for _ in range(repeats):
        for one in (work, other):
            began = time.process_time()
            rounds.append((timed(one), time.process_time() - began))
    (a, own), (b, its) = ([statistics.median(column) for column in zip(*rounds[n::2], strict=True)] for n in (0, 1))
    return a / b, f"{a:.2f} s against {b:.2f} s; CPU {own:.2f} against {its:.2f}, {own / its:.2f}x"


def rows() -> list[tuple[str, str, str, str]]:
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive(folder / "a")
        for method in ("median", "bap"):
            ours(folder, method)  # compiles
        row = "composite, median, 12 dates"
        ratio, words = against(lambda: ours(folder, "median"), lambda: decoded(folder))
        found.append((row, "bare decode of the same blocks", "", f"{ratio:.2f}x ({words})"))
        try:
            ratio, words = against(lambda: odc(folder), lambda: ours(folder, "median"), 1)
            found.append((row, "odc-stac + dask threads", "", f"{ratio:.1f}x ({words})"))
        except ImportError as missing:
            found.append((row, "odc-stac + dask threads", "", f"not installed: {missing.name}"))
        ratio, words = against(lambda: ours(folder, "bap"), lambda: ours(folder, "medoid"))
        found.append(("composite, bap", "medoid, which decodes every date", "", f"{ratio:.2f}x ({words})"))
        ratio, words = against(lambda: ours(folder, "bap"), lambda: decoded(folder))
        found.append(("composite, bap", "decoding every date", "", f"{ratio:.2f}x ({words})"))
        found += growth(folder)
    found.append(("medoid", "numpy reference", "", medoid_kernel()))
    return found


def growth(folder: Path) -> list[tuple[str, str, str, str]]:
    """Time and peak memory of builds in processes of their own: area x 1, 4, 16, then four times the dates."""
    repeat(folder / "a", years=3)
    parts = [(SIDE // 4, DATES), (SIDE // 2, DATES), (SIDE, DATES), (SIDE // 2, 4 * DATES)]
    measured = []
    for side, dates in parts:
        command = [sys.executable, __file__, str(folder), str(side), "2019" if dates == DATES else "2016"]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
        measured.append((float(answer[0]), float(answer[1])))
    (t1, m1), (t4, m4), (t16, m16), (td, md) = measured
    time_words = f"area 4x: {t4 / t1:.1f}x time, 16x: {t16 / t1:.1f}x; dates 4x: {td / t4:.1f}x"
    memory = f"{m1:.0f}, {m4:.0f}, {m16:.0f} MB; dates 4x: {md:.0f} MB"
    return [
        ("growth", "1x, 4x, 16x area; 1x, 4x dates", "", f"{time_words}; {memory}"),
        ("composite, median, 12 dates", "peak memory", "", f"{m16:.0f} MB (whole process, build without labels)"),
    ]


def repeat(archive: Path, *, years: int) -> None:
    """Repeat the scenes in earlier years: other items with the same bytes."""
    home = archive / "sentinel-2-l2a"
    collection = files.read_plain(home / "collection.json")
    for folder in sorted(home.glob("S2A*")):
        for back in range(1, years + 1):
            name = folder.name.replace("_2019", f"_{2019 - back}")
            (home / name).mkdir()
            for path in folder.glob("*.tif"):
                (home / name / path.name).hardlink_to(path)
            text = (folder / f"{folder.name}.json").read_text()
            text = text.replace(folder.name, name).replace("2019-", f"{2019 - back}-")
            (home / name / f"{name}.json").write_text(text)
            collection["links"].append({"rel": "item", "href": f"./{name}/{name}.json"})
    (home / "collection.json").write_bytes(files.pretty_json(collection))


def alone(folder: Path, side: int, first_year: str) -> str:
    """Seconds and peak MB of one build from catalogue to rasters in this process."""
    settings = replace(
        recipe("median"),
        dates=f"{first_year}-01-01/2019-12-31",
        area=Area(grid=replace(GRID, shape=(side, side))),
    )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        places = build_recipe.BuildPaths(out=Path(scratch), stac=str(folder / "a"))

        def build() -> None:
            fetched, scenes = fetch_scenes.fetch_scenes(settings, pipeline.plan(settings, places), places)
            pipeline.render(settings, fetched, scenes, places, Path(scratch))

        seconds = timed(build)
    # Not ru_maxrss: that goes on from the process that started this one.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return f"{seconds} {int(peak.split()[1]) / 1024}"


def medoid_kernel() -> str:
    rng = np.random.Generator(np.random.Philox(key=1))
    looked = rng.integers(1, 5000, (DATES, 6, 512, 512)).astype(np.uint16)
    usable = rng.random((DATES, 512, 512)) < 0.7
    rules.medoid(looked, usable)  # compiles
    fast = statistics.median(timed(lambda: rules.medoid(looked, usable)) for _ in range(REPEATS))
    slow = timed(lambda: composite_reference.medoid(looked, usable))
    return f"{slow / fast:.0f}x ({fast:.2f} s against {slow:.2f} s, 512 px square)"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(alone(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
    else:
        print(*rows(), sep="\n")
