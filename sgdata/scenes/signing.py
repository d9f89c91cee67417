"""Signatures that a store asks for, put on when a file is opened: tokens expire long before a large build ends."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from functools import cache
from urllib.parse import urlsplit

from sgdata.errors import ServiceError

PLANETARY_COMPUTER = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
STORE = ".blob.core.windows.net"
TRIES, PAUSE_S, TIMEOUT_S = 4, 2.0, 30
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
    import requests

    trouble = ""
    for attempt in range(TRIES):
        try:
            # A token costs one small request; its service is as busy as the store itself.
            answer = requests.get(url, timeout=TIMEOUT_S)
            answer.raise_for_status()
            told = answer.json()
            return datetime.fromisoformat(told["msft:expiry"]).timestamp(), str(told["token"])
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            trouble = " ".join(str(error).split())
            if attempt + 1 < TRIES:
                time.sleep(PAUSE_S * 2**attempt)
    raise ServiceError(f"{url}: gives no token: {trouble:.160} ({TRIES} tries); try later or choose another --stac")
