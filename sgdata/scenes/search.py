"""Search a STAC catalogue and parse its items into scenes, in a fixed order.

`read_catalog` reads the items of a catalogue of any kind, `parse_items` parses them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date
from pathlib import Path
from typing import TYPE_CHECKING

from sgdata import files, local_paths, output_names, urls
from sgdata.errors import ServiceError, SettingError, SourceError
from sgdata.remote import retry
from sgdata.remote.allowed_addresses import access_of, admit
from sgdata.scenes import parse_items, twins
from sgdata.scenes.types import Dropped, Scene, Unusable, reasons
from sgdata.types import Bounds

if TYPE_CHECKING:
    import pystac

LEFT_OUT = "left out by the recipe"  # the reason in a lock
RETRY = retry.RetryPolicy(tries=6, wait_s=1)  # half a minute in all


@dataclass(frozen=True, kw_only=True)
class Query:
    """A search for the items of a collection.

    Attributes:
        collection: Id of the collection.
        bounds: West, south, east, north in degrees.
        dates: FIRST/LAST day, both included.
        bands: Bands and layers whose assets are needed.
        leave_out: Ids of items not to use.
        baselines: Processing baselines to use, the first of them first where twins have several; empty for all, the
            newest first.
    """

    collection: str
    bounds: Bounds
    dates: str
    bands: tuple[str, ...]
    leave_out: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()


def search(
    address: str, query: Query, *, allow_private_hosts: bool = False
) -> tuple[tuple[Scene, ...], tuple[Dropped, ...]]:
    """Search a catalogue.

    Args:
        address: URL or path of an API, a catalogue, a collection, items or a list of them, or folder of a catalogue.
        query: What to search for.
        allow_private_hosts: Follow links of a remote catalogue to hosts of the local network.

    Returns:
        Scenes in order of (time, id), and the items dropped: twins, those to leave out, and unusable ones (Unusable).

    Raises:
        ServiceError: The catalogue cannot be reached after several retries.
        SourceError: No item has what is needed, or two different items have one id.
        SettingError: No scene matches, or an item to leave out does not exist.
    """
    parse_dates(query.dates)
    items, unreadable = _read(address, query, allow_private_hosts)
    root = "" if urls.is_http(address) else str(_root(Path(address)).resolve())
    matching = _by_id(item for item in items if _matches(item, query))
    if not matching:
        if unreadable:
            raise SourceError(reasons(unreadable))
        others = sorted({item.collection_id for item in items if item.collection_id} - {query.collection})
        if others and not any(item.collection_id in {query.collection, None} for item in items):
            message = f"{address}: has items of {', '.join(map(repr, others))[:120]}, expected '{query.collection}'"
            raise SettingError(f"{message}; give --set source.collection={others[0]}")
        raise SettingError(
            f"area {_text(query.bounds)} in {query.dates}: 0 items of '{query.collection}' in {address}, "
            f"which {_coverage(items)}; choose another area, dates or catalogue"
        )
    if unknown := [name for name in query.leave_out if name not in matching]:
        raise SettingError(
            f"leave_out: {unknown[0]} is not among the {len(matching)} items found in {address}; correct the id"
        )
    # Before twins are dropped, so that the other one of two is taken. Excluded items are not validated.
    left_out = tuple(Dropped(id=name, reason=LEFT_OUT) for name in query.leave_out if matching.pop(name))
    scenes, unusable = _parse(matching.values(), query.bands, root)
    wanted, unwanted = [], []
    for scene in scenes:
        if query.baselines and scene.baseline not in query.baselines:
            reason = f"baseline {scene.baseline}, expected one of source.baselines {', '.join(query.baselines)}"
            unwanted.append(Dropped(id=scene.id, reason=reason))
        else:
            wanted.append(scene)
    if scenes and not wanted:
        raise SettingError(
            f"0 of {len(scenes)} scenes in {address} can be used ({reasons(unwanted[:3])}); correct the recipe"
        )
    outlines = {item.id: item.geometry for item in matching.values()}
    kept, dropped_twins = twins.drop_twins(wanted, outlines, query.baselines)
    return kept, (*dropped_twins, *unwanted, *left_out, *unreadable, *unusable)


def _by_id(items: Iterable[pystac.Item]) -> dict[str, pystac.Item]:
    """Return items by id: one page of an answer may repeat those of another.

    Raises SourceError if two different items have one id: the id names a scene in the lock, in masks and in messages.
    """
    known: dict[str, pystac.Item] = {}
    for item in items:
        other = known.setdefault(item.id, item)
        if other is not item and _identity(other) != _identity(item):
            raise SourceError(
                f"item {item.id}: two different items have this id, of {other.datetime} and of {item.datetime}; "
                "give each its own, or keep one"
            )
    return known


def _identity(item: pystac.Item) -> tuple[object, ...]:
    """Return what two answers about one item have in common; signatures of addresses differ from one to the next."""
    hrefs = {key: urls.without_secrets(asset.get_absolute_href() or asset.href) for key, asset in item.assets.items()}
    return item.collection_id, item.datetime, sorted(hrefs.items())


def _parse(items: Iterable[pystac.Item], bands: tuple[str, ...], root: str) -> tuple[list[Scene], list[Unusable]]:
    """Parse items into scenes, and into the unusable ones with their reasons. Raises SourceError if none is usable."""
    scenes, unusable = [], []
    for item in items:
        try:
            scene = parse_items.parse(item, bands, root)
            try:
                files.canonical_json(scene)  # as a lock holds it
            except ValueError:
                raise SourceError(f"item {item.id}: has numbers that are not finite; leave it out") from None
            scenes.append(scene)
        except SourceError as error:
            unusable.append(Unusable(id=item.id, reason=str(error), scene=parse_items.parse_footprint(item)))
    if unusable and not scenes:
        raise SourceError(reasons(unusable))
    return scenes, sorted(unusable, key=lambda one: one.id)


def parse_dates(dates: str) -> tuple[date, date]:
    """Parse 'FIRST/LAST' as two days. Raises SettingError."""
    try:
        first, last = (date.fromisoformat(text) for text in dates.split("/"))
    except ValueError:
        raise SettingError(f"dates {dates!r}: no two days; give FIRST/LAST such as 2019-04-01/2020-03-31") from None
    if first > last:
        raise SettingError(f"dates {dates!r}: the first day comes after the last; swap them")
    return first, last


# --- reading catalogues --------------------------------------------------------------------


def _read(address: str, query: Query, allow_private_hosts: bool) -> tuple[list[pystac.Item], list[Unusable]]:
    """Return the items of a catalogue, and those that cannot be read. Raises what `search` raises."""
    from sgdata.scenes import catalog_io, read_catalog, search_api

    first, last = parse_dates(query.dates)
    wanted = search_api.ItemQuery(collection=query.collection, bounds=query.bounds, first=first, last=last)
    if not urls.is_http(address):
        local_paths.require_local(address, "--stac", writes=False)
    start = address if urls.is_http(address) else str(_file(Path(address)).resolve())
    stac_io = catalog_io.CatalogIO(address, RETRY, allow_private_hosts=allow_private_hosts)
    items, unreadable = [], []
    try:
        for one in read_catalog.read(stac_io, start, wanted):
            if isinstance(one, Unusable):
                unreadable.append(one)
                continue
            try:
                items.append(_with_utc_and_bbox(one))
            except SourceError as error:
                unreadable.append(Unusable(id=one.id, reason=str(error), scene=None))
    except FileNotFoundError as error:
        missing = error.filename or address
        raise SettingError(f"{missing}: no such file; {catalog_io.TARGETS}") from None
    except parse_items.malformed_errors() as error:
        if refused := catalog_io.unwrap_error(error):
            raise refused from None
        if not urls.is_http(address):
            raise SourceError(f"{address}: cannot be read as STAC: {error!s:.160}; {catalog_io.TARGETS}") from None
        status = getattr(error, "status_code", None)  # of pystac-client's APIError, whose text is the body alone
        reason = " ".join(f"{f'status {status}: ' if status else ''}{stac_io.without_headers(str(error))}".split())
        advice = f"give its key in {catalog_io.HEADERS}" if status in {401, 403} else "try later"
        raise ServiceError(
            f"{address}: no answer from the catalogue: {reason:.200}; {advice} or give --stac PATH"
        ) from None
    return items, unreadable


def is_simulated(address: str) -> bool:
    """Return whether a catalogue on disk was made by `sgdata simulate`. Raises SourceError if it is unfinished."""
    if urls.is_http(address) or not (_root(Path(address)) / output_names.SIMULATION).is_file():
        return False
    files.require_finished(_root(Path(address)))
    return True


def _root(path: Path) -> Path:
    """Return the folder that local hrefs are relative to."""
    return path if path.is_dir() else path.parent


def _file(path: Path) -> Path:
    """Return the file of a catalogue, which may be given as its folder."""
    if not path.is_dir():
        return path
    collection = path / "collection.json"
    return collection if collection.is_file() and not (path / "catalog.json").is_file() else path / "catalog.json"


def _with_utc_and_bbox(item: pystac.Item) -> pystac.Item:
    """Return the item with its time in UTC and a bbox of four numbers.

    Some catalogues give a time span, another time zone, a bbox with heights, or none.
    """
    import shapely.geometry

    if not isinstance(item.collection_id, str | None):
        raise SourceError(
            f"item {item.id}: its collection is {item.collection_id!r:.60}, expected a name; leave it out"
        )
    when = item.datetime or item.common_metadata.start_datetime
    if when is not None:
        item.datetime = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    if item.bbox and len(item.bbox) == 6:
        item.bbox = [*item.bbox[:2], *item.bbox[3:5]]
    if item.bbox and (len(item.bbox) != 4 or not all(map(_is_finite, item.bbox))):
        item.bbox = None
    if not item.bbox and item.geometry:
        try:
            item.bbox = [*map(float, shapely.geometry.shape(item.geometry).bounds)]
        except (*parse_items.malformed_errors(), shapely.errors.ShapelyError) as error:
            raise SourceError(f"item {item.id}: its geometry cannot be read: {error!s:.120}; leave it out") from None
    return item


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _matches(item: pystac.Item, query: Query) -> bool:
    first, last = parse_dates(query.dates)
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


def resolve_hrefs(scene: Scene, address: str) -> Scene:
    """Return the scene with hrefs that can be opened: relative ones start at the catalogue `address`.

    Raises SourceError if an href names what that catalogue, or a lock of it, may not name.
    """
    access = access_of(address)
    assets = {band: replace(asset, href=admit(asset.href, access)) for band, asset in scene.assets.items()}
    product = None if scene.product is None else admit(scene.product, access)
    return replace(scene, assets=assets, product=product)
