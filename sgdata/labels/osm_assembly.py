"""Collect the areas and lines of OpenStreetMap files and of tables of osmnx.

pyosmium reads the files and assembles multipolygons. Extracts cut ways and relations at their border, and rings may
cross: multipolygons that pyosmium rejects are assembled from the rings that close, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgdata.errors import SourceError
from sgdata.labels import osm_elements, osm_ring_repair, osm_table, tag_rules
from sgdata.limits import CROSSINGS, WAY_NODES

AREA_RELATIONS = ("multipolygon", "boundary")

UNTAGGED = ("type", "area", "created_by", "source", "note", "fixme", "comment", "name")
"""Keys that say nothing about the ground: multipolygons with no other, of before 2017, have it on their outer ways."""

LonLat = tuple[float, float]
"""Longitude and latitude in degrees."""
MANY_NODES = 200
"""Lines of fewer nodes are not tested for crossings."""


@dataclass(kw_only=True)
class OsmScan:
    """Features found so far in an area.

    Attributes:
        area: Outline in degrees.
        rules: Rules that choose the objects to keep.
        core: Part of the area that coastlines must cross; None for all of it.
        rows: Tags and geometry by type, number and kind of the object.
        outside: Number of features outside the area.
        losses: Why an object was mended or lost, by `type/number`.
        candidates: Tags by type and number of areas that pyosmium has not assembled yet.
        rings: Outlines of closed ways among the candidates; empty where a node lacks its position.
        members: Ways with their roles, of relations among the candidates.
        untagged: The same of multipolygons whose tags are on their ways.
        coast: Coastlines.
        assembled: Type and number of areas that pyosmium assembled.
    """

    area: Any
    rules: tag_rules.RuleTable
    core: Any = None
    rows: dict[tuple[str, int, str], tuple[dict[str, str], Any]] = field(default_factory=dict)
    outside: int = 0
    losses: dict[str, str] = field(default_factory=dict)
    candidates: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    rings: dict[int, list[LonLat]] = field(default_factory=dict)
    members: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    untagged: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    coast: list[Any] = field(default_factory=list)
    assembled: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        import shapely

        shapely.prepare(self.area)

    def add(self, object_id: tuple[str, int], kind: tag_rules.Kind, tags: dict[str, str], geometry: Any) -> bool:
        """Add a feature, once; return False for one outside the area, so that a large file needs little memory."""
        import shapely

        if not shapely.intersects(self.area, geometry):
            self.outside += 1
            return False
        self.rows.setdefault((object_id[0], osm_elements.original_id(object_id[1]), kind), (tags, geometry))
        return True

    def lose(self, object_id: tuple[str, int], fate: str, lon_lats: Sequence[LonLat] = ()) -> None:
        """Record why an object was mended or lost, unless all its known nodes are outside the area."""
        west, south, east, north = self.area.bounds
        if not lon_lats or any(west <= x <= east and south <= y <= north for x, y in lon_lats):
            self.losses[f"{object_id[0]}/{osm_elements.original_id(object_id[1])}"] = fate

    def forget(self, way: int) -> None:
        """Remove the area of a way whose tags are those of a multipolygon, and what was recorded of it."""
        number = osm_elements.original_id(way)
        self.rows.pop(("way", number, "polygon"), None)
        self.losses.pop(f"way/{number}", None)


# --- one pass with pyosmium ----------------------------------------------------------------


def collect(path: Path, scan: OsmScan, origin: str) -> str | None:
    """Add the features of one OSM file and return the date in its header, or None."""
    import osmium
    import shapely

    areas = tag_rules.keys(scan.rules, "polygon")
    keys = sorted({*areas, *tag_rules.keys(scan.rules, "line"), "type"})
    kinds = osmium.osm.WAY | osmium.osm.RELATION | osmium.osm.AREA
    try:
        processor: Any = osmium.FileProcessor(str(path))
        # Without a filter pyosmium would assemble every boundary in the file.
        selected = osmium.filter.KeyFilter(*(areas or keys))
        filters = (osmium.filter.EntityFilter(kinds), osmium.filter.KeyFilter(*keys))
        for osm_object in _with_areas(path, selected, filters, scan):
            if osm_object.is_way():
                _take_way(osm_object, scan)
            elif osm_object.is_relation():
                _take_relation(osm_object, scan)
            else:
                _take_area(osm_object, scan)
        stamp: str | None = processor.header.get("osmosis_replication_timestamp") or None
        _mend(path, scan)
    except (RuntimeError, ValueError, KeyError, osmium.InvalidLocationError, shapely.GEOSException) as error:
        raise SourceError(f"{origin}: cannot be read as OpenStreetMap data: {error}; fetch it again") from None
    return stamp


class _LongWays:
    """A filter for pyosmium that keeps ways of too many nodes from the assembler, which takes their number squared."""

    def __init__(self, scan: OsmScan) -> None:
        self._scan = scan

    def way(self, way: Any) -> bool:
        """Return whether to hide a way."""
        if len(way.nodes) <= WAY_NODES.most:
            return False
        self._scan.lose(("way", way.id), f"lost: {len(way.nodes)} nodes, expected at most {WAY_NODES.most}")
        return True


def _with_areas(path: Path, selected: Any, filters: Sequence[Any], scan: OsmScan) -> Iterator[Any]:
    """Yield ways, relations and areas as `osmium.FileProcessor.with_areas` does, without ways of too many nodes.

    Its own filters come after the assembler.
    """
    import osmium

    manager = osmium.area.AreaManager()
    with osmium.io.Reader(str(path), osmium.osm.RELATION) as reader:
        osmium.apply(reader, selected, manager.first_pass_handler())
    locations = osmium.NodeLocationsForWays(osmium.index.create_map("flex_mem"))
    locations.ignore_errors()
    areas = osmium.BufferIterator(*filters)
    handlers = (_LongWays(scan), locations, manager.second_pass_to_buffer(areas), *filters)
    with osmium.io.Reader(str(path)) as reader:
        for osm_object in osmium.OsmFileIterator(reader, *handlers):
            yield osm_object
            if areas:
                yield from areas
    if areas:
        yield from areas


def _take_way(way: Any, scan: OsmScan) -> None:
    object_id, tags = ("way", way.id), dict(way.tags)
    closed = way.is_closed() and len(way.nodes) >= 4
    pieces = list(_located_runs(way))
    complete = sum(map(len, pieces)) == len(way.nodes)
    if _take_line(object_id, tags, pieces, scan, closed=closed, complete=complete):
        scan.candidates[object_id] = tags
        scan.rings[way.id] = [lon_lat for piece in pieces for lon_lat in piece] if complete else []


def _take_line(
    object_id: tuple[str, int],
    tags: dict[str, str],
    pieces: list[list[LonLat]],
    scan: OsmScan,
    *,
    closed: bool,
    complete: bool,
) -> bool:
    """Add the line of a way if it has a rule, and return whether the way is also, or only, an area.

    `pieces` are runs of nodes with coordinates; `complete` is whether every node has them.
    """
    import shapely

    if tags.get("natural") == "coastline":
        scan.coast += [shapely.LineString(piece) for piece in pieces if len(piece) > 1]
    # One closed way can be both: a roundabout (line) around a green (area).
    is_area = tag_rules.match(scan.rules, "polygon", tags, is_way=True) is not None
    is_line = tag_rules.match(scan.rules, "line", tags, is_way=True) is not None
    lon_lats = [lon_lat for piece in pieces for lon_lat in piece]
    ring = is_area and closed and tags.get("area") != "no"
    if is_area and not ring and not is_line:
        scan.lose(object_id, "lost: an area tagged area=no" if closed else "lost: an area whose ring is open", lon_lats)
    if is_line and not (closed and tags.get("area") == "yes"):
        pieces = [piece for piece in pieces if len(piece) > 1]
        if not complete:
            scan.lose(object_id, f"{'mended' if pieces else 'lost'}: nodes of the line are not in the data", lon_lats)
        if sum(map(len, pieces)) > MANY_NODES and osm_ring_repair.cross_often(
            [shapely.LineString(piece) for piece in pieces]
        ):
            scan.lose(object_id, f"lost: the line crosses itself more than {CROSSINGS.most} times", lon_lats)
        elif pieces:
            scan.add(object_id, "line", tags, shapely.MultiLineString(pieces))
    return ring


def take_table(frame: Any, scan: OsmScan, origin: str) -> Iterator[tuple[tuple[str, int], dict[str, str], Any]]:
    """Add the objects of a table of osmnx, and yield them."""
    import shapely

    for object_id, tags, geometry in osm_table.objects(frame, origin):
        is_polygon = geometry.geom_type in ("Polygon", "MultiPolygon")
        if object_id[0] == "way" and geometry.geom_type in ("Polygon", "LineString"):
            # Which closed ways are areas is for our rules to say, not for those of osmnx.
            ring = geometry.exterior if is_polygon else geometry
            points = [(x, y) for x, y in shapely.get_coordinates(ring).tolist()]
            closed = len(points) >= 4 and points[0] == points[-1]
            if _take_line(object_id, tags, [points], scan, closed=closed, complete=True):
                polygon = geometry if is_polygon else shapely.Polygon(points)
                if not polygon.is_valid:
                    polygon, reason = osm_ring_repair.mend_way(points)
                    scan.lose(object_id, f"{'lost' if polygon.is_empty else 'mended'}: {reason}", points)
                scan.add(object_id, "polygon", tags, polygon)
        elif is_polygon and tag_rules.match(scan.rules, "polygon", tags, is_way=object_id[0] == "way"):
            scan.add(object_id, "polygon", tags, osm_ring_repair.polygons_in(geometry))
        elif tag_rules.match(scan.rules, "polygon", tags, is_way=False):
            scan.lose(object_id, f"lost: a {object_id[0]} of geometry {geometry.geom_type} is no area")
        yield object_id, tags, geometry


def _located_runs(way: Any) -> Iterator[list[LonLat]]:
    """Yield runs of nodes (lon, lat) between nodes without coordinates in the data."""
    points: list[LonLat] = []
    for node in way.nodes:
        if node.location.valid():
            points.append((node.lon, node.lat))
        elif points:
            yield points
            points = []
    if points:
        yield points


def _take_relation(relation: Any, scan: OsmScan) -> None:
    object_id, tags = ("relation", relation.id), dict(relation.tags)
    members = [(m.ref, m.role) for m in relation.members if m.type == "w"]
    if tags.get("type") == "multipolygon" and tags.keys() <= set(UNTAGGED):
        scan.untagged[relation.id] = members
    if not tag_rules.match(scan.rules, "polygon", tags, is_way=False):
        return
    if object_id in scan.assembled:
        return
    if tags.get("type") in AREA_RELATIONS:
        scan.candidates[object_id] = tags
        scan.members[relation.id] = members
    else:
        scan.lose(object_id, f"lost: a relation of type {tags.get('type', '')!r} is no area")


def _take_area(area: Any, scan: OsmScan) -> None:
    """Add an assembled area if it has a rule; one without a ring is left to `_mend`."""
    import osmium
    import shapely

    is_way, number = area.from_way(), area.orig_id()
    object_id, tags = ("way" if is_way else "relation", number), dict(area.tags)
    if area.num_rings()[0] and tag_rules.match(scan.rules, "polygon", tags, is_way=is_way):
        geometry = shapely.from_wkb(osmium.geom.WKBFactory().create_multipolygon(area))
        scan.add(object_id, "polygon", tags, geometry)
        # A relation may precede or follow its area, which is complete with the last of its members.
        scan.candidates.pop(object_id, None)
        scan.rings.pop(number if is_way else -1, None)
        if not is_way:
            scan.assembled.add(object_id)


# --- areas that pyosmium rejects ------------------------------------------------------------


def _mend(path: Path, scan: OsmScan) -> None:
    """Build the polygons that pyosmium rejects from the rings that close, and record those that stay lost."""
    way_ids = {ref for members in (*scan.members.values(), *scan.untagged.values()) for ref, _ in members}
    ways, way_tags = _way_lines(path, way_ids)
    _take_untagged(scan, ways, way_tags)
    for object_id, own_tags in sorted(scan.candidates.items()):
        kind, number = object_id
        if kind == "way":
            geometry, reason = osm_ring_repair.mend_way(scan.rings[number])
        else:
            geometry, reason = osm_ring_repair.mend_relation(scan.members[number], ways)
        if geometry.is_empty:
            scan.lose(object_id, f"lost: {reason}")
        elif scan.add(object_id, "polygon", own_tags, geometry):
            scan.lose(object_id, f"mended: {reason}")
    scan.candidates.clear()
    scan.rings.clear()
    scan.members.clear()


def _take_untagged(scan: OsmScan, ways: Mapping[int, Any], tags: Mapping[int, dict[str, str]]) -> None:
    """Add multipolygons without tags by the tags that all their outer ways share, and drop the areas of those ways."""
    for number, members in sorted(scan.untagged.items()):
        outer = [tags[ref] for ref, role in members if role != "inner" and ref in tags]
        shared = set.intersection(*(set(way_tags.items()) for way_tags in outer)) if outer else set()
        # By the rules of ways: streets around a block do not make it a street.
        if not tag_rules.match(scan.rules, "polygon", dict(shared), is_way=True):
            continue
        geometry, reason = osm_ring_repair.mend_relation(members, ways)
        for ref, _ in members:
            if shared <= set(tags.get(ref, {}).items()):
                scan.forget(ref)
        if geometry.is_empty:
            scan.lose(("relation", number), f"lost: {reason}")
        elif scan.add(("relation", number), "polygon", dict(sorted(shared)), geometry) and not ways.keys() >= {
            ref for ref, _ in members
        }:
            scan.lose(("relation", number), f"mended: {reason}")
    scan.untagged.clear()


def _way_lines(path: Path, way_ids: set[int]) -> tuple[dict[int, Any], dict[int, dict[str, str]]]:
    """Return the lines (shapely) of the ways with all nodes in the data, and the tags of all that are wanted."""
    import osmium
    import shapely

    lines: dict[int, Any] = {}
    tags: dict[int, dict[str, str]] = {}
    if not way_ids:
        return lines, tags
    processor: Any = osmium.FileProcessor(str(path), osmium.osm.NODE | osmium.osm.WAY).with_locations()
    for way in processor.with_filter(osmium.filter.EntityFilter(osmium.osm.WAY)):
        if way.id in way_ids:
            tags[way.id] = dict(way.tags)
        if way.id in way_ids and len(way.nodes) > 1 and all(node.location.valid() for node in way.nodes):
            lines[way.id] = shapely.LineString([(node.lon, node.lat) for node in way.nodes])
    return lines, tags
