"""Test which pixels of a scene have data, and what a build says of those that have none or were never seen clear."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from stac_wrap import Wrapped, wrap

from sgdata import files, package_data
from sgdata.builds import build_folder, pipeline
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.composite import cloud_masks, rules
from sgdata.scenes import lock
from sgdata.scenes.aoi import Area
from sgdata.sentinel2 import SceneClass
from sgdata.types import Array, Grid

GRID = Grid(crs="EPSG:32632", origin=(600000.0, 5400000.0), gsd_m=10.0, shape=(72, 72))
BANDS = ("B02", "B03", "B04", "B08", "B12")


@pytest.fixture
def recipe() -> BuildRecipe:
    published = files.read(BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    return replace(
        published,
        dates="2019-03-01/2019-08-31",
        area=Area(grid=GRID),
        bands=BANDS,
        resampling="nearest",
        patches=replace(published.patches, size=24, stride=24),
        split=replace(published.split, block_px=24, gap_px=0),
        mask=replace(published.mask, cloud_buffer_m=0, shadow_buffer_m=0, bright_target_filter=False),
    )


def dn(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    means = {"B02": 300, "B03": 500, "B04": 400, "B08": 3000, "B12": 900}
    return {band: (rng.integers(-40, 40, (72, 72)) + mean).astype(np.uint16) for band, mean in means.items()}


def scene(day: str, values: dict[str, Array], scl: Array | int = SceneClass.VEGETATION, **more: Any) -> Wrapped:
    classes = np.full((36, 36), scl, np.uint8) if isinstance(scl, int) else scl
    layers: dict[str, tuple[Any, float]] = {band: (plane, 10.0) for band, plane in values.items()}
    layers["SCL"] = (classes, 20.0)
    return Wrapped(id=f"S2A_32UPU_{day.replace('-', '')}_0_L2A", time=f"{day}T10:00:00Z", layers=layers, **more)


def build(recipe: BuildRecipe, where: Path, out: Path, **more: Any) -> Path:
    return pipeline.build(recipe, BuildPaths(out=out, stac=str(where), osm="none", **more))


def read(out: Path, name: str = "image.tif") -> Array:
    with rasterio.open(out / name) as dataset:
        pixels: Array = dataset.read()
    return pixels


METHODS = get_args(rules.Method)


# --- a zero in one band --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "zeros"),
    [
        ("medoid", ("B08",)),
        ("bap", ("B02",)),
        ("maxndvi", ("B04", "B08")),
        ("median", ("B08", "B12")),
        ("geomedian", ("B08",)),
    ],
)
def test_a_lake_that_reflects_nothing_in_some_bands_is_kept(
    tmp_path: Path, recipe: BuildRecipe, method: Any, zeros: tuple[str, ...]
) -> None:
    lake = np.s_[20:40, 20:40]
    scl = np.full((36, 36), SceneClass.VEGETATION, np.uint8)
    scl[10:20, 10:20] = SceneClass.WATER
    scenes = []
    for n, day in enumerate(("2019-05-01", "2019-06-01", "2019-07-01")):
        values = dn(n)
        for band in BANDS:
            values[band][lake] = 0 if band in zeros else 80
        scenes.append(scene(day, values, scl))
    out = build(
        replace(recipe, composite=replace(recipe.composite, method=method)),
        wrap(tmp_path / "a", scenes),
        tmp_path / "b",
    )
    image = read(out)
    assert (image > 0).all()
    for band, plane in zip(BANDS, image, strict=True):
        assert (plane[lake] == (1 if band in zeros else 80)).all()
    assert build_folder.describe_nodata(out) == ""


@pytest.mark.parametrize(
    ("method", "zeros", "scl", "kept"),
    [
        ("none", 1, SceneClass.NOT_VEGETATED, True),
        ("none", 2, SceneClass.NOT_VEGETATED, False),  # the edge of a swath
        ("scl", 4, SceneClass.WATER, True),
        ("scl", 5, SceneClass.WATER, False),
        ("none", 0, SceneClass.NO_DATA, False),
    ],
)
def test_bands_and_layers_say_where_data_are(
    tmp_path: Path, recipe: BuildRecipe, method: Any, zeros: int, scl: int, kept: bool
) -> None:
    values = dn(1)
    for band in BANDS[:zeros]:
        values[band][:, :36] = 0
    classes = np.full((36, 36), SceneClass.VEGETATION, np.uint8)
    classes[:, :18] = scl
    out = build(
        replace(recipe, mask=replace(recipe.mask, method=method)),
        wrap(tmp_path / "a", [scene("2019-06-01", values, classes)]),
        tmp_path / "b",
    )
    assert (read(out)[:, :, :36] > 0).all() == kept
    assert (read(out)[:, :, 36:] > 0).all()
    if not kept:
        assert build_folder.describe_nodata(out) == (
            "2,592 pixels (50.000%) hold no data: no scene has data of 2,592; choose another area or widen --dates"
        )


def test_a_band_that_is_0_everywhere_costs_no_pixel_without_classes(tmp_path: Path, recipe: BuildRecipe) -> None:
    values = dn(1) | {"B10": np.zeros((72, 72), np.uint16)}
    l1c = replace(
        recipe,
        bands=(*BANDS[:4], "B10", "B12"),
        source=replace(recipe.source, level="L1C"),
        mask=replace(recipe.mask, method="none"),
    )
    one = scene("2019-06-01", values)
    wrap(tmp_path / "a", [replace(one, layers={band: layer for band, layer in one.layers.items() if band != "SCL"})])
    image = read(build(l1c, tmp_path / "a", tmp_path / "b"))
    assert (image > 0).all()
    assert (image[4] == 1).all()


# --- ground that is never seen clear -------------------------------------------------------


def series(cloud: Any, days: int = 12) -> list[Wrapped]:
    scenes = []
    for n in range(days):
        values, classes = dn(n), np.full((36, 36), SceneClass.VEGETATION, np.uint8)
        for plane in values.values():
            plane[cloud] = 7000
        classes[tuple(slice((part.start or 0) // 2, part.stop and part.stop // 2) for part in cloud)] = 9
        scenes.append(scene(f"2019-{3 + n // 3:02d}-{1 + 10 * (n % 3):02d}", values, classes))
    return scenes


@pytest.mark.parametrize("cloud", [np.s_[:, :36], np.s_[:, :], np.s_[20:44, 24:48]])
def test_ground_never_seen_clear_is_no_data(tmp_path: Path, recipe: BuildRecipe, cloud: Any) -> None:
    filtered = replace(recipe, mask=replace(recipe.mask, bright_target_filter=True))
    out = build(filtered, wrap(tmp_path / "a", series(cloud)), tmp_path / "b")
    shown = np.ones((72, 72), bool)
    shown[cloud] = False
    assert ((read(out) > 0).all(axis=0) == shown).all()
    lost = int((~shown).sum())
    assert f"{lost:,} were never seen clear; widen --dates" in build_folder.describe_nodata(out)
    scenes = files.read_plain(out / "usage.json")["scenes"]
    assert {one["clear_share"] for one in scenes} == {round(float(shown.mean()), 6)}  # type: ignore[index]


@pytest.mark.parametrize("filtered", [True, False])
def test_a_roof_that_every_date_calls_cloud_is_kept_and_marked_unless_the_filter_is_off(
    tmp_path: Path, recipe: BuildRecipe, filtered: bool
) -> None:
    roof, scenes = np.s_[30:36, 40:44], series(np.s_[30:36, 40:44])
    for classes, _ in (one.layers["SCL"] for one in scenes[1:]):
        classes[5, 5:7] = 9  # called cloud on all dates but one
    chosen = replace(recipe, mask=replace(recipe.mask, bright_target_filter=filtered))
    out = build(chosen, wrap(tmp_path / "a", scenes), tmp_path / "b")
    image, provenance = read(out), read(out, "provenance.tif")
    expected = np.zeros((72, 72), np.uint16)
    if filtered:
        expected[roof], expected[10:12, 10:14] = cloud_masks.NEVER_CLEAR, cloud_masks.BRIGHT
    np.testing.assert_array_equal(provenance[4], expected)
    assert (image[:, *roof] == (7000 if filtered else 0)).all()
    assert (provenance[1, *roof] == (12 if filtered else 0)).all()
    usage = files.read_plain(out / "usage.json")
    shares = (usage["nodata_share"], usage["never_clear_share"], usage["bright_target_share"])
    narrow, all_of_them = round(24 / 72**2, 6), round(32 / 72**2, 6)
    assert shares == ((0, narrow, all_of_them) if filtered else (narrow, 0, 0))
    assert ("0.463% of the pixels" in build_folder.describe_never_clear(out)) == filtered
    assert ("24 pixels" in build_folder.describe_nodata(out)) == (not filtered)


def masks(folder: Path, scenes: list[Wrapped], cloud: Any) -> Path:
    folder.mkdir()
    for one in scenes:
        values = np.zeros((72, 72), np.uint8)
        values[cloud] = 1
        about = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 72, "width": 72, "crs": GRID.crs}
        with rasterio.open(folder / f"{one.id}.tif", "w", transform=from_origin(*GRID.origin, 10, 10), **about) as out:
            out.write(values, 1)
    return folder


def test_masks_of_the_user_are_not_overruled(tmp_path: Path, recipe: BuildRecipe) -> None:
    # Masked on all days but one: a bright target by the filter, had it a say.
    scenes = series(np.s_[0:0, 0:0])
    folder = masks(tmp_path / "m", scenes, np.s_[30:34, 30:34])
    masks_of_last = masks(tmp_path / "last", scenes[-1:], np.s_[0:0, 0:0])
    (masks_of_last / f"{scenes[-1].id}.tif").replace(folder / f"{scenes[-1].id}.tif")
    external = replace(recipe, mask=replace(recipe.mask, method="external", bright_target_filter=True))
    out = build(external, wrap(tmp_path / "a", scenes), tmp_path / "b", masks=folder)
    provenance = read(out, "provenance.tif")
    last = [item.scene.id for item in lock.read(out).items].index(scenes[-1].id)
    assert (provenance[0][30:34, 30:34] == last).all()
    assert (provenance[1][30:34, 30:34] == 1).all()
    assert (provenance[1][:30] == 12).all()


# --- scenes that are not read --------------------------------------------------------------


@pytest.mark.parametrize("knows", [True, False])
def test_bap_counts_only_data_before_it_skips_a_scene(tmp_path: Path, recipe: BuildRecipe, knows: bool) -> None:
    """The better date ends at the edge of a swath, which masks of the user do not know."""
    half, classes = dn(1), np.full((36, 36), SceneClass.VEGETATION, np.uint8)
    for plane in half.values():
        plane[:, :36] = 0
    if knows:
        classes[:, :18] = SceneClass.NO_DATA
    scenes = [scene("2019-07-01", half, classes), scene("2019-03-01", dn(2)), scene("2019-03-11", dn(3))]
    where, folder = wrap(tmp_path / "a", scenes), masks(tmp_path / "m", scenes, np.s_[0:0, 0:0])
    external = replace(recipe, mask=replace(recipe.mask, method="external"))
    counts, usages = [], []
    for method in ("bap", "medoid"):
        chosen = replace(external, composite=replace(recipe.composite, method=method))  # type: ignore[arg-type]
        out = build(chosen, where, tmp_path / method, masks=folder)
        assert (read(out) > 0).all()
        counts.append(read(out, "provenance.tif")[1])
        usages.append([one["clear_share"] for one in files.read_plain(out / "usage.json")["scenes"]])  # type: ignore[union-attr]
    assert (counts[0] == counts[1]).all()
    assert set(np.unique(counts[0])) == {2, 3}
    assert usages[0] == usages[1]


def test_valid_count_and_clear_share_do_not_depend_on_the_rule(tmp_path: Path, recipe: BuildRecipe) -> None:
    scenes = []
    for n in range(6):
        rng, classes = np.random.default_rng(n), np.full((36, 36), SceneClass.VEGETATION, np.uint8)
        for kind in (SceneClass.CLOUD_HIGH, SceneClass.DARK, SceneClass.NO_DATA):
            row, col = rng.integers(0, 20, 2)
            classes[row : row + 14, col : col + 14] = kind
        scenes.append(scene(f"2019-0{3 + n}-05", dn(n), classes))
    where = wrap(tmp_path / "a", scenes)
    found = {}
    for method in METHODS:
        chosen = replace(recipe, composite=replace(recipe.composite, method=method))
        out = build(chosen, where, tmp_path / method)
        shares = tuple(one["clear_share"] for one in files.read_plain(out / "usage.json")["scenes"])  # type: ignore[union-attr]
        found[method] = (read(out, "provenance.tif")[1].tobytes(), shares)
    assert len(set(found.values())) == 1
