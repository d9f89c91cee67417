"""OpenStreetMap features of an area, from an XML, PBF or Overpass JSON file (edge).

pyosmium reads them and assembles multipolygons. Extracts cut ways and relations at their border, and mappers
cross rings: what pyosmium gives up is assembled again from the rings that do close, and counted either way.
"""

from __future__ import annotations

import bz2
import gzip
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgdata import files, overpass, tags
from sgdata.errors import SettingError, SourceError

OSM_FILES = (".osm", ".osm.gz", ".osm.bz2", ".xml", ".osm.pbf", ".pbf")
JSON_FILES = (".json", ".json.gz")
AREA_RELATIONS = ("multipolygon", "boundary")
PROLOG_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of an area, whole (not clipped).

    `table`: a GeoDataFrame in EPSG:4326 with `osm_type` (way, relation), `osm_id`, `kind` (polygon, line),
    `tags` (dict) and `geometry`, sorted by the first three. `sha256` has one hash per raw answer or file, by
    name. `as_of` is the date the data say of themselves, or None. `counts` says how many were read, mended and
    lost; `losses` names each object that was mended or lost, and why ("lost: ...").
    """

    table: Any
    sha256: Mapping[str, str]
    as_of: str | None
    counts: Mapping[str, int]
    losses: Mapping[str, str]


@dataclass
class _Scan:
    """What one pass over a file finds."""

    rows: list[tuple[str, int, str, dict[str, str], Any]] = field(default_factory=list)
    candidates: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    rings: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    members: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    done: set[tuple[str, int]] = field(default_factory=set)
    losses: dict[str, str] = field(default_factory=dict)


def read(
    source: str | Path,
    area: Any,
    *,
    rules: tags.RuleTable,
    date: str | None = None,
    store: Path | None = None,
    offline: bool = False,
) -> Features:
    """The features that intersect `area` (a shapely polygon in WGS84) and that `rules` can name.

    `source`: an .osm, .osm.pbf or Overpass .json file; a folder of Overpass answers; or `overpass` or a URL,
    asked for the state of `date`, the answers kept in `store` (required), where `offline` takes them from.
    Raises SettingError, ServiceError; SourceError: no such file, not an OSM document, an XML document type
    (entity bombs), cut-off or damaged data.
    """
    if str(source) == "overpass" or str(source).startswith(("https://", "http://")):
        if not date or store is None:
            raise SettingError(f"OpenStreetMap from {source}: no date; give one such as 2020-04-01 (--osm-date)")
        service = overpass.Service() if str(source) == "overpass" else overpass.Service(url=str(source))
        answers = overpass.fetch(area, rules, date=date, store=store, service=service, offline=offline)
        return read_files(answers, area, rules)
    path = files.existing(Path(source), "an .osm, .osm.pbf or Overpass .json file, or a folder of answers")
    answers = sorted(item for item in path.iterdir() if item.name.endswith(JSON_FILES)) if path.is_dir() else [path]
    if not answers:
        raise SourceError(f"{path}: holds no Overpass answer; expected files ending in {' or '.join(JSON_FILES)}")
    return read_files(answers, area, rules)


def read_files(paths: Sequence[Path], area: Any, rules: tags.RuleTable) -> Features:
    """The features of several files, as `read`; an object that stands in several counts once."""
    hashes, dates, scan = {}, [], _Scan()
    for path in paths:
        is_json = path.name.endswith(JSON_FILES)
        hashes[path.name] = files.sha256(overpass.unpacked(path)) if is_json else files.sha256_file(path)
        dates.append(_scan_file(path, scan, rules))
    table, outside = _table(scan, area)
    counts = Counter(f"{kind}s" for kind in table["kind"])
    counts.update(text.partition(":")[0] for text in scan.losses.values())
    counts["outside"] = outside
    return Features(
        table=table,
        sha256=hashes,
        as_of=min((date for date in dates if date), default=None),
        counts=dict(sorted(counts.items())),
        losses=dict(sorted(scan.losses.items())),
    )


def _scan_file(path: Path, scan: _Scan, rules: tags.RuleTable) -> str | None:
    """Add the features of one file to `scan`; the date that the file gives, or None."""
    if path.name.endswith(JSON_FILES):
        answer = overpass.answer_of(overpass.unpacked(path), str(path))
        with tempfile.TemporaryDirectory() as folder:
            native = Path(folder) / "answer.osm.pbf"
            overpass.write_native(answer, native, str(path))
            _collect(native, scan, rules, str(path))
        stamp: str | None = answer.get("osm3s", {}).get("timestamp_osm_base")
        return stamp
    if not path.name.endswith(OSM_FILES):
        raise SourceError(f"{path}: unknown kind of OSM file; expected one of {', '.join(OSM_FILES + JSON_FILES)}")
    if not path.name.endswith(".pbf"):
        _refuse_document_type(path)
    return _collect(path, scan, rules, str(path))


def _refuse_document_type(path: Path) -> None:
    """An OSM document has only comments before `<osm`: anything else may declare entities that explode."""
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as handle:
            start = handle.read(PROLOG_BYTES)
    except (OSError, EOFError) as error:
        raise SourceError(f"{path}: cannot be unpacked: {error}; fetch it again") from None
    if not re.match(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>)?(?:\s|<!--(?:(?!-->).)*-->)*<osm[\s>]", start, re.DOTALL):
        raise SourceError(f"{path}: begins with {start[:60]!r}; expected an <osm> document without a DOCTYPE")


# --- one pass with pyosmium ----------------------------------------------------------------


def _collect(path: Path, scan: _Scan, rules: tags.RuleTable, where: str) -> str | None:
    import osmium

    lines, areas = tags.keys(rules, "line"), tags.keys(rules, "polygon")
    try:
        processor: Any = (
            osmium.FileProcessor(str(path))
            .with_areas()
            .with_filter(osmium.filter.EntityFilter(osmium.osm.WAY | osmium.osm.RELATION | osmium.osm.AREA))
            .with_filter(osmium.filter.KeyFilter(*sorted({*lines, *areas})))
        )
        for item in processor:
            if item.is_way():
                _take_way(item, scan, rules)
            elif item.is_relation():
                _take_relation(item, scan, rules)
            else:
                _take_area(item, scan, rules)
        stamp: str | None = processor.header.get("osmosis_replication_timestamp") or None
    except (RuntimeError, ValueError) as error:
        raise SourceError(f"{where}: cannot be read as OpenStreetMap data: {error}; fetch it again") from None
    _mend(path, scan)
    return stamp


def _take_way(way: Any, scan: _Scan, rules: tags.RuleTable) -> None:
    import shapely

    name, text = ("way", way.id), dict(way.tags)
    closed = way.is_closed() and len(way.nodes) >= 4
    is_area, is_line = tags.match(rules, "polygon", text, is_way=True), tags.match(rules, "line", text, is_way=True)
    if is_area and closed and text.get("area") != "no":
        scan.candidates.setdefault(name, text)
        scan.rings[way.id] = [xy for piece in _pieces(way) for xy in piece]
        if not all(node.location.valid() for node in way.nodes):
            del scan.rings[way.id]
    elif is_area and not is_line:
        reason = "an area tagged area=no" if closed else "an area whose ring is open"
        scan.losses[f"way/{way.id}"] = f"lost: {reason}"
    if is_line and not (closed and text.get("area") == "yes"):
        pieces = [piece for piece in _pieces(way) if len(piece) >= 2]
        if sum(len(piece) for piece in pieces) < len(way.nodes):
            fate = "mended" if pieces else "lost"
            scan.losses[f"way/{way.id}"] = f"{fate}: nodes of the line are not in the data"
        if pieces:
            scan.rows.append((*name, "line", text, shapely.MultiLineString(pieces)))


def _pieces(way: Any) -> Iterator[list[tuple[float, float]]]:
    """Runs of nodes (lon, lat) between those whose place is not in the data."""
    run: list[tuple[float, float]] = []
    for node in way.nodes:
        if node.location.valid():
            run.append((node.lon, node.lat))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _take_relation(relation: Any, scan: _Scan, rules: tags.RuleTable) -> None:
    text = dict(relation.tags)
    if not tags.match(rules, "polygon", text, is_way=False):
        return
    if text.get("type") in AREA_RELATIONS:
        scan.candidates.setdefault(("relation", relation.id), text)
        scan.members[relation.id] = [(m.ref, m.role) for m in relation.members if m.type == "w"]
    else:
        scan.losses[f"relation/{relation.id}"] = f"lost: a relation of type {text.get('type', '')!r} is no area"


def _take_area(area: Any, scan: _Scan, rules: tags.RuleTable) -> None:
    import osmium
    import shapely

    name, text = ("way" if area.from_way() else "relation", area.orig_id()), dict(area.tags)
    if name in scan.done or not tags.match(rules, "polygon", text, is_way=area.from_way()):
        return
    if area.num_rings()[0] == 0:  # the assembler gave up: _mend tries
        return
    geometry = shapely.from_wkb(osmium.geom.WKBFactory().create_multipolygon(area))
    scan.done.add(name)
    scan.rows.append((*name, "polygon", text, geometry))


# --- what the assembler gave up ------------------------------------------------------------


def _mend(path: Path, scan: _Scan) -> None:
    """Build the polygons that pyosmium could not, from the rings that close; count what stays lost."""
    import shapely

    open_cases = {name: text for name, text in scan.candidates.items() if name not in scan.done}
    ways = _way_lines(path, {ref for kind, i in open_cases if kind == "relation" for ref, _ in scan.members[i]})
    for (kind, number), text in sorted(open_cases.items()):
        if kind == "way":
            ring = scan.rings.get(number)
            geometry = _polygons_in(shapely.Polygon(ring)) if ring else None
            reason = "its ring crosses itself" if ring else "nodes of the ring are not in the data"
        else:
            members = scan.members[number]
            outer = _rings(ways[ref] for ref, role in members if role != "inner" and ref in ways)
            inner = _rings(ways[ref] for ref, role in members if role == "inner" and ref in ways)
            geometry = _polygons_in(outer.difference(inner))
            missing = sum(ref not in ways for ref, _ in members)
            reason = f"{missing} of {len(members)} members are not in the data" if missing else "its rings do not close"
        kept = geometry is not None and not geometry.is_empty
        scan.losses[f"{kind}/{number}"] = f"{'mended' if kept else 'lost'}: {reason}"
        if kept:
            scan.rows.append((kind, number, "polygon", text, geometry))
        scan.done.add((kind, number))


def _way_lines(path: Path, wanted: set[int]) -> dict[int, Any]:
    """The lines (shapely) of these ways, as far as all their nodes are there."""
    import osmium
    import shapely

    if not wanted:
        return {}
    found = {}
    processor: Any = osmium.FileProcessor(str(path), osmium.osm.NODE | osmium.osm.WAY).with_locations()
    for way in processor.with_filter(osmium.filter.EntityFilter(osmium.osm.WAY)):
        if way.id in wanted and len(way.nodes) > 1 and all(node.location.valid() for node in way.nodes):
            found[way.id] = shapely.LineString([(node.lon, node.lat) for node in way.nodes])
    return found


def _rings(lines: Iterable[Any]) -> Any:
    """The ground inside the rings that these lines close, crossings noded."""
    import shapely

    return shapely.union_all(shapely.get_parts(shapely.polygonize([shapely.union_all(list(lines))])))


def _polygons_in(geometry: Any) -> Any:
    """The polygonal part of a geometry made valid."""
    import shapely

    parts = shapely.get_parts(shapely.make_valid(geometry))
    areas = [part for part in parts if part.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(areas)


def _table(scan: _Scan, area: Any) -> tuple[Any, int]:
    """The rows that touch `area` as a GeoDataFrame, sorted, and how many did not touch it."""
    import geopandas
    import shapely

    shapely.prepare(area)
    rows = sorted({row[:3]: row for row in scan.rows}.values(), key=lambda row: row[:3])
    inside = [row for row in rows if shapely.intersects(area, row[4])]
    columns = ("osm_type", "osm_id", "kind", "tags", "geometry")
    data = {name: [row[i] for row in inside] for i, name in enumerate(columns)}
    return geopandas.GeoDataFrame(data, geometry="geometry", crs="EPSG:4326"), len(rows) - len(inside)
