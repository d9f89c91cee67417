"""Test the offset of 1000 DN of new baselines: who wrote the pixels, what they show, and the decision between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdata.errors import SourceError
from sgdata.scenes import offsets
from sgdata.scenes.offsets import OffsetEvidence
from sgdata.scenes.types import Asset, Scene
from sgdata.staging import offset_pixels

DARK = OffsetEvidence(eligible=5000, ground=6000, valid=9000, dark_share=0.9, near_share=0.95)
OFFSET = OffsetEvidence(eligible=5000, ground=6000, valid=9000, dark_share=0.01, near_share=0.4)
CLOUD = OffsetEvidence(eligible=5000, ground=6000, valid=9000, dark_share=0.0, near_share=0.0)
TOO_FEW = OffsetEvidence(eligible=999, ground=6000, valid=9000, dark_share=0.9, near_share=0.9)
IN_BETWEEN = OffsetEvidence(eligible=5000, ground=6000, valid=9000, dark_share=0.3, near_share=0.5)

COGS = "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/32/U/PU/B02.tif"
C1 = "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/sentinel-2-c1-l2a/B02.tif"
MICROSOFT = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/32/U/PU/B02.tif"
CDSE = "s3://eodata/Sentinel-2/MSI/L2A/a.SAFE/GRANULE/L2A_T32UPU/IMG_DATA/R10m/B02_10m.jp2"
LOCAL = "sentinel-2-l2a/item/B02.tif"


def scene(href: str = LOCAL, **more: Any) -> Scene:
    plain: dict[str, Any] = {
        "id": "S", "collection": "sentinel-2-l2a", "provider": "planetary-computer", "time": "2023-06-01T10:00:00Z",
        "platform": "sentinel-2a", "tile": "32UPU", "orbit": 22, "datatake": "", "baseline": "05.09", "generated": "",
        "crs": "EPSG:32632", "bbox": (11.0, 48.0, 12.0, 49.0), "cloud_cover": None,
        "assets": {"B02": Asset(href=href), "SCL": Asset(href="elsewhere/SCL.tif")},
    }  # fmt: skip
    return Scene(**plain | more)


# --- who wrote the pixels ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("href", "more", "expected"),
    [
        (COGS, {"baseline": "03.01"}, 0),
        (COGS, {}, None),
        (COGS, {"provider": "cdse"}, None),
        ("s3://sentinel-cogs/sentinel-s2-l2a-cogs/B02.tif", {}, None),
        (C1, {}, -1000),
        (LOCAL, {"collection": "sentinel-2-c1-l2a"}, -1000),
        (MICROSOFT, {}, -1000),
        (MICROSOFT, {"provider": "earth-search"}, -1000),
        (MICROSOFT, {"offset_applied": True}, None),
        (CDSE, {}, -1000),
        ("https://eodata.dataspace.copernicus.eu/Sentinel-2/a.SAFE/B02_10m.jp2", {}, -1000),
        ("https://s3.eu-central-1.amazonaws.com/sentinel-s2-l2a/tiles/32/U/PU/B02.jp2", {}, -1000),
        ("https://eodata.example.org/B02.tif", {}, None),
        (LOCAL, {}, None),
        (LOCAL, {"declared_offset": -1000}, None),
        (LOCAL, {"product": "sentinel-2-l2a/item/MTD_MSIL2A.xml"}, -1000),
        (LOCAL, {"product": "sentinel-2-l2a/item/MTD_MSIL2A.xml", "offset_applied": True}, None),
        (LOCAL, {"product": "sentinel-2-l2a/MTD_MSIL2A.xml"}, None),
        (COGS, {"product": "s3://sentinel-s2-l2a/tiles/32/U/PU/metadata.xml"}, None),
        (CDSE.replace("s3://eodata", "a"), {"product": "a/Sentinel-2/MSI/L2A/a.SAFE/MTD_MSIL2A.xml"}, -1000),
    ],
)
def test_where_pixels_are_says_who_wrote_them(href: str, more: dict[str, Any], expected: int | None) -> None:
    assert offsets.expected_offset(scene(href, **more), planned=True) == expected


def test_the_names_of_assets_say_nothing() -> None:
    for href in (COGS, C1, MICROSOFT, CDSE, LOCAL):
        names = ("earth-search", "planetary-computer", "cdse")
        assert len({offsets.expected_offset(scene(href, provider=name)) for name in names}) == 1


def test_the_xml_of_the_product_rules_over_the_baseline() -> None:
    beside = scene(product="sentinel-2-l2a/item/MTD_MSIL2A.xml")
    assert [offsets.expected_offset(beside, product=xml) for xml in (-1000, 0, None)] == [-1000, 0, None]
    assert [offsets.expected_offset(scene(COGS), product=xml) for xml in (-1000, 0)] == [None, 0]
    assert offsets.expected_offset(scene(COGS), level="L1C") == -1000


def test_a_baseline_that_is_none_is_refused_by_value() -> None:
    with pytest.raises(SourceError, match="'five'"):
        offsets.expected_offset(scene(baseline="five"))


# --- what the pixels show ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evidence", "shown"),
    [
        (DARK, 0),
        (replace(DARK, valid=10**6), 0),  # dark pixels prove it however few of the area they are
        (OFFSET, -1000),
        (replace(OFFSET, valid=50_000), None),  # the lack of them proves nothing under clouds
        (CLOUD, None),
        (replace(OFFSET, near_share=0.09), None),
        (TOO_FEW, None),
        (IN_BETWEEN, None),
    ],
)
def test_the_pixel_test_is_one_sided(evidence: OffsetEvidence, shown: int | None) -> None:
    assert offsets.offset_from_pixels(evidence) == shown


def test_only_clear_valid_pixels_are_counted() -> None:
    classes = np.array([[4, 6, 5, 4, 0]], np.uint8)
    bands = np.array([[[500, 1500, 1, 0, 1]], [[999, 1000, 1, 5, 1]], [[2000, 10, 1, 5, 1]]], np.uint16)
    assert offset_pixels.count_test_pixels(classes, bands).tolist() == [2, 4, 4, 3, 4]


# --- the decision --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "evidence", "decided"),
    [
        (0, DARK, 0),
        (-1000, OFFSET, -1000),
        (None, DARK, 0),
        (None, OFFSET, -1000),
        (0, TOO_FEW, 0),
        (-1000, TOO_FEW, -1000),
        (-1000, IN_BETWEEN, -1000),
        (0, CLOUD, 0),
        (-1000, replace(DARK, valid=10**6), -1000),  # too small a part of the area to contradict
    ],
)
def test_metadata_and_pixels_together(expected: int | None, evidence: OffsetEvidence, decided: int) -> None:
    assert offsets.decide(scene(), expected, evidence).offset == decided


@pytest.mark.parametrize(("expected", "evidence"), [(0, OFFSET), (-1000, DARK)])
def test_a_contradiction_is_never_resolved_silently(expected: int, evidence: OffsetEvidence) -> None:
    decision = offsets.decide(scene(), expected, evidence)
    assert decision.offset is None
    assert not decision.untestable
    assert f"metadata give offset {expected}, the pixels {-1000 - expected}" in decision.problem


@pytest.mark.parametrize("evidence", [TOO_FEW, IN_BETWEEN, CLOUD])
def test_what_nothing_can_tell_is_untestable(evidence: OffsetEvidence) -> None:
    assert offsets.decide(scene(), None, evidence).untestable


def test_a_baseline_that_cannot_carry_an_offset_gives_a_warning() -> None:
    old = offsets.decide(scene(baseline="02.12"), 0, OFFSET)
    assert (old.offset, "which baseline 02.12 cannot have" in old.warning) == (0, True)


def test_a_flag_decides_only_where_nothing_else_can_and_nothing_contradicts_it() -> None:
    flagged = scene(offset_applied=True)
    assert offsets.decide(flagged, None, TOO_FEW).offset == 0
    assert "flag alone" in offsets.decide(flagged, None, TOO_FEW).warning
    assert offsets.decide(flagged, None, OFFSET).offset == -1000
    assert offsets.decide(flagged, None, replace(TOO_FEW, ground=1000)).untestable  # clouds
    for other in ({"declared_offset": -1000}, {"product": "sentinel-2-l2a/item/MTD_MSIL2A.xml"}):
        assert offsets.decide(replace(flagged, **other), None, TOO_FEW).untestable  # type: ignore[arg-type]
    # Earth Search is known to have false flags that are wrong.
    assert offsets.decide(scene(offset_applied=False, declared_offset=-1000), None, TOO_FEW).untestable
    small = replace(OFFSET, valid=50_000)
    assert offsets.decide(scene(declared_offset=-1000), None, small).offset == -1000
    assert offsets.decide(scene(declared_offset=0), None, small).untestable


@pytest.mark.parametrize("evidence", [DARK, OFFSET, CLOUD, TOO_FEW, IN_BETWEEN])
@pytest.mark.parametrize("expected", [0, -1000, None])
@pytest.mark.parametrize("declared", [0, -1000, None])
@pytest.mark.parametrize("baseline", ["02.12", "05.09"])
def test_the_chosen_source_is_followed_in_every_state(
    evidence: OffsetEvidence, expected: int | None, declared: int | None, baseline: str
) -> None:
    one = scene(declared_offset=declared, baseline=baseline)
    by_metadata = next(v for v in (expected, declared, -1000 if baseline > "04" else 0) if v is not None)
    assert offsets.decide(one, expected, evidence, source="metadata").offset == by_metadata
    shown = offsets.offset_from_pixels(evidence)
    chosen, neither = (offsets.decide(one, expected, evidence, source=s) for s in ("pixels", "neither"))  # type: ignore[arg-type]
    assert chosen.offset == (neither.offset if shown is None else shown)


def test_all_scenes_of_a_problem_are_listed() -> None:
    found = [(name, offsets.decide(scene(), -1000, DARK), DARK) for name in ("A", "B")]
    found.append(("C", offsets.decide(scene(), None, CLOUD), CLOUD))
    line = offsets.describe_problems(found)
    assert line.startswith(
        "scene A (5000 clear pixels, 55.6% of the area: 0.900 below DN 1000, 0.950 below 1500), scene B"
    )
    assert line.count("the pixels 0") == 1
    assert "scene C (5000 clear pixels" in line


@given(st.lists(st.integers(0, 65535), min_size=1), st.sampled_from([0, -1000]))
def test_correction_keeps_nodata_and_validity(values: list[int], offset: int) -> None:
    stored = np.array(values, np.uint16)
    done = offsets.apply_offset(stored, offset)
    assert done.dtype == np.uint16
    expected = [0 if v == 0 else max(v + offset, 1) for v in values]
    np.testing.assert_array_equal(done, expected)
