"""Test unattended runs: unusable items are left out and named, up to a limit; transient errors are retried."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import served
from stac_wrap import COLLECTION, Wrapped, wrap
from test_stac import TwoPages
from typer.testing import CliRunner

from sgdata import files, package_data
from sgdata.builds import fetch_scenes, pipeline
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.cli import app
from sgdata.commands import printing
from sgdata.errors import ExitCode, OutputError, ServiceError, SourceError
from sgdata.rasters import geotiff
from sgdata.remote.retry import RetryPolicy
from sgdata.scenes import catalog_drift, lock, search
from sgdata.scenes.aoi import Area
from sgdata.scenes.types import UNREADABLE, UNUSABLE, Dropped
from sgdata.staging import window_staging
from sgdata.types import Grid

GRID = Grid(crs="EPSG:32632", origin=(600060.0, 5399940.0), gsd_m=10.0, shape=(120, 120))
DAYS = ("0501", "0506", "0511", "0516", "0521", "0526", "0605", "0615")


def wrapped(day: str, tile: str = "32UPU", **changes: Any) -> Wrapped:
    rng = np.random.Generator(np.random.Philox(key=int(day)))
    layers: dict[str, tuple[Any, float]] = {
        "B02": (rng.integers(100, 900, (150, 150)).astype(np.uint16), 10.0),
        "B04": (rng.integers(100, 900, (150, 150)).astype(np.uint16), 10.0),
        "SCL": (np.full((75, 75), 4, np.uint8), 20.0),
    }
    time = f"2019-{day[:2]}-{day[2:]}T10:00:00Z"
    return Wrapped(id=f"S2A_{tile}_2019{day}_0_L2A", time=time, layers=layers, **changes)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return wrap(tmp_path / "archive", [wrapped(day) for day in DAYS])


@pytest.fixture
def recipe() -> BuildRecipe:
    published = files.read(BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    return replace(
        published,
        dates="2019-01-01/2019-12-31",
        area=Area(grid=GRID),
        bands=("B02", "B04"),
        patches=replace(published.patches, size=32, stride=32),
        split=replace(published.split, block_px=32, gap_px=0),
    )


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_staging, "RETRY", replace(window_staging.RETRY, wait_s=0.05))
    monkeypatch.setitem(geotiff.READING, "GDAL_HTTP_RETRY_DELAY", "0.1")


def item_path(archive: Path, day: str, tile: str = "32UPU") -> Path:
    (path,) = archive.rglob(f"S2A_{tile}_2019{day}_0_L2A.json")
    return path


def without_red(archive: Path, *days: str, tile: str = "32UPU") -> None:
    for day in days:
        path = item_path(archive, day, tile)
        item = json.loads(path.read_text())
        del item["assets"]["red"]
        path.write_text(json.dumps(item))


def plan(recipe: BuildRecipe, archive: Path | str, out: Path) -> lock.Lock:
    return pipeline.plan(recipe, BuildPaths(out=out, stac=str(archive)))


def build(recipe: BuildRecipe, archive: Path | str, out: Path, **more: Any) -> lock.Lock:
    locked = more.pop("locked", None)
    return lock.read(pipeline.build(recipe, BuildPaths(out=out, stac=str(archive), osm="none", **more), locked=locked))


def lenient(recipe: BuildRecipe, share: float) -> BuildRecipe:
    return replace(recipe, source=replace(recipe.source, max_unusable_share=share))


# --- items ---------------------------------------------------------------------------------


def test_an_item_without_a_band_is_left_out_and_named(archive: Path, recipe: BuildRecipe, tmp_path: Path) -> None:
    without_red(archive, "0506")
    planned = plan(recipe, archive, tmp_path / "plan")
    assert len(planned.items) == 7
    (dropped,) = planned.dropped
    assert dropped.id == "S2A_32UPU_20190506_0_L2A"
    assert dropped.reason.startswith(f"{UNUSABLE}item S2A_32UPU_20190506_0_L2A: has no asset for B04 ('red')")
    assert lock.read(tmp_path / "plan") == planned


def test_too_many_unusable_items_stop_the_plan_all_named_at_once(
    archive: Path, recipe: BuildRecipe, tmp_path: Path
) -> None:
    bad = DAYS[1:3] + DAYS[4:7]
    without_red(archive, *bad)
    with pytest.raises(SourceError, match=r"^5 of 8 scenes.*expected at most 20%.*max_unusable_share") as caught:
        plan(recipe, archive, tmp_path / "plan")
    assert all(f"S2A_32UPU_2019{day}_0_L2A" in str(caught.value) for day in bad)
    assert str(caught.value).count("has no asset for B04") == 1
    assert len(plan(lenient(recipe, 0.7), archive, tmp_path / "plan").items) == 3


def test_the_other_twin_replaces_an_unusable_item(archive: Path, recipe: BuildRecipe, tmp_path: Path) -> None:
    path = item_path(archive, "0506")
    twin = json.loads(path.read_text())
    twin["id"] = "S2A_32UPU_20190506_1_L2A"
    twin["properties"]["s2:processing_baseline"] = "02.06"
    for asset in twin["assets"].values():
        asset["href"] = f"../{path.stem}/{asset['href'].removeprefix('./')}"
    (path.parent.parent / twin["id"]).mkdir()
    (path.parent.parent / twin["id"] / f"{twin['id']}.json").write_text(json.dumps(twin))
    collection = archive / COLLECTION / "collection.json"
    document = json.loads(collection.read_text())
    document["links"].append({"rel": "item", "href": f"./{twin['id']}/{twin['id']}.json"})
    collection.write_text(json.dumps(document))
    without_red(archive, "0506")
    planned = plan(recipe, archive, tmp_path / "plan")
    assert len(planned.items) == 8
    assert twin["id"] in {item.scene.id for item in planned.items}


def test_unusable_items_of_a_tile_that_is_not_needed_do_not_matter(recipe: BuildRecipe, tmp_path: Path) -> None:
    archive = wrap(tmp_path / "a", [wrapped(day, tile) for day in DAYS for tile in ("32UPU", "32UQU")])
    without_red(archive, *DAYS, tile="32UQU")
    planned = plan(recipe, archive, tmp_path / "plan")
    assert {item.scene.tile for item in planned.items} == {"32UPU"}
    assert {one.reason for one in planned.dropped} == {"the area is fully covered by 32UPU"}


def test_unusable_items_of_the_only_tile_of_some_ground_count(recipe: BuildRecipe, tmp_path: Path) -> None:
    # The area reaches beyond the first tile, and only the second, whose items are all unusable, has the rest.
    east = [wrapped(day, "32UQU", origin=(601020.0, 5400000.0)) for day in DAYS]
    archive = wrap(tmp_path / "a", [wrapped(day) for day in DAYS] + east)
    without_red(archive, *DAYS, tile="32UQU")
    wide = replace(recipe, area=Area(grid=replace(GRID, shape=(120, 180))))
    with pytest.raises(SourceError, match="8 of 16 scenes cannot be used"):
        plan(wide, archive, tmp_path / "plan")


# --- files ---------------------------------------------------------------------------------


def cut_short(archive: Path, day: str) -> None:
    path = item_path(archive, day).with_name("B04.tif")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def test_unreadable_files_are_left_out_and_the_rest_is_the_build_without_them(
    archive: Path, recipe: BuildRecipe, tmp_path: Path
) -> None:
    healthy = shutil.copytree(archive, tmp_path / "healthy")
    cut_short(archive, "0511")
    command = [
        "build", "--stac", str(archive), "--osm", "none", "--out", str(tmp_path / "b"), "-q",
        "--recipe", str(tmp_path / "recipe.toml"),
    ]  # fmt: skip
    files.write(tmp_path / "recipe.toml", files.toml(recipe))
    done = CliRunner().invoke(app, command)
    assert done.exit_code == ExitCode.FINDINGS
    assert "1 scenes were left out, unreadable: S2A_32UPU_20190511_0_L2A: B04.tif: cannot be read" in done.output
    built = lock.read(tmp_path / "b")
    (dropped,) = built.dropped
    assert dropped.id == "S2A_32UPU_20190511_0_L2A"
    assert dropped.reason.startswith(f"{UNREADABLE}B04.tif: cannot be read")
    assert str(tmp_path) not in dropped.reason
    without = build(replace(recipe, leave_out=(dropped.id,)), healthy, tmp_path / "c")
    assert without.outputs == built.outputs


def test_more_unreadable_files_than_allowed_stop_the_build_all_named(
    archive: Path, recipe: BuildRecipe, tmp_path: Path
) -> None:
    for day in DAYS[:2]:
        cut_short(archive, day)
    item_path(archive, DAYS[2]).with_name("SCL.tif").unlink()
    with pytest.raises(SourceError, match="3 of 8 scenes cannot be used") as caught:
        build(recipe, archive, tmp_path / "b")
    assert all(f"S2A_32UPU_2019{day}_0_L2A" in str(caught.value) for day in DAYS[:3])
    assert not files.is_finished(tmp_path / "b")
    # What was read is kept: nothing is read twice by the next run.
    assert len(build(lenient(recipe, 0.5), archive, tmp_path / "b").items) == 5


def test_a_selecting_rule_leaves_out_unreadable_masks(archive: Path, recipe: BuildRecipe, tmp_path: Path) -> None:
    item_path(archive, DAYS[2]).with_name("SCL.tif").unlink()
    few = replace(recipe, composite=replace(recipe.composite, max_obs=3))
    built = build(few, archive, tmp_path / "b")
    assert [one.id for one in built.dropped] == [f"S2A_32UPU_2019{DAYS[2]}_0_L2A"]


def test_a_scene_of_a_finished_build_is_never_left_out(archive: Path, recipe: BuildRecipe, tmp_path: Path) -> None:
    finished = build(recipe, archive, tmp_path / "b")
    cut_short(archive, "0511")
    with pytest.raises(SourceError, match=r"B04\.tif: cannot be read"):
        build(recipe, archive, tmp_path / "c", locked=finished)


# --- before the first byte -----------------------------------------------------------------


def test_openstreetmap_is_asked_before_any_pixel(archive: Path, recipe: BuildRecipe, tmp_path: Path) -> None:
    def refuse(handler: served.Files, content: bytes) -> bool:
        if handler.command == "POST":
            handler.give(400, b"parse error: no such date")
        return handler.command == "POST"

    (archive / "overpass").write_text("")
    with served.serving(archive, refuse) as server:
        paths = BuildPaths(out=tmp_path / "b", stac=f"{server.url}/catalog.json", osm=f"{server.url}/overpass")
        with pytest.raises(ServiceError, match="no such date"):
            pipeline.build(recipe, paths)
        assert "/overpass" in server.asked
        assert not [path for path in server.asked if path.endswith(".tif")]


def test_a_full_disk_is_found_before_the_first_byte(
    archive: Path, recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(
        OutputError, match=r" 0\.1 MB of disk are free, expected about [0-9,.]+ MB for 8 scenes.*--scratch"
    ):
        build(recipe, archive, tmp_path / "b")
    assert not list((tmp_path / "b").rglob("*.bin"))


# --- busy and slow servers -----------------------------------------------------------------


class Busy(TwoPages):
    """A server that answers the first searches with a status and Retry-After."""

    statuses: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        if not self.statuses:
            super().do_POST()
            return
        self.rfile.read(int(self.headers["Content-Length"]))
        content = b'{"code": "busy"}'
        self.send_response(self.statuses.pop(0))
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def busy_api(archive: Path, statuses: list[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    items = [json.loads(path.read_text()) for path in sorted(archive.rglob("S2A*.json"))]
    monkeypatch.setattr(Busy, "items", items)
    monkeypatch.setattr(Busy, "asked", [])
    monkeypatch.setattr(Busy, "statuses", statuses)
    monkeypatch.setattr(search, "RETRY", RetryPolicy(tries=3, wait_s=0.01))
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


QUERY = search.Query(
    collection=COLLECTION, bounds=(10.36, 48.72, 10.37, 48.74), dates="2019-01-01/2019-12-31", bands=("B02",)
)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_api_is_asked_again(status: int, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with busy_api(archive, [status, status], monkeypatch) as url:
        assert len(search.search(url, QUERY)[0]) == 8


@pytest.mark.parametrize("status", [429, 503])
def test_an_api_that_stays_busy_is_named_with_its_status(
    status: int, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with busy_api(archive, [status] * 9, monkeypatch) as url, pytest.raises(ServiceError, match=str(status)) as caught:
        search.search(url, QUERY)
    assert "\n" not in str(caught.value)


def test_a_slow_but_steady_transfer_is_not_cut(
    archive: Path, recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "GDAL_HTTP_TIMEOUT" not in geotiff.READING
    monkeypatch.setitem(geotiff.READING, "GDAL_HTTP_LOW_SPEED_TIME", "1")

    def drip(handler: served.Files, content: bytes) -> bool:
        if not handler.path.endswith("B04.tif") or handler.command != "GET" or len(content) < 20_000:
            return False
        first = int(handler.headers["Range"].removeprefix("bytes=").partition("-")[0])
        size = (handler.server.folder / handler.path.lstrip("/")).stat().st_size
        handler.send_response(206)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{size}")
        handler.end_headers()
        for start in range(0, len(content), len(content) // 10 + 1):
            handler.wfile.write(content[start : start + len(content) // 10 + 1])
            time.sleep(0.25)
        return True

    two = replace(recipe, dates="2019-05-01/2019-05-07")
    expected = build(two, archive, tmp_path / "b").outputs
    with served.serving(archive, drip) as server:
        assert build(two, f"{server.url}/catalog.json", tmp_path / "c").outputs == expected


def test_a_server_that_gives_nothing_is_not_asked_for_every_scene(
    archive: Path, recipe: BuildRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(recipe, archive, tmp_path / "plan")
    monkeypatch.setattr(fetch_scenes, "LOST_AT_ONCE", 2)
    tried = []

    def nothing() -> Iterator[Dropped]:
        for item in planned.items:
            tried.append(item.scene.id)
            yield Dropped(id=item.scene.id, reason=f"{UNREADABLE}SCL.tif: cannot be read")

    with pytest.raises(SourceError, match="3 of 8 scenes cannot be used"):
        list(fetch_scenes._stop_if_too_many_lost(recipe, planned, nothing()))
    assert len(tried) == 3


# --- twins of several baselines ------------------------------------------------------------


def test_a_plan_says_which_baselines_it_chose_and_warns_of_a_mix(
    recipe: BuildRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    old, other = wrapped("0501", baseline="02.12"), wrapped("0511", baseline="02.12")
    newer = replace(wrapped("0501", baseline="05.00"), id="S2A_32UPU_20190501_1_L2A")
    archive = wrap(tmp_path / "archive", [old, newer, other])
    paths = BuildPaths(out=tmp_path / "out", stac=str(archive))
    planned = pipeline.plan(recipe, paths)
    assert [item.scene.baseline for item in planned.items] == ["05.00", "02.12"]
    line = "baselines: 02.12 (1 scenes), 05.00 (1 scenes); 1 twins left out, the newest first; source.baselines pins"
    assert line in caplog.text
    printing.show_plan(planned, paths, address=str(archive), name=recipe.name)
    assert line in capsys.readouterr().out
    caplog.clear()
    pinned = replace(recipe, source=replace(recipe.source, baselines=("02.12",)))
    planned = pipeline.plan(pinned, replace(paths, out=tmp_path / "pinned"))
    assert [item.scene.id for item in planned.items] == [old.id, other.id]
    assert "baselines" not in caplog.text
    # A later look at the catalogue searches as the plan did.
    assert planned.baselines == ("02.12",)
    assert catalog_drift.find_drift(planned, str(archive)) == []
