"""The only network edge for scenes: one search -> the scenes of an area, parsed once, in a fixed order.

Knows the asset keys and properties of Earth Search v1, Planetary Computer and the Copernicus Data Space, and
reads an API, a static catalogue on disk or over HTTP, or an ItemCollection file.
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

LEFT_OUT = "left out by the recipe"
RETRY = retry.RetryPolicy(tries=5, wait_s=0.5)
TIMEOUT_S = 60.0
PAGE, STALE_PAGES = 100, 3
STRIP_OVERLAP = 0.1
"""Twins that share less than this part of the smaller one are two stations' strips of one pass."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What to look for: `bounds` in degrees, `dates` as first/last day (both included), `bands` the assets needed;
    not the items with an id in `leave_out`."""

    collection: str
    bounds: Bounds
    dates: str
    bands: tuple[str, ...]
    leave_out: tuple[str, ...] = ()


def search(where: str, query: Query) -> tuple[tuple[Scene, ...], tuple[Dropped, ...]]:
    """Scenes in order of (time, id) and what was dropped: twins, and what was to be left out.

    `where` is an API's URL, a catalogue file or its folder, or an ItemCollection file. Raises ServiceError
    (unreachable after finite retries), SourceError (an item lacks what is needed), SettingError (no scene, or not
    one that was to be left out).
    """
    days(query.dates)
    told = _from_api(where, query) if is_url(where) else _from_files(Path(where), query.collection)
    items = [_settled(item) for item in told]
    root = "" if is_url(where) else str(_root(Path(where)).resolve())
    # By id: a page may repeat what another had.
    wanted = {item.id: item for item in items if _meets(item, query)}
    if not wanted:
        raise SettingError(
            f"area {_text(query.bounds)} in {query.dates}: 0 items of '{query.collection}' in {where}, "
            f"which {_extent(items)}; choose another area, dates or catalogue"
        )
    if strange := [name for name in query.leave_out if name not in wanted]:
        raise SettingError(f"leave_out: {strange[0]} is none of the {len(wanted)} items found in {where}; mend its id")
    # Before twins are: of two, the other one is then taken. Whatever is wrong with these items is nobody's business.
    left = tuple(Dropped(id=name, reason=LEFT_OUT) for name in query.leave_out if wanted.pop(name))
    scenes = sorted((_understood(item, query.bands, root) for item in wanted.values()), key=lambda s: (s.time, s.id))
    kept, twins = without_twins(scenes, {item.id: item.geometry for item in wanted.values()})
    return kept, (*twins, *left)


def is_url(where: str) -> bool:
    """Whether a catalogue is asked over HTTP rather than read from disk."""
    return where.startswith(("http://", "https://"))


def days(dates: str) -> tuple[date, date]:
    """'A/B' -> first and last day. Raises SettingError."""
    try:
        first, last = (date.fromisoformat(text) for text in dates.split("/"))
    except ValueError:
        raise SettingError(f"dates {dates!r}: expected FIRST/LAST such as 2019-04-01/2020-03-31") from None
    if first > last:
        raise SettingError(f"dates {dates!r}: the first day comes after the last")
    return first, last


# --- finding -------------------------------------------------------------------------------


def _from_api(url: str, query: Query) -> Iterator[pystac.Item]:
    """All pages, asked for in slices of a year: long windows run into the servers' time limits."""
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO
    from pystac_client.warnings import PystacClientWarning

    first, last = days(query.dates)
    try:
        with warnings.catch_warnings():
            # So says a static catalogue, which is none the worse for it.
            warnings.simplefilter("ignore", PystacClientWarning)
            stac_io = StacApiIO(max_retries=None, timeout=TIMEOUT_S)
            retry.retry_session(stac_io.session, RETRY)
            client = Client.open(url, stac_io=stac_io)
            searchable = client.conforms_to("ITEM_SEARCH")
            items = [] if searchable else list(client.get_items(recursive=True))
        yield from (item for item in items if item.collection_id == query.collection)
        if not searchable:
            return
        # Years, for whole series run into time limits (504) at more than one provider.
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
    """The items of all pages, each once. Raises ServiceError where paging goes round in a circle."""
    seen: set[str] = set()
    stale = 0
    for page in search.pages():
        fresh = [item for item in page if item.id not in seen]
        seen.update(item.id for item in fresh)
        yield from fresh
        # One page may repeat what a server re-sorted meanwhile; page after page of it has no end.
        stale = 0 if fresh else stale + 1
        if stale >= STALE_PAGES:
            raise ServiceError(f"{url}: {stale} pages in a row repeat items after {len(seen)} of them; try later")


