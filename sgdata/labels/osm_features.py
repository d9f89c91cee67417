"""Read OpenStreetMap features of an area from an XML, PBF or Overpass JSON file.

pyosmium reads the file and assembles multipolygons. Extracts cut ways and relations at their border, and rings may
cross: multipolygons that pyosmium rejects are assembled from the rings that close, and counted.
"""

from __future__ import annotations

import bz2
import gzip
import json
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdata import files
from sgdata.errors import ServiceError, SettingError, SourceError
from sgdata.labels import osm_rings, overpass, tag_rules
from sgdata.limits import CROSSINGS, PROLOG_BYTES, WAY_NODES

if TYPE_CHECKING:
    from sgdata.scenes.aoi import Area

OSM_FILES = (".osm", ".osm.gz", ".osm.bz2", ".xml", ".osm.pbf", ".pbf")
JSON_FILES = (".json", ".json.gz")
AREA_RELATIONS = ("multipolygon", "boundary")

LonLat = tuple[float, float]
"""Longitude and latitude in degrees."""
EXPONENT = re.compile(rb"""\bl(?:on|at)\s*=\s*["'][^"'<>]{0,40}?[eE][+-]?\d{2,}""")
MANY_NODES = 200
"""Lines of fewer nodes are not tested for crossings."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of an area, not clipped.

    Attributes:
        table: GeoDataFrame in EPSG:4326 with `osm_type` (way, relation), `osm_id`, `kind` (polygon, line), `tags`
            (dict) and `geometry`, sorted by the first three.
        sha256: Hash of each raw answer or file, by name.
        as_of: Date in the data, or None.
        counts: Number of features read, mended and lost.
        losses: Reason by name, for each object that was mended or lost ("lost: ...").
    """

    table: Any
    sha256: Mapping[str, str]
    as_of: str | None
    counts: Mapping[str, int]
    losses: Mapping[str, str]


def located(area: Area, outline: Path, *, offline: bool = False) -> Area:
    """Replace the place name of an area by its outline, which is geocoded once and stored.

    Args:
        area: Area of a build.
        outline: File for the outline.
        offline: Use the stored outline only.

    Raises:
        SettingError: There is no such place, or it has no polygon.
        ServiceError: The geocoder does not answer.
        SourceError: `offline`, and no outline is stored.
    """
    if area.place is None:
        return area
    # Geocoding is not reproducible, so the first outline is used from then on.
    kept = json.loads(outline.read_bytes()) if outline.is_file() else {}
    if kept.get("name") != area.place:
        if offline:
            raise SourceError(f"{outline}: no stored outline of {area.place!r}; run without --offline, or give --aoi")
        files.write(outline, files.pretty_json({"name": area.place, "type": "Feature", **_geocoded(area.place)}))
    return replace(area, place=None, aoi=str(outline))


def _geocoded(place: str) -> dict[str, Any]:
    """Return geometry and attribution of a place from Nominatim."""
    import osmnx
    import requests
    import shapely

    osmnx.settings.use_cache = False  # its cache is the folder ./cache and never expires
    try:
        geometry = osmnx.geocode_to_gdf(place).geometry.iloc[0]
    except requests.RequestException as error:
        raise ServiceError(f"place {place!r}: no geocoder answers: {error!s:.120}; give --bbox or --aoi") from None
    except (ValueError, TypeError, KeyError) as error:
        raise SettingError(f"place {place!r}: {error!s:.160}; expected a name with an outline; give --aoi") from None
    licence = "© OpenStreetMap contributors, ODbL 1.0"
    return {"properties": {"licence": licence}, "geometry": json.loads(shapely.to_geojson(geometry))}


