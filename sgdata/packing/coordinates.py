"""Give samples without a georeference the ground that a table of coordinates names."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from sgdata import package_data
from sgdata.datasets.types import SampleListing
from sgdata.errors import SettingError, SourceError
from sgdata.rasters import small_tiff

NAME_COLUMNS, LATITUDE_COLUMNS, LONGITUDE_COLUMNS = (
    ("name", "key", "file", "filename"),
    ("latitude", "lat"),
    ("longitude", "lon"),
)
# UTM is defined between these latitudes.
SOUTHMOST, NORTHMOST = -80.0, 84.0

Cells = tuple[str, str]


def assign_coordinates(listing: SampleListing, path: Path, *, gsd_m: float) -> SampleListing:
    """Return the listing with `crs` and `bounds` of every sample that the table places; the others are rejected.

    A georeference in the file of a sample is preferred to the table when the sample is read.

    Args:
        listing: Samples of one size.
        path: Table with a header, of values separated by tabs (by commas in a .csv): `name`, the path or key of a
            sample, and `latitude` and `longitude` of its centre in degrees (WGS 84).
        gsd_m: Side of a pixel in metres.

    Raises:
        SettingError: The table cannot be read, lacks a column or places no sample, or samples differ in size.
    """
    shape = listing.edition.shape
    if shape is None:
        raise SettingError(
            f"--coordinates {path}: samples of edition {listing.edition.name} differ in size, so that a centre does "
            "not give their ground; leave --coordinates out"
        )
    rows = _read_table(path)
    refs, rejected = [], list(listing.rejected)
    for ref in listing.refs:
        try:
            meta = footprint(rows.get(ref.key, set()), shape[1:], gsd_m)
        except SourceError as error:
            rejected.append((ref.members[0].name, f"{error} in {path.name}"))
        else:
            refs.append(replace(ref, meta=ref.meta | meta))
    if not refs:
        raise SettingError(
            f"--coordinates {path}: places none of {len(listing.refs)} samples, of which the first is "
            f"'{listing.refs[0].key}'; expected rows of these names"
        )
    return replace(listing, refs=tuple(refs), rejected=tuple(rejected))


def _read_table(path: Path) -> dict[str, set[Cells]]:
    """Return the texts of latitude and longitude of each sample key. Raises SettingError."""
    table = package_data.read_table(path, delimiter="," if path.suffix == ".csv" else "\t")
    header = tuple(table[0]) if table else ()
    columns = [
        next((name for name in header if name.lower() in aliases), "")
        for aliases in (NAME_COLUMNS, LATITUDE_COLUMNS, LONGITUDE_COLUMNS)
    ]
    if not all(columns):
        raise SettingError(f"{path}: columns are {', '.join(header)!r:.120}; expected name, latitude and longitude")
    rows: dict[str, set[Cells]] = {}
    for row in table:
        name, latitude, longitude = (row[column].strip() for column in columns)
        key = name.rpartition("/")[2].partition(".")[0]
        rows.setdefault(key, set()).add((latitude, longitude))
    return rows


def footprint(cells: set[Cells], shape: tuple[int, ...], gsd_m: float) -> dict[str, Any]:
    """Return `crs` and `bounds` of a sample: a square of its UTM zone around the centre.

    Args:
        cells: Texts of latitude and longitude in degrees; expected is one pair.
        shape: Rows and columns.
        gsd_m: Side of a pixel in metres.

    Raises:
        SourceError: There is no pair or more than one, or it is no place that UTM covers.
    """
    from pyproj import Transformer

    if len(cells) != 1:
        raise SourceError(f"{len(cells) or 'no'} coordinates, expected one pair,")
    ((latitude, longitude),) = cells
    try:
        north, east = float(latitude), float(longitude)
    except ValueError:
        north = east = math.nan
    if not (SOUTHMOST <= north <= NORTHMOST and -180 <= east <= 180):
        raise SourceError(f"coordinates {latitude!r:.20}, {longitude!r:.20}, expected degrees north and east,")
    # Without the exceptions at Norway and Svalbard: any zone near the place has metres.
    epsg = (32600 if north >= 0 else 32700) + min(int((east + 180) // 6) + 1, 60)
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(east, north)
    rows, columns = shape
    corner = (gsd_m, 0.0, x - columns * gsd_m / 2, 0.0, -gsd_m, y + rows * gsd_m / 2)
    bounds = small_tiff.bounds(small_tiff.Georeference(epsg=epsg, transform=corner), (rows, columns))
    return {"crs": f"EPSG:{epsg}", "bounds": list(bounds)}
