"""Read the documents of STAC catalogues: files and hosts that may be named, sizes, number and time checked."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pystac
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO

from sgdata import documents
from sgdata.errors import ServiceError, SettingError, SgdataError, SourceError
from sgdata.limits import CATALOG_DOCUMENTS, SEARCH_SECONDS
from sgdata.remote import retry, web
from sgdata.remote.allowed_addresses import REMOTE, access_of, admit

TIMEOUT_S = 60.0
TARGETS = "give --stac a STAC API, catalogue, collection, items as JSON, ndjson or GeoParquet, or a list of addresses"
HEADERS = "SGDATA_STAC_HEADERS"
"""Environment variable with headers for requests to the catalogue, `NAME: VALUE`, one a line."""


class CatalogIO(StacApiIO):
    """Reads documents from disk and over HTTP, as far as the catalogue at `address` may name them.

    The headers of the environment are sent to the server of `address` and to no other.
    """

    def __init__(self, address: str, policy: retry.RetryPolicy, *, allow_private_hosts: bool = False) -> None:
        """Open a session that repeats requests by `policy`."""
        super().__init__(max_retries=None, timeout=TIMEOUT_S)
        self.headers = request_headers()
        self.access = access_of(address, allow_private_hosts=allow_private_hosts)
        self.session = web.session(self.access, headers=self.headers, headers_for=address)
        retry.retry_session(self.session, policy)
        self._count = 0
        self._deadline = time.monotonic() + SEARCH_SECONDS.most

    def read_bytes(self, href: str) -> bytes:
        """Read a document. Raises SourceError, OSError, and APIError, with its status, if a server refuses."""
        self._count_one()
        admitted = admit(href, self.access)
        if not REMOTE.match(admitted):
            return documents.read_bytes(Path(admitted))
        answer = self.session.get(admitted, timeout=self.timeout)
        if not answer.ok:
            raise APIError.from_response(answer)
        return bytes(answer.content)

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        """Read a page of a search. Raises SourceError, and what pystac-client raises."""
        self._count_one()
        if isinstance(source, pystac.Link):
            admit(source.href, self.access)
            return super().read_text(source, *args, **kwargs)
        return super().read_text(admit(str(source), self.access), *args, **kwargs)

    def read_json(self, source: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a JSON document of bounded size. Raises SourceError, and what `read_text` raises."""
        address = str(source.href if isinstance(source, pystac.Link) else source).partition("?")[0]
        document = documents.parse_bounded_json(self.read_text(source, *args, **kwargs), address)
        if not isinstance(document, dict):
            raise SourceError(f"{address}: is a {type(document).__name__}, expected a STAC object; {TARGETS}")
        return document

    def without_headers(self, text: str) -> str:
        """Return a text, such as an answer of the server, without the values of the headers."""
        for value in self.headers.values():
            text = text.replace(value, "***")
        return text

    def _count_one(self) -> None:
        self._count += 1
        CATALOG_DOCUMENTS.check(self._count, "catalogue")
        if time.monotonic() > self._deadline:
            spent = f"{self._count} documents in {SEARCH_SECONDS.most} s"
            raise ServiceError(f"catalogue: no end after {spent}; ask for a smaller area or shorter dates")


def request_headers() -> dict[str, str]:
    """Return the headers of the environment variable. Raises SettingError, which does not show them."""
    headers = {}
    for number, line in enumerate(os.environ.get(HEADERS, "").strip().splitlines(), 1):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not (name and colon and value and name.replace("-", "").isalnum() and line.isascii()):
            raise SettingError(f"{HEADERS}: line {number} is no header; give NAME: VALUE, one a line")
        headers[name] = value
    return headers


def unwrap_error(error: BaseException | None) -> SgdataError | None:
    """Return the error of this project that pystac turned into one of its own, None if there is none."""
    while error is not None and not isinstance(error, SgdataError):
        error = error.__cause__ or error.__context__
    return error


def links(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the links of a STAC document that have an address."""
    found = document.get("links") or []
    return [link for link in found if isinstance(link, dict) and isinstance(link.get("href"), str)]
