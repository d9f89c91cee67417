"""Benchmark bands in Zarr as ESA publishes them (one chunk of 5490 x 5490) against COGs of the same pixels."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import served

from sgdata.rasters import geotiff
from sgdata.scenes.types import Asset
from sgdata.simulation import cogs, eopf
from sgdata.staging import window_staging
from sgdata.staging.scene_files import WindowRequest
from sgdata.types import Bounds, Grid, Window

SIDE, CITY_M, REPEATS = 5490, 4000, 5
GRID = Grid(crs="EPSG:32632", origin=(600000.0, 5400000.0), gsd_m=10.0, shape=(SIDE, SIDE))
ARRAY = "S.zarr/measurements/reflectance/r10m/b04"


def write(folder: Path) -> None:
    """Write one band as COG and as Zarr; it is about as compressible as a real one (deflate ratio about 1.5)."""
    rng = np.random.default_rng(1)
    ramp = np.add.outer(np.arange(SIDE), np.arange(SIDE)) // 8
    values = (ramp + rng.normal(600, 40, (SIDE, SIDE))).astype(np.uint16)
    with cogs.writing(folder / "b04.tif", GRID, ("B04",), "uint16", 0) as sink:
        sink(Window(row=0, col=0, height=SIDE, width=SIDE), values[None])
    array = folder / ARRAY
    array.mkdir(parents=True)
    about = {
        "zarr_format": 2, "shape": [SIDE, SIDE], "chunks": [SIDE, SIDE], "dtype": "<u2", "fill_value": 0, "order": "C",
        "filters": None, "compressor": eopf.COMPRESSOR,
    }  # fmt: skip
    attributes = {"proj:epsg": 32632, "proj:transform": list(GRID.transform), "scale_factor": 0.0001}
    (array / ".zarray").write_text(json.dumps(about))
    (array / ".zattrs").write_text(json.dumps(attributes))
    (array / "0.0").write_bytes(eopf.compress(values))


def request(href: str, bounds: Bounds) -> WindowRequest:
    return WindowRequest(name="B04", asset=Asset(href=href), crs=GRID.crs, bounds=bounds, target=Path("unused"))


def read(href: str, bounds: Bounds) -> tuple[str, float, float]:
    """Return the pixel hash of a window, and the least wall and CPU seconds of reading it."""
    import hashlib

    walls, spent, digest = [], [], ""
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        with window_staging.open_scene_file(request(href, bounds), href) as source:
            strips = [strip.copy() for strip in source.rows()]
        walls.append(time.perf_counter() - wall)
        spent.append(time.process_time() - cpu)
        digest = hashlib.sha256(geotiff.little_endian(np.concatenate(strips))).hexdigest()
    return digest, min(walls), min(spent)


def city() -> Bounds:
    west, _, _, north = GRID.bounds
    return (west + 25_000, north - 25_000 - CITY_M, west + 25_000 + CITY_M, north - 25_000)


def rows() -> Iterator[tuple[str, str, str, str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        for what, bounds in (("whole band of 5490 px", GRID.bounds), (f"city of {CITY_M // 1000} km", city())):
            (one, wall, cpu), (two, tiff_wall, tiff_cpu) = (
                read(str(folder / path), bounds) for path in (ARRAY, "b04.tif")
            )
            assert one == two, "the pixels differ"
            figure = f"{wall / tiff_wall:.2f}x the time, {cpu / tiff_cpu:.2f}x the CPU ({cpu * 1e3:.0f} ms)"
            yield f"Zarr, {what}", "COG", "<= 1x", figure
        got = {path: _fetched(folder, path) for path in (ARRAY, "b04.tif")}
        stored = (folder / ARRAY / "0.0").stat().st_size
        figure = f"{got[ARRAY][0]:,} of {stored:,} bytes ({got[ARRAY][0] / stored:.1%}) in {got[ARRAY][1]} requests"
        yield f"Zarr over HTTP, city of {CITY_M // 1000} km", "the chunk", "", figure
        figure = f"{got['b04.tif'][0]:,} bytes in {got['b04.tif'][1]} requests"
        yield f"COG over HTTP, city of {CITY_M // 1000} km", "", "", figure


def _fetched(folder: Path, path: str) -> tuple[int, int]:
    """Return bytes and requests for the pixels of a city."""
    sizes: list[int] = []

    def count(handler: Any, content: bytes) -> bool:
        sizes.append(len(content))
        return False

    with served.serving(folder, count) as server:
        href = f"{server.url}/{path}"
        with window_staging.open_scene_file(request(href, city()), href) as source:
            for _ in source.rows():
                pass
    return sum(sizes), len(sizes)
