"""Test composite rules: kernels equal their numpy references; ties and gaps follow the documented rule."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import get_args

import composite_reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sgdata.composite import rules, select_dates
from sgdata.composite.kernels import NO_VALUE
from sgdata.composite.rules import BapSettings
from sgdata.sentinel2 import L2A_BANDS
from sgdata.types import Array

STACKS = st.tuples(st.integers(1, 9), st.integers(2, 3)).flatmap(
    lambda size: st.tuples(
        arrays.arrays(np.uint16, (size[0], size[1], 3, 4), elements=st.integers(1, 40)),
        arrays.arrays(np.bool_, (size[0], 3, 4)),
    )
)
"""Few different values, so that ties are common."""

BAP = BapSettings(
    day_of_year=182,
    sigma_days=30,
    year=2019,
    year_factor=0.75,
    cloud_m=1500,
    haze_dn=200,
    weights=(1, 1, 0.4, 0.3),
)


def day(text: str) -> int:
    return (date.fromisoformat(text) - date(1970, 1, 1)).days


def test_every_rule_has_a_reference_that_a_test_compares_it_with() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in rules.RULES if not callable(getattr(composite_reference, name, None))] == []
    assert [name for name in rules.RULES if f"composite_reference.{name}(" not in tests] == []


@settings(max_examples=60, deadline=None)
@given(STACKS)
def test_median_equals_its_reference(stack: tuple[Array, Array]) -> None:
    np.testing.assert_array_equal(rules.median(*stack), composite_reference.median(*stack))


@settings(max_examples=60, deadline=None)
@given(STACKS)
def test_medoid_equals_its_reference(stack: tuple[Array, Array]) -> None:
    np.testing.assert_array_equal(rules.medoid(*stack)[0], composite_reference.medoid(*stack))


@settings(max_examples=60, deadline=None)
@given(STACKS)
def test_maxndvi_equals_its_reference(stack: tuple[Array, Array]) -> None:
    dn, usable = stack[0][:, :2], stack[1]
    index, score = rules.maxndvi(dn, usable)
    np.testing.assert_array_equal(index, composite_reference.maxndvi(dn, usable))
    assert ((score <= 20_000) | (index == NO_VALUE)).all()


@settings(max_examples=40, deadline=None)
@given(STACKS)
def test_geomedian_equals_its_reference(stack: tuple[Array, Array]) -> None:
    expected = composite_reference.geomedian(*stack)
    found = rules.geomedian(*stack).astype(float)
    # The reference goes on for all rounds, the kernel stops at convergence.
    assert np.abs(found - expected).max() <= 0.5 + 0.5
    assert not found[:, ~stack[1].any(axis=0)].any()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bap_picks_the_best_date_of_its_reference(data: st.DataObject) -> None:
    dates = data.draw(st.integers(1, 7))
    dn = data.draw(arrays.arrays(np.uint16, (dates, 2, 3, 4), elements=st.integers(1, 4000)))
    clear_scores = data.draw(arrays.arrays(np.uint8, (dates, 3, 4), elements=st.sampled_from([0, 1, 5, 60, 127, 133])))
    days = tuple(data.draw(st.lists(st.integers(17_000, 18_400), min_size=dates, max_size=dates)))
    index, score = rules.bap(dn, clear_scores, days, BAP, 20)
    expected = np.where(clear_scores > 0, composite_reference.bap(dn, clear_scores, days, BAP, 20), -1)
    np.testing.assert_array_equal(index == NO_VALUE, (clear_scores == 0).all(axis=0))
    where = index != NO_VALUE
    # Each of the three table values is rounded to 1 / 10000.
    assert np.abs(score[where] / 10_000 - expected.max(axis=0)[where]).max(initial=0) <= 2e-4
    chosen = np.take_along_axis(expected, np.where(where, index, 0)[None].astype(int), axis=0)[0]
    assert (expected.max(axis=0) - chosen)[where].max(initial=0) <= 4e-4


def test_bap_scores_by_hand() -> None:
    dn = np.array([[400, 400]], np.uint16).reshape(1, 2, 1, 1)  # HOT 200: half of the haze score
    clear_scores = np.full((1, 1, 1), 1 + 37, np.uint8)  # 760 m from the next cloud
    _, score = rules.bap(dn, clear_scores, (day("2018-07-31"),), BAP, 20)
    cloud = 1 / (1 + math.exp(-10 / 1500 * (760 - 750)))
    by_hand = (math.exp(-0.5) + 0.75 + 0.4 * cloud + 0.3 / 2) / 2.7
    assert score.item() == pytest.approx(by_hand * 10_000, abs=2)
    january = replace(BAP, day_of_year=5)
    assert january.date_score(day("2019-12-30")) > january.date_score(day("2019-01-20"))  # six days away, not 359


def test_many_dates_with_large_values() -> None:
    rng = np.random.Generator(np.random.Philox(key=3))
    observations = rng.integers(1, 65536, (61, 6, 8, 9)).astype(np.uint16)
    usable = rng.random((61, 8, 9)) < 0.7
    np.testing.assert_array_equal(rules.median(observations, usable), composite_reference.median(observations, usable))
    index, _ = rules.medoid(observations, usable)
    np.testing.assert_array_equal(index, composite_reference.medoid(observations, usable))
    geomedian = rules.geomedian(observations, usable)
    assert np.abs(geomedian - composite_reference.geomedian(observations, usable)).max() < 1


@pytest.mark.parametrize(("values", "middle"), [([7], 7), ([3, 9], 6), ([3, 8], 6), ([9, 1, 5], 5), ([1, 2, 4, 9], 3)])
def test_the_middle_of_an_even_count_rounds_half_up(values: list[int], middle: int) -> None:
    stack = np.array(values, np.uint16).reshape(-1, 1, 1, 1)
    assert rules.median(stack, np.ones((len(values), 1, 1), bool)).item() == middle


def test_two_dates_are_equally_near_and_the_first_wins() -> None:
    stack = np.array([900, 100], np.uint16).reshape(2, 1, 1, 1)
    index, score = rules.medoid(stack, np.ones((2, 1, 1), bool))
    assert (index.item(), score.item()) == (0, 400)


def test_the_geomedian_ignores_one_outlier() -> None:
    stack = np.array([[500, 700], [510, 690], [505, 705], [9000, 9000]], np.uint16).reshape(4, 2, 1, 1)
    found = rules.geomedian(stack, np.ones((4, 1, 1), bool)).ravel()
    assert np.abs(found - np.array([505.0, 700.0])).max() < 12


@pytest.mark.parametrize("method", get_args(rules.Method))
def test_dates_that_are_not_usable_are_never_seen(method: rules.Method) -> None:
    composite = rules.CompositeSettings(method=method, max_obs=0, bap=BAP)
    rule = composite.rule
    dn = np.full((2, len(rule.bands_to_read(L2A_BANDS)) or 1, 1, 2), 500, np.uint16)
    dn[0] = 100
    # The left pixel is never clear; of the right one only the second date is.
    clear_scores = np.zeros((2, 1, 2), np.uint8)
    clear_scores[1, 0, 1] = 60
    if isinstance(rule, rules.CombineRule):
        mixed = rule.kernel(dn, clear_scores > 0)
        assert not mixed[..., 0].any()
        assert (mixed[..., 1] == 500).all()
        return
    days = (day("2019-06-20"), day("2019-07-01"))
    stack = rules.TileStack(
        dn=dn, mask_scores=clear_scores, clear_scores=clear_scores, usable=clear_scores > 0, days=days, mask_gsd_m=20
    )
    index, score = rule.kernel(stack, composite)
    assert (index[0, 0], score[0, 0]) == (NO_VALUE, NO_VALUE)
    assert index[0, 1] == 1


@pytest.mark.parametrize("method", get_args(rules.Method))
def test_every_rule_gives_pixels(method: rules.Method) -> None:
    """Composite two dates with each rule of the recipe's type; help, bands and needs come from the same table."""
    composite = rules.CompositeSettings(method=method, max_obs=0, bap=BAP)
    rule, bands = composite.rule, L2A_BANDS
    assert rule.help and not rule.missing(bands)
    dn = np.full((2, len(rule.bands_to_read(bands)) or 1, 3, 4), 500, np.uint16)
    dn[1] += 2
    clear_scores = np.full((2, 3, 4), 60, np.uint8)
    if isinstance(rule, rules.CombineRule):
        image = rule.kernel(dn, clear_scores > 0)
        assert ((image >= 500) & (image <= 502)).all()
        return
    days = (day("2019-06-20"), day("2019-07-01"))
    stack = rules.TileStack(
        dn=dn, mask_scores=clear_scores, clear_scores=clear_scores, usable=clear_scores > 0, days=days, mask_gsd_m=20
    )
    index, score = rule.kernel(stack, composite)
    assert (index < 2).all() and (score < NO_VALUE).all()
    assert rule.missing(("B01",)) == list(rule.bands)
    if rule.score_range:
        ranges = [rule.score_range(composite, when, 20) for when in days]
        assert all(least[60] <= score.max() for least, _ in ranges)
        assert max(greatest[60] for _, greatest in ranges) >= score.max()


def test_few_scenes_are_spread_over_the_ground() -> None:
    left, right, both = np.zeros((4, 4), bool), np.zeros((4, 4), bool), np.ones((4, 4), bool)
    left[:, :2], right[:, 2:], both[0] = True, True, False
    assert select_dates.spread_scenes([left, left, both, right], 2) == [2, 0]
    assert select_dates.spread_scenes([left, left, left, right], 2) == [0, 3]
    assert select_dates.spread_scenes([left, right], 5) == [0, 1]