@dataclass(kw_only=True)
class _Scan:
    """Features found so far in `area`; candidates are areas that pyosmium has not assembled yet."""

    area: Any
    rules: tag_rules.RuleTable
    rows: dict[tuple[str, int, str], tuple[dict[str, str], Any]] = field(default_factory=dict)
    outside: int = 0
    losses: dict[str, str] = field(default_factory=dict)
    candidates: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    rings: dict[int, list[LonLat]] = field(default_factory=dict)
    members: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    assembled: set[tuple[str, int]] = field(default_factory=set)

    def add(self, name: tuple[str, int], kind: tag_rules.Kind, text: dict[str, str], geometry: Any) -> bool:
        """Add a feature, once; return False for one outside the area, so that a large file needs little memory."""
        import shapely

        if not shapely.intersects(self.area, geometry):
            self.outside += 1
            return False
        self.rows.setdefault((*name, kind), (text, geometry))
        return True

    def lose(self, name: tuple[str, int], fate: str, places: Sequence[LonLat] = ()) -> None:
        """Record why an object was mended or lost, unless all its known nodes are outside the area."""
        west, south, east, north = self.area.bounds
        if not places or any(west <= x <= east and south <= y <= north for x, y in places):
            self.losses[f"{name[0]}/{name[1]}"] = fate


def read(
    source: str | Path,
    area: Any,
    *,
    rules: tag_rules.RuleTable,
    date: str | None = None,
    store: Path | None = None,
    offline: bool = False,
) -> Features:
    """Read the features that intersect an area and have a rule.

    Args:
        source: An .osm, .osm.pbf or Overpass .json file, a folder of Overpass answers, `overpass`, or the URL of an
            Overpass server.
        area: Polygon (shapely) in WGS84.
        rules: Rules that classify features.
        date: State of the data, for a server.
        store: Folder for the answers of a server.
        offline: Use stored answers only.

    Raises:
        SettingError: A server is given without a date or a folder.
        ServiceError: The server gives no complete answer.
        SourceError: A file is missing, truncated, damaged, not OpenStreetMap data, or XML with a document type (which
            may declare entities that expand without limit).
    """
    if str(source) == "overpass" or str(source).startswith(("https://", "http://")):
        # Without a date, labels would depend on the day of the build.
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


def read_files(paths: Sequence[Path], area: Any, rules: tag_rules.RuleTable) -> Features:
    """Read the features of several files, as `read` does; an object that is in several counts once."""
    import shapely

    shapely.prepare(area)
    hashes, dates, scan = {}, [], _Scan(area=area, rules=rules)
    for path in paths:
        # Answers are hashed unpacked, since gzip bytes differ between zlib versions.
        is_json = path.name.endswith(JSON_FILES)
        hashes[path.name] = files.sha256(overpass.unpacked(path)) if is_json else files.sha256_file(path)
        dates.append(_scan_file(path, scan))
    table = _table(scan)
    counts = Counter(f"{kind}s" for kind in table["kind"])
    counts.update(text.partition(":")[0] for text in scan.losses.values())
    counts["outside"] = scan.outside
    return Features(
        table=table,
        sha256=hashes,
        as_of=min((date for date in dates if date), default=None),
        counts=dict(sorted(counts.items())),
        losses=dict(sorted(scan.losses.items())),
    )


def known(path: Path) -> None:
    """Raise SourceError if the suffix of a file is of no supported format."""
    if not path.name.endswith(OSM_FILES + JSON_FILES):
        raise SourceError(f"{path}: unknown kind of OSM file; expected one of {', '.join(OSM_FILES + JSON_FILES)}")


def _scan_file(path: Path, scan: _Scan) -> str | None:
    """Add the features of one file to `scan` and return the date in the file, or None."""
    if path.name.endswith(JSON_FILES):
        answer = overpass.answer_of(overpass.unpacked(path), str(path))
        with tempfile.TemporaryDirectory() as folder:
            native = Path(folder) / "answer.osm.pbf"
            overpass.write_native(answer, native, str(path))
            _collect(native, scan, str(path))
        about = answer.get("osm3s")
        stamp = about.get("timestamp_osm_base") if isinstance(about, dict) else None
        return stamp if isinstance(stamp, str) else None
    known(path)
    # expat, inside pyosmium, would expand entities.
    if not path.name.endswith(".pbf"):
        _refuse_document_type(path)
        _refuse_exponents(path)
    return _collect(path, scan, str(path))


