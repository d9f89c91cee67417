"""Find the arrays of bands in items of ESA's EOPF products, each of which is one Zarr store.

Such items, which ESA's `eopf-stac` writes, name groups, the finest array of each band, and the store itself. A band is
read from the array of its own pixel size, which is not always the finest: that of B01 has 20 m, from pixels of 60 m.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from sgdata import package_data, urls
from sgdata.errors import SourceError
from sgdata.rasters import zarr_addresses
from sgdata.sentinel2 import MSI

if TYPE_CHECKING:
    import pystac

REFLECTANCE = "measurements/reflectance/"


@cache
def array_paths() -> dict[str, str]:
    """Return the path of the array of each band and layer in a product."""
    return {row["band"]: row["array"] for row in package_data.table("eopf_arrays")}


def find_store(item: pystac.Item, files: frozenset[str]) -> str | None:
    """Return the address of the store that has the bands of an item; None if they are files.

    Args:
        item: The item.
        files: Keys by which other providers name the files of bands.
    """
    hrefs = {key: asset.get_absolute_href() or asset.href for key, asset in item.assets.items()}
    stores = {key: zarr_addresses.store_of(href) for key, href in hrefs.items() if urls.is_zarr(href)}
    if not stores or any(key in files and key not in stores for key in hrefs):
        return None
    return stores.get("product") or min(stores.values())


def declared_offset(item: pystac.Item) -> int | None:
    """Return the offset in DN that the bands of an item declare; None if they declare neither offset nor scale.

    Raises:
        SourceError: Bands have several offsets, or another scale than the sensor's.
    """
    declared = set()
    for key, asset in sorted(item.assets.items()):
        scale, offset = (asset.extra_fields.get(f"raster:{name}") for name in ("scale", "offset"))
        if f"/{REFLECTANCE}" in asset.href and (scale, offset) != (None, None):
            declared.add(offset_in_dn(scale, offset, f"item {item.id}: asset {key}"))
    if len(declared) > 1:
        raise SourceError(f"item {item.id}: bands have offsets {sorted(declared)}, expected one for all; leave it out")
    return declared.pop() if declared else None


def offset_in_dn(scale: Any, offset: Any, origin: str) -> int:
    """Return the DN to add before values are scaled.

    Args:
        scale: Reflectance per DN; None counts as that of the sensor.
        offset: Reflectance at DN 0; None counts as 0.
        origin: Name of the array, for messages.

    Raises:
        SourceError: The scale is not that of the sensor, or the offset is no whole number of DN.
    """
    factor = _number(MSI.scale if scale is None else scale)
    if not abs(factor - MSI.scale) <= 1e-3 * MSI.scale:  # also of NaN
        raise SourceError(f"{origin}: scale {scale!r:.40}, expected {MSI.scale}; leave it out")
    dn = _number(0 if offset is None else offset) / MSI.scale
    if not math.isfinite(dn) or abs(dn - round(dn)) > 1e-3:
        raise SourceError(f"{origin}: offset {offset!r:.40} is no whole number of DN; leave it out")
    return round(dn)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else math.nan
