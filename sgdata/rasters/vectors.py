"""Read local vector files: formats from a list, recognised by their first bytes, with the size checked before."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import documents, limits
from sgdata.errors import SourceError
from sgdata.rasters import allowed_formats
from sgdata.types import Array, Bounds, Grid

_START_BYTES = 4096
NAMES = ("name", "id", "title", "label")
"""Columns that may have the names of features, in either case, in this order."""


def read_geometries(path: Path, *, bounds: Bounds | None = None) -> Any:
    """Read the geometries of a local file; every vector file that this project reads is opened here.

    Args:
        path: GeoJSON, GeoPackage, Shapefile, KML or GeoParquet, by content.
        bounds: West, south, east and north in degrees of the ground that is needed, of files that are not GeoJSON.

    Returns:
        A list of shapely geometries in EPSG:4326, longitude first.

    Raises:
        SourceError: Another format, a damaged or too large file, or coordinates without a CRS.
        FileNotFoundError: No such file.
    """
    return list(_frame(path, bounds).geometry)


@dataclass(frozen=True, kw_only=True)
class VectorFeature:
    """A feature of a vector file.

    Attributes:
        name: Its name, or its number from 1.
        geometry: Geometry in EPSG:4326; None if it has none.
    """

    name: str
    geometry: Any


def read_features(path: Path) -> list[VectorFeature]:
    """Read names and geometries of a local file. Raises what `read_geometries` raises."""
    frame = _frame(path, None)
    columns = [column for name in NAMES for column in frame.columns if str(column).lower() == name]
    features = []
    for number, (_, row) in enumerate(frame.iterrows(), 1):
        names = [str(row[column]) for column in columns if isinstance(row[column], str | int) and str(row[column])]
        features.append(VectorFeature(name=names[0] if names else str(number), geometry=row.geometry))
    return features


def rasterize_outline(outline: str, grid: Grid) -> Array:
    """Return (H, W) bool: the pixels whose centres are inside an outline (WKT in the CRS of the grid)."""
    import rasterio.features
    import shapely
    from rasterio.transform import Affine

    shape = shapely.from_wkt(outline)
    burnt = rasterio.features.rasterize([shape], grid.shape, transform=Affine(*grid.transform), dtype=np.uint8)
    return np.asarray(burnt > 0)


def _frame(path: Path, bounds: Bounds | None) -> Any:
    """Read a file of any known format as a GeoDataFrame in EPSG:4326. Raises SourceError, FileNotFoundError."""
    kind = _kind(path)
    if kind == "GeoJSON":
        return _read_geojson(path)
    if kind is None:
        expected = ", ".join(allowed_formats.DRIVERS["area"])
        raise SourceError(f"{path}: expected one of {expected}; convert it to GeoJSON")
    if bounds is None:  # else what is read is small, as in the water polygons of the whole world
        limits.VECTOR_BYTES.check(path.stat().st_size, str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GDAL, about names and versions of files
        return _read_frame(path, kind, bounds)


def _read_geojson(path: Path) -> Any:
    """Read GeoJSON, in the CRS that its old member `crs` names. Raises SourceError."""
    import geopandas
    import shapely.geometry

    document = documents.parse_bounded_json(documents.read_bytes(path), str(path))
    try:
        kind = document["type"]
        features = document["features"] if kind == "FeatureCollection" else [document]
        if kind not in {"FeatureCollection", "Feature"}:
            features = [{"geometry": document}]
        rows = [{str(key): value for key, value in (one.get("properties") or {}).items()} for one in features]
        for row, one in zip(rows, features, strict=True):
            row["geometry"] = shapely.geometry.shape(one["geometry"]) if one["geometry"] else None
            if not np.isfinite(shapely.get_coordinates(row["geometry"])).all():
                raise ValueError("a coordinate is no number")
        frame = geopandas.GeoDataFrame(rows, geometry="geometry", crs=_member_crs(document))
        return frame.to_crs(4326)
    # Foreign documents make shapely, pyproj and pandas raise errors of many types.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{path}: cannot be read as GeoJSON: {reason:.120}; save it again") from None


def _member_crs(document: dict[str, Any]) -> Any:
    """Return the CRS of a GeoJSON document: by its member `crs` of the time before RFC 7946, else WGS84."""
    from pyproj import CRS

    member = document.get("crs")
    if not member:
        return CRS.from_epsg(4326)
    fields = member.get("properties") or {}
    if member.get("type") == "EPSG":
        return CRS.from_epsg(int(fields["code"]))
    if member.get("type") != "name":
        raise ValueError(f"crs of type {member.get('type')!r}, expected name")
    return CRS.from_user_input(fields["name"])


def read_table(path: Path) -> Any:
    """Read a local vector file with all its columns.

    Args:
        path: GeoPackage or GeoParquet, by content.

    Returns:
        A GeoDataFrame in EPSG:4326.

    Raises:
        SourceError: Another format, a damaged or too large file, or coordinates without a CRS.
    """
    kind = _kind(path)
    if kind not in ("GPKG", "Parquet"):
        raise SourceError(f"{path}: is {kind or 'of no known format'}, expected GeoPackage or GeoParquet; convert it")
    limits.VECTOR_BYTES.check(path.stat().st_size, str(path))
    return _read_frame(path, kind)


def _kind(path: Path) -> str | None:
    """Return the format of a file by its first bytes, None if it is of no known one."""
    with path.open("rb") as handle:
        start = handle.read(_START_BYTES)
    if start.startswith(b"SQLite format 3\0") and start[68:72] == b"GPKG":
        return "GPKG"
    if start.startswith(b"\0\0\x27\x0a") and path.suffix == ".shp":
        return "ESRI Shapefile"
    if start.startswith(b"PAR1"):
        return "Parquet"
    if b"<kml" in start and b"<!DOCTYPE" not in start:
        return "KML"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return "GeoJSON" if text.startswith(b"{") else None


def _read_frame(path: Path, kind: str, bounds: Bounds | None = None) -> Any:
    """Read a format with a CRS of its own as a GeoDataFrame in EPSG:4326. Raises SourceError."""
    import geopandas
    import pyogrio  # type: ignore[import-untyped]
    from pyproj import Transformer

    try:
        if kind == "Parquet":
            frame = geopandas.read_parquet(path)
            if bounds is not None:
                frame = frame.to_crs(4326).cx[bounds[0] : bounds[2], bounds[1] : bounds[3]]
        else:
            driver = pyogrio.read_info(path)["driver"]
            if driver not in allowed_formats.DRIVERS["area"]:
                raise SourceError(f"{path}: GDAL takes it for {driver}, expected {kind}; save it as one of the two")
            layers = [name for name, of in pyogrio.list_layers(path) if of is not None]
            if len(layers) != 1:
                raise SourceError(f"{path}: holds layers {', '.join(map(str, layers)):.120}; keep one of them")
            mask = None
            if bounds is not None:
                edges = Transformer.from_crs(4326, pyogrio.read_info(path)["crs"], always_xy=True)
                mask = edges.transform_bounds(*bounds)
            frame = pyogrio.read_dataframe(path, bbox=mask)
        if frame.crs is None:
            raise SourceError(f"{path}: has no CRS; write it as GeoJSON in WGS84")
        return frame.to_crs(4326)
    except SourceError:
        raise
    except Exception as error:  # damaged files make GDAL, Arrow and PROJ raise errors of many types
        reason = " ".join(str(error).split())
        raise SourceError(
            f"{path}: cannot be read as {kind}: {type(error).__name__}: {reason:.120}; save it again"
        ) from None
