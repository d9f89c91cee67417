"""Test that windows without a place are found on a build, turned or not, and compared pixel by pixel."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from test_export import segmunich_build
from typer.testing import CliRunner

from sgdata import output_names
from sgdata.audits import compare_released, window_location
from sgdata.builds import patch_table, pipeline
from sgdata.builds.build_recipe import BuildPaths, recipe_for
from sgdata.cli import app
from sgdata.errors import ExitCode, SettingError, SourceError
from sgdata.rasters import dihedral
from sgdata.releases import export_segmunich


@pytest.mark.parametrize("turn", range(8))
def test_a_window_is_found_at_any_place_and_turn(turn: int) -> None:
    rng = np.random.default_rng(3)
    ground = rng.normal(0, 1, (2, 300, 280)).cumsum(axis=1).cumsum(axis=2) + rng.normal(0, 30, (2, 300, 280))
    window = ground[:, 37 : 37 + 128, 101 : 101 + 128]
    stored = next(copy for copy in dihedral.symmetric_copies(window) if np.array_equal(
        dihedral.symmetric_copies(copy)[turn], window))  # fmt: skip
    noisy = 1.3 * stored + 200 + rng.normal(0, 30, stored.shape)
    found = window_location.locate_window(noisy, ground)
    assert (found.row, found.col, found.turn) == (37, 101, turn)
    assert found.correlation > 0.9
    elsewhere = rng.normal(0, 1, (2, 128, 128)).cumsum(axis=1) + rng.normal(0, 30, (2, 128, 128))
    assert window_location.locate_window(elsewhere, ground).correlation < 0.7
    assert found.elsewhere < 0.8


def test_flat_ground_has_no_correlation() -> None:
    image = np.zeros((1, 160, 160))
    assert window_location.locate_window(np.zeros((1, 128, 128)), image).correlation == -1


def stripped(released: Path, out: Path) -> Path:
    """Copy an export under bare numbers, every second window turned or mirrored, and one of them twice."""
    for number, path in enumerate(sorted(released.glob("*/img/*.tif"))):
        for kind in ("img", "label"):
            pixels = tifffile.imread(path.parent.parent / kind / path.name)
            turned = np.rot90(pixels[:, ::-1], number % 4) if number % 2 else pixels
            (out / "train" / kind).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(out / "train" / kind / f"{number}.tif", np.ascontiguousarray(turned))
    for kind in ("img", "label"):
        pixels = tifffile.imread(out / "train" / kind / "0.tif")
        tifffile.imwrite(out / "train" / kind / "99.tif", np.ascontiguousarray(np.rot90(pixels)))
    return out


@pytest.fixture(scope="module")
def city_build(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = {"aoi": str(city / "aoi.geojson"), "dates": "2019-04-01/2020-03-31"}
    recipe = recipe_for("segmunich", chosen, ["patches.stride=36"])
    paths = BuildPaths(
        out=tmp_path_factory.mktemp("c") / "build", stac=str(city / "catalog.json"), osm=str(city / "osm" / "city.osm")
    )
    return pipeline.build(recipe, paths)


@pytest.mark.slow
def test_windows_of_the_simulated_city_are_found_and_equal(city_build: Path, tmp_path: Path) -> None:
    made = export_segmunich.export(city_build, tmp_path / "released")
    windows = stripped(tmp_path / "released", tmp_path / "TUM_128")
    shutil.make_archive(str(tmp_path / "TUM_128"), "zip", tmp_path, "TUM_128")
    for where in (windows, tmp_path / "TUM_128.zip"):
        report = compare_released.compare(city_build, where)
        count = sum(made.patches.values())
        assert (report["windows"], report["placed"], report["copies"]) == (count, count, 1)
        assert {(one["row"], one["col"]) for one in report["places"]} == {
            (row.row, row.col) for row in patch_table.read(city_build / output_names.PATCHES).itertuples()
        }
        assert min(one["correlation"] for one in report["places"]) > 0.98
        assert all(band["rmse"] == band["difference"] == 0 for band in report["bands"])
        confusion = np.array(report["confusion"])
        # The released codes have no word for unmapped ground, which the export wrote as 0.
        off = confusion[:, :13] - np.diag(np.diag(confusion[:, :13]))
        assert off.sum() == 0
        assert confusion[1:, 13].sum() == 0
        assert report["classes"][4]["published_share"] == 0.2823
        assert sum(row["released_share"] for row in report["classes"]) == pytest.approx(1, abs=1e-3)


def test_a_real_window_is_found_where_it_was_put_and_not_elsewhere(real: Path, tmp_path: Path) -> None:
    path = real / "segmunich" / "SegMunich_train_img_10.tif"
    pixels = tifffile.imread(path).transpose(2, 0, 1)
    ground = np.random.default_rng(1).normal(1500, 900, (2, 220, 200)).cumsum(axis=1) / 20
    ground[:, 40:168, 33:161] = pixels[2:4]
    found = window_location.locate_window(np.rot90(pixels[2:4], axes=(1, 2)), ground)
    assert (found.row, found.col, found.turn, found.correlation) == (40, 33, 3, pytest.approx(1))
    build = segmunich_build(tmp_path / "build", (256, 256))
    command = ["compare", str(build), "--released", str(path), "--out", str(tmp_path / "compare.json")]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == ExitCode.FINDINGS
    assert "0 of 1 windows placed, 0 copies; the highest correlation is 0." in shown.output
    assert "or lower --least" in shown.output
    assert "released DN" not in shown.output
    shown = CliRunner().invoke(app, [*command, "--least", "0"])
    assert (shown.exit_code, "published %" in shown.output, "released DN" in shown.output) == (0, False, True)
    assert json.loads((tmp_path / "compare.json").read_text())["placed"] == 1
    CliRunner().invoke(app, command)
    document = json.loads((tmp_path / "compare.json").read_text())
    assert (document["placed"], document["agreement"]) == (0, None)
    assert document["least_correlation"] == compare_released.LEAST
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no windows"):
        compare_released.compare(build, tmp_path / "empty")


FORESTS = ("208748", "215827", "233723", "246341", "254570")


def test_real_windows_are_found_on_images_of_another_year_and_not_on_other_ground(real: Path) -> None:
    """Sites of September 2019 on images of September 2020, between which a part of the trees died."""
    rng = np.random.default_rng(0)
    details, places = [], []
    for number, site in enumerate(FORESTS):
        old, new = (
            np.stack(tiff_bands(real / "bark_beetle" / year / f"site_{site}.tif", (4, 8))) for year in ("2019", "2020")
        )
        row, col = (int(rng.integers(0, side - 127)) for side in old.shape[1:])
        window = old[:, row : row + 128, col : col + 128]
        turned = dihedral.symmetric_copies(window)[number]
        details.append((window_location.extract_detail(turned), window_location.extract_detail(new)))
        places.append((row, col))
    for (window, image), (row, col) in zip(details, places, strict=True):
        found = window_location.locate_window(window, image)
        assert abs(found.row - row) <= 2
        assert abs(found.col - col) <= 2
        assert found.correlation > compare_released.LEAST
        assert found.elsewhere < 0.12
    for number, (window, _) in enumerate(details):
        other = details[(number + 1) % len(details)][1]
        assert window_location.locate_window(window, other).correlation < 0.12


def tiff_bands(path: Path, numbers: tuple[int, ...]) -> list[np.ndarray]:
    with rasterio.open(path) as dataset:
        return [dataset.read(number) for number in numbers]


def test_a_change_of_a_band_and_of_a_class_is_measured(tmp_path: Path) -> None:
    build = segmunich_build(tmp_path / "build", (256, 256))
    export_segmunich.export(build, tmp_path / "TUM_128")
    for path in (tmp_path / "TUM_128").glob("*/img/*.tif"):
        pixels = tifffile.imread(path)
        pixels[..., 8] += 50  # B11
        tifffile.imwrite(path, pixels)
    for path in (tmp_path / "TUM_128").glob("*/label/*.tif"):
        codes = tifffile.imread(path)
        codes[codes == 22] = 31
        tifffile.imwrite(path, codes)
    report = compare_released.compare(build, tmp_path / "TUM_128")
    assert (report["placed"], report["least_correlation"]) == (4, compare_released.LEAST)
    strict = compare_released.compare(build, tmp_path / "TUM_128", most=1, least=1.1)
    assert (strict["placed"], strict["windows"]) == (0, 1)
    moved = {band["band"]: band["difference"] for band in report["bands"]}
    assert moved.pop("B11") == pytest.approx(-50, abs=1)
    assert set(moved.values()) == {0}
    confusion = np.array(report["confusion"])
    assert confusion[2].sum() == 0
    assert confusion[4, 2] > 1000


def test_builds_without_the_bands_are_refused(tmp_path: Path) -> None:
    import dataclasses

    from sgdata.shards import contracts

    build = segmunich_build(tmp_path / "build", (256, 256))
    contract = contracts.read(build)
    contracts.write(build, dataclasses.replace(contract, bands=contract.bands[:3]))
    with pytest.raises(SettingError, match="has no B04"):
        compare_released.compare(build, tmp_path)
