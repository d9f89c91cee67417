"""Describe outputs as STAC items with pystac: the parts that builds and releases share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Any

from sgdata.sentinel2 import MSI
from sgdata.types import Bounds

if TYPE_CHECKING:
    import pystac

EXTENSIONS = {
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "eo": "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "file": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "projection": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "scientific": "https://stac-extensions.github.io/scientific/v1.0.0/schema.json",
}
"""Schema of each extension. Written out, so that the files do not depend on the version of pystac's extensions."""


def create_item(
    name: str, bounds: Bounds, days: tuple[str, str], properties: Mapping[str, Any], extensions: Sequence[str]
) -> pystac.Item:
    """Create an item without assets.

    Args:
        name: Identifier.
        bounds: West, south, east and north in degrees.
        days: First and last day, as ISO dates.
        properties: Properties other than the times.
        extensions: Keys of EXTENSIONS that properties and assets use.
    """
    import pystac

    west, south, east, north = bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    first, last = interval(days)
    return pystac.Item(
        id=name, geometry={"type": "Polygon", "coordinates": [ring]}, bbox=list(bounds), datetime=None,
        start_datetime=first, end_datetime=last, properties=dict(properties),
        stac_extensions=[EXTENSIONS[key] for key in extensions],
    )  # fmt: skip


def interval(days: tuple[str, str]) -> tuple[datetime, datetime]:
    """Return the first second of the first day and the last second of the last day, in UTC."""
    first, last = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in days)
    return first, datetime.combine(last, time(23, 59, 59), UTC)


def file_fields(size: int, sha256: str) -> dict[str, Any]:
    """Return the fields of the file extension; the checksum is a multihash: 12 for sha2-256, 20 for 32 bytes."""
    return {"file:size": size, "file:checksum": f"1220{sha256}"}


def band_fields(name: str) -> dict[str, Any]:
    """Return name and, for a Sentinel-2 band, centre wavelength in micrometres."""
    band = MSI.by_name.get(name)
    if band is None:
        return {"name": name}
    return {"name": name, "eo:center_wavelength": round(band.wavelength_nm / 1000, 4)}
