"""Allow the formats that may be opened for each purpose, and bound what a raster declares before it is read."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from sgdata import documents, limits
from sgdata.errors import SourceError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

Use = Literal["output", "scene", "dataset", "user", "area"]

DRIVERS: dict[Use, tuple[str, ...]] = {
    "output": ("GTiff",),  # written by this project
    "scene": ("GTiff", "JP2OpenJPEG"),  # named by a catalogue
    "dataset": ("GTiff", "JP2OpenJPEG", "PNG", "JPEG"),  # files of a published dataset
    "user": ("GTiff", "JP2OpenJPEG", "PNG", "JPEG", "VRT"),  # one local file that the user named
    "area": ("GeoJSON", "GPKG", "ESRI Shapefile", "KML", "LIBKML", "Parquet"),
}
"""GDAL drivers by use. GDAL has some 150, and many of them follow names inside a file to other files and servers."""

_VRT_ELEMENTS = frozenset(
    (
        *("VRTDataset", "SRS", "GeoTransform", "VRTRasterBand", "SimpleSource", "ComplexSource", "SourceFilename"),
        *("SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA", "NoDataValue", "HideNoDataValue"),
        *("ColorInterp", "ColorTable", "Entry", "CategoryNames", "Category", "Description", "Metadata", "MDI"),
        *("Offset", "Scale", "ScaleOffset", "ScaleRatio", "UnitType", "BlockXSize", "BlockYSize", "Histograms"),
        *("HistItem", "HistMin", "HistMax", "BucketCount", "IncludeOutOfRange", "Approximate", "HistCounts"),
        *("MaskBand", "AveragedSource", "OverviewList", "LUT"),
    )
)
"""Elements of VRTs as gdalbuildvrt and gdal_translate write them: mosaics and stacks of files, no raw bands or code."""


def open_with(path: str, drivers: tuple[str, ...]) -> DatasetReader:
    """Open a raster by one of these drivers and no other. Raises RasterioError."""
    import rasterio.io
    from rasterio.errors import RasterioIOError

    try:
        # rasterio.open takes one driver only.
        return rasterio.io.DatasetReader(path, driver=list(drivers))
    except UnicodeDecodeError as error:  # of texts inside the file
        raise RasterioIOError(str(error)) from None


def check_local(path: str, use: Use) -> None:
    """Check a local file before GDAL opens it.

    Raises:
        SourceError: It is a virtual raster that may not be used here, or whose sources may not.
    """
    file = Path(path)
    mask = file.with_name(f"{file.name}.msk")
    if mask.is_file() and is_vrt(mask):
        raise SourceError(f"{mask}: is a virtual raster (VRT), expected a mask; write it as GeoTIFF")
    if file.is_file() and is_vrt(file):
        if use != "user":
            raise SourceError(f"{path}: is a virtual raster (VRT); give the files themselves, or write it as GeoTIFF")
        check_vrt(file)


def is_vrt(path: Path) -> bool:
    """Return whether GDAL would take a file for a VRT, whatever its name is."""
    with path.open("rb") as handle:
        return b"<VRTDataset" in handle.read(1 << 16)


def files_of(path: Path) -> list[Path]:
    """Return a raster that the user named and, of a VRT, its sources. Raises SourceError."""
    return [path, *check_vrt(path)] if path.is_file() and is_vrt(path) else [path]


def check_vrt(path: Path, outer: tuple[Path, ...] = ()) -> list[Path]:
    """Check a VRT that the user named, and its sources, which are checked like files that the user named.

    Args:
        path: The VRT.
        outer: VRTs that it is a source of.

    Returns:
        The sources, and those of the VRTs among them.

    Raises:
        SourceError: An element or source is of another kind, missing, not local, or names itself.
    """
    path = path.resolve()
    if path in outer:
        raise SourceError(f"{path}: is a source of itself; write it as GeoTIFF")
    limits.VRT_NESTING.check(len(outer) + 1, str(path))
    limits.VRT_BYTES.check(path.stat().st_size, str(path))
    try:
        root = documents.parse_xml(path.read_bytes())
    except (ET.ParseError, ValueError, LookupError) as error:
        raise SourceError(f"{path}: cannot be read as VRT: {error}; write it as GeoTIFF") from None
    names = []
    for element in root.iter():
        kind = element.get("subClass", "")
        if element.tag not in _VRT_ELEMENTS or kind or "resampling" in element.attrib:
            description = f"VRT with {kind or element.tag!r:.60}"
            raise SourceError(f"{path}: {description}, expected a mosaic or stack of files; write it as GeoTIFF")
        if element.tag == "SourceFilename":
            relative = element.get("relativeToVRT", "0") == "1"
            names.append((path.parent if relative else Path.cwd()) / (element.text or "").strip())
    limits.VRT_SOURCES.check(len(names), str(path))
    return [file for name in dict.fromkeys(names) for file in _check_source(name, path, outer)]


def _check_source(name: Path, path: Path, outer: tuple[Path, ...]) -> list[Path]:
    """Check one source of the VRT at `path`, and return it with its own sources."""
    from rasterio.errors import RasterioError

    if not name.is_file():
        raise SourceError(f"{path}: names {str(name)!r:.120}, which is no local file; expected local rasters")
    if is_vrt(name):
        return [name, *check_vrt(name, (*outer, path))]
    drivers = tuple(driver for driver in DRIVERS["user"] if driver != "VRT")
    try:
        with open_with(str(name.resolve()), drivers) as dataset:
            check_declared(dataset, str(name))
    except RasterioError:
        raise SourceError(f"{path}: source {name} is not {' or '.join(drivers)}; remove it") from None
    return [name]


def check_declared(dataset: DatasetReader, name: str) -> None:
    """Compare what an open raster declares with the limits: GDAL takes memory for whole blocks. Raises SourceError."""
    limits.RASTER_PIXELS.check(dataset.width * dataset.height, name)
    limits.RASTER_BANDS.check(dataset.count, name)
    # Not of a JP2: GDAL looks for this in every box of the file, and damaged ones have no end.
    how = None if dataset.driver == "JP2OpenJPEG" else dataset.interleaving
    together = dataset.count if how is not None and how.value == "PIXEL" else 1
    for (height, width), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True):
        limits.BLOCK_BYTES.check(height * width * np.dtype(dtype).itemsize * together, name)
