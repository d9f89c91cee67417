"""Read OpenStreetMap objects from a GeoDataFrame as `osmnx.features_from_*` returns it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sgdata.errors import SourceError

INDEXES = (("element", "id"), ("element_type", "osmid"))
"""Names of the index, which are columns in a GeoPackage: since osmnx 2, and before."""
OTHER = ("nodes", "ways", "geometry")
"""Columns that are no tags."""


def objects(frame: Any, origin: str) -> Iterator[tuple[tuple[str, int], dict[str, str], Any]]:
    """Yield type and id, tags, and geometry (shapely, in EPSG:4326) of each way and relation, sorted.

    Args:
        frame: GeoDataFrame with the type and id of each object in its index or in columns, and a column for each tag.
        origin: Name of its source, for messages.

    Raises:
        SourceError: The table has no CRS, or lacks type and id.
    """
    if frame.crs is None:
        raise SourceError(f"{origin}: the table has no CRS; save it as osmnx.features_from_* returns it")
    table = frame.to_crs(4326).reset_index()
    names = next((pair for pair in INDEXES if set(pair) <= set(table.columns)), None)
    if names is None:
        columns = ", ".join(map(str, table.columns[:6]))
        raise SourceError(
            f"{origin}: the table has no columns element and id, it has {columns}; save it as "
            "osmnx.features_from_* returns it, with its index"
        )
    kinds, numbers = (table[name].to_numpy() for name in names)
    tags: list[dict[str, str]] = [{} for _ in range(len(table))]
    for column in sorted(set(table.columns) - {*names, *OTHER, table.geometry.name, "index"}):
        values = table[column].to_numpy()
        for row in np.flatnonzero(table[column].notna()).tolist():
            if isinstance(values[row], str):
                tags[row][str(column)] = values[row]
    shapes = table.geometry.to_numpy()
    order = sorted(range(len(table)), key=lambda row: (str(kinds[row]), int(numbers[row])))
    for row in order:
        if kinds[row] in ("way", "relation") and shapes[row] is not None and not shapes[row].is_empty:
            yield (str(kinds[row]), int(numbers[row])), tags[row], shapes[row]