def simulated(where: str) -> bool:
    """Whether a catalogue on disk is that of `sgdata simulate`, by what lies beside it."""
    return not is_url(where) and (_root(Path(where)) / "simulation.json").is_file()


def _root(path: Path) -> Path:
    """The folder that local hrefs are told relative to."""
    return path if path.is_dir() else path.parent


def _from_files(path: Path, collection: str) -> Iterator[pystac.Item]:
    import json

    import pystac

    path = path / "catalog.json" if path.is_dir() else path
    try:
        kind = json.loads(path.read_bytes()).get("type")
        if kind == "FeatureCollection":
            items: Iterable[pystac.Item] = pystac.ItemCollection.from_file(str(path.resolve()))
            items = [_at_home(item, path) for item in items]
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
    """All that silence, and JSON that is no STAC, does to its readers: they trust it."""
    from pystac.errors import STACError, STACTypeError
    from pystac_client.exceptions import APIError

    return (OSError, APIError, STACError, STACTypeError, ValueError, KeyError, TypeError, AttributeError)


def _settled(item: pystac.Item) -> pystac.Item:
    """The item with its time in UTC and a flat box, where catalogues tell a span, another clock, heights or no box."""
    import shapely.geometry

    when = item.datetime or item.common_metadata.start_datetime
    if when is not None:
        item.datetime = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    if not item.bbox and item.geometry:
        item.bbox = [*map(float, shapely.geometry.shape(item.geometry).bounds)]
    if item.bbox and len(item.bbox) == 6:
        item.bbox = [*item.bbox[:2], *item.bbox[3:5]]
    return item


def _at_home(item: pystac.Item, path: Path) -> pystac.Item:
    """An item of a collection file: its relative hrefs start at that file unless it says otherwise."""
    if item.get_self_href() is None:
        item.set_self_href(str(path.resolve().parent / f"{item.id}.json"))
    return item


def _meets(item: pystac.Item, query: Query) -> bool:
    first, last = days(query.dates)
    # Servers ignore what they do not know: dates, boxes and collections are held against each item again.
    if item.collection_id not in {query.collection, None} or not item.bbox:
        return False
    if item.datetime is None or not first <= item.datetime.date() <= last:
        return False
    west, south, east, north = item.bbox
    # Across the date line a box ends west of where it begins, or beyond 180.
    east += 360 * (west > east)
    return (south < query.bounds[3] and north > query.bounds[1]) and any(
        west < query.bounds[2] + turn and east > query.bounds[0] + turn for turn in (-360, 0, 360)
    )


def _extent(items: list[pystac.Item]) -> str:
    boxes = [item.bbox for item in items if item.bbox]
    if not boxes:
        return "holds none there at all"
    bounds = (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))
    times = sorted(item.datetime.date().isoformat() for item in items if item.datetime) or ["no time"]
    return f"covers {_text(bounds)}, {times[0]}/{times[-1]}"


def _text(bounds: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in bounds) + ")"


# --- parsing -------------------------------------------------------------------------------


def _understood(item: pystac.Item, bands: tuple[str, ...], root: str) -> Scene:
    try:
        return parse(item, bands, root)
    except _malformed() as error:
        raise SourceError(f"item {item.id}: cannot be understood: {error!s:.120}; leave it out") from None


