"""Connect obstore to web servers and buckets, once per process for each, with the user's settings of other clients."""

from __future__ import annotations

import itertools
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from sgdata.remote import buckets

if TYPE_CHECKING:
    from obstore.store import ClientConfig, HTTPStore, S3Store

CONNECT_S, STALLED_S = 20, 60
"""Longest time to connect, and without a byte; none for a whole answer, which may be slow but steady."""
BUNDLES = ("REQUESTS_CA_BUNDLE", "GDAL_CURL_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
"""Settings of requests, GDAL, curl and OpenSSL: files of the certificates that are trusted."""
NOWHERE = "http://127.0.0.1:0"
"""A proxy to which no connection can be made."""
LANES = 4
"""Connections of HTTP/2 to one host."""
_turns = itertools.count()
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
_PLAIN = re.compile(r"/(?:[\w.~=,@+-]+/)*[\w.~=,@+-]+", re.ASCII)


def can_read(url: str) -> bool:
    """Return whether obstore asks for the same address with the same credentials as other clients.

    It may escape some characters of a path, and reads neither users in addresses nor profiles and roles of Amazon's.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or not _PLAIN.fullmatch(parts.path):
        return False
    return parts.scheme in ("http", "https") or (parts.scheme == "s3" and buckets.obstore_config(url) is not None)


def stays(url: str) -> bool:
    """Return whether `find` can keep obstore, which checks no redirect, from being led to other hosts."""
    parts = urlsplit(url)
    # A name also stands for those below it, which without certificates may lead anywhere; a proxy of the user's, which
    # would be needed to leave, takes the place of `NOWHERE`.
    is_proven = parts.scheme == "https" or _ADDRESS.fullmatch(parts.hostname or "") is not None
    return is_proven and (parts.scheme not in getproxies() or bool(proxy_bypass(parts.hostname or "")))


def find(url: str, *, stay: bool = False) -> tuple[HTTPStore | S3Store, str]:
    """Return the store of a host or bucket, the same for files with the same query, and the path in it.

    Args:
        url: address.
        stay: let redirects to any other web server fail; `stays` says whether that is certain.
    """
    parts = urlsplit(url)
    path = parts.path.removeprefix("/")
    if parts.scheme == "s3":
        return _s3(parts.netloc, **(buckets.obstore_config(url) or {})), path
    query = f"?{parts.query}" if parts.query else ""
    # One connection of HTTP/2 for all requests would be limited by its window on a long line.
    lane = next(_turns) % LANES if parts.scheme == "https" else 0
    return _http(f"{parts.scheme}://{parts.netloc}/{query}", stay, lane), path


@lru_cache(maxsize=64)
def _http(base: str, stay: bool, lane: int) -> HTTPStore:
    from obstore.store import HTTPStore

    options = _client_options()
    if stay:
        # No option of obstore's forbids redirects, but hosts other than this one can be given a proxy.
        parts = urlsplit(base)
        options |= {"proxy_url": NOWHERE, "proxy_excludes": parts.hostname or "", "allow_http": parts.scheme == "http"}
    # `sgdata.remote.ranges` decides what is tried again.
    return HTTPStore.from_url(base, client_options=options, retry_config={"max_retries": 0})


@lru_cache(maxsize=64)
def _s3(bucket: str, **config: Any) -> S3Store:
    from obstore.store import S3Store

    options = _client_options()
    return S3Store(bucket, config=config, client_options=options, retry_config={"max_retries": 0})  # type: ignore[arg-type]


def _client_options() -> ClientConfig:
    """Return how obstore connects, to servers whose certificates the user's settings of other clients trust as well."""
    options: ClientConfig = {
        "allow_http": True,
        "http1_only": False,
        "connect_timeout": f"{CONNECT_S}s",
        "read_timeout": f"{STALLED_S}s",
        "timeout": "1day",
    }
    bundle = next((os.environ[name] for name in BUNDLES if os.environ.get(name)), "")
    if bundle and Path(bundle).is_file():
        options["root_certificate"] = Path(bundle).read_bytes()
    return options