def _refuse_exponents(path: Path) -> None:
    """Raise SourceError for coordinates such as 1e999, which libosmium reads as some other place."""
    before = b""
    try:
        with _open_xml(path) as handle:
            while chunk := handle.read(1 << 20):
                if found := EXPONENT.search(before + chunk):
                    text = found[0].decode(errors="replace")
                    raise SourceError(f"{path}: coordinate {text!r:.60}, expected decimal degrees; fetch it again")
                before = chunk[-100:]
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be unpacked: {error}; fetch it again") from None


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
    rest = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if rest.startswith(b"<?xml"):
        rest = rest.partition(b"?>")[2].lstrip()
    while rest.startswith(b"<!--"):
        rest = rest.partition(b"-->")[2].lstrip()
    if not re.match(rb"<osm[\s>]", rest):
        raise SourceError(f"{path}: begins with {start[:60]!r}; expected an <osm> document without a DOCTYPE")


# --- one pass with pyosmium ----------------------------------------------------------------


def _collect(path: Path, scan: _Scan, where: str) -> str | None:
    """Add the features of one OSM file and return the date in its header, or None."""
    import osmium
    import shapely

    areas = tag_rules.keys(scan.rules, "polygon")
    keys = sorted({*areas, *tag_rules.keys(scan.rules, "line")})
    kinds = osmium.osm.WAY | osmium.osm.RELATION | osmium.osm.AREA
    try:
        processor: Any = osmium.FileProcessor(str(path))
        # Without a filter pyosmium would assemble every boundary in the file.
        selected = osmium.filter.KeyFilter(*(areas or keys))
        filters = (osmium.filter.EntityFilter(kinds), osmium.filter.KeyFilter(*keys))
        for item in _with_areas(path, selected, filters, scan):
            if item.is_way():
                _take_way(item, scan)
            elif item.is_relation():
                _take_relation(item, scan)
            else:
                _take_area(item, scan)
        stamp: str | None = processor.header.get("osmosis_replication_timestamp") or None
        _mend(path, scan)
    except (RuntimeError, ValueError, KeyError, osmium.InvalidLocationError, shapely.GEOSException) as error:
        raise SourceError(f"{where}: cannot be read as OpenStreetMap data: {error}; fetch it again") from None
    return stamp


class _LongWays:
    """A filter for pyosmium that keeps ways of too many nodes from the assembler, which takes their number squared."""

    def __init__(self, scan: _Scan) -> None:
        self._scan = scan

    def way(self, way: Any) -> bool:
        """Return whether to hide a way."""
        if len(way.nodes) <= WAY_NODES.most:
            return False
        self._scan.lose(("way", way.id), f"lost: {len(way.nodes)} nodes, expected at most {WAY_NODES.most}")
        return True


def _with_areas(path: Path, selected: Any, filters: Sequence[Any], scan: _Scan) -> Iterator[Any]:
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
        for item in osmium.OsmFileIterator(reader, *handlers):
            yield item
            if areas:
                yield from areas
    if areas:
        yield from areas


def _take_way(way: Any, scan: _Scan) -> None:
    import shapely

    name, text = ("way", way.id), dict(way.tags)
    closed = way.is_closed() and len(way.nodes) >= 4
    # One closed way can be both: a roundabout (line) around a green (area).
    is_area = tag_rules.match(scan.rules, "polygon", text, is_way=True)
    is_line = tag_rules.match(scan.rules, "line", text, is_way=True)
    if not is_area and not is_line:
        return
    pieces = list(_pieces(way))
    places = [place for piece in pieces for place in piece]
    whole = len(places) == len(way.nodes)
    if is_area and closed and text.get("area") != "no":
        scan.candidates[name] = text
        scan.rings[way.id] = places if whole else []
    elif is_area and not is_line:
        scan.lose(name, "lost: an area tagged area=no" if closed else "lost: an area whose ring is open", places)
    if is_line and not (closed and text.get("area") == "yes"):
        pieces = [piece for piece in pieces if len(piece) > 1]
        if not whole:
            scan.lose(name, f"{'mended' if pieces else 'lost'}: nodes of the line are not in the data", places)
        if sum(map(len, pieces)) > MANY_NODES and osm_rings.cross_often(
            [shapely.LineString(piece) for piece in pieces]
        ):
            scan.lose(name, f"lost: the line crosses itself more than {CROSSINGS.most} times", places)
        elif pieces:
            scan.add(name, "line", text, shapely.MultiLineString(pieces))


