from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sgdata import files
from sgdata.errors import SourceError
from sgdata.shards import statistics

images = hnp.arrays(np.uint16, (2, 5, 7), elements=st.integers(0, 65_535))


@settings(max_examples=40, deadline=None)
@given(images)
def test_agrees_with_numpy_on_every_valid_value(image: np.ndarray) -> None:
    found = statistics.summarise(statistics.counts(image), ["B02", "B03"], nodata=0)
    for band, name in enumerate(["B02", "B03"]):
        valid = image[band][image[band] != 0].astype(np.float64)
        said = found[name]
        assert said.count == valid.size
        if not valid.size:
            continue
        assert said.mean == pytest.approx(valid.mean())
        assert said.std == pytest.approx(valid.std(), abs=1e-6)
        assert (said.min, said.max) == (valid.min(), valid.max())
        for percent in (1, 2, 50, 98, 99):
            assert getattr(said, f"p{percent}") == np.percentile(valid, percent, method="inverted_cdf")


@settings(max_examples=20, deadline=None)
@given(st.lists(images, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_order_and_chunks_do_not_change_bytes(tiles: list[np.ndarray], order: object) -> None:
    def said(parts: list[np.ndarray]) -> bytes:
        total = sum((statistics.counts(part) for part in parts), statistics.empty(2))
        return files.canonical_json(statistics.summarise(total, ["a", "b"], None))

    shuffled = list(tiles)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert said(tiles) == said(shuffled) == said([np.concatenate(tiles, axis=1)])


def test_sums_stay_exact_where_64_bits_would_not() -> None:
    histogram = statistics.empty(1)
    histogram[0, 65_535] = 10**13
    histogram[0, 65_533] = 10**13
    band = statistics.summarise(histogram, ["B02"], None)["B02"]
    assert (band.count, band.mean, band.std) == (2 * 10**13, 65_534.0, 1.0)


def test_floats_are_counted_at_the_nearest_whole_number() -> None:
    image = np.array([[[-3.0, 0.5, 1.49, 70_000.0]]], np.float32)
    assert np.flatnonzero(statistics.counts(image)[0]).tolist() == [0, 1, 65_535]


def test_nan_is_refused() -> None:
    with pytest.raises(SourceError, match="1 NaN"):
        statistics.counts(np.array([[[np.nan, 1.0]]], np.float32))


def test_a_band_without_a_valid_pixel_is_all_zeros() -> None:
    assert statistics.summarise(statistics.empty(1), ["B02"], 0)["B02"].count == 0
