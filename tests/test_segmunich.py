"""Test the build of a small synthetic area with known truth, and inputs that must stop it or not change it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from stac_wrap import Wrapped, wrap

from sgdata import files, output_lock, output_names, package_data
from sgdata.builds import build_folder, build_recipe, pipeline, plan_summary
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.composite import tiles
from sgdata.composite.kernels import NO_VALUE
from sgdata.errors import OutputError, SettingError, SourceError
from sgdata.scenes import catalog_drift, lock
from sgdata.scenes.aoi import Area
from sgdata.scenes.offsets import OffsetSettings
from sgdata.sentinel2 import BAND, L2A_BANDS, SceneClass
from sgdata.shards import contracts
from sgdata.simulation import compare_truth
from sgdata.staging import scene_files, window_staging
from sgdata.types import Array, Grid

SIDE = 180  # pixels of 10 m that a fabricated file holds
GRID = Grid(crs="EPSG:32632", origin=(600060.0, 5399940.0), gsd_m=10.0, shape=(150, 140))
"""Inside the files by 60 m, and not a multiple of 60 m wide."""


def ground(seed: int) -> dict[str, Array]:
    """Return (H, W) DN by band at native resolution, as dark as vegetation."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    return {band: rng.integers(100, 900, (SIDE * 10 // BAND[band].gsd_m,) * 2).astype(np.uint16) for band in L2A_BANDS}