def parse(item: pystac.Item, bands: tuple[str, ...], root: str = "") -> Scene:
    """A STAC item of any known provider as a Scene with the assets of `bands`. Raises SourceError."""
    told = item.properties
    # Names differ between providers and between years of one provider: each `or` is another of their words.
    provider, keys = _provider(item, bands)
    product = str(told.get("s2:product_uri") or item.id)
    named = str(told.get("grid:code") or told.get("s2:mgrs_tile") or item.id).upper()
    tile = re.search(r"(\d{1,2})([C-X][A-Z]{2})", named)
    baseline = told.get("s2:processing_baseline") or told.get("processing:version") or product
    baseline = _numbered(str(baseline))
    if item.datetime is None or item.bbox is None or tile is None or baseline is None:
        lacks = {"datetime": item.datetime, "bbox": item.bbox, "tile": tile, "processing baseline": baseline}
        raise SourceError(f"item {item.id}: has no {', '.join(k for k, v in lacks.items() if v is None)}; leave it out")
    orbit = str(told.get("sat:relative_orbit") or (re.findall(r"_R(\d{3})_", product) or [0])[0]).lstrip("R")
    datatake = str(told.get("s2:datatake_id") or told.get("eopf:datatake_id") or "")
    return Scene(
        id=item.id,
        collection=item.collection_id or "",
        provider=provider,
        time=item.datetime.strftime("%Y-%m-%dT%H:%M:%SZ"),
        platform=str(told.get("platform") or product[:3]).lower(),
        # Zones below 10 gained their zero in 2025; old and new items must meet.
        tile=tile[1].zfill(2) + tile[2],
        orbit=int(orbit),
        datatake=re.sub(r"_N\d\d\.\d\d$", "", datatake),
        baseline=baseline,
        generated=str(told.get("s2:generation_time") or told.get("processing:datetime") or ""),
        crs=_crs(told) or _zone(tile[1], tile[2]),
        bbox=(item.bbox[0], item.bbox[1], item.bbox[2], item.bbox[3]),
        cloud_cover=None if told.get("eo:cloud_cover") is None else float(told["eo:cloud_cover"]),
        assets={band: _asset(item, keys[band], root) for band in bands},
        product=next((_asset(item, key, root).href for key in PRODUCT if key in item.assets), None),
        declared_offset=_declared(item, [item.assets[keys[band]] for band in bands if band in BAND]),
    )


def _numbered(told: str) -> str | None:
    """The baseline as two numbers, also out of a product's name (`_N0211_`); what is neither is judged later."""
    found = re.search(r"(?:^|_)N(\d\d)\.?(\d\d)(?:_|$)", told)
    return f"{found[1]}.{found[2]}" if found else told if "_" not in told else None


def _declared(item: pystac.Item, assets: list[pystac.Asset]) -> int | None:
    """The offset in DN that an item claims: Earth Search's flag, else what stands beside its first band."""
    if item.properties.get("earthsearch:boa_offset_applied"):
        return 0  # its `offset` is then still -0.1 in some items: the flag is the later word
    told = assets[0].extra_fields if assets else {}
    # STAC 1.0 has `raster:bands` of bare words, 1.1 `bands` of prefixed ones, or the latter beside the asset.
    told = (told.get("raster:bands") or told.get("bands") or [{}])[0] | told
    value = told.get("raster:offset", told.get("offset"))
    return None if value is None else round(float(value) / SCALE)


@cache
def asset_keys() -> dict[str, dict[str, str]]:
    """Provider -> band -> asset key. Never by `eo:common_name`: three bands share "rededge", and B8A is "nir08"."""
    rows = catalog.table("stac_assets")
    return {name: {row["band"]: row[name] for row in rows if row[name]} for name in list(rows[0])[1:]}


