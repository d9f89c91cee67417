"""Read OpenStreetMap features of an area from XML, PBF or Overpass JSON files, a server, or a table of osmnx."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdata import files, local_paths
from sgdata.errors import SettingError, SourceError
from sgdata.labels import coastline, osm_assembly, osm_elements, overpass, tag_rules

OSM_FILES = (".osm", ".osm.gz", ".osm.bz2", ".xml", ".osm.pbf", ".pbf")
JSON_FILES = (".json", ".json.gz")
TABLE_FILES = (".gpkg", ".parquet", ".geoparquet")


@dataclass(frozen=True, kw_only=True)
class OsmFeatures:
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


def read(
    source: Any,
    area: Any,
    *,
    rules: tag_rules.RuleTable,
    date: str | None = None,
    store: Path | None = None,
    offline: bool = False,
    sea: Path | None = None,
    core: Any = None,
) -> OsmFeatures:
    """Read the features that intersect an area and have a rule.

    Args:
        source: An .osm, .osm.pbf or Overpass .json file, a GeoPackage or GeoParquet file of a table of osmnx, a
            folder of Overpass answers, `overpass`, the URL of an Overpass server, or a GeoDataFrame as
            `osmnx.features_from_*` returns it.
        area: Polygon (shapely) in WGS84.
        rules: Rules that classify features.
        date: State of the data, for a server.
        store: Folder for the answers of a server.
        offline: Use stored answers only.
        sea: Vector file with the polygons of the sea; None to build them from the coastlines.
        core: Part of the area (shapely) that coastlines must cross; default: all of it.

    Raises:
        SettingError: A server is given without a date or a folder.
        ServiceError: The server gives no complete answer.
        SourceError: A file is missing, truncated, damaged, not OpenStreetMap data, or XML with a document type (which
            may declare entities that expand without limit).
    """
    if not isinstance(source, str | Path):
        return _read_table(source, osm_assembly.OsmScan(area=area, rules=rules, core=core), sea)
    if str(source) == "overpass" or str(source).startswith(("https://", "http://")):
        # Without a date, labels would depend on the day of the build.
        if not date or store is None:
            raise SettingError(f"OpenStreetMap from {source}: no date; give one such as 2020-04-01 (--osm-date)")
        service = overpass.OverpassServer() if str(source) == "overpass" else overpass.OverpassServer(url=str(source))
        answers = overpass.fetch(area, rules, date=date, store=store, service=service, offline=offline)
        return read_files(answers, area, rules, sea, core)
    local_paths.require_local(str(source), "--osm", writes=False)
    path = files.require_file(Path(source), "an .osm, .osm.pbf or Overpass .json file, or a folder of answers")
    answers = sorted(item for item in path.iterdir() if item.name.endswith(JSON_FILES)) if path.is_dir() else [path]
    if not answers:
        raise SourceError(
            f"{path}: holds no Overpass answer; expected files ending in {' or '.join(JSON_FILES)}; give their folder"
        )
    return read_files(answers, area, rules, sea, core)


def read_files(
    paths: Sequence[Path], area: Any, rules: tag_rules.RuleTable, sea: Path | None = None, core: Any = None
) -> OsmFeatures:
    """Read the features of several files, as `read` does; an object that is in several counts once."""
    hashes, dates, scan = {}, [], osm_assembly.OsmScan(area=area, rules=rules, core=core)
    for path in paths:
        # Answers are hashed unpacked, since gzip bytes differ between zlib versions.
        is_json = path.name.endswith(JSON_FILES)
        hashes[path.name] = files.sha256(overpass.unpack(path)) if is_json else files.sha256_file(path)
        dates.append(_scan_file(path, scan))
    return _features(scan, hashes, sea, as_of=min((date for date in dates if date), default=None))


def _read_table(frame: Any, scan: osm_assembly.OsmScan, sea: Path | None) -> OsmFeatures:
    content = [
        (name, tags, shape.wkb_hex) for name, tags, shape in osm_assembly.take_table(frame, scan, "GeoDataFrame")
    ]
    return _features(scan, {"GeoDataFrame": files.sha256(files.canonical_json(content))}, sea, as_of=None)


def _features(
    scan: osm_assembly.OsmScan, hashes: dict[str, str], sea: Path | None, *, as_of: str | None
) -> OsmFeatures:
    """Return what was found, with the sea."""
    if sea is not None:
        hashes[sea.name] = files.sha256_file(sea)
    _add_sea(scan, sea)
    table = _table(scan)
    counts = Counter(f"{kind}s" for kind in table["kind"])
    counts.update(text.partition(":")[0] for text in scan.losses.values())
    counts["outside"] = scan.outside
    return OsmFeatures(
        table=table,
        sha256=hashes,
        as_of=as_of,
        counts=dict(sorted(counts.items())),
        losses=dict(sorted(scan.losses.items())),
    )


def _add_sea(scan: osm_assembly.OsmScan, path: Path | None) -> None:
    """Add the part of the area that is sea, by a file of polygons or by the coastlines."""
    import shapely

    from sgdata.rasters import vectors

    if path is not None:
        polygons = vectors.read_geometries(path, bounds=scan.area.bounds)
        ground = shapely.intersection(shapely.union_all(shapely.make_valid(polygons)), scan.area)
    else:
        ground, gaps = coastline.sea(scan.coast, scan.area)
        if gaps and scan.core is not None:
            # Coastlines may end outside the core, as where an extract was cut.
            inner, open_gaps = coastline.sea(scan.coast, scan.core)
            if not open_gaps and not shapely.is_empty(inner):
                ground, gaps = shapely.union(ground, inner), ""
        if gaps:
            scan.lose(("coastline", 0), f"lost: {gaps}; --sea takes a file")
    if not shapely.is_empty(ground):
        scan.rows["sea", 0, "polygon"] = ({tag_rules.SEA: "yes"}, ground)


def check_suffix(path: Path) -> None:
    """Raise SourceError if the suffix of a file is of no supported format."""
    kinds = OSM_FILES + JSON_FILES + TABLE_FILES
    if not path.name.endswith(kinds):
        raise SourceError(f"{path}: unknown kind of OSM file; expected one of {', '.join(kinds)}; convert or rename it")


def _scan_file(path: Path, scan: osm_assembly.OsmScan) -> str | None:
    """Add the features of one file to `scan` and return the date in the file, or None."""
    from sgdata.rasters import vectors

    if path.name.endswith(TABLE_FILES):
        for _ in osm_assembly.take_table(vectors.read_table(path), scan, str(path)):
            pass
        return None
    stamp = None
    with tempfile.TemporaryDirectory() as folder:
        if path.name.endswith(JSON_FILES):
            document = overpass.answer_of(overpass.unpack(path), str(path))
            native = Path(folder) / "answer.osm.pbf"
            osm_elements.write_native(document["elements"], native, str(path))
            osm3s = document.get("osm3s")
            stamp = osm3s.get("timestamp_osm_base") if isinstance(osm3s, dict) else None
        else:
            check_suffix(path)
            native = osm_elements.rewrite(path, Path(folder))
        return osm_assembly.collect(native, scan, str(path)) or (stamp if isinstance(stamp, str) else None)


def _table(scan: osm_assembly.OsmScan) -> Any:
    """Return the rows as a sorted GeoDataFrame."""
    import geopandas

    rows = [(*name, *scan.rows[name]) for name in sorted(scan.rows)]
    return geopandas.GeoDataFrame(rows, columns=["osm_type", "osm_id", "kind", "tags", "geometry"], crs="EPSG:4326")
