"""Sign the URLs of files when they are opened, since tokens expire before a large build ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import TypeVar
from urllib.parse import urlsplit

from sgdata import urls
from sgdata.errors import ServiceError
from sgdata.limits import TOKEN_BYTES
from sgdata.remote import retry

T = TypeVar("T")

PLANETARY_COMPUTER = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
STORE = ".blob.core.windows.net"
RETRY = retry.RetryPolicy(tries=6, wait_s=2.0)  # a minute in all
TIMEOUT_S = 30
SPARE_S = 120
"""Tokens that expire within this time are renewed, because reading a file takes time."""
MOST_REPLACED = 20
"""Replaced tokens of one file after which failures count: where clocks differ, each request gets a new one."""


def service(provider: str, href: str) -> str:
    """Return the URL of the token service that a provider's file needs, '' if it needs none."""
    needed = provider == "planetary-computer" and (urlsplit(href).hostname or "").endswith(STORE)
    return PLANETARY_COMPUTER if needed else ""


def sign(href: str, tokens: str, *, failed: str = "") -> str:
    """Return `href` with a valid token of the service `tokens`, or with the secrets that its catalogue gave it.

    Args:
        href: Address without secrets.
        tokens: Token service; "" for none.
        failed: Signed address that was refused, whose token is not used again.

    Raises:
        ServiceError: The service gives no token.
    """
    if not _belongs(href, tokens):
        return urls.recall(href)
    parts = urlsplit(href)
    # In Azure's URLs the account is the first part of the host, the container the first folder.
    account, container = (parts.hostname or "").split(".")[0], parts.path.split("/")[1]
    url = f"{tokens.rstrip('/')}/{account}/{container}"
    # One token serves all files of a container until shortly before it expires.
    lock, tokens_by_url = _memory()
    with lock:
        until, token = tokens_by_url.get(url, (0.0, ""))
        # If a token fails in many threads, the first requests a new one for all.
        if until - time.time() < SPARE_S or failed.endswith(token):
            until, token = tokens_by_url[url] = _request_token(url)
    return f"{href}{'&' if parts.query else '?'}{token}"


def signer(href: str, tokens: str) -> Callable[[str], str] | None:
    """Return `sign` for one address, as a function of the signed address that failed; None if no service signs it."""
    if not _belongs(href, tokens):
        return None
    return lambda failed: sign(href, tokens, failed=failed)


def call(
    operation: Callable[[str], T],
    href: str,
    tokens: str,
    policy: retry.RetryPolicy,
    *,
    retry_on: Callable[[BaseException], bool],
) -> T:
    """Call `operation` with a signed address until it succeeds, fails for good or has used up the tries of a policy.

    A failure with a token that another reader has replaced meanwhile is repeated at once, and is not counted.

    Args:
        operation: Function of the signed address.
        href: Address without secrets.
        tokens: Token service; "" for none.
        policy: Number of tries and waiting times.
        retry_on: Function that decides which exceptions are worth another try.

    Raises:
        Exception: The exception of the last call.
        ServiceError: The service gives no token.
    """
    signed = ""

    def attempt() -> T:
        nonlocal signed
        signed = sign(href, tokens, failed=signed)
        for _ in range(MOST_REPLACED):
            try:
                return operation(signed)
            except Exception as error:
                if not retry_on(error) or _has_renewed(error) or (newest := sign(href, tokens)) == signed:
                    raise
                signed = newest
        return operation(signed)

    return retry.call(attempt, policy, retry_on=retry_on)


def _has_renewed(error: Exception) -> bool:
    """Return whether the reader of a file has itself renewed the token that was refused."""
    return isinstance(error.__cause__, retry.RefusedError) and error.__cause__.renewals > 0


def _belongs(href: str, tokens: str) -> bool:
    """Return whether the tokens of a service are for the host of `href`: a store of Azure, or the service's own."""
    parts = urlsplit(href)
    if not tokens or parts.scheme not in {"http", "https"}:
        return False
    host = parts.hostname or ""
    return host.endswith(STORE) or host == urlsplit(tokens).hostname


@cache
def _memory() -> tuple[threading.Lock, dict[str, tuple[float, str]]]:
    """Return the lock of this process, and the expiry (seconds since 1970) and token by URL."""
    return threading.Lock(), {}


def _request_token(url: str) -> tuple[float, str]:
    """Request a token: its expiry (seconds since 1970) and its text. Raises ServiceError."""
    import requests

    from sgdata.remote import web

    def attempt() -> tuple[float, str]:
        answer = web.ask("GET", url, limit=TOKEN_BYTES, timeout=TIMEOUT_S)
        if answer.status_code in retry.TRANSIENT_STATUS:
            raise retry.BusyError(answer)
        answer.raise_for_status()
        document = answer.json()
        return datetime.fromisoformat(document["msft:expiry"]).timestamp(), str(document["token"])

    malformed_or_failed = (requests.RequestException, retry.TransientError, ValueError, KeyError, TypeError)
    try:
        return retry.call(attempt, RETRY, retry_on=malformed_or_failed)
    except malformed_or_failed as error:
        reason = " ".join(str(error).split())
        raise ServiceError(
            f"{url}: gives no token: {reason:.160} ({RETRY.tries} tries); try later or choose another --stac"
        ) from None
