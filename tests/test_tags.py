"""Test the rules of tags: the shipped table, its conditions, conflicts and widths."""

from __future__ import annotations

import pytest

from sgdata import package_data
from sgdata.errors import SettingError
from sgdata.labels import tag_rules

CODES = {int(row["file_value"]): int(row["train_index"]) for row in package_data.table("segmunich_labels")}
ROWS = package_data.table("osm_lulc_tags")
GROUPS = ("drive", "drive_service", "walk")
RULES = tag_rules.rules(ROWS, CODES, tiers=("core", "ext"), groups=GROUPS)

FOREST, WATER, SHRUB, WETLAND, VEGETATION, URBAN, INDUSTRY, STREET = 4, 5, 6, 8, 10, 11, 12, 0


def label(kind: tag_rules.Kind, *, is_way: bool = True, **text: str) -> int | None:
    rule = tag_rules.match(RULES, kind, text, is_way=is_way)
    return rule.label if rule else None


def test_every_row_of_the_table_is_used_or_turned_off_on_purpose() -> None:
    raster = [row for row in ROWS if row["geometry"] == "raster"]
    assert len(RULES) == len(ROWS) - len(raster)
    off = {(r.key, r.value) for r in RULES.values() if not r.active and r.label != tag_rules.IGNORE and r.tier != "opt"}
    assert off == {("natural", "coastline")}
    assert {rule.label for rule in RULES.values() if rule.active} == set(range(13))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"landuse": "forest"}, FOREST),
        ({"natural": "water", "water": "lock"}, WATER),  # natural=water wins
        ({"water": "lock"}, INDUSTRY),
        ({"water": "fishpond"}, WATER),  # water=*
        ({"natural": "wood", "wetland": "swamp"}, FOREST),  # core before ext
        ({"natural": "moor", "wetland": "bog"}, WETLAND),  # both ext: priority
        ({"natural": "wood", "leisure": "nature_reserve"}, FOREST),  # an outline is no cover
        ({"leisure": "nature_reserve"}, None),
        ({"boundary": "protected_area"}, None),
        ({"sport": "tennis"}, VEGETATION),
        ({"sport": "tennis", "leisure": "hackerspace"}, None),  # only where no leisure key
        ({"sport": "tennis", "building": "yes"}, VEGETATION),
        ({"crop": "wheat"}, None),  # only with landuse=farmland
        ({"crop": "wheat", "landuse": "farmland"}, 1),
        ({"landuse": "unknown;forest"}, FOREST),
        ({"landuse": "unknown"}, None),
        ({"building": "yes"}, None),  # tier opt
        ({"shop": "florist"}, INDUSTRY),
    ],
)
def test_one_rule_names_an_area(text: dict[str, str], expected: int | None) -> None:
    assert label("polygon", **text) == expected
    assert label("polygon", **dict(reversed(text.items()))) == expected


def test_a_closed_street_is_an_area_only_if_tagged_as_one() -> None:
    assert label("polygon", highway="pedestrian") is None
    assert label("line", highway="pedestrian") == STREET
    assert label("polygon", highway="pedestrian", area="yes") == STREET
    assert label("polygon", highway="pedestrian", is_way=False) == STREET
    assert label("polygon", highway="services") == INDUSTRY
    assert label("polygon", waterway="canal") is None
    assert label("polygon", waterway="canal", is_way=False) == WATER


def test_soft_ways_and_buildings_have_their_group_and_tier() -> None:
    assert label("line", highway="track") is None
    assert label("line", highway="proposed") is None
    more = tag_rules.rules(ROWS, CODES, tiers=tag_rules.TIERS, groups=(*GROUPS, "soft"))
    track, house = (
        tag_rules.match(more, "line", {"highway": "track"}, is_way=True),
        tag_rules.match(more, "polygon", {"building": "house"}, is_way=True),
    )
    assert track is not None and track.half_width_m == 2
    assert house is not None and house.label == URBAN
    assert "building" in tag_rules.keys(more, "polygon")
    assert "building" not in tag_rules.keys(RULES, "polygon")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"highway": "primary", "tunnel": "yes"}, True),
        ({"highway": "primary", "tunnel": "no"}, False),
        ({"highway": "primary", "layer": "-1"}, True),
        ({"highway": "primary", "layer": "1", "bridge": "yes"}, False),
        ({"highway": "primary", "layer": "below"}, False),
        ({"highway": "service", "tunnel": "building_passage"}, True),
    ],
)
def test_tunnels_are_hidden_and_bridges_are_not(text: dict[str, str], expected: bool) -> None:
    rule = tag_rules.match(RULES, "line", text, is_way=True)
    assert rule is not None
    assert tag_rules.is_underground(text, rule) is expected


def test_a_river_below_bridges_is_seen_and_an_underground_car_park_is_not() -> None:
    for text, expected in (
        ({"natural": "water", "layer": "-1"}, False),
        ({"amenity": "parking", "parking": "underground"}, True),
        ({"amenity": "parking", "layer": "-2"}, True),
    ):
        rule = tag_rules.match(RULES, "polygon", text, is_way=True)
        assert rule is not None
        assert tag_rules.is_underground(text, rule) is expected


@pytest.mark.parametrize(
    ("text", "metres"),
    [
        ({"width": "7.5"}, 7.5),
        ({"width": "7,5 m"}, 7.5),
        ({"width": "20 ft"}, 6.096),
        ({"width": "20'"}, 6.096),
        ({"width": "7", "lanes": "4"}, 7),
        ({"width": "wide", "lanes": "2"}, 6.5),
        ({"width": "5000", "lanes": "2"}, 6.5),
        ({"lanes": "2;3"}, None),
        ({"lanes": "0"}, None),
        ({"width": "-3"}, None),
        ({}, None),
    ],
)
def test_widths_are_read_as_mappers_write_them(text: dict[str, str], metres: float | None) -> None:
    assert tag_rules.width_m(text) == pytest.approx(metres)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"segmunich_label_value": "77"}, "77"),
        ({"segmunich_label_value": "wood"}, "wood"),
        ({"note": "no tier"}, "no tier"),
        ({"geometry": "point"}, "point"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(change: dict[str, str], complaint: str) -> None:
    with pytest.raises(SettingError, match=rf"line 3.*{complaint}"):
        tag_rules.rules([ROWS[0], {**ROWS[1], **change}], CODES, tiers=("core",), groups=())
    with pytest.raises(SettingError, match="line 3.*twice"):
        tag_rules.rules([ROWS[0], ROWS[0]], CODES, tiers=("core",), groups=())
    with pytest.raises(SettingError, match="osm_key"):
        tag_rules.rules([{k: v for k, v in ROWS[0].items() if k != "osm_key"}], CODES, tiers=("core",), groups=())
