"""Search a STAC catalogue and parse its items into scenes, in a fixed order.

Reads an API, a static catalogue on disk or over HTTP, or an ItemCollection file, with the asset keys and properties of
Earth Search v1, Planetary Computer and the Copernicus Data Space.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdata import catalog, retry
from sgdata.errors import ServiceError, SettingError, SourceError
from sgdata.scenes.types import Asset, Dropped, Scene
from sgdata.sentinel2 import BAND, SCALE
from sgdata.types import Bounds

if TYPE_CHECKING:
    import pystac
    from pystac_client import ItemSearch

PRODUCT = ("product_metadata", "product-metadata")

LEFT_OUT = "left out by the recipe"  # the reason in a lock
RETRY = retry.RetryPolicy(tries=5, wait_s=0.5)
TIMEOUT_S = 60.0
PAGE, STALE_PAGES = 100, 3
STRIP_OVERLAP = 0.1
"""Scenes of one acquisition that share less than this part of the smaller one are two strips, not twins."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """A search for the items of a collection.

    Attributes:
        collection: id of the collection.
        bounds: west, south, east, north in degrees.
        dates: FIRST/LAST day, both included.
        bands: bands and layers whose assets are needed.
        leave_out: ids of items not to use.
    """

    collection: str
    bounds: Bounds
    dates: str
    bands: tuple[str, ...]
    leave_out: tuple[str, ...] = ()


def search(where: str, query: Query) -> tuple[tuple[Scene, ...], tuple[Dropped, ...]]:
    """Search a catalogue.

    Args:
        where: URL of an API or a static catalogue, a catalogue file or its folder, or an ItemCollection file.
        query: what to search for.

    Returns:
        Scenes in order of (time, id), and the items dropped: twins, and those to leave out.

    Raises:
        ServiceError: the catalogue cannot be reached after several retries.
        SourceError: an item lacks what is needed.
        SettingError: no scene matches, or an item to leave out does not exist.
    """
    days(query.dates)
    read = _from_api(where, query) if is_url(where) else _from_files(Path(where), query.collection)
    items = [_with_utc_and_bbox(item) for item in read]
    root = "" if is_url(where) else str(_root(Path(where)).resolve())
    # By id, since one page may repeat items of another.
    matching = {item.id: item for item in items if _matches(item, query)}
    if not matching:
        raise SettingError(
            f"area {_text(query.bounds)} in {query.dates}: 0 items of '{query.collection}' in {where}, "
            f"which {_coverage(items)}; choose another area, dates or catalogue"
        )
    if unknown := [name for name in query.leave_out if name not in matching]:
        raise SettingError(
            f"leave_out: {unknown[0]} is none of the {len(matching)} items found in {where}; correct its id"
        )
    # Before twins are dropped, so that the other one of two is taken. Excluded items are not validated.
    left_out = tuple(Dropped(id=name, reason=LEFT_OUT) for name in query.leave_out if matching.pop(name))
    scenes = [_parse(item, query.bands, root) for item in matching.values()]
    kept, twins = without_twins(scenes, {item.id: item.geometry for item in matching.values()})
    return kept, (*twins, *left_out)


def is_url(where: str) -> bool:
    """Return whether a catalogue is read over HTTP rather than from disk."""
    return where.startswith(("http://", "https://"))


def days(dates: str) -> tuple[date, date]:
    """Parse 'FIRST/LAST' as two days. Raises SettingError."""
    try:
        first, last = (date.fromisoformat(text) for text in dates.split("/"))
    except ValueError:
        raise SettingError(f"dates {dates!r}: expected FIRST/LAST such as 2019-04-01/2020-03-31") from None
    if first > last:
        raise SettingError(f"dates {dates!r}: the first day comes after the last")
    return first, last


# --- reading catalogues --------------------------------------------------------------------


def _from_api(url: str, query: Query) -> Iterator[pystac.Item]:
    """Yield the items of an API or of a static catalogue over HTTP."""
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO
    from pystac_client.warnings import PystacClientWarning

    first, last = days(query.dates)
    try:
        with warnings.catch_warnings():
            # Warns that a static catalogue has no search, which is handled here.
            warnings.simplefilter("ignore", PystacClientWarning)
            stac_io = StacApiIO(max_retries=None, timeout=TIMEOUT_S)
            retry.retry_session(stac_io.session, RETRY)
            client = Client.open(url, stac_io=stac_io)
            searchable = client.conforms_to("ITEM_SEARCH")
            items = [] if searchable else list(client.get_items(recursive=True))
        yield from (item for item in items if item.collection_id == query.collection)
        if not searchable:
            return
        # Year by year: long time spans exceed the time limits (504) of more than one provider.
        for year in range(first.year, last.year + 1):
            span = (max(first, date(year, 1, 1)).isoformat(), min(last, date(year, 12, 31)).isoformat())
            yield from _pages(
                client.search(collections=[query.collection], bbox=query.bounds, datetime=span, limit=PAGE), url
            )
    except _malformed() as error:
        reason = " ".join(str(error).split())
        raise ServiceError(
            f"{url}: no answer from the catalogue: {reason:.200}; try later or give --stac PATH"
        ) from None


def _pages(search: ItemSearch, url: str) -> Iterator[pystac.Item]:
    """Yield the items of all pages, each once. Raises ServiceError if pages repeat without end."""
    seen: set[str] = set()
    stale = 0
    for page in search.pages():
        fresh = [item for item in page if item.id not in seen]
        seen.update(item.id for item in fresh)
        yield from fresh
        # One repeated page can result from re-sorting on the server; several in a row mean a loop.
        stale = 0 if fresh else stale + 1
        if stale >= STALE_PAGES:
            raise ServiceError(f"{url}: {stale} pages in a row repeat items after {len(seen)} of them; try later")


def simulated(where: str) -> bool:
    """Return whether a catalogue on disk was made by `sgdata simulate`."""
    return not is_url(where) and (_root(Path(where)) / "simulation.json").is_file()


def _root(path: Path) -> Path:
    """Return the folder that local hrefs are relative to."""
    return path if path.is_dir() else path.parent


def _from_files(path: Path, collection: str) -> Iterator[pystac.Item]:
    import json

    import pystac

    path = path / "catalog.json" if path.is_dir() else path
    try:
        kind = json.loads(path.read_bytes()).get("type")
        if kind == "FeatureCollection":
            items: Iterable[pystac.Item] = pystac.ItemCollection.from_file(str(path.resolve()))
            items = [_with_self_href(item, path) for item in items]
        elif kind in {"Catalog", "Collection"}:
            items = pystac.Catalog.from_file(str(path.resolve())).get_items(recursive=True)
        else:
            raise SettingError(f"{path}: is a STAC {kind!r}; expected a Catalog, a Collection or a FeatureCollection")
        yield from (item for item in items if item.collection_id in {collection, None})
    except FileNotFoundError as error:
        missing = error.filename or path
        raise SettingError(f"{missing}: no such file; give --stac the URL or path of a STAC catalogue") from None
    except _malformed() as error:
        raise SourceError(f"{path}: cannot be read as a STAC catalogue: {error!s:.200}") from None


def _malformed() -> tuple[type[Exception], ...]:
    """Return the exceptions raised by pystac and pystac-client for timeouts and malformed STAC."""
    from pystac.errors import STACError, STACTypeError
    from pystac_client.exceptions import APIError

    return (OSError, APIError, STACError, STACTypeError, ValueError, KeyError, TypeError, AttributeError)


def _with_utc_and_bbox(item: pystac.Item) -> pystac.Item:
    """Return the item with its time in UTC and a bbox of four numbers.

    Some catalogues give a time span, another time zone, a bbox with heights, or none.
    """
    import shapely.geometry

    when = item.datetime or item.common_metadata.start_datetime
    if when is not None:
        item.datetime = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    if not item.bbox and item.geometry:
        item.bbox = [*map(float, shapely.geometry.shape(item.geometry).bounds)]
    if item.bbox and len(item.bbox) == 6:
        item.bbox = [*item.bbox[:2], *item.bbox[3:5]]
    return item


def _with_self_href(item: pystac.Item, path: Path) -> pystac.Item:
    """Return an item of an ItemCollection file whose relative hrefs start at that file unless it says otherwise."""
    if item.get_self_href() is None:
        item.set_self_href(str(path.resolve().parent / f"{item.id}.json"))
    return item


def _matches(item: pystac.Item, query: Query) -> bool:
    first, last = days(query.dates)
    # Servers ignore parameters that they do not support: each item is compared with the query again.
    if item.collection_id not in {query.collection, None} or not item.bbox:
        return False
    if item.datetime is None or not first <= item.datetime.date() <= last:
        return False
    west, south, east, north = item.bbox
    # Across the date line a bbox ends west of where it begins, or beyond 180.
    if west > east:
        east += 360
    return (south < query.bounds[3] and north > query.bounds[1]) and any(
        west < query.bounds[2] + turn and east > query.bounds[0] + turn for turn in (-360, 0, 360)
    )


def _coverage(items: list[pystac.Item]) -> str:
    boxes = [item.bbox for item in items if item.bbox]
    if not boxes:
        return "has none at all"
    wests, souths, easts, norths = zip(*boxes, strict=True)
    bounds = (min(wests), min(souths), max(easts), max(norths))
    times = sorted(item.datetime.date().isoformat() for item in items if item.datetime) or ["no time"]
    return f"covers {_text(bounds)}, {times[0]}/{times[-1]}"


def _text(bounds: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in bounds) + ")"


# --- parsing -------------------------------------------------------------------------------


def _parse(item: pystac.Item, bands: tuple[str, ...], root: str) -> Scene:
    try:
        return parse(item, bands, root)
    except _malformed() as error:
        raise SourceError(f"item {item.id}: cannot be parsed: {error!s:.120}; leave it out") from None


def parse(item: pystac.Item, bands: tuple[str, ...], root: str = "") -> Scene:
    """Parse a STAC item of any known provider.

    Args:
        item: the item, its time in UTC.
        bands: bands and layers whose assets are needed.
        root: folder that hrefs on disk are made relative to; "" leaves them as they are.

    Raises:
        SourceError: the item lacks what is needed.
    """
    properties = item.properties
    # Names differ between providers and between years of one provider: each `or` is another name.
    provider, keys = _provider(item, bands)
    product = str(properties.get("s2:product_uri") or item.id)
    tile_name = str(properties.get("grid:code") or properties.get("s2:mgrs_tile") or item.id).upper()
    tile = re.search(r"(\d{1,2})([C-X][A-Z]{2})", tile_name)
    baseline = properties.get("s2:processing_baseline") or properties.get("processing:version") or product
    baseline = _baseline_number(str(baseline))
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
        assets={band: _asset(item, keys[band], root) for band in bands},
        product=next((_asset(item, key, root).href for key in PRODUCT if key in item.assets), None),
        declared_offset=_declared_offset(item, [item.assets[keys[band]] for band in bands if band in BAND]),
    )


def _baseline_number(text: str) -> str | None:
    """Return a processing baseline as two numbers, also from a product's name (`_N0211_`); None if there is none."""
    match = re.search(r"(?:^|_)N(\d\d)\.?(\d\d)(?:_|$)", text)
    if match:
        return f"{match[1]}.{match[2]}"
    return None if "_" in text else text