def _pieces(way: Any) -> Iterator[list[LonLat]]:
    """Yield runs of nodes (lon, lat) between nodes without coordinates in the data."""
    run: list[LonLat] = []
    for node in way.nodes:
        if node.location.valid():
            run.append((node.lon, node.lat))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _take_relation(relation: Any, scan: _Scan) -> None:
    name, text = ("relation", relation.id), dict(relation.tags)
    if not tag_rules.match(scan.rules, "polygon", text, is_way=False):
        return
    if name in scan.assembled:
        return
    if text.get("type") in AREA_RELATIONS:
        scan.candidates[name] = text
        scan.members[relation.id] = [(m.ref, m.role) for m in relation.members if m.type == "w"]
    else:
        scan.lose(name, f"lost: a relation of type {text.get('type', '')!r} is no area")


def _take_area(area: Any, scan: _Scan) -> None:
    """Add an assembled area if it has a rule; one without a ring is left to `_mend`."""
    import osmium
    import shapely

    is_way, number = area.from_way(), area.orig_id()
    name, text = ("way" if is_way else "relation", number), dict(area.tags)
    if area.num_rings()[0] and tag_rules.match(scan.rules, "polygon", text, is_way=is_way):
        geometry = shapely.from_wkb(osmium.geom.WKBFactory().create_multipolygon(area))
        scan.add(name, "polygon", text, geometry)
        # A relation may precede or follow its area, which is complete with the last of its members.
        scan.candidates.pop(name, None)
        scan.rings.pop(number if is_way else -1, None)
        if not is_way:
            scan.assembled.add(name)


# --- areas that pyosmium rejects ------------------------------------------------------------


def _mend(path: Path, scan: _Scan) -> None:
    """Build the polygons that pyosmium rejects from the rings that close, and record those that stay lost."""
    wanted = {ref for kind, i in scan.candidates if kind == "relation" for ref, _ in scan.members[i]}
    ways = _way_lines(path, wanted)
    for name, text in sorted(scan.candidates.items()):
        kind, number = name
        if kind == "way":
            geometry, reason = osm_rings.mended_way(scan.rings[number])
        else:
            geometry, reason = osm_rings.mended_relation(scan.members[number], ways)
        if geometry.is_empty:
            scan.lose(name, f"lost: {reason}")
        elif scan.add(name, "polygon", text, geometry):
            scan.lose(name, f"mended: {reason}")
    scan.candidates.clear()
    scan.rings.clear()
    scan.members.clear()


def _way_lines(path: Path, wanted: set[int]) -> dict[int, Any]:
    """Return the lines (shapely) of the ways with all nodes in the data."""
    import osmium
    import shapely

    if not wanted:
        return {}
    lines = {}
    processor: Any = osmium.FileProcessor(str(path), osmium.osm.NODE | osmium.osm.WAY).with_locations()
    for way in processor.with_filter(osmium.filter.EntityFilter(osmium.osm.WAY)):
        if way.id in wanted and len(way.nodes) > 1 and all(node.location.valid() for node in way.nodes):
            lines[way.id] = shapely.LineString([(node.lon, node.lat) for node in way.nodes])
    return lines


def _table(scan: _Scan) -> Any:
    """Return the rows as a sorted GeoDataFrame."""
    import geopandas

    rows = [(*name, *scan.rows[name]) for name in sorted(scan.rows)]
    return geopandas.GeoDataFrame(rows, columns=["osm_type", "osm_id", "kind", "tags", "geometry"], crs="EPSG:4326")