def _provider(item: pystac.Item, bands: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The provider whose asset keys fit best. Raises SourceError naming what is missing."""
    # By keys, not by the catalogue's address: mirrors and local copies have other addresses.
    # In whatever case: mirrors of Planetary Computer have b02, too.
    names = {key.lower(): key for key in item.assets} | {key: key for key in item.assets}
    have = {
        name: {
            band: found for band in bands if (found := names.get((key := keys.get(band, "")), names.get(key.lower())))
        }
        for name, keys in asset_keys().items()
    }
    whole = [provider for provider, found in have.items() if len(found) == len(bands)]
    if len(whole) > 1:
        # Which one decides the offset to expect: no guess.
        raise SourceError(f"item {item.id}: has assets named as {' and as '.join(whole)} do; keep one set of names")
    name = max(have, key=lambda provider: len(have[provider]))
    missing = [f"{band} ('{asset_keys()[name].get(band, '?')}')" for band in bands if band not in have[name]]
    if missing:
        raise SourceError(
            f"item {item.id}: has no asset for {', '.join(missing)} as {name} names them; "
            f"it has {', '.join(sorted(item.assets))[:120]}"
        )
    return name, have[name]


def _asset(item: pystac.Item, key: str, root: str) -> Asset:
    asset = item.assets[key]
    told: dict[str, Any] = item.properties | asset.extra_fields
    href = asset.get_absolute_href() or asset.href
    if root and "://" not in href:
        href = Path(os.path.relpath(href, root)).as_posix()
    # STAC 1.0 has `raster:bands`, 1.1 `bands`, CDSE the bare `data_type`.
    band = (told.get("raster:bands") or told.get("bands") or [{}])[0]
    transform, shape = told.get("proj:transform"), told.get("proj:shape")
    return Asset(
        href=href,
        crs=_crs(told),
        transform=tuple(float(value) for value in transform[:6]) if transform else None,
        shape=(shape[0], shape[1]) if shape else None,
        dtype=band.get("data_type") or told.get("data_type"),
    )


def _crs(told: dict[str, Any]) -> str | None:
    """`proj:code` (new) or `proj:epsg` (old) as 'EPSG:n'."""
    code, number = told.get("proj:code"), told.get("proj:epsg")
    return str(code).upper() if code else f"EPSG:{number}" if number else None


def _zone(number: str, letters: str) -> str:
    """The UTM zone that an MGRS tile lies in: bands C-M are south of the equator."""
    return f"EPSG:{326 if letters[0] >= 'N' else 327}{int(number):02d}"


def without_twins(
    scenes: Iterable[Scene], outlines: Mapping[str, Any] | None = None
) -> tuple[tuple[Scene, ...], tuple[Dropped, ...]]:
    """One scene per acquisition: the newest baseline, then the newest generation time, then the greatest id.

    `outlines`: id -> GeoJSON of where a scene has data. Two strips of a pass that hardly overlap are both kept.
    """
    kept: dict[tuple[str, str, str, int, str], list[Scene]] = {}
    # Ranked before grouped, so that the first of a group is the one to keep, whatever order they came in.
    ranked = sorted(scenes, key=lambda s: (s.baseline, s.generated, s.id), reverse=True)
    dropped = []
    for scene in ranked:
        winners = kept.setdefault(scene.acquisition, [])
        winner = next((other for other in winners if not _strips(scene.id, other.id, outlines or {})), None)
        if winner is None:
            winners.append(scene)
        else:
            dropped.append(
                Dropped(id=scene.id, reason=f"twin of {winner.id} (baseline {scene.baseline} < {winner.baseline})")
            )
    order = sorted((scene for winners in kept.values() for scene in winners), key=lambda s: (s.time, s.id))
    return tuple(order), tuple(sorted(dropped, key=lambda d: d.id))


def _strips(one: str, other: str, outlines: Mapping[str, Any]) -> bool:
    """Whether two scenes of one acquisition see different ground."""
    import shapely.geometry

    if not (outlines.get(one) and outlines.get(other)):
        return False
    # Footprints cross themselves at swath edges often enough.
    shapes = [shapely.make_valid(shapely.geometry.shape(outlines[name])) for name in (one, other)]
    return bool(shapes[0].intersection(shapes[1]).area < STRIP_OVERLAP * min(shape.area for shape in shapes))


def located(scene: Scene, where: str) -> Scene:
    """The scene with hrefs that can be opened: relative ones start at the catalogue `where`."""
    if is_url(where):
        return scene
    root = _root(Path(where))
    assets = {
        band: asset if "://" in asset.href else replace(asset, href=str(root / asset.href))
        for band, asset in scene.assets.items()
    }
    product = scene.product if scene.product is None or "://" in scene.product else str(root / scene.product)
    return replace(scene, assets=assets, product=product)
