"""Test that a build on a Dask cluster of real processes, one of them killed midway, gives the same bytes."""

from __future__ import annotations

import os
import socket
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

from sgdata import files, output_names, package_data, pool
from sgdata.builds import pipeline
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.errors import ServiceError, SourceError
from sgdata.scenes.aoi import Area
from sgdata.types import Grid

ROOT = Path(__file__).resolve().parents[1]
GRID = Grid(crs="EPSG:32632", origin=(600060.0, 5399940.0), gsd_m=10.0, shape=(240, 240))


@contextmanager
def running(*words: str, before: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    environment |= {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false"}  # see docs/guides/machines.md
    command = [*before, sys.executable, "-m", "distributed.cli." + words[0], *words[1:]]
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
    published = files.read(BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
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
    assert (there / output_names.SUMS).read_text() == (here / output_names.SUMS).read_text()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    layers: dict[str, tuple[Any, float]] = {
        "B04": (np.full((300, 300), 300, np.uint16), 10.0),
        "SCL": (np.full((150, 150), 4, np.uint8), 20.0),
    }
    names = [f"S2A_32UPU_20190{month}01_0_L2A" for month in (5, 6)]
    return wrap(
        tmp_path / "a", [Wrapped(id=name, time=f"2019-0{name[15]}-01T10:00:00Z", layers=layers) for name in names]
    )


@pytest.mark.slow
def test_relative_paths_and_faults_of_data_are_those_of_one_machine(
    tmp_path: Path, archive: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = build(Path("there"), Path("a"), cluster=cluster[0])
    assert (there / output_names.SUMS).read_text() == (build(Path("here"), Path("a")) / output_names.SUMS).read_text()
    for path in archive.rglob("B04.tif"):
        path.write_bytes(path.read_bytes()[:2000])
    messages = []
    for name, more in (("c", {}), ("d", {"cluster": cluster[0]})):
        with pytest.raises(SourceError, match="2 of 2 scenes cannot be used") as caught:
            build(Path(name), Path("a"), **more)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_workers_that_are_missing_or_see_other_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed", reason="dask is not installed")
    monkeypatch.setattr(pool, "ALONE_S", 1)
    monkeypatch.setattr(pool, "CONNECT_S", 3)
    port = str(served.free_port())
    address = f"tcp://127.0.0.1:{port}"
    listens = ("--host", "127.0.0.1", "--port", port, "--no-dashboard")
    worker = ("dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0")
    with running("dask_scheduler", *listens) as scheduler:
        wait_for(port)
        with pytest.raises(ServiceError, match="has no workers"):
            list(pool.run(abs, [1], workers=1, cluster=address))
        monkeypatch.setattr(pool, "ALONE_S", 20)
        with running(*worker) as only:
            assert list(pool.run(abs, [-1], workers=1, cluster=address, folder=tmp_path)) == [1]
            assert not list(tmp_path.iterdir())
            monkeypatch.setattr(pool, "ALONE_S", 1)
            with pytest.raises(ServiceError, match="has no workers"):
                list(pool.run(time.sleep, killing(only, [0, 60]), workers=1, cluster=address))
        hidden = tmp_path / "hidden"
        hidden.mkdir()
        mount = f'mount -t tmpfs none {hidden} && exec "$0" "$@"'
        if subprocess.run(["unshare", "-rm", "true"], check=False).returncode == 0:
            monkeypatch.setattr(pool, "ALONE_S", 20)
            blind = running(*worker, before=("unshare", "-rm", "sh", "-c", mount))
            with blind, pytest.raises(ServiceError, match=f"1 workers do not see {hidden}"):
                list(pool.run(abs, [1], workers=1, cluster=address, folder=hidden))
        with running(*worker), pytest.raises(ServiceError, match="scheduler is lost"):
            list(pool.run(time.sleep, killing(scheduler, [0, 60]), workers=1, cluster=address))
    assert capfd.readouterr().err == ""


def killing(process: subprocess.Popen[bytes], items: list[int]) -> Iterator[int]:
    """Yield the items, and kill a process a second after the last was taken."""
    yield from items
    threading.Timer(1, process.kill).start()


def wait_for(port: str) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                return
        time.sleep(0.1)


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="dask is not installed")
    monkeypatch.setattr(pool, "CONNECT_S", 1)
    address = f"tcp://127.0.0.1:{served.free_port()}"
    with pytest.raises(ServiceError, match=f"{address}: no Dask scheduler answers"):
        list(pool.run(abs, [1], workers=1, cluster=address))
