"""Test the simulated city: known truth, equal bytes each time, and the properties of real archives."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from sgdata import files, output_names, package_data
from sgdata.errors import OutputError, SettingError
from sgdata.rasters import grids
from sgdata.sentinel2 import L2A_BANDS, SceneClass
from sgdata.simulation import archive, context_textures, ground, items, noise, scenarios, sky, spectra, surface, truth
from sgdata.simulation.sketch import area_kinds, line_kinds
from sgdata.types import Array, Grid, Window


def read(path: Path) -> Array:
    with rasterio.open(path) as raster:
        pixels: Array = raster.read()
    return pixels


def planted(folder: Path) -> dict[str, dict[str, object]]:
    traps: dict[str, dict[str, object]] = json.loads((folder / "truth" / "traps.json").read_text())
    return traps


def in_area(pixels: Array, what: scenarios.Scenario, factor: int) -> Array:
    window, k = what.area_window, factor
    rows = slice(window.row // k, (window.row + window.height) // k)
    return pixels[..., rows, window.col // k : (window.col + window.width) // k]


class Town:
    """A city in memory with its surface and median reflectance over a year."""

    def __init__(self, seed: int, size_km: float = 6, kind: str = "plain") -> None:
        self.scenario = scenarios.create(seed, size_km, 12, ground=kind)
        self.place = ground.build(self.scenario)
        self.layers = surface.layers(self.place)
        height, width = self.scenario.area.shape
        around = truth.grow(self.scenario.area, Window(row=0, col=0, height=height, width=width))
        self.surface = surface.paint(self.layers, around, seed=seed, epoch=1, ground=kind)
        self.label = self.surface.label[6:-6, 6:-6]
        self.tagged = self.surface.tagged[6:-6, 6:-6]

    def median(self) -> Array:
        """Return the (12, H, W) median per native resolution, repeated to 10 m."""
        days = [one.time.timetuple().tm_yday for one in scenarios.scenes(self.scenario) if one.epoch == 1]
        by_day = [truth.to_native_gsd(truth.clear_ground(self.surface, day)) for day in days]
        image = np.empty((12, *self.label.shape), np.float32)
        for gsd, names in truth.ORDER.items():
            middle = np.median(np.stack([one[gsd] for one in by_day]), axis=0)
            where = [L2A_BANDS.index(name) for name in names]
            image[where] = middle.repeat(gsd // 10, axis=1).repeat(gsd // 10, axis=2)
        return image


@pytest.fixture(scope="module")
def town() -> Town:
    return Town(1)


@pytest.fixture(scope="module")
def mosaic_town() -> Town:
    return Town(1, 4.8, "context")


# --- bytes ---------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_workers_and_a_done_archive_is_kept(tmp_path: Path) -> None:
    one = archive.simulate(tmp_path / "one", size_km=2, dates=3, workers=1)
    two = archive.simulate(tmp_path / "two", size_km=2, dates=3, workers=2)
    assert (one / output_names.SUMS).read_bytes() == (two / output_names.SUMS).read_bytes()
    assert files.compute_sums(one) == (one / output_names.SUMS).read_bytes()
    assert not list(one.rglob(".work*"))
    before = (one / "catalog.json").stat().st_mtime_ns
    assert archive.simulate(one, size_km=2, dates=3) == one
    assert (one / "catalog.json").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="holds another simulation"):
        archive.simulate(one, size_km=2, dates=4)


@pytest.mark.parametrize(
    "changed",
    [{"size_km": 1.9}, {"size_km": 41}, {"dates": 2}, {"dates": 401}, {"layout": "landsat"}, {"ground": "moon"}],
)
def test_unsupported_settings_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="expected"):
        archive.simulate(tmp_path / "x", **changed)
    assert not list(tmp_path.iterdir())


# --- fields and windows --------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(1.1, 60), st.integers(-500, 500), st.integers(1, 40))
def test_noise_has_no_seams(seed: int, cell: float, start: int, step: int) -> None:
    rows, cols = np.arange(start, start + 60), np.arange(-20, 50)
    whole = noise.lattice(seed, rows, cols, cell)
    part = noise.lattice(seed, rows[step:], cols[7:], cell)
    np.testing.assert_array_equal(whole[step:, 7:], part)
    x, y = np.meshgrid(cols, rows)
    np.testing.assert_allclose(noise.at(seed, x.ravel(), y.ravel(), cell).reshape(x.shape), whole, atol=2e-5)


def test_noise_has_the_stated_variance() -> None:
    field = noise.fractal(3, np.arange(900), np.arange(900), (12, 6, 3))
    assert abs(float(field.mean())) < 0.1
    assert 0.9 < float(field.std()) < 1.1


@pytest.mark.parametrize("kind", scenarios.GROUNDS)
def test_ground_is_the_same_in_every_window(kind: str, request: pytest.FixtureRequest) -> None:
    whole: Town = request.getfixturevalue("town" if kind == "plain" else "mosaic_town")
    around = truth.grow(whole.scenario.area, Window(row=120, col=240, height=180, width=120))
    tree = shapely.STRtree([layer.outline for layer in whole.layers])
    near = surface.layers_near(tree, whole.layers, around)
    part = surface.paint(near, around, seed=1, epoch=1, ground=kind)
    inside = (slice(120, 312), slice(240, 372))
    for name in ("label", "a", "b", "mix", "bright", "vigour", "relief", "tagged"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole.surface, name)[inside], err_msg=name)
    np.testing.assert_array_equal(
        truth.clear_ground(part, 150), truth.clear_ground(whole.surface, 150)[:, 120:300, 240:360]
    )


def test_the_area_snaps_to_the_grid_asked_for(city: Path) -> None:
    what = truth.read_scenario(city)
    feature = json.loads((city / "aoi.geojson").read_text())["features"][0]
    lon, lat = np.array(feature["geometry"]["coordinates"][0]).T
    x, y = Transformer.from_crs("EPSG:4326", what.area.crs, always_xy=True).transform(lon, lat)
    assert grids.snap_outward((min(x), min(y), max(x), max(y)), what.area.crs) == what.area
    assert what.area.origin[0] % 60 == what.granule.origin[0] % 60 == what.granule.origin[1] % 60 == 0
    for size in (2.0, 6.0, 7.99, 40.0):
        assert scenarios.create(1, size, 12).area.shape[0] * 10 == pytest.approx(size * 1000, abs=30)


# --- the place -----------------------------------------------------------------------------


def test_every_class_has_its_share_and_gaps_are_few(town: Town) -> None:
    shares = np.bincount(town.label.ravel(), minlength=13) / town.label.size
    assert shares.min() >= 0.003, shares
    assert shares.argmax() == 1
    assert shares[4] > 0.15
    assert 0.05 <= 1 - town.tagged.mean() <= 0.15


def test_tags_mean_the_class_that_is_painted() -> None:
    train = {row["file_value"]: int(row["train_index"]) for row in package_data.table("segmunich_labels")}
    means = {
        (row["osm_key"], row["osm_value"]): train[row["segmunich_label_value"]]
        for row in package_data.table("osm_lulc_tags")
        if row["geometry"] == "polygon" and row["segmunich_label_value"] in train
    }
    for name, kind in area_kinds().items():
        for tags in kind.tags if kind.label is not None else ():
            found = {means[pair] for pair in tags.items() if pair in means}
            assert found == {kind.label}, (name, tags)


def test_a_linear_classifier_neither_fails_nor_suffices(town: Town) -> None:
    """A linear rule for single pixels of clean median spectra reaches an mIoU of 0.3 to 0.6."""
    pixels, label = np.log(town.median().reshape(12, -1).T.astype(np.float64)), town.label.ravel()
    rows, cols = np.mgrid[:600, :600] // 60
    train = ((rows + cols) % 2 == 0).ravel()
    x, y = pixels[train], label[train]
    count = np.bincount(y, minlength=13)
    means = np.stack([x[y == k].mean(axis=0) for k in range(13)])
    centred = x - means[y]
    inverse = np.linalg.inv(centred.T @ centred / len(x))
    offset = np.log(count / count.sum()) - 0.5 * np.einsum("kb,bc,kc->k", means, inverse, means)
    guess = (pixels[~train] @ (inverse @ means.T) + offset).argmax(axis=1)
    confusion = np.bincount(label[~train] * 13 + guess, minlength=169).reshape(13, 13)
    hits = np.diag(confusion)
    iou = hits / (confusion.sum(axis=0) + confusion.sum(axis=1) - hits)
    assert 0.3 < iou.mean() < 0.6, iou.round(2)


def test_leaves_come_and_go_and_water_is_dark_in_the_infrared(town: Town) -> None:
    def at(day: int, cover: str, *names: str) -> list[float]:
        image = truth.clear_ground(town.surface, day)
        here = town.surface.cover[6:-6, 6:-6] == spectra.cover_ids()[cover]
        return [float(np.median(image[L2A_BANDS.index(name)][here])) for name in names]

    summer, winter = at(190, "broadleaf", "B04", "B08"), at(20, "broadleaf", "B04", "B08")
    assert summer[1] / summer[0] > 2.2 * winter[1] / winter[0]
    lake = spectra.coarsen((town.surface.cover == spectra.cover_ids()["deep_water"])[6:-6, 6:-6] * 1.0, 6) == 1
    green, infrared = (
        spectra.coarsen(truth.clear_ground(town.surface, 190)[L2A_BANDS.index(b)], 6)[lake] for b in ("B03", "B08")
    )
    assert (infrared < green).all()
    assert np.median(infrared) < 400
    assert at(110, "rape", "B04", "B02")[0] > 1.5 * at(110, "rape", "B04", "B02")[1]
    assert at(190, "white_hall", "B02")[0] > 3000


def test_the_second_epoch_is_built_felled_and_dug(city: Path) -> None:
    change = read(city / "truth" / "change.tif")[0]
    before, after = (read(city / "truth" / f"{name}.tif")[0] for name in ("land_cover", "land_cover_2"))
    assert set(np.unique(change)) == {0, 1, 2, 3}
    assert ((before != after) <= (change > 0)).all()
    assert (before[change == 2] == 4).mean() > 0.8
    assert set(np.unique(after[change == 1])) <= {11, 12}
    assert (after[change == 3] == 9).all()


# --- the context ground ---------------------------------------------------------------------


def test_the_tables_of_both_grounds_name_each_other(town: Town) -> None:
    drawn = {name for kind in area_kinds().values() for name in kind.arrangements}
    drawn |= {road.cover for road in line_kinds().values()}
    assert drawn == set(context_textures.cover_ids())
    table = context_textures.covers()
    for number, row in enumerate(package_data.table("simulated_arrangements")):
        # Every material of a list is drawn equally often.
        found, times = np.unique(table.a[number], return_counts=True)
        weights = Counter(row["a"].split())
        assert dict(zip(found, times, strict=True)) == {
            list(spectra.calendars()).index(name): context_textures.CHOICES * n // weights.total()
            for name, n in weights.items()
        }
    # The plain ground is painted without what the other needs.
    assert not town.surface.relief.any()
    assert {area.kind for area in town.place.areas}.isdisjoint({"hedge", "stream", "wall", "bench", "pit_pond"})


def test_every_class_of_the_mosaic_has_its_share(mosaic_town: Town) -> None:
    shares = np.bincount(mosaic_town.label.ravel(), minlength=13) / mosaic_town.label.size
    assert shares.min() >= 0.02, shares
    assert shares[[1, 3, 4, 11]].min() > 0.08, shares
    assert 0.02 <= 1 - mosaic_town.tagged.mean() <= 0.15


def box_means(image: Array, reach: int) -> Array:
    """Average (C, H, W) over squares of `2 * reach + 1` pixels, repeating the edge."""
    padded = np.pad(image, ((0, 0), (reach + 1, reach), (reach + 1, reach)), mode="edge").cumsum(1).cumsum(2)
    n = 2 * reach + 1
    return (padded[:, n:, n:] - padded[:, :-n, n:] - padded[:, n:, :-n] + padded[:, :-n, :-n]) / n**2


def discriminated(features: Array, label: Array) -> float:
    """Return the mIoU of a linear discriminant of features (F, H, W), trained on every other block of 60 px."""
    x, y = features.reshape(len(features), -1).T, label.ravel()
    rows, cols = np.mgrid[: label.shape[0], : label.shape[1]] // 60
    train = ((rows + cols) % 2 == 0).ravel()
    count = np.bincount(y[train], minlength=13)
    means = np.stack([x[train & (y == k)].mean(axis=0) for k in range(13)])
    centred = x[train] - means[y[train]]
    inverse = np.linalg.inv(centred.T @ centred / len(centred))
    offset = np.log(count / count.sum()) - 0.5 * np.einsum("kb,bc,kc->k", means, inverse, means)
    guess = (x[~train] @ (inverse @ means.T) + offset).argmax(axis=1)
    confusion = np.bincount(y[~train].astype(int) * 13 + guess, minlength=169).reshape(13, 13)
    hits = np.diag(confusion)
    return float((hits / (confusion.sum(axis=0) + confusion.sum(axis=1) - hits)).mean())


def test_neighbours_tell_what_a_pixel_does_not(town: Town, mosaic_town: Town) -> None:
    """Add means and spreads of up to 15 x 15 px to a linear rule: it gains more where arrangement counts."""
    gains = []
    for whole in (town, mosaic_town):
        # One summer date with the noise of a scene: the year of a pixel tells more than a composite does.
        clear = truth.clear_ground(whole.surface, 200).astype(np.float64)
        noise_dn = np.random.default_rng(0).standard_normal(clear.shape) * (7 + 0.008 * clear)
        logs = np.log(np.maximum(clear + noise_dn, 1))
        some = logs[[1, 3, 7, 10]]
        around = [logs]
        for reach in (1, 3, 7):
            mean = box_means(some, reach)
            around += [mean, np.log(np.maximum(box_means(some**2, reach) - mean**2, 0) + 1e-4)]
        alone, with_neighbours = (discriminated(part, whole.label) for part in (logs, np.concatenate(around)))
        gains.append((alone, with_neighbours - alone))
    (plain, plain_gain), (context, context_gain) = gains
    assert context < min(0.27, plain - 0.05), gains
    assert context_gain > max(0.1, 1.5 * plain_gain), gains


def test_rows_and_lots_have_the_size_of_the_table() -> None:
    ids, n = context_textures.cover_ids(), 240
    rows, cols = np.arange(n) + 5000, np.arange(n) + 7000
    flat = np.zeros((n, n), np.int64)

    def share(cover: str, angle: float) -> Array:
        what = np.full((n, n), ids[cover], np.uint8)
        made = context_textures.textured((rows, cols), 3, what, flat + 77, flat + np.float32(angle), flat, flat)
        return np.asarray(made.mix)

    # Rows 40 m apart that run along the parcel: one wave in four pixels across it, none along it.
    for angle, axis in ((0.0, 0), (math.pi / 2, 1)):
        spectrum = np.abs(np.fft.rfft(share("orchard", angle).mean(axis=1 - axis)))[1:]
        assert n / (spectrum.argmax() + 1) == pytest.approx(4.0, abs=0.1)
        assert np.ptp(share("orchard", angle).mean(axis=axis)) < 0.02
    # Half of the ground in rows; a roof of 0.6 x 0.45 of its lot on seven of eight lots.
    assert share("orchard", 0.4).mean() == pytest.approx(0.5, abs=0.02)
    assert share("houses", 0.4).mean() == pytest.approx(7 / 8 * 0.6 * 0.45, rel=0.15)
    for cover in ("scrub", "marsh", "park"):
        fill = context_textures.covers().fill_across[ids[cover]]
        assert share(cover, 0).mean() == pytest.approx(fill, abs=0.12), cover


def test_low_sun_deepens_the_shade_of_crowns(mosaic_town: Town) -> None:
    winter, summer = (truth.clear_ground(mosaic_town.surface, day)[7] for day in (355, 172))
    woods = mosaic_town.surface.cover[6:-6, 6:-6] == context_textures.cover_ids()["woods"]
    spread = [np.std(image[woods]) / np.mean(image[woods]) for image in (winter, summer)]
    assert spread[0] > 1.3 * spread[1]
    assert spectra.shadow_length(355) > 3 > 0.6 > spectra.shadow_length(172)


def test_an_archive_says_which_ground_it_has(tmp_path: Path, city: Path) -> None:
    made = archive.simulate(tmp_path / "a", size_km=2, dates=3, ground="context")
    assert json.loads((made / "simulation.json").read_text())["ground"] == "context"
    # An archive of the plain ground has the bytes of before there was another.
    assert "ground" not in json.loads((city / "simulation.json").read_text())
    assert (truth.read_scenario(made).ground, truth.read_scenario(city).ground) == ("context", "plain")
    with pytest.raises(OutputError, match="holds another simulation"):
        archive.simulate(made, size_km=2, dates=3)
    first = min(planted(made))
    clean = truth.scene(made, first)[10][truth.ORDER[10].index("B08")].astype(float)
    clear = read(made / "truth" / "clouds" / f"{first}.tif")[0] == 0
    seen = in_area(read(made / "sentinel-2-l2a" / first / "B08.tif")[0], truth.read_scenario(made), 1).astype(float)
    seen = seen - 1000 * bool(planted(made)[first]["offset_in_pixels"])
    assert abs(((seen - clean) / (7 + 0.008 * clean))[clear].mean()) < 0.05
    tags = (made / "osm" / "city.osm").read_text()
    assert '<tag k="water" v="stream"/>' in tags or '<tag k="water" v="canal"/>' in tags


# --- passes and sky ------------------------------------------------------------------------


def test_the_position_of_the_sun_equals_that_of_a_real_item() -> None:
    azimuth, elevation = scenarios.sun(datetime(2021, 5, 31, 10, 27, 27, tzinfo=UTC))
    assert azimuth == pytest.approx(156.72, abs=1.5)
    assert elevation == pytest.approx(62.18, abs=0.7)


@pytest.mark.parametrize("dates", [3, 12, 60, 400])
def test_passes_are_within_their_windows(dates: int) -> None:
    scenes = scenarios.scenes(scenarios.create(5, 6, dates))
    first = [one for one in scenes if one.epoch == 1]
    assert len(first) == dates
    assert len({one.id for one in scenes}) == len(scenes)
    start = datetime(2019 if dates <= 100 else 2017, 4, 1, tzinfo=UTC)
    assert all(start <= one.time < datetime(2020, 4, 1, tzinfo=UTC) for one in first)
    assert all(one.time.year == 2022 for one in scenes[dates:])
    assert len(scenes) - dates == min(max(3, dates // 4), 74)
    assert [one.time for one in scenes] == sorted(one.time for one in scenes)
    assert all(one.baseline >= "04.00" for one in scenes if one.offset_in_pixels)
    if dates >= 12:
        assert {one.orbit for one in first} == {22, 65}
        assert 0.3 < np.mean([one.weather.cloud for one in first]) < 0.5
        assert sum(one.weather.cloud < 0.05 for one in first) >= dates // 6
        snow = [one for one in scenes if one.weather.snow]
        assert [one.time.month in (12, 1, 2) for one in snow] == [True]
        combinations = {(one.baseline >= "04.00", one.offset_in_pixels) for one in first}
        assert combinations == {(False, False), (True, False), (True, True)}


def test_every_place_is_seen_clear_twice() -> None:
    """Check twelve dates of a whole city at coarse resolution: cloud, shadow, swath."""
    what = scenarios.create(1, 6, 12)
    window = what.area_window
    clear = np.zeros((window.height, window.width), int)
    rows, cols = (np.arange(at, at + size) for at, size in ((window.row, window.height), (window.col, window.width)))
    label = np.zeros(clear.shape, np.uint8)
    for one in scenarios.scenes(what)[:12]:
        seed = archive.sky_seed(what, one)
        level = sky.threshold(seed, one.weather, what.granule.shape)
        above = sky.render_sky(one, label, seed, level, rows, cols)
        bits = above.bits & (sky.CLOUD_BIT | sky.SHADOW_BIT | sky.SNOW_BIT)
        clear += (bits == 0) & archive.covered(what, one, window, 10)
        assert (above.cloud > 0.02).mean() == pytest.approx(one.weather.cloud, abs=0.12)
    assert (clear >= 2).mean() > 0.99


def test_a_shadow_points_away_from_the_sun() -> None:
    what = scenarios.create(2, 6, 12)
    one = next(s for s in scenarios.scenes(what) if s.weather.name == "scattered")
    at = np.arange(600)
    above = sky.render_sky(one, np.zeros((600, 600), np.uint8), 9, 0.9, at, at)
    reach = one.weather.height_m / 10 / math.tan(math.radians(one.sun_elevation))
    down = round(reach * math.cos(math.radians(one.sun_azimuth)))
    right = -round(reach * math.sin(math.radians(one.sun_azimuth)))
    moved = np.roll(above.cloud, (down, right), (0, 1))
    assert down < 0 < -right  # sun in the south-east: shadows fall to the north-west
    inside = (slice(0, 400), slice(0, 400))
    lit = (above.cloud[inside] < 0.01) & (moved[inside] > 0.9)
    assert (above.shadow[inside][lit] > 0.85).all()
    assert lit.any()


# --- the archive ---------------------------------------------------------------------------


def test_clear_pixels_are_truth_plus_noise_with_the_declared_offset(city: Path) -> None:
    what, by_item = truth.read_scenario(city), planted(city)
    assert {one["offset_in_pixels"] for one in by_item.values()} == {True, False}
    for item_id, about in by_item.items():
        bits = read(city / "truth" / "clouds" / f"{item_id}.tif")[0]
        shift = 1000 if about["offset_in_pixels"] else 0
        clean = truth.scene(city, item_id)
        folder = city / "sentinel-2-l2a" / item_id
        for gsd, name in ((10, "B04"), (10, "B08"), (20, "B11")):
            k = gsd // 10
            clear = spectra.coarsen((bits == 0).astype(np.float32), k) == 1
            if clear.sum() < 500:
                continue
            seen = in_area(read(folder / f"{name}.tif")[0], what, k)[clear].astype(float)
            true = clean[gsd][truth.ORDER[gsd].index(name)][clear].astype(float)
            error = (seen - shift - true) / (7 + 0.008 * true)
            assert abs(error.mean()) < 0.1, (item_id, name)
            assert 0.9 < error.std() < 1.1, (item_id, name)


def test_the_truth_over_time_is_the_median_of_the_days(city: Path) -> None:
    first = [item_id for item_id, about in planted(city).items() if about["epoch"] == 1]
    days = [truth.scene(city, item_id) for item_id in first]
    for gsd, names in truth.ORDER.items():
        with rasterio.open(city / "truth" / f"reflectance_{gsd}m.tif") as raster:
            assert raster.descriptions == names
            middle = np.floor(np.median(np.stack([day[gsd] for day in days]), axis=0) + 0.5)
            np.testing.assert_array_equal(raster.read(), middle)
    with pytest.raises(SettingError, match="nowhere"):
        truth.scene(city, "nowhere")


def test_scene_classes_err_as_sen2cor_does(city: Path, town: Town) -> None:
    what = truth.read_scenario(city)
    missed = right = cloudy = 0
    for item_id in planted(city):
        scl = in_area(read(city / "sentinel-2-l2a" / item_id / "SCL.tif")[0], what, 2)
        bits = read(city / "truth" / "clouds" / f"{item_id}.tif")[0][::2, ::2]
        called = np.isin(scl, (8, 9, 10))
        cloud = (bits & sky.CLOUD_BIT > 0) & (bits != 255)
        cloudy, right = cloudy + cloud.sum(), right + (called & cloud).sum()
        missed += (~called & (bits & sky.THIN_BIT > 0) & (bits != 255)).sum()
        assert ((scl == 0) == (bits == 255)).mean() > 0.99
    assert right > 0.9 * cloudy
    assert missed > 0
    clear = truth.clear_ground(town.surface, 180)
    image = truth.to_native_gsd(clear)
    at_20m = dict(zip(truth.ORDER[20], image[20], strict=True))
    at_20m |= {name: spectra.coarsen(clear[L2A_BANDS.index(name)], 2) for name in ("B02", "B03", "B04")}
    zero = np.zeros((300, 300), np.float32)
    none = sky.Sky(cloud=zero, shadow=zero, cirrus=zero, haze=zero, snow=zero, glare=zero)
    water = spectra.coarsen((town.label == 5).astype(np.float32), 2)
    at = np.arange(300)
    days = [sky.scene_classes(at_20m, none, water, seed, (at, at)) for seed in range(6)]
    roof = at_20m["B02"] > 3000
    assert roof.sum() > 50
    assert np.mean([np.isin(scl[roof], (8, 9)).mean() for scl in days]) > 0.6
    assert np.mean([(scl[roof] == SceneClass.NOT_VEGETATED).mean() for scl in days]) > 0.02
    forest = town.label[::2, ::2] == 4
    dark = np.mean([(scl[forest] == SceneClass.DARK).mean() for scl in days])
    assert 0.005 < dark < 0.3
    assert np.mean([(scl[water > 0.6] == SceneClass.WATER).mean() for scl in days]) > 0.8


def test_the_catalogue_reads_as_stac_and_agrees_with_the_files(city: Path) -> None:
    import pystac

    found = list(pystac.Catalog.from_file(str(city / "catalog.json")).get_items(recursive=True))
    assert {one.id for one in found} == set(planted(city))
    for one in found:
        declared = planted(city)[one.id]
        assert one.to_dict()["stac_version"] == "1.1.0"
        assert set(one.assets) == {*items.KEYS.values(), "scl"}
        applied, baseline = one.properties["earthsearch:boa_offset_applied"], one.properties["s2:processing_baseline"]
        assert applied == (baseline >= "04.00" and not declared["offset_in_pixels"])
        assert f"_R{one.properties['s2:product_uri'].split('_R')[1][:3]}_" in ("_R022_", "_R065_")
        assert shapely.geometry.shape(one.geometry).is_valid
        for key in ("blue", "swir16", "coastal", "scl"):
            asset = one.assets[key]
            with rasterio.open(asset.get_absolute_href()) as raster:
                assert list(raster.shape) == asset.extra_fields["proj:shape"]
                assert list(raster.transform)[:6] == asset.extra_fields["proj:transform"]
                assert raster.crs.to_epsg() == 32632
                covered = np.mean(raster.read(1) == 0)
        assert covered == pytest.approx(one.properties["s2:nodata_pixel_percentage"] / 100, abs=0.01)
        box, footprint = shapely.box(*map(float, one.bbox or [])), shapely.geometry.shape(one.geometry)
        assert box.buffer(1e-9).contains(footprint)


def test_files_are_cloud_optimized_like_the_providers(city: Path) -> None:
    from sgdata.simulation import cogs

    item = sorted((city / "sentinel-2-l2a").glob("S2*"))[0]
    large = Grid(crs=scenarios.CRS, origin=(600_000, 5_400_000), gsd_m=10, shape=(1100, 600))
    with cogs.writing(city.parent / "large.tif", large, ("B02",), "uint16", 0) as sink:
        sink(Window(row=90, col=0, height=100, width=600), np.full((1, 100, 600), 7, np.uint16))
    with rasterio.open(city.parent / "large.tif") as raster:
        assert raster.block_shapes == [(1024, 1024)]
        assert raster.overviews(1) == [2, 4, 8, 16]
        assert raster.read(1).sum() == 7 * 100 * 600
    for name, levels in (("B02", 4), ("B11", 3), ("B01", 1), ("SCL", 3)):
        with rasterio.open(item / f"{name}.tif") as raster:
            assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert raster.block_shapes == [(512, 512)]
            assert raster.compression.value == "DEFLATE"
            assert raster.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "2"
            assert len(raster.overviews(1)) == levels
            assert raster.nodata == 0


def test_ten_metre_bands_compress_like_real_ones(city: Path) -> None:
    paths = sorted((city / "sentinel-2-l2a").glob("*/B0[2348].tif"))
    plain = sum(read(path).nbytes * 4 / 3 for path in paths)
    assert 1.3 < plain / sum(path.stat().st_size for path in paths) < 2.4


# --- OpenStreetMap -------------------------------------------------------------------------


def test_openstreetmap_parses_with_osmium_and_osmnx(city: Path) -> None:
    import osmium
    import osmnx

    class Count(osmium.SimpleHandler):
        def __init__(self) -> None:
            super().__init__()
            self.relations = self.areas = self.highways = 0

        def area(self, area: osmium.osm.Area) -> None:
            self.areas += 1
            self.relations += not area.from_way()

        def way(self, way: osmium.osm.Way) -> None:
            self.highways += "highway" in way.tags

    count = Count()
    count.apply_file(str(city / "osm" / "city.osm"), locations=True)
    assert count.relations > 0
    assert count.highways > 100
    found = osmnx.features_from_xml(city / "osm" / "city.osm", tags={"landuse": True, "natural": True, "highway": True})
    assert found.is_valid.mean() > 0.99
    assert {"forest", "farmland", "residential"} <= set(found["landuse"].dropna())


def test_overpass_gives_the_same_objects(city: Path) -> None:
    import xml.etree.ElementTree as ET

    answer = json.loads((city / "osm" / "overpass.json").read_text())
    assert answer["osm3s"]["timestamp_osm_base"] == "2020-03-31T23:59:59Z"
    tree = ET.parse(city / "osm" / "city.osm").getroot()
    for kind in ("node", "way", "relation"):
        elements_by_id = {str(one["id"]): one for one in answer["elements"] if one["type"] == kind}
        assert set(elements_by_id) == {one.attrib["id"] for one in tree.findall(kind)}
        for one in tree.findall(kind):
            tags = {tag.attrib["k"]: tag.attrib["v"] for tag in one.findall("tag")}
            assert elements_by_id[one.attrib["id"]].get("tags", {}) == tags
    nodes = {one["id"] for one in answer["elements"] if one["type"] == "node"}
    assert all(nodes.issuperset(one["nodes"]) for one in answer["elements"] if one["type"] == "way")


def test_streets_of_every_kind_bridges_and_a_tunnel() -> None:
    place = ground.build(scenarios.create(3, 6, 12))
    drawn = {line.kind for line in place.lines}
    assert {"motorway", "motorway_link", "trunk", "primary", "secondary", "tertiary"} <= drawn
    assert {"unclassified", "residential", "living_street", "service", "pedestrian", "track", "rail"} <= drawn
    assert any(line.tags.get("bridge") == "yes" for line in place.lines)
    tunnels = [line for line in place.lines if line.tags.get("tunnel") == "yes"]
    assert tunnels
    assert not any(line.visible for line in tunnels)
    assert any(not line.exported for line in place.lines)
    assert any(area.geometry.interiors and area.exported for area in place.areas)


def test_a_grid_of_its_own(city: Path) -> None:
    what = truth.read_scenario(city)
    for path in (city / "truth").glob("*.tif"):
        with rasterio.open(path) as raster:
            west, north = raster.transform.c, raster.transform.f
            area = Grid(crs=what.area.crs, origin=(west, north), gsd_m=raster.transform.a, shape=raster.shape)
        assert area.bounds == what.area.bounds, path


# --- traps and other providers -------------------------------------------------------------


@pytest.fixture(scope="module", params=["earth-search", "planetary-computer", "cdse"])
def trapped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Simulate six dates, the smallest archive with traps."""
    out = tmp_path_factory.mktemp("trapped") / request.param
    return request.param, archive.simulate(out, size_km=2, dates=6, layout=request.param)


