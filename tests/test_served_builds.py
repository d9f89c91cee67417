"""Test builds from real loopback servers, with and without faults: equal bytes or one error line, never nodata."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
from served import Files
from stac_wrap import Wrapped, wrap

from sgdata import files, output_names, package_data
from sgdata.builds import build_recipe, pipeline
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.errors import ServiceError, SourceError
from sgdata.rasters import geotiff
from sgdata.scenes import lock, signing
from sgdata.scenes.aoi import Area
from sgdata.simulation.archive import simulate
from sgdata.staging import window_staging
from sgdata.types import Grid

GRID = Grid(crs="EPSG:32632", origin=(600060.0, 5399940.0), gsd_m=10.0, shape=(120, 120))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two clear scenes of two bands."""
    rng = np.random.Generator(np.random.Philox(key=5))
    scenes = []
    for month in (5, 6):
        layers: dict[str, tuple[Any, float]] = {
            "B04": (rng.integers(100, 900, (600, 600)).astype(np.uint16), 10.0),
            "B11": (rng.integers(100, 900, (300, 300)).astype(np.uint16), 20.0),
            "SCL": (np.full((300, 300), 4, np.uint8), 20.0),
        }
        scenes.append(Wrapped(id=f"S2A_32UPU_20190{month}01_0_L2A", time=f"2019-0{month}-01T10:00:00Z", layers=layers))
    return wrap(tmp_path_factory.mktemp("served") / "a", scenes)


