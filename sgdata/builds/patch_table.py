"""Make, write and read the table of patches of a build: window, split and class shares of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, parquet_tables, safe_names
from sgdata.errors import SourceError
from sgdata.types import Array, Grid, Window


def window_boxes(windows: Sequence[Window]) -> Array:
    """Return (N, 4) int64: col, row, col + width, row + height."""
    rows = [(w.col, w.row, w.col + w.width, w.row + w.height) for w in windows]
    return np.array(rows, np.int64).reshape(-1, 4)


def class_counts(labels: Array, windows: Sequence[Window], ids: Sequence[int]) -> Array:
    """Return (N, len(ids)) int64: pixels of each id in each window of `labels` (H, W) uint8."""
    rows = [np.bincount(labels[window.slices].ravel(), minlength=256)[list(ids)] for window in windows]
    return np.array(rows, np.int64).reshape(len(windows), len(ids))


def table(
    name: str, grid: Grid, windows: Sequence[Window], *, splits: Sequence[str], counts: Array, ids: Sequence[int]
) -> Any:
    """Make a GeoDataFrame in EPSG:4326 of the patches that belong to a part (not ""), sorted by row and column.

    Columns: key (`<name>-r00064-c00128`, its upper left pixel), row, col, height, width (int32), split, share_<id>
    (float32) for each of `ids`, geometry. `counts` is (N, len(ids)) pixels of each id in each window.
    """
    import geopandas
    import shapely

    # A patch that touches a gap is in no part and so not in the table.
    indices = [i for i, split in enumerate(splits) if split]
    indices.sort(key=lambda i: (windows[i].row, windows[i].col))
    kept_windows = [windows[i] for i in indices]
    start = safe_names.key_part(name)
    columns: dict[str, Any] = {"key": [f"{start}-r{window.row:05d}-c{window.col:05d}" for window in kept_windows]}
    for field in ("row", "col", "height", "width"):
        columns[field] = np.array([getattr(window, field) for window in kept_windows], np.int32)
    columns["split"] = [splits[i] for i in indices]
    shares = counts[indices] / np.array([w.height * w.width for w in kept_windows], np.int64).reshape(-1, 1)
    columns |= {f"share_{number}": shares[:, k].astype(np.float32) for k, number in enumerate(ids)}
    # Rows run south, northings run north.
    west, north, east, south = window_boxes(kept_windows).T * grid.gsd_m
    x, y = grid.origin
    outlines = geopandas.GeoSeries(shapely.box(x + west, y - south, x + east, y - north), crs=grid.crs)
    return geopandas.GeoDataFrame(columns, geometry=outlines.to_crs("EPSG:4326"))


def write(path: Path, rows: Any) -> None:
    """Write `rows` of `table` as GeoParquet. Raises OutputError."""
    # WKB: the encoding that every reader of GeoParquet supports; the native ones came with 1.1.
    with files.replacing(path) as temporary:
        rows.to_parquet(temporary, index=False, compression="zstd", geometry_encoding="WKB")


def read(path: Path) -> Any:
    """Read the GeoDataFrame of a `patches.parquet`. Raises SourceError."""
    import geopandas
    import pyarrow as pa
    import shapely

    files.require_file(path, "the patches.parquet of a build")
    texts: dict[str, parquet_tables.ColumnKind] = {"key": "text", "split": "text"}
    parquet_tables.read(path, texts | dict.fromkeys(("row", "col", "height", "width"), "count"))
    try:
        rows = geopandas.read_parquet(path)
        if not (rows[["height", "width"]] > 0).all(axis=None) or not np.isfinite(rows.bounds).all(axis=None):
            raise ValueError("a patch has no pixels or no outline")
        return rows
    except (
        pa.ArrowException,
        shapely.GEOSException,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{path}: not the patches of a build: {reason}; build it again") from None
