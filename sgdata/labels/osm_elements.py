"""Bring OpenStreetMap data into the order and form from which pyosmium assembles areas.

It needs nodes before ways before relations, each once and by ascending positive id. Overpass writes ways before nodes
and repeats objects that several parts of a query match; JOSM gives new objects negative ids and keeps deleted ones;
with `out geom` and with locations on ways, coordinates are inside ways and relations. Files of any such kind are
rewritten in memory; all others are read as they are, however large.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import math
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sgdata.errors import SourceError
from sgdata.labels import osm_pbf
from sgdata.limits import PROLOG_BYTES

EXPONENT = re.compile(rb"""\bl(?:on|at)\s*=\s*["'][^"'<>]{0,40}?[eE][+-]?\d{2,}""")
SPECIAL = re.compile(rb"""\baction\s*=\s*["']delete|</member\b|<nd\b[^<>]*\bl(?:on|at)\s*=""")
"""XML that pyosmium misreads: objects deleted in JOSM, and coordinates inside ways and members."""
NEW_ID, POINT_ID = 1 << 50, 1 << 51
"""First ids given to objects with negative ids, and to points without a node."""
ORDER = "nwr"

Element = dict[str, Any]
"""An object as Overpass writes it in JSON: type, id, lat and lon, nodes, members, geometry, tags, version."""


def original_id(number: int) -> int:
    """Return the id that an object has in its file."""
    return NEW_ID - number if NEW_ID < number < POINT_ID else number


def rewrite(path: Path, folder: Path) -> Path:
    """Return a file that pyosmium can assemble: `path`, or a copy in `folder` in the right order and form.

    Raises:
        SourceError: The XML has a document type, which may declare entities that expand without limit, or coordinates
            in exponent notation, which libosmium misreads; a text has a NUL; or the file is damaged.
    """
    special = False
    if path.name.endswith(".pbf"):
        osm_pbf.check(path)
    else:
        _refuse_document_type(path)  # expat, inside pyosmium, would expand entities
        special = _scan_text(path)
    if not special and _is_regular(path):
        return path
    copy = folder / "elements.osm.pbf"
    write_native(_xml_elements(path) if not path.name.endswith(".pbf") else _pbf_elements(path), copy, str(path))
    return copy


# --- which files need it -------------------------------------------------------------------


def _open_xml(path: Path) -> Any:
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    return opener(path, "rb")


def _refuse_document_type(path: Path) -> None:
    """Raise SourceError unless only comments precede `<osm`: a document type may declare entities that expand."""
    try:
        with _open_xml(path) as handle:
            start = handle.read(PROLOG_BYTES.most)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be unpacked: {error}; fetch it again") from None
    prolog = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if prolog.startswith(b"<?xml"):
        prolog = prolog.partition(b"?>")[2].lstrip()
    while prolog.startswith(b"<!--"):
        prolog = prolog.partition(b"-->")[2].lstrip()
    if not re.match(rb"<osm[\s>]", prolog):
        raise SourceError(
            f"{path}: begins with {start[:60]!r}; expected an <osm> document without a DOCTYPE; fetch it again"
        )


def _scan_text(path: Path) -> bool:
    """Return whether XML is of a kind that pyosmium misreads.

    Raises SourceError for coordinates such as 1e999, which libosmium reads as some other place.
    """
    before, special = b"", False
    try:
        with _open_xml(path) as handle:
            while chunk := handle.read(1 << 20):
                if match := EXPONENT.search(before + chunk):
                    text = match[0].decode(errors="replace")
                    raise SourceError(f"{path}: coordinate {text!r:.60}, expected decimal degrees; fetch it again")
                special = special or SPECIAL.search(before + chunk) is not None
                before = chunk[-100:]
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be unpacked: {error}; fetch it again") from None
    return special


def _is_regular(path: Path) -> bool:
    """Return whether nodes, ways and relations come in this order, each once, by ascending positive id."""
    import osmium

    try:
        processor: Any = osmium.FileProcessor(str(path))
        header = processor.header
        # What the format itself declares saves a pass over the extract of a country.
        features = {header.get(f"pbf_optional_feature_{n}") for n in range(8)}
        if "Sort.Type_then_ID" in features and "LocationsOnWays" not in features:
            return True
        last = (-1, 0)
        for osm_object in processor:
            order = (ORDER.find(osm_object.type_str()), osm_object.id)
            if order <= last or osm_object.id <= 0 or not osm_object.visible:
                return False
            if osm_object.is_way() and len(osm_object.nodes) and osm_object.nodes[0].location.valid():
                return False
            last = order
    except (RuntimeError, ValueError, osmium.InvalidLocationError) as error:
        raise SourceError(f"{path}: cannot be read as OpenStreetMap data: {error}; fetch it again") from None
    return True


# --- reading them --------------------------------------------------------------------------


def _xml_elements(path: Path) -> Iterator[Element]:
    try:
        with _open_xml(path) as handle:
            root = None
            for event, node in ET.iterparse(handle, events=("start", "end")):
                if root is None:
                    root = node
                if event == "end" and node.tag in ("node", "way", "relation"):
                    yield _xml_element(node)
                    root.clear()  # else the whole document stays in memory
    except (ET.ParseError, ValueError, KeyError, OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be read as OpenStreetMap data: {error}; fetch it again") from None


def _xml_element(node: ET.Element) -> Element:
    attributes = node.attrib
    element: Element = {"type": node.tag, "id": int(attributes["id"]), "version": int(attributes.get("version", 0))}
    element["tags"] = {tag.attrib["k"]: tag.attrib["v"] for tag in node.iter("tag")}
    element["deleted"] = attributes.get("action") == "delete" or attributes.get("visible") == "false"
    if "lat" in attributes and "lon" in attributes:
        element |= _point(attributes)
    points = node.findall("nd")
    element["nodes"] = [int(point.attrib["ref"]) for point in points if "ref" in point.attrib]
    element["geometry"] = [_point(point.attrib) for point in points]
    element["members"] = [
        {
            "type": member.attrib["type"],
            "ref": int(member.attrib["ref"]),
            "role": member.get("role", ""),
            "geometry": [_point(point.attrib) for point in member.iter("nd")],
        }
        for member in node.iter("member")
    ]
    return element


def _point(attributes: Mapping[str, str]) -> dict[str, float]:
    """Return latitude and longitude; none for a point without them, such as one outside the box of an answer."""
    return (
        {key: float(attributes[key]) for key in ("lat", "lon")} if "lat" in attributes and "lon" in attributes else {}
    )


def _pbf_elements(path: Path) -> Iterator[Element]:
    import osmium

    kinds = {"n": "node", "w": "way", "r": "relation"}
    try:
        processor: Any = osmium.FileProcessor(str(path))
        for osm_object in processor:
            element: Element = {
                "type": kinds[osm_object.type_str()],
                "id": osm_object.id,
                "version": osm_object.version,
            }
            element |= {"tags": dict(osm_object.tags), "deleted": not osm_object.visible}
            if osm_object.is_node() and osm_object.location.valid():
                element |= {"lat": osm_object.lat, "lon": osm_object.lon}
            elif osm_object.is_way():
                element["nodes"] = [node.ref for node in osm_object.nodes]
                locations = [node.location for node in osm_object.nodes]
                element["geometry"] = [
                    {"lat": location.lat, "lon": location.lon} if location.valid() else {} for location in locations
                ]
            elif osm_object.is_relation():
                element["members"] = [{"type": kinds[m.type], "ref": m.ref, "role": m.role} for m in osm_object.members]
            yield element
    except (RuntimeError, ValueError, KeyError) as error:
        raise SourceError(f"{path}: cannot be read as OpenStreetMap data: {error}; fetch it again") from None


# --- merging and writing -------------------------------------------------------------------


def write_native(elements: Iterable[Element], path: Path, origin: str) -> None:
    """Write elements as PBF, sorted and each once. Raises SourceError if an element is malformed."""
    try:
        _write(_merged(elements), path)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
        raise SourceError(f"{origin}: an element is malformed: {error!r:.80}; fetch again") from None


def _merged(elements: Iterable[Element]) -> dict[str, dict[int, Element]]:
    """Return elements by type and id, without deleted ones.

    Repeated elements, with and without tags, say, are merged; of several versions the newest counts.
    """
    by_type: dict[str, dict[int, Element]] = {"node": {}, "way": {}, "relation": {}}
    for element in elements:
        if element.get("type") not in by_type:
            continue
        same_type = by_type[element["type"]]
        number = _positive(element["id"])
        earlier = same_type.get(number)
        if earlier is None or element.get("version", 0) > earlier.get("version", 0):
            same_type[number] = element
        elif element.get("version", 0) == earlier.get("version", 0):
            same_type[number] = earlier | {key: value for key, value in element.items() if value}
    return {
        kind: {number: element for number, element in same_type.items() if not element.get("deleted")}
        for kind, same_type in by_type.items()
    }


def _positive(number: int) -> int:
    return number if number >= 0 else NEW_ID - number


def _write(by_type: Mapping[str, dict[int, Element]], path: Path) -> None:
    import osmium
    from osmium.osm import mutable

    nodes, ways, relations = (by_type[kind] for kind in ("node", "way", "relation"))
    for relation in relations.values():
        for member in relation.get("members", []):
            # Of `out geom`, whose members are not in the answer themselves.
            if member["type"] == "way" and member.get("geometry") and _positive(member["ref"]) not in ways:
                ways[_positive(member["ref"])] = {"geometry": member["geometry"]}
    point_ids: dict[tuple[float, float], int] = {}
    node_ids_of = {i: _node_ids(way, nodes, point_ids) for i, way in sorted(ways.items())}
    # Overwritten: of a way that one run cut short.
    with osmium.SimpleWriter(str(path), overwrite=True) as writer:
        for number, node in sorted(nodes.items()):
            at = (float(node["lon"]), float(node["lat"]))
            writer.add_node(mutable.Node(id=number, location=at, tags=node.get("tags", {})))
        for at, number in point_ids.items():
            writer.add_node(mutable.Node(id=number, location=at))
        for number, refs in node_ids_of.items():
            writer.add_way(mutable.Way(id=number, nodes=refs, tags=ways[number].get("tags", {})))
        for number, relation in sorted(relations.items()):
            members = [(m["type"][0], _positive(m["ref"]), m.get("role", "")) for m in relation.get("members", [])]
            writer.add_relation(mutable.Relation(id=number, members=members, tags=relation.get("tags", {})))


def _node_ids(way: Element, nodes: dict[int, Element], point_ids: dict[tuple[float, float], int]) -> list[int]:
    """Return the ids of the nodes of a way; points without a known node are added to `nodes` or, without id, `places`.

    A point without coordinates gets an id that no node has.
    """
    numbers = []
    for ref, point in itertools.zip_longest(way.get("nodes") or (), way.get("geometry") or ()):
        is_located = bool(point) and math.isfinite(point["lon"]) and math.isfinite(point["lat"])
        if ref is not None:
            numbers.append(_positive(ref))
            if is_located:
                nodes.setdefault(_positive(ref), point)
        elif is_located:
            numbers.append(point_ids.setdefault((point["lon"], point["lat"]), POINT_ID + 1 + len(point_ids)))
        else:
            numbers.append(POINT_ID)
    return numbers