def scene(day: str, truth: dict[str, Array], *, shift: int = 0, **changes: Any) -> Wrapped:
    """Return a clear scene of `truth` + `shift` DN; `scl` (90, 90) replaces the class vegetation everywhere."""
    scl = changes.pop("scl", np.full((SIDE // 2, SIDE // 2), SceneClass.VEGETATION, np.uint8))
    layers: dict[str, tuple[Any, float]] = {
        band: (np.where(v > 0, v + shift, 0).astype(np.uint16), float(BAND[band].gsd_m)) for band, v in truth.items()
    }
    name = changes.pop("id", f"S2A_32UPU_{day.replace('-', '')}_0_L2A")
    return Wrapped(id=name, time=f"{day}T10:00:00Z", layers={**layers, "SCL": (scl, 20.0)}, **changes)


@pytest.fixture
def recipe() -> BuildRecipe:
    published = files.read(BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    return replace(
        published,
        dates="2019-01-01/2019-12-31",
        area=Area(grid=GRID),
        patches=replace(published.patches, size=32, stride=16),
        split=replace(published.split, block_px=48, gap_px=16),
    )


def run(recipe: BuildRecipe, archive: Path, out: Path, **places: Any) -> Path:
    return pipeline.build(recipe, BuildPaths(out=out, stac=str(archive), osm="none", **places))


def pixels(path: Path) -> Array:
    with rasterio.open(path) as dataset:
        values: Array = dataset.read()
    return values


def at_10_m(truth: dict[str, Array]) -> Array:
    """Return (C, H, W) of the truth on GRID by nearest neighbour, without the code under test."""
    stack = [np.kron(v, np.ones((BAND[b].gsd_m // 10,) * 2, np.uint16)) for b, v in truth.items()]
    return np.stack(stack)[:, 6:156, 6:146]


# --- known truth ---------------------------------------------------------------------------


def test_the_clear_date_comes_out_to_the_bit(tmp_path: Path, recipe: BuildRecipe) -> None:
    truth, scl = ground(1), np.full((90, 90), SceneClass.VEGETATION, np.uint8)
    scl[:, 60:] = SceneClass.CLOUD_HIGH
    clouded = {band: np.full_like(v, 800) for band, v in truth.items()}
    all_cloud = np.full((90, 90), SceneClass.CLOUD_MEDIUM, np.uint8)
    wrap(tmp_path / "a", [scene("2019-05-01", clouded, scl=all_cloud), scene("2019-06-01", truth, scl=scl)])
    out = run(replace(recipe, resampling="nearest"), tmp_path / "a", tmp_path / "b")
    image, provenance = pixels(out / "image.tif"), pixels(out / "provenance.tif")
    expected = at_10_m(truth)
    expected[:, :, 108:] = 0  # column 60 of SCL is pixel 120 of the file, 114 of the area; 60 m are 6 more
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(np.unique(provenance[0]), [1, NO_VALUE])
    np.testing.assert_array_equal(provenance[1], np.where(expected[0] > 0, 1, 0))
    assert set(np.unique(provenance[2])) == {18048, NO_VALUE}  # 2019-06-01


@pytest.mark.parametrize("kernel", ["nearest", "bilinear"])
def test_an_offset_is_found_and_taken_out(tmp_path: Path, recipe: BuildRecipe, kernel: Any) -> None:
    truth = ground(2)
    recipe = replace(recipe, resampling=kernel)
    wrap(tmp_path / "old", [scene("2019-06-01", truth)])
    wrap(tmp_path / "new", [scene("2019-06-01", truth, shift=1000, baseline="05.00")])
    wrap(tmp_path / "lie", [scene("2019-06-01", truth, baseline="05.00")])
    built = {name: run(recipe, tmp_path / name, tmp_path / f"b-{name}") for name in ("old", "new", "lie")}
    images = {name: pixels(out / "image.tif") for name, out in built.items()}
    np.testing.assert_array_equal(images["new"], images["old"])
    np.testing.assert_array_equal(images["lie"], images["old"])
    decided = {name: lock.read(out / lock.NAME).items[0] for name, out in built.items()}
    assert [decided[name].offset for name in built] == [0, -1000, 0]
    assert decided["new"].dark_share == 0.0
    assert decided["old"].dark_share == 1.0


def test_items_are_left_out_by_id_and_named_in_the_lock(tmp_path: Path, recipe: BuildRecipe) -> None:
    scenes = [scene(day, ground(n)) for n, day in enumerate(("2019-05-01", "2019-06-01"))]
    twin = scene("2019-06-01", ground(5), id="S2A_32UPU_20190601_1_L2A")
    home = wrap(tmp_path / "a", [*scenes, twin])
    less = replace(recipe, leave_out=(twin.id,))
    places = BuildPaths(out=tmp_path / "p", stac=str(home), osm="none")
    planned = pipeline.plan(less, places)
    assert [item.scene.id for item in planned.items] == [one.id for one in scenes]  # the other twin takes its place
    assert {d.id: d.reason for d in planned.dropped} == {twin.id: "left out by the recipe"}
    assert catalog_drift.find_drift(planned, str(home)) == []
    # Another one of a lock that is there, as after a build that stopped at it.
    out = pipeline.build(replace(less, leave_out=(scenes[0].id,)), replace(places, out=tmp_path / "b"), locked=planned)
    held = lock.read(out)
    assert [item.scene.id for item in held.items] == [scenes[1].id]
    assert {d.id for d in held.dropped} == {twin.id, scenes[0].id}
    with pytest.raises(SettingError, match="leave_out: absent is not among the 3 items found"):
        pipeline.plan(replace(recipe, leave_out=("absent",)), places)


def test_a_patch_larger_than_the_area_is_refused_by_the_plan(tmp_path: Path, recipe: BuildRecipe) -> None:
    home = wrap(tmp_path / "a", [scene("2019-05-01", ground(1))])
    large = replace(recipe, patches=replace(recipe.patches, size=160))
    with pytest.raises(SettingError, match=r"area: \(150, 140\) pixels, holds no patch of 160"):
        pipeline.plan(large, BuildPaths(out=tmp_path / "p", stac=str(home)))


def test_median_mixes_dates_and_medoid_picks_one(tmp_path: Path, recipe: BuildRecipe) -> None:
    dates = [scene(f"2019-0{m}-01", ground(m)) for m in (4, 5, 6)]
    wrap(tmp_path / "a", dates)
    recipe = replace(recipe, resampling="nearest", composite=replace(recipe.composite, method="median"))
    out = run(recipe, tmp_path / "a", tmp_path / "b")
    expected = np.median([at_10_m(ground(m)) for m in (4, 5, 6)], axis=0)
    np.testing.assert_array_equal(pixels(out / "image.tif"), expected)
    assert (pixels(out / "provenance.tif")[0] == NO_VALUE).all()


def test_a_median_on_coarse_pixels_is_that_on_fine_ones(tmp_path: Path, recipe: BuildRecipe) -> None:
    rng = np.random.Generator(np.random.Philox(key=9))
    scenes = [scene(f"2019-0{m}-01", ground(m), scl=rng.choice([4, 4, 9], (90, 90)).astype(np.uint8)) for m in (4, 5)]
    holed = ground(6)
    holed["B02"][40:60, 31:77] = 0  # of a 10 m band: here dates are not usable by whole coarse pixels
    wrap(tmp_path / "a", [*scenes, scene("2019-06-01", holed)])
    recipe = replace(recipe, resampling="nearest", composite=replace(recipe.composite, method="median"))
    recipe = replace(recipe, mask=replace(recipe.mask, cloud_buffer_m=0, shadow_buffer_m=0))
    # Tiles of 75 pixels begin in the midst of coarse ones: everything goes by fine pixels there.
    whole, cut = (run(recipe, tmp_path / "a", tmp_path / str(px), tile_px=px) for px in (512, 75))
    assert (whole / output_names.SUMS).read_text() == (cut / output_names.SUMS).read_text()


def test_granules_of_one_pass_count_once(tmp_path: Path, recipe: BuildRecipe) -> None:
    truth = ground(3)
    half = {band: v.copy() for band, v in truth.items()}
    for values in half.values():
        values[: len(values) // 2] = 0
    twice = [
        scene("2019-06-01", half, id="S2A_32UPU_20190601_0_L2A"),
        replace(scene("2019-06-01", truth, id="S2A_32UPU_20190601_1_L2A"), time="2019-06-01T10:00:04Z"),
    ]
    wrap(tmp_path / "a", twice)
    provenance = pixels(run(recipe, tmp_path / "a", tmp_path / "b") / "provenance.tif")
    assert (provenance[1] == 1).all()
    assert (provenance[0, :84] == 1).all()
    assert (provenance[0, 84:] == 0).all()


def test_bap_reads_only_scenes_that_can_win(tmp_path: Path, recipe: BuildRecipe) -> None:
    scl = np.full((90, 90), SceneClass.VEGETATION, np.uint8)
    half = scl.copy()
    half[:, :45] = SceneClass.CLOUD_HIGH
    months = {"2019-07-01": half, "2019-08-01": scl, "2019-01-01": scl}
    archive = wrap(tmp_path / "a", [scene(day, ground(n), scl=sky) for n, (day, sky) in enumerate(months.items())])
    next(archive.rglob("*20190101*/B08.tif")).write_bytes(b"not even a TIFF")
    recipe = replace(recipe, resampling="nearest", composite=replace(recipe.composite, method="bap"))
    one, other = (run(recipe, archive, tmp_path / n, tile_px=px) for n, px in (("b", 512), ("c", 64)))
    assert (one / output_names.SUMS).read_text() == (other / output_names.SUMS).read_text()
    index = pixels(one / "provenance.tif")[0]
    dates = [item.scene.time[:10] for item in lock.read(one / lock.NAME).items]
    july, august = dates.index("2019-07-01"), dates.index("2019-08-01")
    assert (index[:, :84] == august).all()  # clouds, and 60 m round them
    assert (index[:, 110:] == july).mean() > 0.5  # near clouds and in haze August may be better
    image = pixels(one / "image.tif")
    np.testing.assert_array_equal(image, np.where(index == july, at_10_m(ground(0)), at_10_m(ground(1))))
    assert [sorted(item.windows) == ["SCL"] for item in lock.read(one / lock.NAME).items] == [True, False, False]
    again = lock.read(one / lock.NAME)
    places = BuildPaths(out=tmp_path / "d", stac=str(archive), osm="none")
    assert (pipeline.build(recipe, places, locked=again, exact=True) / output_names.SUMS).read_text() == (
        one / output_names.SUMS
    ).read_text()


def test_the_clearest_few_scenes_are_enough(tmp_path: Path, recipe: BuildRecipe) -> None:
    cloudy = np.full((90, 90), SceneClass.VEGETATION, np.uint8)
    cloudy[:30] = SceneClass.CLOUD_HIGH
    clear = np.full((90, 90), SceneClass.VEGETATION, np.uint8)
    skies = [cloudy, clear, cloudy, clear]
    archive = wrap(tmp_path / "a", [scene(f"2019-0{n + 5}-01", ground(n), scl=sky) for n, sky in enumerate(skies)])
    recipe = replace(recipe, composite=replace(recipe.composite, max_obs=2))
    provenance = pixels(run(recipe, archive, tmp_path / "b") / "provenance.tif")
    assert (provenance[1] == 2).all()
    assert set(np.unique(provenance[0])) <= {1, 3}


def test_masks_of_the_user_decide(tmp_path: Path, recipe: BuildRecipe) -> None:
    archive = wrap(tmp_path / "a", [scene("2019-05-01", ground(1)), scene("2019-06-01", ground(2))])
    recipe = replace(recipe, mask=replace(recipe.mask, method="external", cloud_buffer_m=0, bright_target_filter=False))
    with pytest.raises(SettingError, match="--masks DIR"):
        run(recipe, archive, tmp_path / "b")
    drawn = np.zeros((SIDE, SIDE), np.uint8)
    drawn[:, :90] = 7
    names = [item.scene.id for item in lock.read(tmp_path / "b" / lock.NAME).items]
    (tmp_path / "m").mkdir()
    for name, mask in zip(names, (drawn, 1 - (drawn > 0)), strict=True):
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "width": SIDE, "height": SIDE, "crs": "EPSG:32632"}
        transform = rasterio.Affine(10, 0, 600000, 0, -10, 5400000)
        with rasterio.open(tmp_path / "m" / f"{name}.tif", "w", transform=transform, **profile) as dataset:
            dataset.write(mask.astype(np.uint8), 1)
    index = pixels(run(recipe, archive, tmp_path / "b", masks=tmp_path / "m") / "provenance.tif")[0]
    assert (index[:, :84] == 1).all()
    assert (index[:, 84:] == 0).all()


def test_the_use_of_each_scene_is_reported(tmp_path: Path, recipe: BuildRecipe) -> None:
    scl = np.full((90, 90), SceneClass.VEGETATION, np.uint8)
    scl[:, 48:] = SceneClass.CLOUD_HIGH
    archive = wrap(tmp_path / "a", [scene("2019-05-01", ground(1), scl=scl), scene("2019-06-01", ground(2))])
    out = run(recipe, archive, tmp_path / "b", tile_px=64)
    usage, index = json.loads((out / output_names.USAGE).read_text()), pixels(out / "provenance.tif")[0]
    assert [s["shown_share"] for s in usage["scenes"]] == [round(float((index == n).mean()), 6) for n in (0, 1)]
    assert usage["scenes"][1]["clear_share"] == 1
    assert (usage["nodata_share"], usage["bright_share"]) == (0, 0)
    across = (index[:, 1:] != index[:, :-1]).sum() + (index[1:] != index[:-1]).sum()
    assert usage["seam"]["pairs"] == across > 0


# --- what must not matter ------------------------------------------------------------------


def test_tiles_workers_order_and_folder_do_not_change_bytes(tmp_path: Path, recipe: BuildRecipe) -> None:
    rng = np.random.Generator(np.random.Philox(key=8))
    cloudy = [rng.choice([4, 4, 5, 9, 3], (90, 90)).astype(np.uint8) for _ in range(3)]
    scenes = [scene(f"2019-0{n + 4}-01", ground(n), scl=scl) for n, scl in enumerate(cloudy)]
    wrap(tmp_path / "a", scenes)
    wrap(tmp_path / "elsewhere" / "c", scenes[::-1])
    one = run(recipe, tmp_path / "a", tmp_path / "one")
    other = run(recipe, tmp_path / "elsewhere" / "c", tmp_path / "other", workers=2, tile_px=64)
    assert (one / output_names.SUMS).read_text() == (other / output_names.SUMS).read_text()
    assert files.compute_sums(one).decode() == (one / output_names.SUMS).read_text()
    assert not (one / ".scratch").exists()


def test_an_area_inside_another_has_the_same_pixels(tmp_path: Path, recipe: BuildRecipe) -> None:
    wrap(tmp_path / "a", [scene("2019-06-01", ground(4))])
    whole = pixels(run(recipe, tmp_path / "a", tmp_path / "b") / "image.tif")
    part = replace(GRID, origin=(600090.0, 5399910.0), shape=(70, 90))
    inner = pixels(run(replace(recipe, area=Area(grid=part)), tmp_path / "a", tmp_path / "c") / "image.tif")
    np.testing.assert_array_equal(inner, whole[:, 3:73, 3:93])


def test_a_killed_build_resumes_where_it_stopped(
    tmp_path: Path, recipe: BuildRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap(tmp_path / "a", [scene("2019-05-01", ground(5)), scene("2019-06-01", ground(6))])
    whole = run(recipe, tmp_path / "a", tmp_path / "whole", tile_px=64)
    opened, real_open = [], window_staging.open_scene_file
    computed, real_tile = [], tiles.read_stack

    def dying(request: scene_files.WindowRequest, href: str) -> Any:
        opened.append(href)
        if len(opened) == 20:
            raise KeyboardInterrupt
        return real_open(request, href)

    def dying_too(*arguments: Any) -> Any:
        computed.append(1)
        if len(computed) == 4:
            raise KeyboardInterrupt
        return real_tile(*arguments)

    monkeypatch.setattr(window_staging, "open_scene_file", dying)
    monkeypatch.setattr(tiles, "read_stack", dying_too)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "a", tmp_path / "b", tile_px=64)
    (tmp_path / "b" / ".image.tif.partial-1").write_bytes(b"half")
    out = run(recipe, tmp_path / "a", tmp_path / "b", tile_px=64)
    assert not list(out.glob(".*partial*"))
    assert len(opened) == 2 * 13 + 1
    assert len(computed) == 9 + 1
    assert (out / output_names.SUMS).read_text() == (whole / output_names.SUMS).read_text()


def test_bap_killed_with_two_workers_resumes_with_one(tmp_path: Path, recipe: BuildRecipe) -> None:
    rng = np.random.Generator(np.random.Philox(key=11))
    skies = [rng.choice([4, 4, 5, 9, 3], (90, 90)).astype(np.uint8) for _ in range(5)]
    archive = wrap(tmp_path / "a", [scene(f"2019-0{n + 5}-01", ground(n), scl=scl) for n, scl in enumerate(skies)])
    recipe = replace(recipe, composite=replace(recipe.composite, method="bap"))
    whole = run(recipe, archive, tmp_path / "whole", tile_px=64)
    program = (
        "import sys; from pathlib import Path; from sgdata import files\n"
        "from sgdata.builds import build_recipe as r, pipeline\n"
        "if __name__ == '__main__':\n"
        "    recipe = files.read(r.BuildRecipe, Path(sys.argv[1]))\n"
        "    paths = r.BuildPaths(out=Path(sys.argv[2]), stac=sys.argv[3], osm='none', workers=2, tile_px=64)\n"
        "    pipeline.build(recipe, paths)\n"
    )
    (tmp_path / "build.py").write_text(program)
    (tmp_path / "r.toml").write_bytes(files.toml(recipe))
    out = tmp_path / "b"
    command = [sys.executable, *(str(tmp_path / name) for name in ("build.py", "r.toml")), str(out), str(archive)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as started:
        while started.poll() is None and not list(out.glob(".scratch/tiles/*/*.npy")):
            time.sleep(0.01)
        os.killpg(started.pid, signal.SIGKILL)
    assert not (out / output_names.SUMS).exists()
    again = run(recipe, archive, out, tile_px=64)
    assert (again / output_names.SUMS).read_text() == (whole / output_names.SUMS).read_text()


# --- the lock ------------------------------------------------------------------------------


def test_a_build_from_its_own_lock_is_the_same_build(tmp_path: Path, recipe: BuildRecipe) -> None:
    wrap(tmp_path / "a", [scene("2019-06-01", ground(7))])
    out = run(recipe, tmp_path / "a", tmp_path / "b")
    built = lock.read(out / lock.NAME)
    assert built.state == "built"
    assert set(built.outputs) == {"image.tif", "provenance.tif"}
    again = pipeline.build(recipe, BuildPaths(out=tmp_path / "c", stac=str(tmp_path / "a"), osm="none"), locked=built)
    assert (again / output_names.SUMS).read_text() == (out / output_names.SUMS).read_text()


def test_a_catalogue_that_changed_since_the_lock_is_detected(tmp_path: Path, recipe: BuildRecipe) -> None:
    wrap(tmp_path / "a", [scene("2019-06-01", ground(7))])
    built = lock.read(run(recipe, tmp_path / "a", tmp_path / "b") / lock.NAME)
    shutil.rmtree(tmp_path / "a")
    changed = ground(7)
    changed["B05"][40, 40] += 1
    wrap(tmp_path / "a", [scene("2019-06-01", changed)])
    with pytest.raises(SourceError, match=r"20190601_0_L2A B05: window pixels hash to"):
        pipeline.build(recipe, BuildPaths(out=tmp_path / "c", stac=str(tmp_path / "a"), osm="none"), locked=built)


def test_plan_reads_no_pixel_and_counts_months(tmp_path: Path, recipe: BuildRecipe) -> None:
    wrap(
        tmp_path / "a", [scene("2019-05-01", ground(1)), scene("2019-05-11", ground(2)), scene("2019-07-01", ground(3))]
    )
    for path in (tmp_path / "a").rglob("*.tif"):
        path.unlink()
    planned = pipeline.plan(recipe, BuildPaths(out=tmp_path / "b", stac=str(tmp_path / "a")))
    assert planned.state == "planned"
    assert lock.read(tmp_path / "b" / lock.NAME) == planned
    rows = {row.month: row for row in plan_summary.count_months(planned)}
    assert len(rows) == 12
    assert (rows["2019-05"].passes, rows["2019-06"].scenes, rows["2019-07"].scenes) == (2, 0, 1)
    raw = 150 * 140 * (4 * 2 + 6 * 2 / 4 + 2 * 2 / 36 + 1 / 4)
    assert rows["2019-07"].bytes == round(raw)


def test_a_plan_does_not_overwrite_the_lock_of_a_finished_build(tmp_path: Path, recipe: BuildRecipe) -> None:
    wrap(tmp_path / "a", [scene("2019-06-01", ground(1))])
    out = run(recipe, tmp_path / "a", tmp_path / "b")
    with pytest.raises(OutputError, match="finished build"):
        pipeline.plan(recipe, BuildPaths(out=out, stac=str(tmp_path / "a")))
    before = (out / output_names.SUMS).read_text()
    assert (run(recipe, tmp_path / "a", out) / output_names.SUMS).read_text() == before


def test_the_folder_describes_its_contents(tmp_path: Path, recipe: BuildRecipe) -> None:
    wrap(tmp_path / "a", [scene("2019-06-01", ground(9))])
    out = run(recipe, tmp_path / "a", tmp_path / "b")
    dataset = build_folder.open_build(out)
    assert dataset.rio.crs.to_epsg() == 32632
    assert list(dataset.band.values) == list(L2A_BANDS)
    assert dataset.attrs["items"] == ["S2A_32UPU_20190601_0_L2A"]
    assert float(dataset.x[0]) == GRID.origin[0] + 5
    contract = contracts.read(out)
    assert contract.shape == (12, 32, 32)
    assert contract.statistics["B04"].count > 0
    assert files.read(BuildRecipe, out / "recipe.toml") == build_recipe.resolved(recipe, GRID)


def test_the_stac_item_is_valid(tmp_path: Path, recipe: BuildRecipe) -> None:
    import pystac
    from pystac.validation.stac_validator import JsonSchemaSTACValidator

    wrap(tmp_path / "a", [scene("2019-06-01", ground(9))])
    out = run(recipe, tmp_path / "a", tmp_path / "b")
    item = pystac.Item.from_file(str(out / "stac" / "segmunich.json"))
    document = files.read_plain(out / "stac" / "segmunich.json")
    assert JsonSchemaSTACValidator().validate_core(document, item.STAC_OBJECT_TYPE, "1.1.0")
    assert document["links"] == []
    href = item.assets["image"].get_absolute_href()
    assert href is not None
    assert Path(href).samefile(out / "image.tif")
    assert item.assets["image"].extra_fields["file:checksum"][4:] == files.sha256_file(out / "image.tif")


# --- what must stop it ---------------------------------------------------------------------


def test_a_baseline_that_cannot_carry_an_offset_gives_a_warning(
    tmp_path: Path, recipe: BuildRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    wrap(tmp_path / "a", [scene("2019-06-01", ground(1), shift=1000, baseline="03.00")])
    built = lock.read(run(recipe, tmp_path / "a", tmp_path / "b") / lock.NAME)
    assert built.items[0].offset == 0
    assert "metadata give offset 0, the pixels -1000, which baseline 03.00 cannot have" in caplog.text
    by_pixels = replace(recipe, offset=replace(recipe.offset, source="pixels"))
    assert lock.read(run(by_pixels, tmp_path / "a", tmp_path / "c") / lock.NAME).items[0].offset == -1000


@pytest.mark.parametrize("baseline", ["02.12", "05.00"])
def test_cloud_that_was_classified_as_ground_proves_nothing(
    tmp_path: Path, recipe: BuildRecipe, baseline: str, caplog: pytest.LogCaptureFixture
) -> None:
    bright = {band: np.full_like(values, 6000) for band, values in ground(1).items()}
    wrap(tmp_path / "a", [scene("2019-05-01", bright, baseline=baseline), scene("2019-06-01", ground(1))])
    built = lock.read(run(recipe, tmp_path / "a", tmp_path / "b") / lock.NAME)
    assert {item.offset for item in built.items} == {0}
    assert len(built.dropped) == (baseline == "05.00")  # whose offset nothing can tell
    assert "pixels show" not in caplog.text


def test_a_scene_that_cannot_be_tested_is_left_out_or_stops(tmp_path: Path, recipe: BuildRecipe) -> None:
    all_cloud = np.full((90, 90), SceneClass.CLOUD_HIGH, np.uint8)
    opaque = [scene(day, ground(1), baseline="05.00", scl=all_cloud) for day in ("2019-05-01", "2019-05-11")]
    wrap(tmp_path / "a", [*opaque, scene("2019-06-01", ground(1))])
    built = lock.read(run(recipe, tmp_path / "a", tmp_path / "b") / lock.NAME)
    assert [item.scene.id for item in built.items] == ["S2A_32UPU_20190601_0_L2A"]
    assert [d.id for d in built.dropped] == [one.id for one in opaque]
    assert built.dropped[0].reason.startswith("offset untestable: 0 clear pixels")
    strict = replace(recipe, offset=OffsetSettings(untestable="stop"))
    with pytest.raises(
        SourceError, match=f"scene {opaque[0].id}.*scene {opaque[1].id}.*metadata leave the offset undetermined"
    ):
        run(strict, tmp_path / "a", tmp_path / "c")
    # The items declare no offset that was applied to them, so the baseline counts.
    by_metadata = replace(recipe, offset=replace(recipe.offset, source="metadata"))
    built = lock.read(run(by_metadata, tmp_path / "a", tmp_path / "d") / lock.NAME)
    assert len(built.items) == 3


def test_another_zone_is_left_out_by_name(tmp_path: Path, recipe: BuildRecipe) -> None:
    stray = scene(
        "2019-06-02", ground(2), id="S2A_33UTP_20190602_0_L2A", crs="EPSG:32633", origin=(158400.0, 5410000.0)
    )
    wrap(tmp_path / "a", [scene("2019-06-01", ground(1)), stray])
    planned = pipeline.plan(recipe, BuildPaths(out=tmp_path / "b", stac=str(tmp_path / "a")))
    assert len(planned.items) + len(planned.dropped) in (1, 2)
    assert [item.scene.id for item in planned.items] == ["S2A_32UPU_20190601_0_L2A"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"proj:shape": [99, 99]}, r"B04: shape of the file is \(180, 180\), its item says \(99, 99\)"),
        ({"proj:transform": [10, 0, 0, 0, -10, 5]}, "B04: transform of the file"),
        ({"raster:bands": [{"data_type": "float32"}]}, "B04: data type of the file is uint16"),
    ],
)
def test_an_item_that_misdescribes_its_file_is_refused(
    tmp_path: Path, recipe: BuildRecipe, wrong: dict[str, Any], words: str
) -> None:
    folder = wrap(tmp_path / "a", [scene("2019-06-01", ground(1))])
    path = next(folder.rglob("S2A*.json"))
    item = files.read_plain(path)
    item["assets"]["red"] |= wrong
    path.write_bytes(files.pretty_json(item))
    with pytest.raises(SourceError, match=words):
        run(recipe, folder, tmp_path / "b")


def test_a_truncated_file_stops_the_build(tmp_path: Path, recipe: BuildRecipe) -> None:
    folder = wrap(tmp_path / "a", [scene("2019-06-01", ground(1))])
    path = next(folder.rglob("B08.tif"))
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(SourceError, match=r"B08\.tif: cannot be read"):
        run(recipe, folder, tmp_path / "b")
    assert not (tmp_path / "b" / output_names.SUMS).exists()


def test_a_grid_between_pixels_is_refused(tmp_path: Path, recipe: BuildRecipe) -> None:
    wrap(tmp_path / "a", [scene("2019-06-01", ground(1))])
    shifted = replace(GRID, origin=(600065.0, 5399940.0))
    with pytest.raises(SourceError, match="do not nest"):
        run(replace(recipe, area=Area(grid=shifted)), tmp_path / "a", tmp_path / "b")


def test_missing_osm_is_reported_before_any_pixel_is_read(tmp_path: Path, recipe: BuildRecipe) -> None:
    wrap(tmp_path / "a", [scene("2019-06-01", ground(1))])
    places = partial(BuildPaths, out=tmp_path / "b", stac=str(tmp_path / "a"))
    with pytest.raises(SourceError, match=r"city\.osm: no such file"):
        pipeline.build(recipe, places(osm=str(tmp_path / "city.osm")))
    assert not (tmp_path / "b").exists()
    with pytest.raises(SourceError, match="no stored answer"):
        pipeline.build(recipe, places(osm="overpass", offline=True))


def test_a_second_builder_is_refused(tmp_path: Path, recipe: BuildRecipe) -> None:
    wrap(tmp_path / "a", [scene("2019-06-01", ground(1))])
    with output_lock.only_writer(tmp_path / "b"), pytest.raises(OutputError, match="another process"):
        run(recipe, tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bands": ("B02", "B99")}, "B99"),
        ({"bands": ("B05", "B06")}, "medoid: needs B02"),
        ({"dates": "sometime"}, "sometime"),
    ],
)
def test_invalid_settings_are_refused(tmp_path: Path, recipe: BuildRecipe, change: dict[str, Any], words: str) -> None:
    wrap(tmp_path / "a", [scene("2019-06-01", ground(1))])
    with pytest.raises(SettingError, match=words):
        run(replace(recipe, **change), tmp_path / "a", tmp_path / "b")


# --- with the simulated city ---------------------------------------------------------------


def test_the_simulated_city_builds_with_labels(tmp_path: Path, city: Path, recipe: BuildRecipe) -> None:
    area = Area(aoi=str(city / "aoi.geojson"))
    places = partial(BuildPaths, stac=str(city), osm=str(city / "osm" / "city.osm"))
    recipe = replace(recipe, area=area, dates="2017-04-01/2020-04-01")
    out = pipeline.build(recipe, places(out=tmp_path / "b"))
    assert contracts.read(out).label_space.name == "segmunich-osm"
    labels, truth = pixels(out / "labels.tif")[0], pixels(city / "truth" / "land_cover.tif")[0]
    mapped = (pixels(city / "truth" / "osm_mapped.tif")[0] > 0) & (labels != 255)
    assert (labels == truth)[mapped].mean() > 0.95
    assert (out / "labels.tif.aux.xml").exists()
    built = lock.read(out / lock.NAME)
    clouds = compare_truth.true_clouds(city, [item.scene.id for item in built.items])
    assert compare_truth.residual_cloud(pixels(out / "provenance.tif")[0], clouds) < 0.003
    assert set(built.answers) == {"city.osm"}
    assert set(built.outputs) == {"image.tif", "provenance.tif", "labels.tif", "label_source.tif"}
