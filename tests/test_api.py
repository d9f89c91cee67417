"""Test the Python API behind the commands: from area, recipe and paths to a build, shards and an xarray.Dataset."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import sgdata
import sgmodel
from sgdata import verification
from sgdata.cli import app
from sgdata.errors import SettingError
from sgdata.packing.pack import PackResult
from sgdata.scenes import lock

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes" / "build"
SMALL = ("patches.size=64", "split.block_px=100", "split.gap_px=0", "composite.method=median")


@pytest.fixture(scope="module")
def built(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sgdata.build(
        "segmunich", aoi=city / "aoi.geojson", composite="median", changes=list(SMALL),
        out=tmp_path_factory.mktemp("api") / "build", stac=f"{city}/catalog.json", osm=f"{city}/osm/city.osm",
    )  # fmt: skip


@pytest.mark.slow
def test_from_an_area_to_shards(built: Path, tmp_path: Path) -> None:
    build = sgdata.open_build(built)
    assert build.rio.crs.to_epsg() == 32632
    assert build.image.dims == ("band", "y", "x")
    assert build.image.sel(band="B8A").dtype == "uint16"
    assert build.labels.shape == build.image.shape[1:]
    packed = sgdata.shard("segmunich", source=built, out=tmp_path / "shards")
    assert isinstance(packed, PackResult) and packed.complete
    assert verification.verify(packed.folder) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:All-NaN slice")  # pixels that were never seen clear
def test_a_median_of_the_open_scenes_is_that_of_the_product(built: Path, city: Path) -> None:
    scenes = sgdata.open_scenes(built, stac=city / "catalog.json", bands=None, chunk_px=96)
    assert scenes.image.dims == ("time", "band", "y", "x")
    assert scenes.image.chunks[2][0] == 96
    build = sgdata.open_build(built)
    # Five lines of a user.
    image = scenes.image.chunk(time=-1).median("time")
    rule = np.floor(image + 0.5).fillna(0).astype("uint16")
    product = build.image
    assert (rule.y.values == product.y.values).all() and (rule.x.values == product.x.values).all()
    assert rule.rio.crs == product.rio.crs
    np.testing.assert_array_equal(rule.values, product.values)
    np.testing.assert_array_equal(scenes.clear.sum("time"), build.provenance.sel(band_provenance="valid_count"))


@pytest.mark.slow
def test_open_scenes_takes_bands_and_plans(built: Path, city: Path, tmp_path: Path) -> None:
    few = sgdata.open_scenes(str(built), stac=str(city / "catalog.json"), bands=["B04", "B08"], scratch=tmp_path / "s")
    assert list(few.band.values) == ["B04", "B08"] and few.attrs["scale"] == 0.0001
    assert set(few.id.values) <= {item.scene.id for item in lock.read(built).items}
    assert list((tmp_path / "s").rglob("*SCL*"))
    assert not list((tmp_path / "s").rglob("*B04*"))  # read when it is computed, and not kept
    with pytest.raises(SettingError, match="expected some of the recipe's"):
        sgdata.open_scenes(built, stac=str(city / "catalog.json"), bands=["B4"])


def test_dates_move_the_day_of_the_labels() -> None:
    recipe = sgdata.build_recipe("segmunich", {"dates": "2021-04-01/2021-09-30", "bbox": (11.5, 48.1, 11.6, 48.2)})
    assert (recipe.osm_date, recipe.area.bbox) == ("2021-09-30", (11.5, 48.1, 11.6, 48.2))
    recipe = sgdata.build_recipe("segmunich", {"dates": "2021-04-01/2021-09-30", "osm_date": "2022-01-01"})
    assert recipe.osm_date == "2022-01-01"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"aio": "area.geojson"}, "unknown setting 'aio'; did you mean 'aoi'"),
        ({"aoi": None, "dates": "2021-04-01/2021-09-30"}, "aoi is None, expected an area"),
        ({"zoom": 3}, "unknown setting 'zoom'; known: bbox, aoi"),
    ],
)
def test_settings_that_do_not_exist_are_refused(chosen: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        sgdata.build_recipe("segmunich", chosen)


def test_no_command_takes_all_of_munich_unasked(tmp_path: Path) -> None:
    for command in ("plan", "build"):
        ran = CliRunner().invoke(app, [command, "--out", str(tmp_path / "o"), "--stac", "nowhere"])
        assert "no area is given: add --place" in str(ran.exception)
    assert not (tmp_path / "o").exists()


def test_texts_are_taken_as_paths() -> None:
    paths = sgdata.BuildPaths(out="a", scratch="b", masks="c", stac=Path("d"), osm=Path("e.osm"))  # type: ignore[arg-type]
    assert (paths.out, paths.scratch, paths.masks) == (Path("a"), Path("b"), Path("c"))
    assert (paths.stac, paths.osm, paths.scratch_folder) == ("d", "e.osm", Path("b"))
    assert sgdata.build_recipe(str(RECIPES / "segmunich.toml")) == sgdata.build_recipe(RECIPES / "segmunich.toml")


def test_the_packages_list_their_api() -> None:
    assert set(sgdata.__all__) <= set(dir(sgdata))
    assert {name for name in dir(sgdata) if not name.startswith("_")} == set(sgdata.__all__)
    assert {name for name in dir(sgmodel) if not name.startswith("_")} == set(sgmodel.__all__)


SCRIPT = """
print("started")
from sgdata import pool
from operator import neg

print(sum(pool.run(neg, range(6), workers=2)))
"""


@pytest.mark.parametrize("how", ["script", "stdin", "module"])
def test_a_script_without_a_guard_runs_once(how: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    words = {"script": ["mine.py"], "stdin": ["-"], "module": ["-m", "mine"]}[how]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run(
        [sys.executable, *words], input=SCRIPT, cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("started\n-15\n", "")


def test_names_that_are_not_there() -> None:
    with pytest.raises(SettingError, match="known: segmunich"):
        sgdata.build_recipe("munich")
    with pytest.raises(AttributeError, match="open_build"):
        _ = sgdata.open_bild
