"""Medoid and median: kernels equal their numpy references, ties and gaps follow the stated rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sgdata import composite
from sgdata.composite import NO_VALUE
from sgdata.types import Array

STACKS = st.tuples(st.integers(1, 9), st.integers(1, 3)).flatmap(
    lambda size: st.tuples(
        arrays.arrays(np.uint16, (size[0], size[1], 3, 4), elements=st.integers(1, 40)),
        arrays.arrays(np.bool_, (size[0], 3, 4)),
    )
)
"""Few different values, so that ties are common."""


@settings(max_examples=80, deadline=None)
@given(STACKS)
def test_median_equals_its_reference(stack: tuple[Array, Array]) -> None:
    result = composite.reduce(*stack, method="median", distance=())
    np.testing.assert_array_equal(result.image, composite.reference_median(*stack))
    assert (result.index == NO_VALUE).all()
    np.testing.assert_array_equal(result.valid, stack[1].sum(axis=0))


@settings(max_examples=80, deadline=None)
@given(STACKS)
def test_medoid_equals_its_reference(stack: tuple[Array, Array]) -> None:
    observations, usable = stack
    distance = tuple(range(observations.shape[1]))
    result = composite.reduce(observations, usable, method="medoid", distance=distance)
    expected = composite.reference_medoid(observations, usable, distance)
    np.testing.assert_array_equal(np.where(result.index == NO_VALUE, -1, result.index.astype(int)), expected)
    chosen = np.take_along_axis(observations, np.maximum(expected, 0)[None, None], axis=0)[0]
    np.testing.assert_array_equal(result.image, np.where(expected < 0, 0, chosen))


def test_many_dates_with_large_values() -> None:
    rng = np.random.Generator(np.random.Philox(key=3))
    observations = rng.integers(1, 65536, (61, 6, 8, 9)).astype(np.uint16)
    usable = rng.random((61, 8, 9)) < 0.7
    median = composite.reduce(observations, usable, method="median", distance=())
    np.testing.assert_array_equal(median.image, composite.reference_median(observations, usable))
    medoid = composite.reduce(observations, usable, method="medoid", distance=(0, 2, 5))
    np.testing.assert_array_equal(medoid.index, composite.reference_medoid(observations, usable, (0, 2, 5)))


@pytest.mark.parametrize(("values", "middle"), [([7], 7), ([3, 9], 6), ([3, 8], 6), ([9, 1, 5], 5), ([1, 2, 4, 9], 3)])
def test_the_middle_of_an_even_count_rounds_half_up(values: list[int], middle: int) -> None:
    stack = np.array(values, np.uint16).reshape(-1, 1, 1, 1)
    result = composite.reduce(stack, np.ones((len(values), 1, 1), bool), method="median", distance=())
    assert result.image.item() == middle


def test_two_dates_are_equally_near_and_the_first_wins() -> None:
    stack = np.array([900, 100], np.uint16).reshape(2, 1, 1, 1)
    result = composite.reduce(stack, np.ones((2, 1, 1), bool), method="medoid", distance=(0,))
    assert (result.image.item(), result.index.item(), result.score.item()) == (900, 0, 400)


def test_the_medoid_carries_all_bands_of_its_date() -> None:
    stack = np.array([[10, 1], [20, 2], [30, 3]], np.uint16).reshape(3, 2, 1, 1)
    result = composite.reduce(stack, np.ones((3, 1, 1), bool), method="medoid", distance=(0,))
    assert result.image.ravel().tolist() == [20, 2]


def test_never_clear_is_nodata() -> None:
    stack = np.full((2, 2, 1, 1), 500, np.uint16)
    for method in ("medoid", "median"):
        result = composite.reduce(stack, np.zeros((2, 1, 1), bool), method=method, distance=(0,))  # type: ignore[arg-type]
        assert not result.image.any()
        assert (result.index.item(), result.valid.item(), result.score.item()) == (NO_VALUE, 0, NO_VALUE)
