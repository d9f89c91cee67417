"""Read local vector files: formats from a list, recognised by their first bytes, with the size checked before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sgdata import documents, limits
from sgdata.errors import SourceError
from sgdata.rasters import opening
from sgdata.types import Bounds

_START_BYTES = 4096


def read_geometries(path: Path, *, bounds: Bounds | None = None) -> Any:
    """Read the geometries of a local file; every vector file that this project reads is opened here.

    Args:
        path: GeoJSON, GeoPackage, Shapefile, KML or GeoParquet, by content.
        bounds: west, south, east and north in degrees of the ground that is needed, of files that are not GeoJSON.

    Returns:
        A list of shapely geometries in EPSG:4326, longitude first.

    Raises:
        SourceError: another format, a damaged or too large file, or coordinates without a CRS.
        FileNotFoundError: no such file.
    """
    import shapely

    kind = _kind(path)
    if kind == "GeoJSON":
        try:
            return [shapely.from_geojson(documents.read_bytes(path))]
        except (ValueError, shapely.GEOSException) as error:
            raise SourceError(f"{path}: cannot be read as GeoJSON: {error!s:.120}") from None
    if kind is None:
        raise SourceError(f"{path}: expected one of {', '.join(opening.DRIVERS['area'])}; convert it to GeoJSON")
    if bounds is None:  # else what is read is small, as in the water polygons of the whole world
        limits.VECTOR_BYTES.check(path.stat().st_size, str(path))
    return list(_read_frame(path, kind, bounds, columns=[]).geometry)


def read_table(path: Path) -> Any:
    """Read a local vector file with all its columns.

    Args:
        path: GeoPackage or GeoParquet, by content.

    Returns:
        A GeoDataFrame in EPSG:4326.

    Raises:
        SourceError: another format, a damaged or too large file, or coordinates without a CRS.
    """
    kind = _kind(path)
    if kind not in ("GPKG", "Parquet"):
        raise SourceError(f"{path}: is {kind or 'of no known format'}, expected GeoPackage or GeoParquet")
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


def _read_frame(path: Path, kind: str, bounds: Bounds | None = None, columns: list[str] | None = None) -> Any:
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
            if driver not in opening.DRIVERS["area"]:
                raise SourceError(f"{path}: GDAL takes it for {driver}, expected {kind}")
            mask = None
            if bounds is not None:
                edges = Transformer.from_crs(4326, pyogrio.read_info(path)["crs"], always_xy=True)
                mask = edges.transform_bounds(*bounds)
            frame = pyogrio.read_dataframe(path, columns=columns, bbox=mask)
        if frame.crs is None:
            raise SourceError(f"{path}: has no CRS; write it as GeoJSON in WGS84")
        return frame.to_crs(4326)
    except SourceError:
        raise
    except Exception as error:  # damaged files make GDAL, Arrow and PROJ raise errors of many types
        reason = " ".join(str(error).split())
        raise SourceError(f"{path}: cannot be read as {kind}: {type(error).__name__}: {reason:.120}") from None
