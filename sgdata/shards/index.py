"""Write the index of a folder of shards, a GeoParquet table with one row per sample; `tar_format` reads it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from sgdata import files
from sgdata.shards import tar_format


def write(path: Path, rows: Sequence[tar_format.Row]) -> None:
    """Write the index as GeoParquet.

    Args:
        path: The Parquet file.
        rows: Rows of `tar_format.write_tar`; a sample with a bounding box gets a polygon in the column `geometry`.

    Raises:
        OutputError: The file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, sides = ("key", "split", "shard", "sha256", "crs", "date"), ("west", "south", "east", "north")
    kinds = dict.fromkeys(texts, pa.string()) | dict.fromkeys(sides, pa.float64()) | {"labels": pa.list_(pa.int32())}
    endings = dict.fromkeys(("offset", "size", "crc32"), pa.int64()) | {
        "dtype": pa.string(),
        "shape": pa.list_(pa.int32()),
    }
    fields = [pa.field(name, kinds[name]) for name in ("key", "split", "shard")]
    members = sorted({name for row in rows for name in row} - set(kinds))
    fields += [pa.field(name, endings[name.rpartition("_")[2]]) for name in members]
    fields += [pa.field(name, kinds[name]) for name in ("labels", *sides, "crs", "date", "sha256")]
    table = pa.table([pa.array([row.get(f.name) for row in rows], f.type) for f in fields], pa.schema(fields))
    # Without any box the column would be empty, so it is left out.
    boxes = [tuple(row[name] for name in sides) for row in rows if row["west"] is not None]
    if boxes:
        outlines = [None if row["west"] is None else _wkb(*(row[name] for name in sides)) for row in rows]
        table = table.append_column("geometry", pa.array(outlines, pa.binary()))
        table = table.replace_schema_metadata({"geo": _geo(boxes)})
    with files.replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _wkb(west: float, south: float, east: float, north: float) -> bytes:
    """Return a box as a counter-clockwise polygon in well-known binary (OGC 06-103r4, clause 8.2)."""
    ring = (west, south, east, south, east, north, west, north, west, south)
    return struct.pack("<BIII10d", 1, 3, 1, 5, *ring)


def _geo(boxes: Sequence[tuple[float, float, float, float]]) -> bytes:
    """Return the `geo` metadata of GeoParquet 1.1 for the column `geometry` in EPSG:4326."""
    from pyproj import CRS

    lows, highs = [min(side) for side in zip(*boxes, strict=True)], [max(side) for side in zip(*boxes, strict=True)]
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": CRS.from_epsg(4326).to_json_dict(),
        "orientation": "counterclockwise",
        "bbox": [*lows[:2], *highs[2:]],
    }
    document = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return files.canonical_json(document)
