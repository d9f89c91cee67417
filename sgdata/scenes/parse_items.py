"""Parse STAC items into scenes.

Properties are those of Earth Search v1 and v0, Planetary Computer, the Copernicus Data Space, Digital Earth Africa and
stactools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from sgdata import package_data, urls
from sgdata.errors import SourceError
from sgdata.rasters import zarr_addresses
from sgdata.remote.allowed_addresses import relative
from sgdata.scenes import eopf_items
from sgdata.scenes.types import Asset, Scene
from sgdata.sentinel2 import MSI

if TYPE_CHECKING:
    import pystac

PRODUCT = re.compile(r"S2[A-Z]_MSIL[12][A-Z]_")
"""Prefixes of the names of ESA's products."""
PRODUCT_KEYS = ("product_metadata", "product-metadata")


def malformed_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions raised by pystac and pystac-client for timeouts and malformed STAC."""
    from pystac.errors import STACError, STACTypeError
    from pystac_client.exceptions import APIError

    # IndexError, RecursionError: lists that are too short, and documents that nest too deeply.
    of_python = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError)
    return (APIError, STACError, STACTypeError, *of_python)


def parse(item: pystac.Item, bands: tuple[str, ...], root: str = "") -> Scene:
    """Parse a STAC item of any known provider.

    Args:
        item: The item, its time in UTC.
        bands: Bands and layers whose assets are needed.
        root: Folder that hrefs on disk are made relative to; "" leaves them as they are.

    Raises:
        SourceError: The item lacks what is needed, or is malformed.
    """
    try:
        return _scene(item, bands, root)
    except malformed_errors() as error:
        raise SourceError(f"item {item.id}: cannot be parsed: {error!s:.120}; leave it out") from None


def _scene(item: pystac.Item, bands: tuple[str, ...], root: str) -> Scene:
    properties = item.properties
    # Names differ between providers and between years of one provider: each `or` is another name.
    store = eopf_items.find_store(item, _file_keys())
    provider, keys = _provider(item, bands) if store is None else ("eopf", dict[str, str]())
    product = _product(item)
    tile = _tile(item)
    baseline = _baseline(item)
    if item.datetime is None or item.bbox is None or tile is None or baseline is None:
        lacks = {"datetime": item.datetime, "bbox": item.bbox, "tile": tile, "processing baseline": baseline}
        raise SourceError(f"item {item.id}: has no {', '.join(k for k, v in lacks.items() if v is None)}; leave it out")
    orbit = str(properties.get("sat:relative_orbit") or (re.findall(r"_R(\d{3})_", product) or [0])[0]).lstrip("R")
    datatake = str(properties.get("s2:datatake_id") or properties.get("eopf:datatake_id") or "")
    return Scene(
        id=item.id,
        collection=item.collection_id or "",
        provider=provider,
        time=item.datetime.strftime("%Y-%m-%dT%H:%M:%SZ"),
        platform=str(properties.get("platform") or product[:3]).lower(),
        # Zones below 10 have a leading zero since 2025; old and new items must agree.
        tile=tile[1].zfill(2) + tile[2],
        orbit=int(orbit),
        datatake=re.sub(r"_N\d\d\.\d\d$", "", datatake),
        baseline=baseline,
        generated=str(properties.get("s2:generation_time") or properties.get("processing:datetime") or ""),
        crs=_crs(properties) or _zone(tile[1], tile[2]),
        bbox=(item.bbox[0], item.bbox[1], item.bbox[2], item.bbox[3]),
        cloud_cover=None if properties.get("eo:cloud_cover") is None else float(properties["eo:cloud_cover"]),
        assets={
            band: _asset(item, keys[band], root, band=band) if store is None else _array(item, store, band, root)
            for band in bands
        },
        product=_product_address(item, store, root),
        declared_offset=eopf_items.declared_offset(item)
        if store is not None
        else _declared_offset([item.assets[keys[band]] for band in bands if band in MSI.by_name]),
        offset_applied=_offset_applied(item),
    )


def parse_footprint(item: pystac.Item) -> Scene | None:
    """Return what places an item that cannot be used: its tile, bbox and grids; None for an item without a tile."""
    refused: tuple[type[Exception], ...] = (SourceError, *malformed_errors())
    try:
        tile = _tile(item)
        if tile is None or item.bbox is None or item.datetime is None:
            return None
        return Scene(
            id=item.id, collection=item.collection_id or "", provider="", time=f"{item.datetime:%Y-%m-%dT%H:%M:%SZ}",
            platform="", tile=tile[1].zfill(2) + tile[2], orbit=0, datatake="", baseline="", generated="",
            crs=_crs(item.properties) or _zone(tile[1], tile[2]), cloud_cover=None,
            bbox=(item.bbox[0], item.bbox[1], item.bbox[2], item.bbox[3]),
            assets={key: _asset(item, key, "") for key in item.assets},
        )  # fmt: skip
    except refused:
        return None


def _product(item: pystac.Item) -> str:
    """Return the name of ESA's product, or the item's id if nothing names it."""
    fields = [item.properties.get(key) for key in ("s2:product_uri", "sentinel:product_id", "title")]
    return next((field for field in fields if isinstance(field, str) and PRODUCT.match(field)), item.id)


def _tile(item: pystac.Item) -> re.Match[str] | None:
    """Return the MGRS tile that an item names: (1) the zone, (2) the letters."""
    properties = item.properties
    for key in ("grid:code", "s2:mgrs_tile", "odc:region_code"):
        if match := re.fullmatch(r"(?:MGRS-|T)?(\d{1,2})([C-X][A-Z]{2})", str(properties.get(key)).upper()):
            return match
    for prefix in ("mgrs", "sentinel"):
        parts = [properties.get(f"{prefix}:{part}") for part in ("utm_zone", "latitude_band", "grid_square")]
        if match := re.fullmatch(r"(\d{1,2})([C-X][A-Z]{2})", "".join(map(str, parts)).upper()):
            return match
    # Between underscores: an id may be a UUID, in which the same letters are no tile.
    names = (_product(item), item.id)
    matches = (re.search(r"(?:^|_)T?(\d{1,2})([C-X][A-Z]{2})(?=_|$)", name.upper()) for name in names)
    return next((match for match in matches if match), None)


def _baseline(item: pystac.Item) -> str | None:
    """Return the processing baseline as two numbers, by property or product (`_N0211_`); None if there is none."""
    for key in ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version"):
        if match := re.fullmatch(r"N?(\d?\d)\.?(\d\d)", str(item.properties.get(key, ""))):
            return f"{match[1].zfill(2)}.{match[2]}"
    match = re.search(r"_N(\d\d)(\d\d)_", _product(item))
    return f"{match[1]}.{match[2]}" if match else None


def _offset_applied(item: pystac.Item) -> bool | None:
    """Return Earth Search's flag, by its name since v1 or before; None if the item has none."""
    for prefix in ("earthsearch", "sentinel"):
        if isinstance(flag := item.properties.get(f"{prefix}:boa_offset_applied"), bool):
            return flag
    return None