def test_a_plan_reports_every_trap_and_reads_each_provider(trapped: tuple[str, Path], tmp_path: Path) -> None:
    from sgdata.builds import pipeline
    from sgdata.builds.build_recipe import BuildPaths, BuildRecipe

    layout, folder = trapped
    by_item = planted(folder)
    named = {trap: name for name, about in by_item.items() for trap in about["traps"]}  # type: ignore[attr-defined]
    assert {"twin", "neighbour-zone", "no-projection"} <= set(named)
    assert ("wrong-offset-flag" in named) == ("old-projection" in named) == (layout == "earth-search")
    recipe = files.read(
        BuildRecipe,
        package_data.folder("recipes") / "build" / "segmunich.toml",
        ["dates=2019-04-01/2020-04-01", f"area={{aoi='{folder}/aoi.geojson'}}"],
    )
    planned = pipeline.plan(recipe, BuildPaths(out=tmp_path, stac=str(folder)))
    dropped = {one.id: one.reason for one in planned.dropped}
    assert set(dropped) == {named["twin"], named["neighbour-zone"]}
    assert dropped[named["twin"]].startswith(f"twin of {by_item[named['twin']]['of']} ")
    needless = "is in EPSG:32633, the area in EPSG:32632: the area is fully covered by 32UPU"
    assert dropped[named["neighbour-zone"]] == needless
    assert {item.scene.provider for item in planned.items} == {layout}
    assert {item.scene.crs for item in planned.items} == {"EPSG:32632"}
    assert {item.scene.orbit for item in planned.items} <= {22, 65}
    for item in planned.items:
        truly = -1000 if by_item[item.scene.id]["offset_in_pixels"] else 0
        assert item.expected_offset in (truly, None)
        if layout != "planetary-computer":
            assert (item.scene.declared_offset == truly) == (item.scene.id != named.get("wrong-offset-flag"))


