"""Signatures that a store asks for, put on when a file is opened: tokens expire long before a large build ends."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from functools import cache
from urllib.parse import urlsplit

from sgdata import retry
from sgdata.errors import ServiceError

PLANETARY_COMPUTER = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
STORE = ".blob.core.windows.net"
RETRY = retry.RetryPolicy(tries=4, wait_s=2.0)
TIMEOUT_S = 30
SPARE_S = 120
"""A token this near its end is not used any more: reading one file takes a while, too."""


def service(provider: str, href: str) -> str:
    """The token service that a provider's file needs, '' where none."""
    needed = provider == "planetary-computer" and (urlsplit(href).hostname or "").endswith(STORE)
    return PLANETARY_COMPUTER if needed else ""


def signed(href: str, tokens: str, *, failed: str = "") -> str:
    """`href` with a valid token of the service `tokens` ('' leaves it as it is); not the one of the URL that `failed`.

    Raises ServiceError where the service gives none.
    """
    parts = urlsplit(href)
    if not tokens or parts.scheme not in {"http", "https"} or "sig=" in parts.query:
        return href
    # Azure's own order: the account is the host's first name, the container the first folder.
    account, container = (parts.hostname or "").split(".")[0], parts.path.split("/")[1]
    url = f"{tokens.rstrip('/')}/{account}/{container}"
    # Many files, one container: ask once, then remember until shortly before the end.
    one_asks, held = _memory()
    with one_asks:
        until, token = held.get(url, (0.0, ""))
        # Of many threads that a token failed, the first gets a new one for all.
        if until - time.time() < SPARE_S or failed.endswith(token):
            until, token = held[url] = _asked(url)
    return f"{href}{'&' if parts.query else '?'}{token}"


@cache
def _memory() -> tuple[threading.Lock, dict[str, tuple[float, str]]]:
    """Per process: URL -> end of validity (seconds since 1970) and token; and who may ask for one."""
    return threading.Lock(), {}


def _asked(url: str) -> tuple[float, str]:
    """Request a token: its end of validity (seconds since 1970) and its text. Raises ServiceError."""
    import requests

    def attempt() -> tuple[float, str]:
        answer = requests.get(url, timeout=TIMEOUT_S)
        answer.raise_for_status()
        document = answer.json()
        return datetime.fromisoformat(document["msft:expiry"]).timestamp(), str(document["token"])

    malformed_or_failed = (requests.RequestException, ValueError, KeyError, TypeError)
    try:
        return retry.call(attempt, RETRY, retry_on=malformed_or_failed)
    except malformed_or_failed as error:
        reason = " ".join(str(error).split())
        raise ServiceError(
            f"{url}: gives no token: {reason:.160} ({RETRY.tries} tries); try later or choose another --stac"
        ) from None
