"""Read the items of a catalogue, detected by content: API, static catalogue or item files.

On disk and over HTTP alike: the landing page of an API, its `/search`, a collection of an API or on disk, a static
catalogue, an ItemCollection, a single item, newline-delimited items, a list of items or of addresses of any of these,
and stac-geoparquet.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pystac
from pystac.utils import is_absolute_href, make_absolute_href
from pystac_client.exceptions import APIError

from sgdata import documents, parquet_tables, urls
from sgdata.errors import ServiceError, SettingError, SourceError
from sgdata.limits import CATALOG_DEPTH, SEARCH_ITEMS, SEARCH_PAGES
from sgdata.safe_names import file_name
from sgdata.scenes import catalog_io, search_api
from sgdata.scenes.catalog_io import TARGETS, CatalogIO
from sgdata.scenes.parse_items import malformed_errors
from sgdata.scenes.types import Unusable

STALE_PAGES = 3
"""Pages in a row that repeat items, after which a search is without end."""
GONE = (401, 403, 404, 410)
"""Statuses of a document that is not available."""

Found = pystac.Item | Unusable


def read(stac_io: CatalogIO, address: str, wanted: search_api.ItemQuery) -> Iterator[Found]:
    """Yield the items at an address, and what cannot be read as one with the reason.

    Args:
        stac_io: Reader of documents.
        address: URL, or absolute path of a file.
        wanted: Search parameters.

    Raises:
        SourceError: The content is of no kind that the module reads, or links in a circle.
        ServiceError: A search has no end.
        Exception: One of `parse_items.malformed_errors()`.
    """
    if urlsplit(address).path.rstrip("/").endswith("/search"):
        yield from _searched_items(stac_io, address, ("POST", "GET"), wanted)
        return
    for document in _documents(stac_io.read_bytes(address), address):
        yield from _read_document(stac_io, document, address, wanted)


def _read_document(stac_io: CatalogIO, document: Any, address: str, wanted: search_api.ItemQuery) -> Iterator[Found]:
    if isinstance(document, str):  # a line of a list
        yield from _linked(stac_io, make_absolute_href(document, address), wanted, path=(address,))
    elif not isinstance(document, dict):
        raise SourceError(f"{_shown(address)}: holds a {type(document).__name__}, expected STAC objects; {TARGETS}")
    elif document.get("type") == "FeatureCollection":
        if address.startswith("http") and any(link.get("rel") == "next" for link in catalog_io.links(document)):
            # One page of many: asked again, for the area and the dates alone.
            yield from _searched_items(stac_io, address, ("GET",), wanted)
        else:
            yield from (_item(feature, address) for feature in document.get("features") or [])
    elif document.get("type") == "Feature":
        yield _item(document, address)
    else:
        yield from _walk(stac_io, document, address, wanted, path=())


# --- documents in a file -------------------------------------------------------------------


def _documents(content: bytes, address: str) -> Iterator[Any]:
    """Yield the JSON documents in a file, and the lines of a list of addresses. Raises SourceError."""
    content = documents.unpack_gzip(content, _shown(address))
    if content.startswith(b"PAR1"):
        yield from _rows(content, address)
        return
    text = content.decode("utf-8-sig").strip()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if text[:1] not in {"{", "["}:
        if not lines or any(set(line) & set(" <>\"{}'") for line in lines):
            begins = f"begins with {text[:40]!r}" if text else "is empty"
            raise SourceError(f"{_shown(address)}: is neither STAC nor a list of addresses, {begins}; {TARGETS}")
        yield from lines
    elif len(lines) > 1 and _is_object(lines[0]):
        for line in lines:
            yield documents.parse_bounded_json(line, _shown(address))
    else:
        document = documents.parse_bounded_json(text, _shown(address))
        yield from document if isinstance(document, list) else [document]


def _is_object(line: str) -> bool:
    """Return whether a line alone is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _rows(content: bytes, address: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a stac-geoparquet file as items. Raises SourceError."""
    import shapely

    table = parquet_tables.read(io.BytesIO(content), {"id": "text"}, origin=_shown(address))
    for row in table.to_pylist():
        fields = {key: _plain(value) for key, value in row.items() if value is not None}
        item: dict[str, Any] = {"type": "Feature", "stac_version": "1.0.0", "links": [], "assets": {}}
        for key in ("id", "stac_version", "stac_extensions", "collection", "links", "assets", "bbox"):
            if key in fields:
                item[key] = fields.pop(key)
        if isinstance(item.get("bbox"), dict):
            sides = item["bbox"]
            item["bbox"] = [sides.get(side) for side in ("xmin", "ymin", "xmax", "ymax")]
        geometry = row.get("geometry")
        is_wkb = isinstance(geometry, bytes)
        item["geometry"] = json.loads(shapely.to_geojson(shapely.from_wkb(geometry))) if is_wkb else None
        item["properties"] = {key: value for key, value in fields.items() if key not in {"type", "geometry"}}
        yield item


def _plain(value: Any) -> Any:
    """Return a value of a table as JSON has it; columns of structs have all keys that any row has."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.isoformat() if isinstance(value, date) else value


def _item(document: Any, address: str) -> Found:
    """Return the item of a document, whose relative hrefs start at `address` unless it says otherwise."""
    name = (isinstance(document, dict) and document.get("id")) or f"in {_shown(address)}"
    try:
        item = pystac.Item.from_dict(document)
        if item.get_self_href() is None or _has_assets_beside(item, address):
            item.remove_links("self")
            item.set_self_href(make_absolute_href(f"{file_name(item.id)}.json", address))
        return item
    except malformed_errors() as error:
        return Unusable(id=name, reason=f"item {name}: cannot be read as STAC: {error!s:.120}; mend it", scene=None)


def _has_assets_beside(item: pystac.Item, address: str) -> bool:
    """Return whether a file on disk names assets that lie beside it: its link to itself is then where it came from."""
    if address.startswith("http"):
        return False
    hrefs = [asset.href for asset in item.assets.values()]
    return any(not is_absolute_href(href) and Path(make_absolute_href(href, address)).is_file() for href in hrefs)


# --- links ---------------------------------------------------------------------------------


def _walk(
    stac_io: CatalogIO, document: dict[str, Any], address: str, wanted: search_api.ItemQuery, path: tuple[str, ...]
) -> Iterator[Found]:
    """Yield the items of a catalogue, by its search if it has one, and of all catalogues below it.

    Raises SourceError if the document is no catalogue, is below itself, or if catalogues nest too deeply.
    """
    if address in path:
        raise SourceError(f"{_shown(address)}: catalogue is below itself, through {_shown(path[-1])}; remove that link")
    path = (*path, address)
    CATALOG_DEPTH.check(len(path), _shown(address))
    # Old collections have no type.
    if document.get("type") not in {"Catalog", "Collection"} and "stac_version" not in document:
        raise SettingError(f"{_shown(address)}: JSON of type {document.get('type')!r:.40} is no STAC; {TARGETS}")
    is_remote = address.startswith("http")
    if is_remote and (endpoint := search_api.endpoint(document, address)):
        yield from _searched_items(stac_io, *endpoint, wanted)
        return
    for link in catalog_io.links(document):
        href = make_absolute_href(link["href"], address)
        if link.get("rel") == "item":
            yield from _linked(stac_io, href, wanted, path=path)
        elif link.get("rel") == "child":
            yield from _walk(stac_io, stac_io.read_json(href), href, wanted, path)
        elif link.get("rel") == "items" and "parquet" in str(link.get("type")):
            yield from read(stac_io, href, wanted)
        elif link.get("rel") == "items" and is_remote and (len(path) == 1 or document.get("id") == wanted.collection):
            yield from _searched_items(stac_io, href, ("GET",), wanted)


def _linked(stac_io: CatalogIO, href: str, wanted: search_api.ItemQuery, path: tuple[str, ...]) -> Iterator[Found]:
    """Yield the items of a linked document; a document that does not exist or is no JSON is one without items."""
    name = PurePosixPath(urlsplit(href).path).stem
    try:
        content = stac_io.read_bytes(href)
        document = json.loads(content)
    except (FileNotFoundError, ValueError, RecursionError, APIError) as error:
        if isinstance(error, APIError) and error.status_code not in GONE:
            raise
        # The lock keeps it, which must not have what opens the catalogue.
        reason = urls.redact(stac_io.without_headers(str(error)))
        yield Unusable(id=name, reason=f"item {name}: cannot be read: {reason:.120}; mend the link", scene=None)
        return
    kind = document.get("type") if isinstance(document, dict) else None
    if kind in {"Catalog", "Collection"}:
        yield from _walk(stac_io, document, href, wanted, path)
    elif kind == "FeatureCollection":
        yield from _read_document(stac_io, document, href, wanted)
    else:
        yield _item(document, href)


# --- searching -----------------------------------------------------------------------------


def _searched_items(
    stac_io: CatalogIO, url: str, methods: tuple[str, ...], wanted: search_api.ItemQuery
) -> Iterator[Found]:
    """Yield the items of a search, or of the items of one collection. Raises ServiceError, APIError."""
    for pages in search_api.pages_by_year(stac_io, url, methods, wanted):
        yield from _fresh_items(pages, url)


def _fresh_items(pages: Iterator[dict[str, Any]], url: str) -> Iterator[Found]:
    """Yield the items of all pages, each once. Raises ServiceError if pages repeat without end."""
    seen: set[str] = set()
    stale = 0
    for number, page in enumerate(pages, 1):
        SEARCH_PAGES.check(number, f"{_shown(url)}: search without end")
        items = [_item(feature, url) for feature in page["features"]]
        fresh = [item for item in items if item.id not in seen]
        seen.update(item.id for item in fresh)
        SEARCH_ITEMS.check(len(seen), f"{_shown(url)}: search without end")
        yield from fresh
        # One repeated page can result from re-sorting on the server; several in a row mean a loop.
        stale = 0 if fresh else stale + 1
        if stale >= STALE_PAGES:
            repeated = f"{stale} pages in a row repeat items after {len(seen)} of them"
            raise ServiceError(f"{_shown(url)}: {repeated}; try later")


def _shown(address: str) -> str:
    return urls.without_secrets(address).partition("?")[0]