def test_the_neighbour_in_the_next_zone_shows_the_same_ground(trapped: tuple[str, Path]) -> None:
    from rasterio.warp import reproject

    _, folder = trapped
    by_item = planted(folder)
    name = next(name for name, about in by_item.items() if "neighbour-zone" in about["traps"])  # type: ignore[operator]
    home = folder / "sentinel-2-l2a"
    with (
        rasterio.open(home / name / "B04.tif") as far,
        rasterio.open(home / str(by_item[name]["of"]) / "B04.tif") as near,
    ):
        assert far.crs.to_epsg() == 32633
        back = np.zeros(near.shape, np.uint16)
        reproject(
            far.read(1), back, src_transform=far.transform, src_crs=far.crs, dst_transform=near.transform,
            dst_crs=near.crs,
        )  # fmt: skip
        seen, here = back > 0, near.read(1)
    assert seen.mean() > 0.98
    assert np.corrcoef(back[seen], here[seen])[0, 1] > 0.9


def test_pbf_contains_the_same_objects_as_xml(trapped: tuple[str, Path]) -> None:
    import osmium

    held = []
    for name in ("city.osm", "city.osm.pbf"):
        objects = osmium.FileProcessor(str(trapped[1] / "osm" / name))
        held.append([(o.type_str(), o.id, dict(o.tags)) for o in objects])
    assert held[0] == held[1]


def test_archives_of_two_years_lack_a_month_and_may_have_a_broken_file(tmp_path: Path) -> None:
    months = {f"{one.time:%Y-%m}" for one in scenarios.scenes(scenarios.create(1, 6, 60))}
    assert scenarios.EMPTY_MONTH not in months
    assert {"2019-10", "2019-12"} <= months
    folder = archive.simulate(tmp_path / "b", size_km=2, dates=3, broken=True)
    (name,) = (name for name, about in planted(folder).items() if about["traps"])
    with pytest.raises(rasterio.errors.RasterioIOError):
        read(folder / "sentinel-2-l2a" / name / "B04.tif")
