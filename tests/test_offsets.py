"""Test the offset of 1000 DN of new baselines: metadata, pixels, and the decision between them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdata.errors import SourceError
from sgdata.scenes import offsets
from sgdata.scenes.offsets import Evidence

PLENTY_DARK = Evidence(eligible=5000, dark_share=0.9)
PLENTY_BRIGHT = Evidence(eligible=5000, dark_share=0.01)
TOO_FEW = Evidence(eligible=999, dark_share=0.9)
IN_BETWEEN = Evidence(eligible=5000, dark_share=0.3)


@pytest.mark.parametrize(
    ("provider", "collection", "baseline", "level", "expected"),
    [
        ("earth-search", "sentinel-2-l2a", "02.14", "L2A", 0),
        ("earth-search", "sentinel-2-l2a", "03.01", "L2A", 0),
        ("earth-search", "sentinel-2-l2a", "04.00", "L2A", None),
        ("earth-search", "sentinel-2-l2a", "05.10", "L2A", None),
        ("earth-search", "sentinel-2-c1-l2a", "05.00", "L2A", -1000),
        ("planetary-computer", "sentinel-2-l2a", "02.12", "L2A", 0),
        ("planetary-computer", "sentinel-2-l2a", "04.00", "L2A", -1000),
        ("cdse", "sentinel-2-l2a", "05.00", "L2A", -1000),
        ("earth-search", "sentinel-2-l1c", "03.00", "L1C", 0),
        ("earth-search", "sentinel-2-l1c", "05.11", "L1C", -1000),
    ],
)
def test_the_table(provider: str, collection: str, baseline: str, level: str, expected: int | None) -> None:
    assert offsets.expected_offset(provider, collection, baseline, level=level) == expected  # type: ignore[arg-type]


def test_a_baseline_that_is_none_is_refused_by_value() -> None:
    with pytest.raises(SourceError, match="'five'"):
        offsets.expected_offset("cdse", "sentinel-2-l2a", "five")


@pytest.mark.parametrize(
    ("table", "evidence", "decided"),
    [
        (0, PLENTY_DARK, 0),
        (-1000, PLENTY_BRIGHT, -1000),
        (None, PLENTY_DARK, 0),
        (None, PLENTY_BRIGHT, -1000),
        (0, TOO_FEW, 0),
        (-1000, TOO_FEW, -1000),
        (-1000, IN_BETWEEN, -1000),
    ],
)
def test_table_and_pixels_together(table: int | None, evidence: Evidence, decided: int) -> None:
    assert offsets.decide("S", table, evidence) == decided


@pytest.mark.parametrize(
    ("table", "evidence", "words"),
    [
        (0, PLENTY_BRIGHT, "promise offset 0, the pixels show -1000"),
        (-1000, PLENTY_DARK, "promise offset -1000, the pixels show 0"),
        (None, TOO_FEW, "999 clear pixels"),
        (None, IN_BETWEEN, "0.300 of 5000"),
    ],
)
def test_contradiction_and_ignorance_stop(table: int | None, evidence: Evidence, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        offsets.decide("S2A_X", table, evidence)


def test_only_clear_valid_pixels_are_counted() -> None:
    classes = np.array([[4, 6, 5, 4]], np.uint8)
    bands = np.array([[[500, 1500, 1, 0]], [[999, 1000, 1, 5]], [[2000, 10, 1, 5]]], np.uint16)
    assert offsets.count(classes, bands) == (2, 3)


@given(st.lists(st.integers(0, 65535), min_size=1), st.sampled_from([0, -1000]))
def test_correction_keeps_nodata_and_validity(values: list[int], offset: int) -> None:
    stored = np.array(values, np.uint16)
    done = offsets.corrected(stored, offset)
    assert done.dtype == np.uint16
    expected = [0 if v == 0 else max(v + offset, 1) for v in values]
    np.testing.assert_array_equal(done, expected)