def _declared_offset(item: pystac.Item, assets: list[pystac.Asset]) -> int | None:
    """Return the offset in DN that an item declares: by Earth Search's flag, else by its first band."""
    if item.properties.get("earthsearch:boa_offset_applied"):
        return 0  # some items keep an `offset` of -0.1 beside the flag, which is the more recent
    asset = assets[0].extra_fields if assets else {}
    # STAC 1.0 has `raster:bands` with plain names, 1.1 has `bands` or the asset itself with prefixed ones.
    fields = (asset.get("raster:bands") or asset.get("bands") or [{}])[0] | asset
    value = fields.get("raster:offset", fields.get("offset"))
    return None if value is None else round(float(value) / SCALE)


@cache
def asset_keys() -> dict[str, dict[str, str]]:
    """Return asset keys by provider and band.

    Not from `eo:common_name`: three bands share "rededge", and B8A is "nir08".
    """
    rows = catalog.table("stac_assets")
    return {name: {row["band"]: row[name] for row in rows if row[name]} for name in list(rows[0])[1:]}


def _provider(item: pystac.Item, bands: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return the provider whose asset keys the item has, and those keys by band.

    Raises:
        SourceError: the item lacks assets, or has those of two providers.
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
            f"item {item.id}: has no asset for {', '.join(missing)} as {name} names them; "
            f"it has {', '.join(sorted(item.assets))[:120]}"
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


def _asset(item: pystac.Item, key: str, root: str) -> Asset:
    asset = item.assets[key]
    fields: dict[str, Any] = item.properties | asset.extra_fields
    href = asset.get_absolute_href() or asset.href
    if root and "://" not in href:
        href = Path(os.path.relpath(href, root)).as_posix()
    # STAC 1.0 has `raster:bands`, 1.1 `bands`, CDSE the bare `data_type`.
    band = (fields.get("raster:bands") or fields.get("bands") or [{}])[0]
    transform, shape = fields.get("proj:transform"), fields.get("proj:shape")
    return Asset(
        href=href,
        crs=_crs(fields),
        transform=tuple(float(value) for value in transform[:6]) if transform else None,
        shape=(shape[0], shape[1]) if shape else None,
        dtype=band.get("data_type") or fields.get("data_type"),
    )


def _crs(fields: dict[str, Any]) -> str | None:
    """Return the CRS as 'EPSG:n', by `proj:code` (new) or `proj:epsg` (old)."""
    if code := fields.get("proj:code"):
        return str(code).upper()
    number = fields.get("proj:epsg")
    return f"EPSG:{number}" if number else None


def _zone(number: str, letters: str) -> str:
    """Return the UTM zone of an MGRS tile; latitude bands C to M are south of the equator."""
    return f"EPSG:{326 if letters[0] >= 'N' else 327}{int(number):02d}"


def without_twins(
    scenes: Iterable[Scene], outlines: Mapping[str, Any] | None = None
) -> tuple[tuple[Scene, ...], tuple[Dropped, ...]]:
    """Keep one scene per acquisition: the newest baseline, then the newest generation time, then the greatest id.

    Args:
        scenes: in any order.
        outlines: GeoJSON geometry of the data of a scene, by id; strips that hardly overlap are both kept.

    Returns:
        The scenes in order of (time, id), and the twins dropped.
    """
    kept: dict[tuple[str, str, str, int, str], list[Scene]] = {}
    # Sorted before grouped, so that the first of a group is the one to keep.
    ranked = sorted(scenes, key=lambda s: (s.baseline, s.generated, s.id), reverse=True)
    dropped = []
    for scene in ranked:
        winners = kept.setdefault(scene.acquisition, [])
        winner = next((other for other in winners if not _are_strips(scene.id, other.id, outlines or {})), None)
        if winner is None:
            winners.append(scene)
        else:
            dropped.append(
                Dropped(id=scene.id, reason=f"twin of {winner.id} (baseline {scene.baseline} < {winner.baseline})")
            )
    order = sorted((scene for winners in kept.values() for scene in winners), key=lambda s: (s.time, s.id))
    return tuple(order), tuple(sorted(dropped, key=lambda d: d.id))


def _are_strips(one: str, other: str, outlines: Mapping[str, Any]) -> bool:
    """Return whether two scenes of one acquisition cover different ground."""
    import shapely.geometry

    if not (outlines.get(one) and outlines.get(other)):
        return False
    # Footprints often cross themselves at swath edges.
    shapes = [shapely.make_valid(shapely.geometry.shape(outlines[name])) for name in (one, other)]
    return bool(shapes[0].intersection(shapes[1]).area < STRIP_OVERLAP * min(shape.area for shape in shapes))


def located(scene: Scene, where: str) -> Scene:
    """Return the scene with hrefs that can be opened: relative ones start at the catalogue `where`."""
    if is_url(where):
        return scene
    root = _root(Path(where))
    assets = {
        band: asset if "://" in asset.href else replace(asset, href=str(root / asset.href))
        for band, asset in scene.assets.items()
    }
    product = scene.product if scene.product is None or "://" in scene.product else str(root / scene.product)
    return replace(scene, assets=assets, product=product)
