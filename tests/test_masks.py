"""Test cloud masks on known cases: kinds, buffers, distances and the bright target filter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage, stats

from sgdata.composite import cloud_masks, mask_scenes
from sgdata.composite.cloud_masks import CLEAR, CLOUD, DIM, NO_DATA, OTHER, SHADOW, MaskSettings
from sgdata.scenes.types import MASK_NODATA
from sgdata.staging import scene_staging, staged_pixels, window_staging
from sgdata.types import Array, Grid

SCL = MaskSettings(
    method="scl",
    drop=(0, 1, 3, 8, 9, 10, 11),
    threshold=40,
    cloud_buffer_m=60,
    shadow_buffer_m=60,
    bright_target_filter=True,
)


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14))), st.integers(0, 12))
def test_distance_is_euclid_rounded_up(mask: Array, reach: int) -> None:
    expected = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
    capped = np.minimum(np.ceil(expected - 1e-9), reach + 1)
    np.testing.assert_array_equal(cloud_masks.measure_distance(mask, reach), capped)


@pytest.mark.parametrize(("share", "reach"), [(0.001, 126), (0.02, 76), (0.02, 200), (0.3, 3)])
def test_distances_go_on_across_the_pieces_of_a_row(share: float, reach: int) -> None:
    mask = np.random.Generator(np.random.Philox(key=reach)).random((90, 3 * cloud_masks.PIECE_PX + 11)) < share
    expected = np.ceil(ndimage.distance_transform_edt(~mask) - 1e-9)
    np.testing.assert_array_equal(cloud_masks.measure_distance(mask, reach), np.minimum(expected, reach + 1))


def test_kinds_of_every_method() -> None:
    layer = np.arange(12, dtype=np.uint8)[None]
    found = cloud_masks.classify_mask(layer, SCL)[0].tolist()
    assert found == [NO_DATA, OTHER, DIM, SHADOW, CLEAR, CLEAR, CLEAR, DIM, CLOUD, CLOUD, CLOUD, OTHER]
    polar = cloud_masks.classify_mask(layer, replace(SCL, drop=(0, 1, 3, 8, 9)))[0].tolist()
    assert polar[10:] == [CLEAR, CLEAR]
    likely = cloud_masks.classify_mask(np.array([[0, 39, 40, 100]], np.uint8), replace(SCL, method="probability"))
    assert likely.tolist() == [[CLEAR, CLEAR, CLOUD, CLOUD]]
    drawn = cloud_masks.classify_mask(np.array([[0, 1, 255]], np.uint8), replace(SCL, method="external"))
    assert drawn.tolist() == [[CLEAR, CLOUD, CLOUD]]


def test_undefined_mask_values_are_ignored() -> None:
    beyond = np.array([[MASK_NODATA]], np.uint8)
    for method in ("scl", "probability", "external"):
        assert cloud_masks.classify_mask(beyond, replace(SCL, method=method)).item() == NO_DATA
    assert cloud_masks.classify_mask(np.array([[12, 77, 255]], np.uint8), SCL).tolist() == [[NO_DATA] * 3]
    wide = np.array([[0, 100, 101, 60_000]], np.uint16)
    assert cloud_masks.classify_mask(wide, replace(SCL, method="probability")).tolist() == [
        [CLEAR, CLOUD, NO_DATA, NO_DATA]
    ]
    assert cloud_masks.classify_mask(wide, replace(SCL, method="external")).tolist() == [[CLEAR, CLOUD, CLOUD, CLOUD]]


def test_dark_ground_is_distinguished_from_a_dark_date() -> None:
    dim, clear = cloud_masks.DOUBTFUL + 1, 1
    forest, shaded, never, only = ([dim] * 11 + [clear], [clear] * 3 + [dim] * 9, [0] * 12, [0] * 11 + [dim])
    best = cloud_masks.select_clear(np.array([forest, shaded, never, only], np.uint8).T[:, None])[:, 0].T
    assert best.sum(axis=1).tolist() == [12, 3, 0, 1]
    assert best[1, :3].all()


def test_buffers_reach_from_centre_to_centre() -> None:
    scl = np.full((21, 21), 4, np.uint8)
    scl[10, 3], scl[10, 17] = 9, 3
    seen = (
        cloud_masks.clear_score(
            cloud_masks.classify_mask(scl, SCL), None, replace(SCL, shadow_buffer_m=20), gsd_m=20, reach_m=0
        )
        > 0
    )
    rows, cols = np.indices(seen.shape)
    cloud = np.hypot(rows - 10, cols - 3) <= 3
    shadow = np.hypot(rows - 10, cols - 17) <= 1
    np.testing.assert_array_equal(seen, ~(cloud | shadow))


def test_clear_scores_encode_distance_and_doubt() -> None:
    scl = np.full((1, 200), 4, np.uint8)
    scl[0, 0], scl[0, 50], scl[0, 60] = 9, 7, 2
    seen = cloud_masks.clear_score(cloud_masks.classify_mask(scl, SCL), None, SCL, gsd_m=20, reach_m=1500)[0]
    assert seen[:5].tolist() == [0, 0, 0, 0, 4]
    assert (seen[50], seen[60]) == (50 + cloud_masks.DOUBTFUL, 60 + cloud_masks.DOUBTFUL)
    assert seen[76] == 76
    assert (seen[77:] == 77).all()  # distances are capped at 1500 m


@pytest.mark.parametrize("gsd", [10.0, 20.0])
def test_surroundings_are_a_box_mean(gsd: float) -> None:
    rng = np.random.Generator(np.random.Philox(key=2))
    what = rng.random((130, 170)) < 0.3
    among = rng.random(what.shape) < 0.8
    size, reach = round(500 / gsd), 1
    found = cloud_masks.neighbourhood_fraction(what & among, among, gsd, 1500)
    for row, col in ((0, 0), (64, 99), (129, 169), (51, 26)):
        top, left = (row // size - reach) * size, (col // size - reach) * size
        box = (slice(max(top, 0), top + 3 * size), slice(max(left, 0), left + 3 * size))
        assert found[row, col] == pytest.approx((what & among)[box].sum() / among[box].sum(), abs=1e-6)


def dates(overcast: int, days: int) -> list[Array]:
    """Return the SCL of `days`, the last `overcast` fully cloudy; a roof is classified as cloud on all days but one."""
    found = []
    for n in range(days):
        scl = np.full((60, 60), 9 if n >= days - overcast else 4, np.uint8)
        if n:
            scl[20:30, 20:30] = 8
        found.append(cloud_masks.classify_mask(scl, SCL))
    return found


@pytest.mark.parametrize("overcast", [0, 4])
def test_a_roof_called_cloud_on_clear_days_is_kept(overcast: int) -> None:
    target_filter = cloud_masks.BrightTargetFilter((60, 60), 20)
    series = dates(overcast, 10)
    for found in series:
        target_filter.add(found, cloud_masks.cloud_fraction([found], 20))
    roof = np.zeros((60, 60), bool)
    roof[20:30, 20:30] = True
    bright = cloud_masks.bright_targets(target_filter.bright(), 20)
    np.testing.assert_array_equal(bright == cloud_masks.BRIGHT, roof)
    clear_day = cloud_masks.clear_score(series[1], bright, SCL, gsd_m=20, reach_m=0)
    assert (clear_day > 0).all()  # no buffer round the roof either
    if overcast:
        cloudy_day = cloud_masks.clear_score(series[-1], bright, SCL, gsd_m=20, reach_m=0)
        assert not cloudy_day.any()


@pytest.mark.parametrize(("side", "kept"), [(1, True), (10, True), (11, False), (20, False)])
@pytest.mark.parametrize("corner", [20, 0])
def test_ground_that_is_never_clear_is_a_bright_target_only_where_narrow(side: int, kept: bool, corner: int) -> None:
    target_filter = cloud_masks.BrightTargetFilter((80, 80), 20)
    place = np.s_[corner : corner + side, corner : corner + side]
    for _ in range(12):
        found = np.full((80, 80), CLEAR, np.uint8)
        found[place] = CLOUD
        target_filter.add(found, cloud_masks.cloud_fraction([found], 20))
    bright = cloud_masks.bright_targets(target_filter.bright(), 20)
    # At the edge it may go on.
    assert (bright[place] == cloud_masks.NEVER_CLEAR).all() == (kept and (corner > 0 or side == 1))
    assert np.count_nonzero(bright) in {0, side**2}


@pytest.mark.parametrize(
    ("days", "share", "kept"), [(3, 0.0, True), (3, 0.12, False), (4, 0.12, True), (5, 0.28, False)]
)
def test_ground_that_clouds_could_hide_by_chance_is_no_bright_target(days: int, share: float, kept: bool) -> None:
    """`share` to the power of `days` is compared with 1 in 1,000: clouds that move do not leave holes of data."""
    rng = np.random.default_rng(1)
    target_filter = cloud_masks.BrightTargetFilter((100, 100), 20)
    for _ in range(days):
        found = np.where(rng.random((100, 100)) < share, CLOUD, CLEAR).astype(np.uint8)
        found[50, 50] = CLOUD
        target_filter.add(found, cloud_masks.cloud_fraction([found], 20))
    bright = target_filter.bright()
    assert (bright[50, 50] == cloud_masks.NEVER_CLEAR) == kept
    # At other pixels, clear on some days or on none, it happens as seldom as it should.
    sure = (bright == cloud_masks.NEVER_CLEAR) | (bright == cloud_masks.BRIGHT)
    assert sure.sum() - kept <= 2 * cloud_masks.CHANCE * bright.size


@pytest.mark.parametrize(("cloudy", "kept"), [(4, True), (3, False)])
def test_ground_that_is_cloud_on_some_days_is_no_bright_target_by_chance(cloudy: int, kept: bool) -> None:
    """Of five days with 6 % of cloud, three are cloudy on one in 400 pixels, four on one in 14,000."""
    target_filter = cloud_masks.BrightTargetFilter((100, 100), 20)
    first = np.full((100, 100), CLEAR, np.uint8)
    first[:6] = CLOUD
    first[50, 50] = CLOUD
    for day in range(5):
        found = first.copy()
        found[50, 50] = CLOUD if day < cloudy else CLEAR
        target_filter.add(found, cloud_masks.cloud_fraction([found], 20))
    kind = cloud_masks.BRIGHT if kept else cloud_masks.PERHAPS_BRIGHT
    bright = cloud_masks.bright_targets(target_filter.bright(), 20)
    assert bright[50, 50] == kind
    settings = replace(SCL, cloud_buffer_m=60)
    scores = cloud_masks.clear_score(first, bright, settings, gsd_m=20, reach_m=0)
    # What may be a cloud, and its surroundings, are used only where nothing better exists.
    near, far = np.s_[47:54, 50], np.s_[44:47, 50]
    assert (scores[near] >= cloud_masks.DOUBTFUL).all() == (not kept)
    assert (scores[near] > 0).all()
    assert 0 < scores[far].max() < cloud_masks.DOUBTFUL


def test_the_chance_of_clouds_is_not_underestimated() -> None:
    """Days of one cloud fraction are the worst case, whose probability is binomial."""
    for days in (1, 2, 3, 5, 9, 40, 400):
        limits = [cloud_masks.expected_by_chance(days, cloudy) for cloudy in range(1, days + 1)]
        assert limits == sorted(limits)
        for cloudy, expected in enumerate(limits, 1):
            chance = stats.binom.sf(cloudy - 1, days, expected / days)
            assert 0.01 * cloud_masks.CHANCE < chance < 1.001 * cloud_masks.CHANCE


@pytest.mark.parametrize("reach_m", [0, 1500])
def test_strips_of_a_mask_have_the_clear_scores_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reach_m: float
) -> None:
    """Compare ten dates with clouds, shadows and roofs, in strips of one block and in one piece."""
    grid = Grid(crs="EPSG:32632", origin=(600000.0, 5400000.0), gsd_m=20, shape=(331, 117))
    rng = np.random.Generator(np.random.Philox(key=3))
    scenes = []
    for n in range(10):
        scl = np.full(grid.shape, 4, np.uint8)
        for value in (8, 9, 3, 2, 11, 10, 8, 3):
            row, col = rng.integers(0, grid.shape)
            scl[row : row + 9, col : col + 7] = value
        scl[148:152, 40:60] = 8 if n else 4  # a roof across the end of a strip
        path = tmp_path / f"{n}.bin"
        scl.tofile(path)
        layer = staged_pixels.StagedWindow(path=str(path), grid=grid, dtype="uint8", sha256=str(n), holes=False)
        scenes.append(scene_staging.StagedScene(id=f"s{n}", overpass=str(n), day=n, offset=0, files={"SCL": layer}))
    found = []
    for pixels in (1, 1 << 20):
        monkeypatch.setattr(mask_scenes, "STRIP_PIXELS", pixels)
        seen = mask_scenes.add_clear_masks(
            tuple(scenes), SCL, area=grid, reach_m=reach_m, folder=tmp_path / str(pixels), run=map
        )
        clear_scores = [
            window_staging.read_on_grid(scene.files[scene_staging.CLEAR_SCORE], grid, kernel="nearest")
            for scene in seen
        ]
        found.append(np.stack(clear_scores))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0][1:, 148:152, 40:60] > 0).mean() > 0.7  # the roof was recognised
    assert (found[0] == 0).any()
