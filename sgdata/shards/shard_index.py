"""Write and read `index.parquet`: one row per sample with the position, size, type and shape of its tar members."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, output_names, parquet_tables, safe_names
from sgdata.errors import SourceError
from sgdata.shards.array_codec import LARGEST_RATIO, STORED_DTYPES

Row = dict[str, Any]

HASH = "sha256"
"""Column of sample hashes, which the index of shards packed with `hash = "fast"` lacks."""

_COMPLETE: dict[str, parquet_tables.ColumnKind] = {
    **dict.fromkeys(("key", "split", "shard"), "text"),
    **dict.fromkeys(("meta_offset", "meta_size"), "count"),
}
_OPTIONAL: dict[str, parquet_tables.ColumnKind] = {
    **dict.fromkeys(("west", "south", "east", "north"), "number"), "crs": "text", "date": "text", "labels": "counts",
}  # fmt: skip
_LARGEST_TAR = 2**50
_ENDINGS: dict[str, parquet_tables.ColumnKind] = {
    "_offset": "count", "_size": "count", "_dtype": "text", "_shape": "counts", "_crc32": "count",
}  # fmt: skip


def read_index(folder: Path) -> Any:
    """Read the index of a folder of shards.

    Args:
        folder: Folder of shards.

    Returns:
        A `pyarrow.Table` with one row per sample: key, split, tar, position, size, dtype and shape of each member,
        labels, bounding box (degrees), CRS and date; the hash (`sha256`) unless packed with `hash = "fast"`.

    Raises:
        SourceError: The folder is unfinished, or the index is missing or damaged.
    """
    path = files.require_file(folder / output_names.INDEX, "the index of a folder written by 'sgdata shard'")
    files.require_finished(folder)
    table = parquet_tables.read(path, _COMPLETE)
    # Samples need not all have the same members: rows without one have nulls.
    # Of samples without a label budget, as of shards that were split by hand, and of a single place.
    extra: dict[str, parquet_tables.ColumnKind] = {"budgets": "texts", "place": "text"}
    extra = {name: kind for name, kind in extra.items() if name in table.column_names}
    member_columns = {name: kind for name in table.column_names for end, kind in _ENDINGS.items() if name.endswith(end)}
    parquet_tables.check(table, _OPTIONAL | extra | member_columns, str(path), complete=False)
    if HASH in table.column_names or files.read_plain(folder / output_names.CONTRACT).get("hash") != "fast":
        parquet_tables.check(table, {HASH: "text"}, str(path))
    keys = table["key"].to_pylist()
    if malformed := next((key for key in keys if not safe_names.KEY.fullmatch(key)), ""):
        raise SourceError(f"{path}: key {malformed!r:.90} cannot be that of a sample; pack again")
    if len(set(keys)) < len(keys):
        raise SourceError(f"{path}: {len(keys) - len(set(keys))} keys occur twice, expected each once; pack again")
    for name in sorted(column.removesuffix("_offset") for column in member_columns if column.endswith("_offset")):
        _check_member(table, name, folder, str(path))
    return table


def _check_member(table: Any, name: str, folder: Path, origin: str) -> None:
    """Check positions, types and shapes of one member of all samples. Raises SourceError."""
    import pyarrow.compute as pc

    columns = [f"{name}{end}" for end in _ENDINGS if f"{name}{end}" in table.column_names]
    absent = [table[column].is_null() for column in columns]
    array_columns = {f"{name}_shape", f"{name}_dtype"} & set(columns)
    if f"{name}_size" not in columns or len(array_columns) == 1 or any(not mask.equals(absent[0]) for mask in absent):
        raise SourceError(f"{origin}: some samples have a part of {', '.join(columns)} only; pack again")
    rows = table.select(["shard", *columns]).drop_null()
    if not len(rows):
        return
    offset, size = (rows[f"{name}_{part}"] for part in ("offset", "size"))
    if max(pc.max(offset).as_py(), pc.max(size).as_py()) > _LARGEST_TAR:
        raise SourceError(f"{origin}: '{name}' is at byte {pc.max(offset)}, of {pc.max(size)} bytes; pack again")
    ends = (
        rows.select(["shard"]).append_column("end", pc.add(offset, size)).group_by("shard").aggregate([("end", "max")])
    )
    for shard, end in zip(ends["shard"].to_pylist(), ends["end_max"].to_pylist(), strict=True):
        tar = folder / shard
        # A tar that is elsewhere or missing is reported where it is opened.
        if safe_names.is_safe(shard) and tar.is_file() and end > tar.stat().st_size:
            raise SourceError(f"{tar}: has {tar.stat().st_size} bytes, '{name}' ends at {end}; run sgdata verify")
    if not array_columns:
        return
    axes = pc.list_value_length(rows[f"{name}_shape"]).to_numpy()
    types = rows[f"{name}_dtype"].to_pylist()
    unknown = set(types) - STORED_DTYPES.keys()
    if unknown or axes.min() < 1:
        raise SourceError(f"{origin}: '{name}' has type {min(unknown, default='none')!r:.40} or no axis; pack again")
    sides = pc.list_flatten(rows[f"{name}_shape"]).to_numpy().astype(float)
    array_bytes = np.multiply.reduceat(sides, np.cumsum(axes) - axes) * [np.dtype(dtype).itemsize for dtype in types]
    if sides.min() < 1 or (array_bytes > LARGEST_RATIO * size.to_numpy()).any():
        raise SourceError(f"{origin}: '{name}' has shapes that cannot be in its bytes; pack again")


def write_index(path: Path, rows: Sequence[Row]) -> None:
    """Write the index as GeoParquet.

    Args:
        path: The Parquet file.
        rows: Rows of `tar_format.write_tar`; a sample with a bounding box gets a polygon in the column `geometry`.

    Raises:
        OutputError: The file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, sides = ("key", "split", "shard", HASH, "crs", "date"), ("west", "south", "east", "north")
    kinds = dict.fromkeys(texts, pa.string()) | dict.fromkeys(sides, pa.float64()) | {"labels": pa.list_(pa.int32())}
    kinds |= {"budgets": pa.list_(pa.string()), "place": pa.string()}
    endings = dict.fromkeys(("offset", "size", "crc32"), pa.int64()) | {
        "dtype": pa.string(),
        "shape": pa.list_(pa.int32()),
    }
    fields = [pa.field(name, kinds[name]) for name in ("key", "split", "shard")]
    members = sorted({name for row in rows for name in row} - set(kinds))
    fields += [pa.field(name, endings[name.rpartition("_")[2]]) for name in members]
    extra = [name for name in ("budgets", "place") if any(name in row for row in rows)]
    hashes = [HASH] if any(HASH in row for row in rows) else []
    fields += [pa.field(name, kinds[name]) for name in ("labels", *extra, *sides, "crs", "date", *hashes)]
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
