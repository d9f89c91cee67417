"""Read the offset of DN from the product metadata (XML, or those of a Zarr store) of a scene, as untrusted input."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET
from pathlib import Path

from sgdata import documents, urls
from sgdata.errors import SourceError
from sgdata.limits import PRODUCT_BYTES
from sgdata.rasters import zarr_addresses
from sgdata.remote import retry
from sgdata.remote.allowed_addresses import Access
from sgdata.scenes import eopf_metadata, signing

log = logging.getLogger("sgdata")

OFFSETS = ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")  # L2A, L1C
TIMEOUT_S = 30
RETRY = retry.RetryPolicy(tries=4, wait_s=2.0)


def offset(href: str, tokens: str = "", *, access: Access | None = None) -> int | None:
    """Return the offset in DN in the metadata of a product; None, with a warning, if they cannot be read.

    Raises SourceError if they are damaged or have several offsets.
    """
    is_store = urls.is_zarr(href)
    content = _of_store(href, tokens, access) if is_store else _content(href, tokens, access)
    if content is None:
        return None
    return eopf_metadata.parsed(content, href) if is_store else parsed(content, href)


def parsed(content: bytes, name: str) -> int:
    """Return the one offset in a product's XML, 0 if it has none, as before baseline 04.00. Raises SourceError."""
    try:
        # Without document type and entities nothing can be expanded or fetched.
        root = ET.fromstring(content, ET.XMLParser(target=_Plain()))
        offsets = {int(node.text or "") for node in root.iter() if node.tag in OFFSETS}
    except _TypedError:
        raise SourceError(
            f"{name}: its XML declares a document type, which none of ESA's does; leave the scene out"
        ) from None
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that Python does not know
        raise SourceError(f"{name}: is no product metadata: {error!s:.80}; leave the scene out") from None
    if not root.tag.endswith("User_Product") or len(offsets) > 1:
        raise SourceError(
            f"{name}: root {root.tag}, offsets {sorted(offsets)}, expected a User_Product with one offset for all "
            "bands; leave the scene out"
        )
    return offsets.pop() if offsets else 0


class _TypedError(Exception):
    """The XML declares a document type."""


class _Plain(ET.TreeBuilder):
    def doctype(self, *_: object) -> None:
        raise _TypedError


def _of_store(href: str, tokens: str, access: Access | None) -> bytes | None:
    """Return the metadata of a Zarr product, of format 2 or else 3; as `_content` if it has neither."""
    try:
        return _fetch(href, tokens, access)
    except _failures():
        folder, _, query = href.partition("?")
        of_3 = f"{folder.removesuffix(zarr_addresses.METADATA)}{zarr_addresses.METADATA_3}"
        return _content(f"{of_3}?{query}" if query else of_3, tokens, access)


def _content(href: str, tokens: str, access: Access | None) -> bytes | None:
    """Return the bytes of a file; None, with a warning, if it cannot be read. Raises SourceError if it is too large."""
    try:
        return _fetch(href, tokens, access)
    except _failures() as error:
        log.warning(
            "%s: product metadata cannot be read (%.80s): baseline and pixels decide", href, urls.redact(str(error))
        )
        return None


def _failures() -> tuple[type[Exception], ...]:
    """Return the exceptions of a read that fails."""
    import requests

    return (OSError, requests.RequestException, retry.TransientError, ValueError)


def _fetch(href: str, tokens: str, access: Access | None) -> bytes:
    from sgdata.remote import buckets  # not at the top: most metadata lie in no bucket

    if "://" not in href:
        return documents.read_bytes(Path(href), PRODUCT_BYTES)
    if href.startswith(("s3://", "gs://")):
        return buckets.read_object(href, PRODUCT_BYTES)
    return _download(buckets.blob_url(href) if href.startswith("az://") else href, tokens, access)


def _download(href: str, tokens: str, access: Access | None) -> bytes:
    """Return a file on a server; retry if it is busy or a signature has expired."""
    import requests

    from sgdata.remote import web

    def download(url: str) -> bytes:
        answer = web.ask("GET", url, access=access, limit=PRODUCT_BYTES, timeout=TIMEOUT_S)
        if answer.status_code in retry.TRANSIENT_STATUS:
            raise retry.BusyError(answer)
        if tokens and answer.status_code in {401, 403}:
            raise retry.TransientError(f"answers {answer.status_code} {answer.reason}")
        answer.raise_for_status()
        return answer.content

    def is_transient(error: BaseException) -> bool:
        return isinstance(error, (retry.TransientError, requests.ConnectionError, requests.Timeout))

    return signing.call(download, href, tokens, RETRY, retry_on=is_transient)
