"""Test repeatable builds: the lock is followed exactly; OpenStreetMap and places come from stored responses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import osmnx
import pytest
import rasterio
import served
from stac_wrap import Wrapped, wrap

from sgdata import files, output_lock, output_names, package_data
from sgdata.builds import pipeline
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.errors import OutputError, ServiceError, SettingError, SourceError
from sgdata.scenes import geocoding, lock
from sgdata.scenes.aoi import Area, in_degrees, resolve
from sgdata.types import Grid

GRID = Grid(crs="EPSG:32632", origin=(600060.0, 5399940.0), gsd_m=10.0, shape=(80, 80))


def archive(folder: Path, *, shift: int = 0, baseline: str = "02.14") -> Path:
    rng = np.random.Generator(np.random.Philox(key=5))
    layers: dict[str, tuple[Any, float]] = {
        band: ((rng.integers(100, 900, (120, 120)) + shift).astype(np.uint16), 10.0) for band in ("B02", "B04", "B12")
    }
    layers["SCL"] = (np.full((60, 60), 4, np.uint8), 20.0)
    one = Wrapped(id="S2A_32UPU_20190601_0_L2A", time="2019-06-01T10:00:00Z", layers=layers, baseline=baseline)
    return wrap(folder, [one])


@pytest.fixture
def recipe() -> BuildRecipe:
    published = files.read(BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    return replace(
        published,
        dates="2019-01-01/2019-12-31",
        area=Area(grid=GRID),
        bands=("B02", "B04", "B12"),
        patches=replace(published.patches, size=16, stride=16),
        split=replace(published.split, block_px=16, gap_px=0),
    )


def build(recipe: BuildRecipe, where: Path, out: Path, *, follow: Path | None = None, **places: Any) -> Path:
    settled = BuildPaths(out=out, stac=str(where), **{"osm": "none"} | places)
    return pipeline.build(recipe, settled, locked=lock.read(follow) if follow else None, exact=follow is not None)


# --- locks ---------------------------------------------------------------------------------


def test_a_locked_build_is_the_build_and_refuses_another(
    tmp_path: Path, recipe: BuildRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = archive(tmp_path / "a")
    out = build(recipe, where, tmp_path / "b")
    held = out / lock.NAME
    again = build(recipe, where, tmp_path / "c", follow=held)
    assert (again / output_names.SUMS).read_text() == (out / output_names.SUMS).read_text()
    # The recipe beside the build is the recipe of its lock.
    assert build(files.read(BuildRecipe, out / "recipe.toml"), where, tmp_path / "d", follow=held)

    changed = replace(recipe, resampling="nearest")
    with pytest.raises(OutputError, match="--locked: recipe_sha256 is"):
        build(changed, where, tmp_path / "e", follow=held)
    refusal = (
        r"--locked: osm_date is 2020-05-05, the lock has 2020-04-01; give --dates \S+/\S+ --osm-date 2020-04-01, or"
    )
    with pytest.raises(OutputError, match=refusal):
        build(replace(recipe, osm_date="2020-05-05"), where, tmp_path / "e", follow=held)
    ours = lock.versions()
    monkeypatch.setattr(lock, "versions", lambda: ours | {"gdal": "9.9"})
    with pytest.raises(OutputError, match=r"--locked: versions\.gdal is 9\.9, the lock has"):
        build(recipe, where, tmp_path / "e", follow=held)
    monkeypatch.undo()
    document = json.loads(held.read_text())
    document["outputs"]["image.tif"] = "0" * 64
    (tmp_path / "forged.json").write_text(json.dumps(document))
    with pytest.raises(OutputError, match=r"--locked: outputs\.image\.tif is .*, the lock has 0000"):
        build(recipe, where, tmp_path / "e", follow=tmp_path / "forged.json")
    assert not (tmp_path / "e" / output_names.SUMS).exists()


def test_a_planned_lock_cannot_be_held_to_the_letter(tmp_path: Path, recipe: BuildRecipe) -> None:
    where = archive(tmp_path / "a")
    pipeline.plan(recipe, BuildPaths(out=tmp_path / "p", stac=str(where)))
    with pytest.raises(SettingError, match="lock is planned"):
        build(recipe, where, tmp_path / "b", follow=tmp_path / "p" / lock.NAME)


@pytest.mark.parametrize(("source", "offset"), [("neither", 0), ("pixels", -1000), ("metadata", 0)])
def test_the_chosen_source_decides_the_offset(tmp_path: Path, recipe: BuildRecipe, source: Any, offset: int) -> None:
    where = archive(tmp_path / "a", shift=1000)
    out = build(replace(recipe, offset=replace(recipe.offset, source=source)), where, tmp_path / "c")
    assert lock.read(out / lock.NAME).items[0].offset == offset


def test_pixels_never_clear_are_counted_and_the_command_exits_3(tmp_path: Path) -> None:
    where = archive(tmp_path / "a")
    scl = next(where.rglob("SCL.tif"))
    with rasterio.open(scl, "r+") as dataset:
        classes = dataset.read(1)
        classes[: len(classes) // 2] = 9
        dataset.write(classes, 1)
    command = [sys.executable, "-m", "sgdata.cli", "build", "--stac", str(where), "--osm", "none", "--out"]
    west, south, east, north = in_degrees(GRID)
    area = ["--bbox", *(str(v) for v in (west + 0.002, south + 0.002, east - 0.002, north - 0.002))]
    changes = [
        "mask.cloud_buffer_m=0",
        "mask.bright_target_filter=false",
        'bands=["B02", "B04", "B12"]',
        "patches.size=16",
    ]
    command += [f"{tmp_path}/b", *area, "--dates", "2019-06-01/2019-06-30", *(w for c in changes for w in ("--set", c))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    with rasterio.open(tmp_path / "b" / "image.tif") as dataset:
        holes = int((dataset.read(1) == 0).sum())
    assert f"{holes:,} pixels" in done.stderr.splitlines()[-1]
    assert done.stdout.strip() == f"{tmp_path}/b"


def test_the_command_refuses_a_second_writer_and_a_hole(tmp_path: Path) -> None:
    where = archive(tmp_path / "a")
    west, south, east, north = in_degrees(GRID)
    shrunk = [str(v) for v in (west + 0.002, south + 0.002, east - 0.002, north - 0.002)]
    common = [
        "--stac",
        str(where),
        "--bbox",
        *shrunk,
        "--set",
        'bands=["B02", "B04", "B12"]',
        "--set",
        "patches.size=32",
    ]

    def sgdata(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sgdata.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with output_lock.only_writer(tmp_path / "b"):
        second = sgdata("build", *common, "--osm", "none", "--dates", "2019-06-01/2019-06-30", "--out", f"{tmp_path}/b")
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert "another process is writing here" in second.stderr
    holey = sgdata("plan", *common, "--dates", "2019-05-01/2019-07-31", "--out", f"{tmp_path}/p")
    assert holey.returncode == 2
    assert "2019-05 (0 of 1)" in holey.stderr
    assert lock.read(tmp_path / "p" / lock.NAME).osm_date == "2019-07-31"
    fine = sgdata("plan", *common, "--dates", "2019-05-01/2019-07-31", "--out", f"{tmp_path}/p", "--allow-holes")
    assert fine.returncode == 0
    assert "MB of scratch" in fine.stdout


# --- OpenStreetMap and places ---------------------------------------------------------------


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Any]:
    """Serve a folder on loopback."""
    folder = tmp_path / "web"
    folder.mkdir()
    with served.serving(folder) as server:
        yield server


def forest() -> dict[str, Any]:
    west, south, east, north = in_degrees(GRID)
    corners = [(west, south), (east, south), (east, north), (west, north)]
    nodes = [{"type": "node", "id": n + 1, "lon": x, "lat": y} for n, (x, y) in enumerate(corners)]
    way = {"type": "way", "id": 9, "nodes": [1, 2, 3, 4, 1], "tags": {"landuse": "forest"}}
    return {"osm3s": {"timestamp_osm_base": "2020-04-01T00:00:00Z"}, "elements": [*nodes, way]}


def test_a_build_asks_overpass_once_and_then_repeats_without_it(tmp_path: Path, recipe: BuildRecipe, web: Any) -> None:
    where = archive(tmp_path / "a")
    (web.folder / "api").write_text(json.dumps(forest()))
    out = build(recipe, where, tmp_path / "b", osm=f"{web.url}/api")
    answers = sorted((out / ".osm").glob("*.json.gz"))
    held = lock.read(out / lock.NAME).answers
    assert set(held) == {path.name for path in answers}
    assert len(answers) == len(web.asked) > 3
    sums = (out / output_names.SUMS).read_text()
    build(recipe, where, out, osm=f"{web.url}/api", offline=True)
    assert (out / output_names.SUMS).read_text() == sums
    assert len(web.asked) == len(answers)
    # A changed answer is a deviation.
    (web.folder / "api").write_text(json.dumps(forest() | {"generator": "another"}))
    with pytest.raises(OutputError, match=r"--locked: answers\.overpass"):
        build(recipe, where, tmp_path / "c", follow=out / lock.NAME, osm=f"{web.url}/api")


def test_unmapped_ground_is_filled_from_a_raster_and_marked(tmp_path: Path, recipe: BuildRecipe) -> None:
    import rasterio
    from rasterio.transform import Affine

    where = archive(tmp_path / "a")
    answer = forest()
    for node in answer["elements"][1:3]:
        node["lon"] = answer["elements"][0]["lon"] + 0.003  # the forest covers the west alone
    (tmp_path / "osm.json").write_text(json.dumps(answer))

    def filled(code: int, out: str) -> Path:
        path = tmp_path / f"{code}.tif"
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 90, "width": 90, "crs": "EPSG:32632"}
        with rasterio.open(path, "w", transform=Affine(10, 0, 600060, 0, -10, 5399940), nodata=0, **profile) as target:
            target.write(np.full((1, 90, 90), code, np.uint8))
        return build(recipe, where, tmp_path / out, osm=str(tmp_path / "osm.json"), gap_fill=path)

    out = filled(21, "b")
    with rasterio.open(out / "labels.tif") as painted, rasterio.open(out / "label_source.tif") as source:
        classes, origin = painted.read(1), source.read(1)
    assert set(np.unique(classes)) == {1, 4}  # arable land where OpenStreetMap has no forest
    np.testing.assert_array_equal(origin == 3, classes == 1)
    assert {"osm.json", "21.tif"} == set(lock.read(out / lock.NAME).answers)
    with pytest.raises(SourceError, match=r"99\.tif: holds codes \[99\]"):
        filled(99, "c")


def test_a_place_is_asked_for_once_and_its_outline_kept(
    tmp_path: Path, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = [[11.5, 48.1], [11.6, 48.1], [11.6, 48.2], [11.5, 48.2], [11.5, 48.1]]
    found = {
        "place_id": 1, "osm_type": "relation", "osm_id": 1, "lat": "48.15", "lon": "11.55", "class": "boundary",
        "type": "administrative", "display_name": "Somewhere", "boundingbox": ["48.1", "48.2", "11.5", "11.6"],
        "importance": 1, "name": "Somewhere", "addresstype": "city", "place_rank": 12,
        "geojson": {"type": "Polygon", "coordinates": [ring]},
    }  # fmt: skip
    (web.folder / "search").write_text(json.dumps([found]))
    monkeypatch.setattr(osmnx.settings, "nominatim_url", f"{web.url}/")
    kept = tmp_path / "place.geojson"
    with pytest.raises(SourceError, match="no stored outline of 'Somewhere'"):
        geocoding.locate_place(Area(place="Somewhere"), kept, offline=True)
    area = geocoding.locate_place(Area(place="Somewhere"), kept)
    assert resolve(area) == resolve(Area(bbox=(11.5, 48.1, 11.6, 48.2)))
    asked = len(web.asked)
    assert geocoding.locate_place(Area(place="Somewhere"), kept, offline=True) == area
    assert len(web.asked) == asked
    assert "OpenStreetMap contributors" in kept.read_text()
    assert not list(tmp_path.rglob("cache"))


def test_places_that_cannot_be_located_are_refused(tmp_path: Path, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (web.folder / "search").write_text("[]")
    monkeypatch.setattr(osmnx.settings, "nominatim_url", f"{web.url}/")
    with pytest.raises(SettingError, match="place 'Atlantis'"):
        geocoding.locate_place(Area(place="Atlantis"), tmp_path / "place.geojson")
    monkeypatch.setattr(osmnx.settings, "nominatim_url", f"http://127.0.0.1:{served.free_port()}/")
    with pytest.raises(ServiceError, match="no geocoder answers"):
        geocoding.locate_place(Area(place="Atlantis"), tmp_path / "place.geojson")
    assert not (tmp_path / "place.geojson").exists()


def test_a_lock_brings_the_day_of_the_labels(
    recipe: BuildRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = archive(tmp_path / "archive")
    planned = pipeline.plan(recipe, BuildPaths(out=tmp_path / "plan", stac=str(where)))
    later = replace(recipe, osm_date="2024-01-01", dates="2018-01-01/2019-12-31")
    out = BuildPaths(out=tmp_path / "out", stac=str(where), osm="none")
    pipeline.build(later, out, locked=planned)
    built = lock.read(out.out)
    assert (built.osm_date, built.dates) == (recipe.osm_date, recipe.dates)
    written = files.read(BuildRecipe, out.out / output_names.RECIPE)
    assert (written.osm_date, written.dates) == (recipe.osm_date, recipe.dates)
    assert f"the lock has {recipe.osm_date}, which is used in place of 2024-01-01" in caplog.text
