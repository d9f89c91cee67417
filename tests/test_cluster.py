"""Test that a build on a Dask cluster of real processes, one of them killed midway, gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
from stac_wrap import Wrapped, wrap

from sgdata import catalog, files, pool
from sgdata.builds import pipeline
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.errors import ServiceError
from sgdata.scenes.aoi import Area
from sgdata.types import Grid

ROOT = Path(__file__).resolve().parents[1]
GRID = Grid(crs="EPSG:32632", origin=(600060.0, 5399940.0), gsd_m=10.0, shape=(240, 240))


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def cluster() -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Start a scheduler and two workers with one thread each; yield the address and the workers."""
    pytest.importorskip("distributed", reason="dask is not installed")
    address = f"tcp://127.0.0.1:{served.free_port()}"
    with ExitStack() as stack:
        port = address.rpartition(":")[2]
        stack.enter_context(running("dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"))
        workers = ("dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0")
        yield address, [stack.enter_context(running(*workers)) for _ in range(2)]


def build(out: Path, archive: Path, **places: Any) -> Path:
    published = files.read(BuildRecipe, catalog.folder("recipes") / "build" / "segmunich.toml")
    recipe = replace(
        published,
        dates="2019-01-01/2019-12-31",
        area=Area(grid=GRID),
        bands=("B04",),
        patches=replace(published.patches, size=32, stride=32),
        split=replace(published.split, block_px=32, gap_px=0),
    )
    return pipeline.build(recipe, BuildPaths(out=out, stac=str(archive), osm="none", tile_px=64, **places))


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes_though_a_worker_is_killed(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    rng = np.random.Generator(np.random.Philox(key=3))
    scenes = []
    for month in range(1, 10):
        layers: dict[str, tuple[Any, float]] = {
            "B04": (rng.integers(100, 900, (300, 300)).astype(np.uint16), 10.0),
            "SCL": (rng.choice([4, 4, 8], (150, 150)).astype(np.uint8), 20.0),
        }
        scenes.append(Wrapped(id=f"S2A_32UPU_20190{month}01_0_L2A", time=f"2019-0{month}-01T10:00:00Z", layers=layers))
    archive = wrap(tmp_path / "a", scenes)
    here = build(tmp_path / "here", archive)
    address, workers = cluster
    staged = tmp_path / "there" / ".scratch" / "windows"

    def kill_one() -> None:
        while len(list(staged.glob("*.json"))) < 4:
            time.sleep(0.002)
        workers[0].kill()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    there = build(tmp_path / "there", archive, cluster=address)
    killer.join(1)
    assert workers[0].poll() is not None
    assert workers[1].poll() is None
    assert (there / files.SUMS).read_text() == (here / files.SUMS).read_text()


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="dask is not installed")
    monkeypatch.setattr(pool, "CONNECT_S", 1)
    address = f"tcp://127.0.0.1:{served.free_port()}"
    with pytest.raises(ServiceError, match=f"{address}: no Dask scheduler answers"):
        list(pool.run(abs, [1], workers=1, cluster=address))
