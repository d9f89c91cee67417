"""Find an array in a Zarr store: its metadata, by the consolidated ones where there are any, and its grid."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import documents, files, urls
from sgdata.errors import SourceError
from sgdata.limits import PRODUCT_BYTES
from sgdata.rasters import zarr_metadata
from sgdata.rasters.zarr_addresses import METADATA, METADATA_3, locate
from sgdata.rasters.zarr_chunks import ChunkReader
from sgdata.rasters.zarr_metadata import ZarrArray
from sgdata.remote.allowed_addresses import Access
from sgdata.remote.objects import ObjectFolder
from sgdata.types import Grid


def open_array(href: str, access: Access | None = None, headers: Path | None = None) -> ChunkReader:
    """Open an array of a store by its address. Raises SourceError if it does not exist or cannot be read."""
    reader = find_array(href, access, headers)
    if reader is None:
        raise SourceError(f"{urls.without_secrets(href)}: the product has no such array; leave it out")
    return reader


def find_array(href: str, access: Access | None = None, headers: Path | None = None) -> ChunkReader | None:
    """Open an array of a store by its address.

    Args:
        href: Address of the array.
        access: Hosts that may be asked; None: those of an address that the user named.
        headers: Folder that keeps the metadata of remote stores, and the tables of their chunks; None to keep none.

    Returns:
        The array; None if the store has none.

    Raises:
        SourceError: It cannot be read.
    """
    where = locate(href)
    # A folder for each store: what is kept of it is given up together.
    kept = headers and "://" in href and headers / files.sha256(urls.without_secrets(where.store).encode())[:32]
    folder = ObjectFolder(href=href, access=access, headers=kept or None)
    array = _find(where.path, _root(folder))
    return None if array is None else ChunkReader(array=array, folder=folder)


def _root(folder: ObjectFolder) -> ObjectFolder:
    """Return the folder of the store that has the array in a folder."""
    return replace(folder, href=locate(folder.href).store, documents=True)


def _find(path: str, root: ObjectFolder) -> ZarrArray | None:
    """Return the metadata of an array; None if the store has no such array. Raises SourceError."""
    shown = _shown(root, path)
    with _turn(root.href):  # a request for each store, not for each array
        consolidated = _consolidated(root, _state(root.href))
    if consolidated is not None:
        version, nodes = consolidated
        if version == 2 and f"{path}/.zarray" in nodes:
            return zarr_metadata.parse_v2(nodes[f"{path}/.zarray"], nodes.get(f"{path}/.zattrs", {}), shown)
        if version == 3 and path in nodes:
            return zarr_metadata.parse_v3(nodes[path], shown)
        return None
    if (about := _document(root, f"{path}/.zarray")) is not None:
        attributes = _document(root, f"{path}/.zattrs")
        return zarr_metadata.parse_v2(about, {} if attributes is None else attributes, shown)
    if (about := _document(root, f"{path}/{METADATA_3}")) is not None:
        return zarr_metadata.parse_v3(about, shown)
    return None


def _state(store: str) -> tuple[int, ...]:
    """Return what changes with the metadata of a store on disk; of remote ones those of a process do not change."""
    states = []
    for name in (METADATA, METADATA_3) if "://" not in store else ():
        try:
            status = (Path(store) / name).stat()
        except OSError:
            continue
        states += [status.st_mtime_ns, status.st_size, status.st_ino]
    return tuple(states)


@lru_cache(maxsize=64)
def _turn(store: str) -> threading.Lock:
    return threading.Lock()


@lru_cache(maxsize=32)
def _consolidated(root: ObjectFolder, state: tuple[int, ...]) -> tuple[int, Mapping[str, Any]] | None:
    """Return format and metadata of all arrays of a store; None if it has them beside each array only."""
    document = None if root.is_kept(METADATA_3) else _document(root, METADATA)
    if document is not None:
        nodes = document.get("metadata") if isinstance(document, dict) else None
        if not isinstance(nodes, dict):
            raise SourceError(f"{_shown(root, METADATA)}: has no 'metadata'; leave it out")
        return 2, nodes
    document = _document(root, METADATA_3)
    about = document.get("consolidated_metadata") if isinstance(document, dict) else None
    nodes = about.get("metadata") if isinstance(about, dict) else None
    return (3, nodes) if isinstance(nodes, dict) else None


def _document(root: ObjectFolder, key: str) -> Any:
    """Return a parsed document of a store; None if it does not exist. Raises SourceError.

    No request for pixels would show that a kept one is out of date.
    """
    root.drop_if_changed(key)
    content = root.read(key, PRODUCT_BYTES)
    return None if content is None else documents.parse_bounded_json(content, _shown(root, key))


def _shown(root: ObjectFolder, key: str) -> str:
    return urls.without_secrets(root.at(key))


# --- grids ---------------------------------------------------------------------------------


def read_grid(reader: ChunkReader, href: str, crs: str | None) -> Grid:
    """Return the grid of an array of two dimensions.

    It is that of `proj:transform`, compared with the coordinates `x` and `y` beside the array, which are the centres of
    pixels or their north-west corners; or that of the coordinates alone, as centres.

    Args:
        reader: The open array.
        href: Its address.
        crs: CRS to assume where the array has none.

    Raises:
        SourceError: Pixels are not square and north-up, the CRS is unknown, or the two contradict each other.
    """
    shown = urls.without_secrets(href)
    array = reader.array
    if len(array.shape) != 2:
        raise SourceError(f"{shown}: has {len(array.shape)} dimensions, expected rows and columns; leave it out")
    shape = (array.shape[0], array.shape[1])
    crs = _crs(array.attributes) or crs
    if crs is None:
        raise SourceError(f"{shown}: has no proj:epsg or proj:code; leave it out")
    axes = _read_axes(href, _root(reader.folder), shape)
    transform = _transform(array.attributes.get("proj:transform"), shown)
    if transform is None:
        if axes is None:
            raise SourceError(f"{shown}: has neither proj:transform nor coordinates x and y; leave it out")
        gsd, west, north = axes
        return Grid(crs=crs, origin=(west - gsd / 2, north + gsd / 2), gsd_m=gsd, shape=shape)
    gsd, west, north = transform
    if axes is not None:
        corner = axes in ((gsd, west, north), (gsd, west + gsd / 2, north - gsd / 2))
        if not corner:
            at = f"pixels of {axes[0]:g} m from ({axes[1]:.10g}, {axes[2]:.10g})"
            expected = f"{gsd:g} m from ({west:.10g}, {north:.10g})"
            raise SourceError(f"{shown}: coordinates give {at}, proj:transform {expected}; leave it out")
    return Grid(crs=crs, origin=(west, north), gsd_m=gsd, shape=shape)


def _crs(attributes: Mapping[str, Any]) -> str | None:
    code = attributes.get("proj:code") or attributes.get("proj:epsg")
    match = re.fullmatch(r"(?:EPSG:)?(\d{4,6})", str(code).upper())
    return f"EPSG:{match[1]}" if match else None


def _transform(value: Any, shown: str) -> tuple[float, float, float] | None:
    """Return pixel size, west and north of an affine transform of six or nine numbers; None if there is none."""
    if value is None:
        return None
    is_list = isinstance(value, list) and len(value) in {6, 9} and all(isinstance(one, int | float) for one in value)
    a, b, c, d, e, f = map(float, value[:6]) if is_list else (0.0,) * 6
    if not a > 0 or b or d or a != -e or not all(map(math.isfinite, (a, c, f))):
        raise SourceError(f"{shown}: proj:transform {value!r:.80}, expected square north-up pixels; leave it out")
    return a, c, f


def _read_axes(href: str, root: ObjectFolder, shape: tuple[int, int]) -> tuple[float, float, float] | None:
    """Return spacing, first x and first y of the coordinates beside an array; None if there are none."""
    where = locate(href)
    values = []
    for name, size in (("x", shape[1]), ("y", shape[0])):
        beside = f"{where.group}/{name}" if where.group else name
        line = _read_axis(root, beside, size, _state(root.href))
        if line is None:
            return None
        values.append(line)
    (x, dx), (y, dy) = values
    if dx <= 0 or dx != -dy:
        raise SourceError(f"{urls.without_secrets(href)}: coordinates go by {dx:g} and {dy:g} m; leave it out")
    return dx, x, y


@lru_cache(maxsize=64)
def _read_axis(root: ObjectFolder, path: str, size: int, state: tuple[int, ...]) -> tuple[float, float] | None:
    """Return first value and step of `size` evenly spaced coordinates; None if there are none. Raises SourceError."""
    array = _find(path, root)
    if array is None:
        return None
    href = root.at(path)
    if array.shape != (size,):
        shown = urls.without_secrets(href)
        raise SourceError(f"{shown}: has shape {array.shape}, expected one coordinate for {size} pixels; leave it out")
    line = ChunkReader(array=array, folder=replace(root, href=href)).line().astype(np.float64)
    step = float(line[1] - line[0]) if len(line) > 1 else 0.0
    if not np.array_equal(line, line[0] + step * np.arange(len(line))):
        raise SourceError(f"{urls.without_secrets(href)}: coordinates are not evenly spaced; leave it out")
    return float(line[0]), step
