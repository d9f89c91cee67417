"""Test OpenStreetMap files: one map in three formats, broken rings, and hostile and damaged files."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import osmium
import pytest
import shapely

from sgdata import files, package_data
from sgdata.errors import SettingError, SourceError
from sgdata.labels import osm_features, osm_pbf, tag_rules

CODES = {int(row["file_value"]): int(row["train_index"]) for row in package_data.table("segmunich_labels")}
RULES = tag_rules.rules(package_data.table("osm_lulc_tags"), CODES, tiers=("core", "ext"), groups=("drive",))
EVERYWHERE = shapely.box(-180, -90, 180, 90)

Place = tuple[float, float]


def document(
    nodes: dict[int, Place],
    ways: dict[int, tuple[list[int], dict[str, str]]],
    relations: dict[int, tuple[list[tuple[int, str]], dict[str, str]]] | None = None,
) -> str:
    """Return an OSM XML 0.6 document."""

    def tagged(text: dict[str, str]) -> str:
        return "".join(f'<tag k="{k}" v="{v}"/>' for k, v in text.items())

    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<!-- made for a test -->", '<osm version="0.6">']
    lines += [f'<node id="{i}" version="1" lon="{x}" lat="{y}"/>' for i, (x, y) in nodes.items()]
    for i, (refs, text) in ways.items():
        inside = "".join(f'<nd ref="{ref}"/>' for ref in refs)
        lines.append(f'<way id="{i}" version="1">{inside}{tagged(text)}</way>')
    for i, (members, text) in (relations or {}).items():
        inside = "".join(f'<member type="way" ref="{ref}" role="{role}"/>' for ref, role in members)
        lines.append(f'<relation id="{i}" version="1">{inside}{tagged(text)}</relation>')
    return "\n".join([*lines, "</osm>"])


def square(first: int, x: float, y: float, side: float) -> dict[int, Place]:
    corners = ((x, y), (x + side, y), (x + side, y + side), (x, y + side))
    return {first + i: corner for i, corner in enumerate(corners)}


def read_text(folder: Path, text: str, area: Any = EVERYWHERE) -> osm_features.OsmFeatures:
    path = folder / "map.osm"
    path.write_text(text)
    return osm_features.read(path, area, rules=RULES)


def by_id(features: osm_features.OsmFeatures) -> dict[tuple[str, int, str], Any]:
    rows = features.table
    return dict(zip(zip(rows.osm_type, rows.osm_id, rows.kind, strict=True), rows.geometry, strict=True))


NODES = {**square(1, 11.0, 48.0, 0.01), **square(11, 11.002, 48.002, 0.002), **square(21, 11.006, 48.006, 0.002)}
FOREST = {"type": "multipolygon", "landuse": "forest"}


def test_areas_lines_and_holes_are_read(tmp_path: Path) -> None:
    text = document(
        NODES,
        {
            1: ([1, 2, 3], {}),
            2: ([3, 4, 1], {}),
            3: ([11, 12, 13, 14, 11], {"natural": "water"}),
            4: ([21, 22, 23, 24, 21], {"highway": "primary", "junction": "roundabout"}),
            5: ([21, 22, 23, 24, 21], {"highway": "residential", "area": "yes"}),
            6: ([1, 3], {"building": "yes"}),
        },
        {1: ([(1, "outer"), (2, "outer"), (3, "inner")], FOREST)},
    )
    found = read_text(tmp_path, text)
    shapes = by_id(found)
    assert sorted(shapes) == [
        ("relation", 1, "polygon"),
        ("way", 3, "polygon"),
        ("way", 4, "line"),
        ("way", 5, "polygon"),
    ]
    assert shapes["relation", 1, "polygon"].area == pytest.approx(0.01**2 - 0.002**2)
    assert shapes["way", 4, "line"].length == pytest.approx(0.008)
    assert found.table.crs == "EPSG:4326"
    assert found.counts == {"lines": 1, "outside": 0, "polygons": 3}
    assert found.losses == {}
    assert found.sha256 == {"map.osm": files.sha256(text.encode())}
    assert found.as_of is None


def test_objects_that_meet_the_area_are_kept_whole(tmp_path: Path) -> None:
    ways = {
        1: ([1, 2, 3, 4, 1], {"landuse": "forest"}),
        2: ([21, 22, 23, 24, 21], {"leisure": "park"}),
    }
    found = read_text(tmp_path, document(NODES, ways), shapely.box(10.9, 47.9, 11.001, 48.001))
    assert by_id(found)["way", 1, "polygon"].area == pytest.approx(1e-4)
    assert found.counts == {"outside": 1, "polygons": 1}
    empty = read_text(tmp_path, document(NODES, ways), shapely.box(0, 0, 1, 1))
    assert len(empty.table) == 0
    assert empty.table.crs == "EPSG:4326"


def test_objects_cut_by_extracts_are_repaired_or_named(tmp_path: Path) -> None:
    text = document(
        NODES,
        {
            1: ([1, 3, 2, 4, 1], {"landuse": "forest"}),  # crosses itself
            2: ([1, 2, 3], {"landuse": "meadow"}),  # open
            3: ([1, 2, 99, 3, 4], {"highway": "primary"}),  # a node missing
            4: ([98, 99], {"highway": "primary"}),
            5: ([11, 12, 97, 11], {"leisure": "park"}),
            6: ([11, 12, 13, 14, 11], {}),
            7: ([1, 2, 3, 4, 1], {"landuse": "orchard", "area": "no"}),
        },
        {
            1: ([(6, "outer"), (777, "outer")], FOREST),  # a member missing, one ring whole
            2: ([(777, "outer")], FOREST),
            3: ([(6, "outer")], {"type": "site", "amenity": "school"}),
        },
    )
    found = read_text(tmp_path, text)
    shapes = by_id(found)
    assert shapes["way", 1, "polygon"].area == pytest.approx(0.01**2 / 2)
    assert shapes["way", 1, "polygon"].is_valid
    assert [len(part.coords) for part in shapes["way", 3, "line"].geoms] == [2, 2]
    assert shapes["relation", 1, "polygon"].area == pytest.approx(0.002**2)
    assert len(shapes) == 3
    assert found.losses == {
        "way/1": "mended: its ring crosses itself",
        "way/2": "lost: an area whose ring is open",
        "way/3": "mended: nodes of the line are not in the data",
        "way/4": "lost: nodes of the line are not in the data",
        "way/5": "lost: nodes of the ring are not in the data",
        "way/7": "lost: an area tagged area=no",
        "relation/1": "mended: 1 of 2 members are not in the data",
        "relation/2": "lost: 1 of 1 members are not in the data",
        "relation/3": "lost: a relation of type 'site' is no area",
    }
    assert found.counts == {"lines": 1, "lost": 6, "mended": 3, "outside": 0, "polygons": 2}


def test_a_multipolygon_whose_rings_cross_is_mended(tmp_path: Path) -> None:
    nodes = {**square(1, 11.0, 48.0, 0.01), **square(11, 11.008, 48.002, 0.004)}
    ways = {1: ([1, 2, 3, 4, 1], {}), 2: ([11, 12, 13, 14, 11], {})}
    found = read_text(tmp_path, document(nodes, ways, {1: ([(1, "outer"), (2, "inner")], FOREST)}))
    assert found.table.geometry.iloc[0].area == pytest.approx(0.01**2 - 0.002 * 0.004)
    assert found.losses == {"relation/1": "mended: its rings do not close"}


def test_every_packing_and_pbf_give_the_same(tmp_path: Path) -> None:
    text = document(NODES, {1: ([1, 2, 3, 4, 1], {"landuse": "forest"}), 2: ([1, 3], {"highway": "primary"})})
    expected = by_id(read_text(tmp_path, text))
    (tmp_path / "map.osm.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (tmp_path / "map.osm.bz2").write_bytes(bz2.compress(text.encode()))
    with osmium.SimpleWriter(str(tmp_path / "map.osm.pbf")) as writer:
        for item in osmium.FileProcessor(str(tmp_path / "map.osm")):
            writer.add(item)
    for name in ("map.osm.gz", "map.osm.bz2", "map.osm.pbf"):
        found = by_id(osm_features.read(tmp_path / name, EVERYWHERE, rules=RULES))
        assert {key: shape.wkb for key, shape in found.items()} == {key: s.wkb for key, s in expected.items()}


def answer(elements: list[dict[str, Any]], **more: Any) -> bytes:
    base = {"version": 0.6, "osm3s": {"timestamp_osm_base": "2020-04-01T00:00:00Z"}}
    return json.dumps({**base, "elements": elements, **more}).encode()


ELEMENTS: list[dict[str, Any]] = [
    *({"type": "node", "id": i, "lon": x, "lat": y} for i, (x, y) in {**NODES, 1: (0.0, 0.0)}.items()),
    {"type": "way", "id": 1, "nodes": [1, 2, 3, 4, 1], "tags": {"landuse": "forest"}},
    {"type": "way", "id": 1, "nodes": [1, 2, 3, 4, 1]},
    {"type": "way", "id": 2, "nodes": [11, 13], "tags": {"highway": "primary"}},
]


def test_answers_of_overpass_are_joined(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(answer(ELEMENTS))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(answer(ELEMENTS[:-1]), mtime=0))
    found = osm_features.read(tmp_path, EVERYWHERE, rules=RULES)
    assert sorted(by_id(found)) == [("way", 1, "polygon"), ("way", 2, "line")]
    assert found.as_of == "2020-04-01T00:00:00Z"
    assert found.sha256["b.json.gz"] == files.sha256(answer(ELEMENTS[:-1]))
    assert by_id(found)["way", 1, "polygon"].bounds[:2] == (0, 0)


def test_inline_geometry_replaces_nodes(tmp_path: Path) -> None:
    points = [{"lon": x, "lat": y} for x, y in square(1, 11.0, 48.0, 0.01).values()]
    way = {"type": "way", "id": 5, "nodes": [1, 2, 3, 4, 1], "geometry": [*points, points[0]]}
    (tmp_path / "map.json").write_bytes(answer([{**way, "tags": {"landuse": "forest"}}]))
    assert osm_features.read(tmp_path / "map.json", EVERYWHERE, rules=RULES).table.geometry.iloc[
        0
    ].area == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<html>rate limited</html>", "expected an Overpass answer"),
        (b'{"elements": 3}', "no list 'elements'"),
        (answer(ELEMENTS, remark="runtime error: Query timed out"), "Query timed out"),
        (answer([{"type": "count", "id": 0, "tags": {"total": "9"}}, *ELEMENTS[:3]]), "3 of 9 elements"),
        (answer([{"type": "node", "id": "x"}]), "an element is malformed"),
        (answer([{"type": "node", "id": 4, "lon": 1}]), "an element is malformed"),
        (answer([7]), "an element is malformed"),  # type: ignore[list-item]
        (gzip.compress(answer(ELEMENTS), mtime=0)[:100], "cannot be unpacked"),
    ],
)
def test_a_damaged_or_partial_answer_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "map.json").write_bytes(content)
    with pytest.raises(SourceError, match=complaint):
        osm_features.read(tmp_path / "map.json", EVERYWHERE, rules=RULES)


BOMB = '<!DOCTYPE osm [<!ENTITY a "{}">{}]>'.format(
    "ha" * 20, "".join(f'<!ENTITY {b} "{f"&{a};" * 20}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
)


@pytest.mark.parametrize(
    "text",
    [
        f'<?xml version="1.0"?>{BOMB}<osm version="0.6"><node id="1" lon="&i;" lat="1"/></osm>',
        f'<!-- <osm -->{BOMB}<osm version="0.6"/>',
        '<!DOCTYPE osm SYSTEM "file:///etc/passwd"><osm version="0.6"/>',
        "",
        "<html/>",
    ],
)
def test_a_document_type_and_other_documents_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SourceError, match="without a DOCTYPE"):
        read_text(tmp_path, text)
    (tmp_path / "wide.osm").write_text(text, encoding="utf-16")
    with pytest.raises(SourceError, match="without a DOCTYPE"):
        osm_features.read(tmp_path / "wide.osm", EVERYWHERE, rules=RULES)


def test_files_cut_off_are_refused(tmp_path: Path) -> None:
    text = document(NODES, {1: ([1, 2, 3, 4, 1], {"landuse": "forest"})})
    with pytest.raises(SourceError, match="cannot be read"):
        read_text(tmp_path, text[: len(text) // 2])
    (tmp_path / "map.osm.gz").write_bytes(gzip.compress(text.encode(), mtime=0)[:40])
    with pytest.raises(SourceError, match=r"map\.osm\.gz"):
        osm_features.read(tmp_path / "map.osm.gz", EVERYWHERE, rules=RULES)
    (tmp_path / "map.osm.pbf").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SourceError, match="cannot be read"):
        osm_features.read(tmp_path / "map.osm.pbf", EVERYWHERE, rules=RULES)


def test_a_wrong_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        osm_features.read(tmp_path / "none.osm", EVERYWHERE, rules=RULES)
    with pytest.raises(SourceError, match="holds no Overpass answer"):
        osm_features.read(tmp_path, EVERYWHERE, rules=RULES)
    (tmp_path / "map.shp").write_bytes(b"")
    with pytest.raises(SourceError, match="unknown kind"):
        osm_features.read(tmp_path / "map.shp", EVERYWHERE, rules=RULES)
    with pytest.raises(SettingError, match="no date"):
        osm_features.read("overpass", EVERYWHERE, rules=RULES)


@pytest.mark.parametrize("compression", ["none", "zlib", "lz4"])
def test_texts_with_a_nul_are_refused(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "map.osm.pbf"
    with osmium.SimpleWriter(osmium.io.File(str(path), f"pbf,pbf_compression={compression}")) as writer:
        writer.add_way(osmium.osm.mutable.Way(id=1, nodes=[1, 2], tags={"natural": "wo*od"}))
    osm_pbf.check(path)
    # The block of the compression "none" is the same but for this text; the head and the size stay.
    if compression == "none":
        path.write_bytes(path.read_bytes().replace(b"wo*od", b"wo\0od"))
        with pytest.raises(SourceError, match="contains a NUL"):
            osm_features.read(path, EVERYWHERE, rules=RULES)