def _declared_offset(assets: list[pystac.Asset]) -> int | None:
    """Return the offset in DN that the first band of an item declares."""
    asset = assets[0].extra_fields if assets else {}
    # STAC 1.0 has `raster:bands` with plain names, 1.1 has `bands` or the asset itself with prefixed ones.
    fields = (asset.get("raster:bands") or asset.get("bands") or [{}])[0] | asset
    value = fields.get("raster:offset", fields.get("offset"))
    return None if value is None else round(float(value) / MSI.scale)


@cache
def asset_keys() -> dict[str, dict[str, str]]:
    """Return asset keys by provider and band.

    Not from `eo:common_name`: three bands share "rededge", and B8A is "nir08".
    """
    rows = package_data.table("stac_assets")
    return {name: {row["band"]: row[name] for row in rows if row[name]} for name in list(rows[0])[1:]}


def _provider(item: pystac.Item, bands: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return the provider whose asset keys the item has, and those keys by band.

    Raises:
        SourceError: The item lacks assets, or has those of two providers.
    """
    # By keys, not by the address of the catalogue: mirrors and local copies have other addresses.
    resolved = {name: resolve_keys(item, bands, keys) for name, keys in asset_keys().items()}
    complete = [name for name, keys in resolved.items() if len(keys) == len(bands)]
    if len(complete) > 1:
        # The provider decides which offset to expect, so it must not be guessed.
        raise SourceError(f"item {item.id}: has assets named as {' and as '.join(complete)} do; keep one set of names")
    name = max(resolved, key=lambda provider: len(resolved[provider]))
    missing = [f"{band} ('{asset_keys()[name].get(band, '?')}')" for band in bands if band not in resolved[name]]
    if missing:
        raise SourceError(
            f"item {item.id}: has no asset for {', '.join(missing)} as {name} names them, "
            f"only {', '.join(sorted(item.assets))[:120] or 'none at all'}; leave it out"
        )
    return name, resolved[name]


def resolve_keys(item: pystac.Item, bands: tuple[str, ...], keys: Mapping[str, str]) -> dict[str, str]:
    """Return the asset keys of an item for those of `bands` that it has, given one provider's `keys` by band."""
    # Without regard to case, since mirrors of Planetary Computer have b02 as well; an exact match comes first.
    by_lower = {key.lower(): key for key in item.assets}
    resolved = {}
    for band in bands:
        key = keys.get(band, "")
        if key in item.assets:
            resolved[band] = key
        elif key.lower() in by_lower:
            resolved[band] = by_lower[key.lower()]
    return resolved


@cache
def _file_keys() -> frozenset[str]:
    """Return the keys by which providers name the files of bands."""
    return frozenset(key for keys in asset_keys().values() for key in keys.values())


def _array(item: pystac.Item, store: str, band: str, root: str) -> Asset:
    """Return the array of a band in the store of an item, with what the item says of it, if anything."""
    path = eopf_items.array_paths().get(band)
    is_l1c = "_MSIL1C_" in _product(item)
    # Products of level 1C have no layers of Sen2Cor, which leaves out B10 in turn.
    if path is None or (is_l1c and band not in MSI.by_name) or (not is_l1c and band == "B10"):
        level = "L1C" if is_l1c else "L2A"
        raise SourceError(f"item {item.id}: EOPF products of {level} lack {band}; leave out the band or the item")
    href = urls.joined(store, path)
    for key, asset in item.assets.items():
        if (asset.get_absolute_href() or asset.href) == href:
            return _asset(item, key, root)
    return Asset(href=urls.remember(relative(href, root) if root else href), crs=_crs(item.properties))


def _product_address(item: pystac.Item, store: str | None, root: str) -> str | None:
    """Return the address of the product's own metadata; None if it has none."""
    if store is None:
        return next((_asset(item, key, root).href for key in PRODUCT_KEYS if key in item.assets), None)
    href = urls.joined(store, zarr_addresses.METADATA)
    return urls.remember(relative(href, root) if root else href)


def _asset(item: pystac.Item, key: str, root: str, *, band: str = "") -> Asset:
    """Return an asset; what it inherits of a grid must be of the pixel size of its band, if one is given."""
    asset = item.assets[key]
    fields: dict[str, Any] = item.properties | asset.extra_fields
    href = asset.get_absolute_href() or asset.href
    if root:
        href = relative(href, root)
    # STAC 1.0 has `raster:bands`, 1.1 `bands`, CDSE the bare `data_type`.
    number = _band_number(asset, band)
    described = fields.get("raster:bands") or fields.get("bands") or [{}]
    stored = described[min(number or 1, len(described)) - 1]
    transform, shape = _ordered(fields.get("proj:transform")), fields.get("proj:shape")
    if not {"proj:transform", "proj:shape"} & asset.extra_fields.keys():
        # What all assets inherit describes the files of one pixel size.
        gsd_m = asset.extra_fields.get("gsd") or (MSI.gsd_m(band) if band else None)
        if transform is None or (gsd_m and transform[0] != gsd_m):
            transform = shape = None
    return Asset(
        # Documents that outlive this run must not have what opens the file.
        href=urls.remember(href),
        crs=_crs(fields),
        transform=transform,
        shape=(shape[0], shape[1]) if shape else None,
        dtype=stored.get("data_type") or fields.get("data_type"),
        band=number,
    )


def _ordered(transform: Any) -> tuple[float, ...] | None:
    """Return an affine transform as STAC orders its numbers, also if it is in the order of GDAL; None if none."""
    if not transform:
        return None
    a, b, c, d, e, f = (float(value) for value in transform[:6])
    # Of north-up pixels: (west, width, 0, north, 0, -height) by GDAL, (width, 0, west, 0, -height, north) by STAC.
    is_gdal = c == e == 0 and b > 0 > f
    return (b, c, a, e, f, d) if is_gdal else (a, b, c, d, e, f)


def _band_number(asset: pystac.Asset, band: str) -> int | None:
    """Return the number of a band in a file of several, by the names in its item; None if it names one or none."""
    described = asset.extra_fields.get("eo:bands") or asset.extra_fields.get("bands") or []
    # By any provider's name of the band, but not by common names, which several bands share.
    names = {band.lower(), *(keys[band].lower() for keys in asset_keys().values() if band in keys)}
    numbers = [n for n, one in enumerate(described, start=1) if str(one.get("name", "")).lower() in names]
    return numbers[0] if len(described) > 1 and len(numbers) == 1 else None


def _crs(fields: dict[str, Any]) -> str | None:
    """Return the CRS as 'EPSG:n', by `proj:code` (new) or `proj:epsg` (old)."""
    if code := fields.get("proj:code"):
        return _known(str(code).upper())
    number = fields.get("proj:epsg")
    return _known(f"EPSG:{number}") if number else None


def _zone(number: str, letters: str) -> str:
    """Return the UTM zone of an MGRS tile; latitude bands C to M are south of the equator."""
    return _known(f"EPSG:{326 if letters[0] >= 'N' else 327}{int(number):02d}")


@cache
def _known(crs: str) -> str:
    """Return a CRS that PROJ supports. Raises SourceError for any other."""
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        CRS.from_user_input(crs)
    except CRSError:
        raise SourceError(f"CRS {crs!r:.60} is unknown; leave the item out") from None
    return crs