@pytest.fixture(scope="module")
def recipe() -> BuildRecipe:
    published = files.read(BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    return replace(
        published,
        dates="2019-01-01/2019-12-31",
        area=Area(grid=GRID),
        bands=("B04", "B11"),
        patches=replace(published.patches, size=32, stride=32),
        split=replace(published.split, block_px=32, gap_px=0),
    )


@pytest.fixture(scope="module")
def outputs(archive: Path, recipe: BuildRecipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the pixel hashes of the build from disk, the reference for all others."""
    return hashes(build(recipe, str(archive), tmp_path_factory.mktemp("b") / "disk"))


def build(recipe: BuildRecipe, where: str, out: Path) -> Path:
    return pipeline.build(recipe, BuildPaths(out=out, stac=where, osm="none"))


def hashes(out: Path) -> dict[str, str]:
    return lock.read(out / lock.NAME).outputs


# --- healthy -------------------------------------------------------------------------------


def test_nginx_and_a_stac_api_give_the_build_from_disk(
    archive: Path, recipe: BuildRecipe, outputs: dict[str, str], tmp_path: Path
) -> None:
    if not (shutil.which("nginx") or Path("/usr/sbin/nginx").exists()):
        pytest.skip("nginx is not installed")
    command, url = served.nginx(archive, tmp_path / "nginx")
    with served.process(command, f"{url}catalog.json"):
        # A static catalogue over HTTP, then an API over the same files.
        assert hashes(build(recipe, f"{url}catalog.json", tmp_path / "static")) == outputs
        pytest.importorskip("rustac", reason="rustac is not installed")
        items = served.item_collection(archive, url, tmp_path / "items.json")
        api, there = served.rustac(items)
        with served.process(api, there):
            out = build(recipe, there, tmp_path / "api")
    assert hashes(out) == outputs
    assert lock.read(out / lock.NAME).items[0].scene.assets["B04"].href.startswith(url)


@pytest.mark.slow
def test_three_providers_give_one_build_from_disk_and_over_http(tmp_path: Path) -> None:
    """Image and labels are equal for the simulated city in the names, formats and offsets of each provider."""
    found = {}
    for layout in ("earth-search", "planetary-computer", "cdse"):
        folder = simulate(tmp_path / layout, size_km=2, dates=6, layout=layout)
        # The later scene is undecided for Earth Search only, and shows too little ground for the pixel test.
        chosen = {"dates": "2019-04-01/2020-01-01", "aoi": folder / "aoi.geojson"}
        recipe = build_recipe.recipe_for("segmunich", chosen, ["patches.size=64", "patches.stride=64"])
        osm = str(folder / "osm" / "city.osm")
        built = pipeline.build(recipe, BuildPaths(out=tmp_path / f"{layout}-disk", stac=str(folder), osm=osm))
        found[layout, "disk"] = hashes(built)
        if shutil.which("nginx") or Path("/usr/sbin/nginx").exists():
            command, url = served.nginx(folder, tmp_path / f"{layout}-nginx")
            with served.process(command, f"{url}catalog.json"):
                places = BuildPaths(out=tmp_path / f"{layout}-http", stac=f"{url}catalog.json", osm=osm)
                found[layout, "http"] = hashes(pipeline.build(recipe, places))
    same = {(outputs["image.tif"], outputs["labels.tif"]) for outputs in found.values()}
    assert len(same) == 1, found


# --- sick ----------------------------------------------------------------------------------


def first_times(count: int, act: Callable[[Files, bytes], None]) -> served.Fault:
    """Return a fault of the first `count` requests for the pixels of each raster."""
    seen: Counter[str] = Counter()

    def fault(handler: Files, content: bytes) -> bool:
        if not handler.path.endswith(".tif") or handler.command != "GET":
            return False
        seen[handler.path] += 1
        if seen[handler.path] > count:
            return False
        act(handler, content)
        return True

    return fault


def busy(status: int) -> Callable[[Files, bytes], None]:
    return lambda handler, content: handler.give(status, b"busy", {"Retry-After": "1"})


def halfway(handler: Files, content: bytes) -> None:
    """Announce the whole file, send half, close the connection."""
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(content)))
    handler.send_header("Content-Range", f"bytes 0-{len(content) - 1}/{len(content) * 2}")
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.drop()


def hung_up(handler: Files, content: bytes) -> None:
    handler.drop()


def promising_more(handler: Files, content: bytes) -> None:
    """Send a Content-Length ten bytes too long."""
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(content) + 10))
    handler.end_headers()
    handler.wfile.write(content)
    handler.wfile.flush()
    handler.drop()


def slow(handler: Files, content: bytes) -> None:
    time.sleep(0.1)
    asked = handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
    size = (handler.server.folder / handler.path.lstrip("/")).stat().st_size
    handler.give(206, content, {"Content-Range": f"bytes {asked}-{int(asked) + len(content) - 1}/{size}"})


FAULTS = {
    "429": busy(429),
    "500": busy(500),
    "503": busy(503),
    "504": busy(504),
    "halfway": halfway,
    "hung up": hung_up,
    "promising more": promising_more,
    "slow": slow,
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_staging, "RETRY", replace(window_staging.RETRY, wait_s=0.05))
    monkeypatch.setitem(geotiff.READING, "GDAL_HTTP_RETRY_DELAY", "0.1")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in {"500", "504"} else []) for name in FAULTS]
)
def test_a_transient_fault_does_not_change_pixels(
    name: str, archive: Path, recipe: BuildRecipe, outputs: dict[str, str], tmp_path: Path
) -> None:
    with served.serving(archive, first_times(1, FAULTS[name])) as server:
        out = build(recipe, f"{server.url}/catalog.json", tmp_path / "b")
    assert hashes(out) == outputs


@pytest.mark.parametrize("name", ["503", "halfway", "hung up"])
def test_a_fault_that_stays_is_one_line_and_never_nodata(
    name: str, archive: Path, recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(geotiff.READING, "GDAL_HTTP_MAX_RETRY", "1")
    with (
        served.serving(archive, first_times(10**6, FAULTS[name])) as server,
        pytest.raises(SourceError, match=r"\.tif: cannot be read") as caught,
    ):
        build(recipe, f"{server.url}/catalog.json", tmp_path / "b")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b" / output_names.SUMS).exists()


def test_a_file_that_ends_early_on_the_server_is_one_line(archive: Path, recipe: BuildRecipe, tmp_path: Path) -> None:
    copy = shutil.copytree(archive, tmp_path / "a")
    path = next(copy.rglob("B04.tif"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    where = replace(recipe, area=Area(grid=replace(GRID, shape=(580, 580))))
    with served.serving(copy) as server, pytest.raises(SourceError, match=r"B04\.tif: cannot be read") as caught:
        build(where, f"{server.url}/catalog.json", tmp_path / "b")
    assert "\n" not in str(caught.value)


# --- signatures ----------------------------------------------------------------------------


class Door:
    """A fault like expiring signatures: the first token is accepted for a limited number of requests."""

    def __init__(self, good_for: int) -> None:
        self.good_for, self.issued, self.refused = good_for, 0, 0
        self.used: Counter[str] = Counter()

    def token(self, minutes: float) -> dict[str, str]:
        self.issued += 1
        until = datetime.now(UTC) + timedelta(minutes=minutes)
        return {"token": f"sig=n{self.issued}", "msft:expiry": until.isoformat()}

    def __call__(self, handler: Files, content: bytes) -> bool:
        if handler.path.startswith("/token/"):
            handler.give(200, json.dumps(self.token(45)).encode())
            return True
        if not handler.path.partition("?")[0].endswith(".tif"):
            return False
        token = handler.path.partition("?sig=n")[2]
        self.used[token] += 1
        if token and (token != "1" or self.used[token] <= self.good_for):
            return False
        self.refused += 1
        handler.give(403, b"expired")
        return True


def test_files_are_signed_when_opened_and_again_when_the_token_expires(
    archive: Path, recipe: BuildRecipe, outputs: dict[str, str], tmp_path: Path
) -> None:
    store = shutil.copytree(archive, tmp_path / "a")
    (store / "token" / "127").mkdir(parents=True)
    (store / "token" / "127" / "sentinel-2-l2a").write_text("{}")
    door = Door(good_for=8)  # of twelve: six files, each with a first request for its header
    with served.serving(store, door) as server:
        source = replace(recipe.source, tokens=f"{server.url}/token")
        out = build(replace(recipe, source=source), f"{server.url}/catalog.json", tmp_path / "b")
    assert hashes(out) == outputs
    assert 2 <= door.issued <= 8 and door.refused
    assert b"sig=" not in (out / lock.NAME).read_bytes()


def test_a_token_near_its_end_is_replaced_and_a_silent_service_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(time.time() + 60, "sig=a"), (time.time() + 3600, "sig=b")]
    monkeypatch.setattr(signing, "_request_token", lambda url: answers.pop(0))
    href = "https://store.blob.core.windows.net/box/x.tif"
    for expected in ("sig=a", "sig=b", "sig=b"):
        assert signing.sign(href, "https://tokens.example/v1") == f"{href}?{expected}"
    assert signing.sign(href, "") == href
    assert signing.sign("/disk/x.tif", "https://tokens.example/v1") == "/disk/x.tif"
    assert signing.service("planetary-computer", href) == signing.PLANETARY_COMPUTER
    assert signing.service("planetary-computer", "/disk/x.tif") == signing.service("cdse", href) == ""
    monkeypatch.undo()
    monkeypatch.setattr(signing, "RETRY", replace(signing.RETRY, wait_s=0))
    unreachable = f"http://127.0.0.1:{served.free_port()}/token"
    with pytest.raises(ServiceError, match=f"{unreachable}/store/other: gives no token"):
        signing.sign(href.replace("box", "other"), unreachable)
