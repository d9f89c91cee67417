"""Search a STAC API: its endpoint and methods, and the pages of the answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from pystac.utils import make_absolute_href
from pystac_client import ItemSearch
from pystac_client.exceptions import APIError

from sgdata import urls
from sgdata.scenes.catalog_io import CatalogIO, links
from sgdata.types import Bounds

PAGE_ITEMS = 100
REFUSED_METHOD = (400, 403, 404, 405, 415, 501)
"""Statuses after which a search is tried by GET: servers refuse POST in many ways."""


@dataclass(frozen=True, kw_only=True)
class ItemQuery:
    """Search parameters for servers; static catalogues return all items.

    Attributes:
        collection: Id of the collection.
        bounds: West, south, east, north in degrees.
        first: First day.
        last: Last day, included.
    """

    collection: str
    bounds: Bounds
    first: date
    last: date


def endpoint(document: Mapping[str, Any], address: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the address of a catalogue's search and the methods to try; None if it has none.

    By the link, since some servers do not claim the conformance class, and by the class, since some lack the link.
    """
    search_links = [
        link for link in links(document) if link.get("rel") == "search" and "html" not in str(link.get("type"))
    ]
    if search_links:
        advertised = {str(link.get("method", "")).upper() for link in search_links}
        href = make_absolute_href(search_links[0]["href"], address)
        return href, ("GET",) if advertised == {"GET"} else ("POST", "GET")
    if any("item-search" in str(name) for name in document.get("conformsTo") or []):
        return urls.joined(address, "search"), ("POST", "GET")
    return None


def pages_by_year(
    stac_io: CatalogIO, url: str, methods: tuple[str, ...], wanted: ItemQuery
) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the pages of a search year by year: long time spans exceed the time limits (504) of several providers.

    Args:
        stac_io: Reader of documents.
        url: Address of a search, or of the items of one collection.
        methods: HTTP methods to try, in order.
        wanted: Search parameters.

    Raises:
        ServiceError, APIError: The server gives no answer.
    """
    is_search = not urlsplit(url).path.rstrip("/").endswith("/items")
    for year in range(wanted.first.year, wanted.last.year + 1):
        span = (max(wanted.first, date(year, 1, 1)).isoformat(), min(wanted.last, date(year, 12, 31)).isoformat())
        search = partial(
            ItemSearch, url, stac_io=stac_io, bbox=wanted.bounds, datetime=span, limit=PAGE_ITEMS,
            collections=[wanted.collection] if is_search else None,
        )  # fmt: skip
        pages = search(method=methods[0]).pages_as_dicts()
        try:
            first = next(pages, None)
        except APIError as error:
            if error.status_code not in REFUSED_METHOD or len(methods) == 1:
                raise
            methods = methods[1:]
            pages = search(method=methods[0]).pages_as_dicts()
            first = next(pages, None)
        yield itertools.chain([first] if first else [], pages)
