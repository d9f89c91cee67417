"""Read byte ranges of files on web servers and in buckets: many at a time, checked against what the first answer said.

Requests are sent by obstore, which keeps connections open and uses HTTP/2 where a server offers it. It shows neither
the headers of a refusal nor redirects, and is kept from other hosts where a file may not name all of them: a request to
a web server that failed is sent again through `sgdata.remote.web`, which reads Retry-After and checks where a redirect
leads.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import format_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from sgdata import urls
from sgdata.errors import SourceError
from sgdata.remote import host_limits, object_stores, retry, web
from sgdata.remote.allowed_addresses import Access

if TYPE_CHECKING:
    import requests
    from obstore import ObjectMeta

T = TypeVar("T")
Sign = Callable[[str], str]
"""Returns the address of a file with a valid signature, given the signed address that was refused last, or ""."""

TIMEOUTS_S = (object_stores.CONNECT_S, object_stores.STALLED_S)
LONGEST_WAIT_S = 300.0
BUSY = frozenset({429, 503})
"""Answers of a server that wants fewer requests."""
UNSIGNED = frozenset({401, 403})
"""Answers to a signature that is not, or no longer, valid."""
FINAL = UNSIGNED | {404, 410}
"""Answers to a first request that no other client gets changed."""
RENEWALS = 2
"""Signatures that one request renews; those that other requests renew meanwhile are not counted among them."""
# Signatures of others that one request tries: a service whose clock differs gives a new one each time.
MOST_REPLACED = 20
_STATUS = re.compile(r"status code: (\d{3})")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class NoRangesError(Exception):
    """A server does not give parts of a file, or not in a way that can be checked; the message says why."""


class ChangedError(Exception):
    """A file is not the one that its first answer described."""


class FailedError(retry.TransientError):
    """A request failed in a way that may pass; `busy` says that the server wants fewer."""

    def __init__(self, message: str, *, busy: bool = False, wait_s: float = 0.0) -> None:
        """Store the message, the cause and the shortest waiting time."""
        super().__init__(message, wait_s=wait_s)
        self.busy = busy


@dataclass(frozen=True, kw_only=True)
class RangeRetries:
    """Number of times that a failed request is sent again, and the wait before each.

    Unlike `retry.RetryPolicy`, which repeats a whole operation such as the staging of a file.

    Attributes:
        count: Tries after the first, not counting those that a server refused while it answered others.
        wait_s: Seconds before the first of them, doubled for each further one.
        sleep: Function that waits; tests replace it.
    """

    count: int = 5
    wait_s: float = 1.0
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file on a server, as its first answer described it.

    Attributes:
        url: Address behind all redirects, with its secrets.
        size: Bytes.
        etag: Entity tag; "" without one.
        modified: Date of the last change as the server writes it; "" without one.
        access: Hosts that may be asked.
        sign: Function that signs the address anew; None if no service signs it.
    """

    url: str = field(repr=False)
    size: int
    etag: str
    modified: str
    access: Access
    sign: Sign | None = field(default=None, repr=False, compare=False)


def open_file(
    url: str, access: Access, *, first_bytes: int, retries: RangeRetries, sign: Sign | None = None
) -> tuple[RemoteFile, bytes] | None:
    """Read the first bytes of a file, and what its server says of it, in one request.

    Args:
        url: Address.
        access: Hosts that may be asked.
        first_bytes: Bytes to read; fewer come of a smaller file.
        retries: How often to try.
        sign: Function that signs the address anew; None if no service signs it.

    Returns:
        The file and its first bytes; None if the server says that it does not exist.

    Raises:
        NoRangesError: The server does not give ranges.
        SourceError: It leads to a host that may not be asked, or cannot be read.
    """
    with_obstore, stay = _with_obstore(url, access)

    def attempt(address: str, failed: bool) -> tuple[RemoteFile, bytes]:
        if with_obstore and not (failed and urls.is_http(address)):
            try:
                return _open_with_obstore(address, access, first_bytes, sign, stay=stay)
            except (FailedError, retry.RefusedError) as error:
                if not urls.is_http(address) or (isinstance(error, retry.RefusedError) and error.status in FINAL):
                    raise
        return _open_with_session(address, access, first_bytes, sign)

    try:
        opened: tuple[RemoteFile, bytes] = _call(attempt, url, retries, sign)
        return opened
    except retry.RefusedError as error:
        if error.status == 404:
            return None
        raise SourceError(unreadable(url, error)) from error


def read(file: RemoteFile, start: int, stop: int, retries: RangeRetries) -> memoryview:
    """Read bytes `start` to `stop` (exclusive) of a file.

    Raises:
        ChangedError: The file is not what it was.
        SourceError: The range cannot be read.
    """
    with_obstore, stay = _with_obstore(file.url, file.access)

    def attempt(address: str, failed: bool) -> memoryview:
        if urls.is_http(address) and (failed or not with_obstore):
            return _read_with_session(file, address, start, stop)
        content, about = _get(address, start, stop, file.etag, stay=stay)
        if len(content) != stop - start:
            raise FailedError(f"{len(content):,} bytes of {stop - start:,} came")
        if (about["e_tag"] or "", about["size"]) != (file.etag, file.size):
            raise ChangedError("changed")
        return content

    try:
        content: memoryview = _call(attempt, file.url, retries, file.sign)
        return content
    except retry.RefusedError as error:
        raise SourceError(unreadable(file.url, error)) from error


@cache
def fetchers() -> ThreadPoolExecutor:
    """Return the threads of this process that wait for ranges, as many as one host may be asked at a time.

    What runs in them must not wait for others of them.
    """
    return ThreadPoolExecutor(host_limits.MOST, "ranges")


def _with_obstore(url: str, access: Access) -> tuple[bool, bool]:
    """Return whether obstore reads an address, and whether it must be kept from other hosts."""
    stay = urls.is_http(url) and not access.private
    return object_stores.can_read(url) and not (stay and not object_stores.stays(url)), stay


def _call(attempt: Callable[[str, bool], Any], url: str, retries: RangeRetries, sign: Sign | None) -> Any:
    """Call `attempt(address, failed)` within the limit of a host until it succeeds; `failed` says that it did before.

    An address whose signature is refused is signed anew, so that a file goes on where it was.

    Raises:
        retry.RefusedError: Refused, also with another signature.
        SourceError: The tries are used up.
    """
    limit = host_limits.of_host("{}://{}".format(*urlsplit(url)[:2]))
    failures, failed, wait, renewals, replaced = 0, False, retries.wait_s, 0, 0
    while True:
        address = sign("") if sign else url
        before = limit.answers
        try:
            with limit.slot() as began:
                try:
                    result = attempt(address, failed)
                except FailedError as error:
                    if error.busy:
                        limit.refused(began, min(error.wait_s, LONGEST_WAIT_S))
                    raise
                limit.answered()
                return result
        except retry.RefusedError as error:
            if sign is None or error.status not in UNSIGNED:
                raise
            error.renewals = max(renewals, replaced)
            if sign("") != address:  # another request has renewed the signature since
                replaced += 1
                if replaced > MOST_REPLACED:
                    raise
                continue
            if renewals == RENEWALS:
                raise
            renewals += 1
            sign(address)
            continue
        except FailedError as error:
            failed = True
            # A server that answers others is merely busy: this one's turn will come.
            failures += 0 if error.busy and limit.answers > before else 1
            if failures > retries.count:
                raise SourceError(unreadable(url, error)) from error
        retries.sleep(min(wait, LONGEST_WAIT_S))
        wait *= 2


def unreadable(url: str, error: Exception) -> str:
    """Return the message of a request that failed for good."""
    is_unsigned = isinstance(error, retry.RefusedError) and error.status in UNSIGNED
    reason = f"{error}{urls.wanted(url) if is_unsigned else ''}"
    return f"{urls.without_secrets(url)}: cannot be read: {reason:.200}; fetch it again or leave it out"


# --- through requests ----------------------------------------------------------------------


def _open_with_session(url: str, access: Access, first_bytes: int, sign: Sign | None) -> tuple[RemoteFile, bytes]:
    answer, content = _request(url, access, 0, first_bytes)
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if found is None or int(found[1]) != 0 or int(found[2]) + 1 != min(first_bytes, int(found[3])):
        raise NoRangesError(f"answer with range {answer.headers.get('Content-Range', '')!r:.60}")
    if len(content) != int(found[2]) + 1:
        raise FailedError(f"{len(content):,} bytes of {int(found[2]) + 1:,} came")
    file = RemoteFile(
        url=str(answer.url),
        size=int(found[3]),
        etag=answer.headers.get("ETag", ""),
        modified=answer.headers.get("Last-Modified", ""),
        access=access,
        sign=sign if answer.url == url else None,  # not for where it redirects to
    )
    return file, content


def _request(url: str, access: Access, start: int, stop: int, etag: str = "") -> tuple[requests.Response, bytes]:
    """Send one request for a range; return the answer with its body.

    Raises ChangedError, FailedError, NoRangesError, retry.RefusedError or SourceError.
    """
    import requests

    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    if etag:
        headers["If-Match"] = etag
    try:
        with _session(access).get(url, headers=headers, stream=True, timeout=TIMEOUTS_S) as answer:
            status = answer.status_code
            if status in retry.TRANSIENT_STATUS:
                wait_s = retry.retry_after_s(answer)
                raise FailedError(f"HTTP response code {status}", busy=status in BUSY, wait_s=wait_s)
            if status == 412:
                raise ChangedError("changed")
            if status >= 400 and status != 416:
                raise retry.RefusedError(status)
            if status != 206 or answer.headers.get("Content-Encoding", "identity") not in ("", "identity"):
                raise NoRangesError(f"HTTP response code {status} to a request for a range")
            content = bytearray()
            for chunk in web.chunks(answer):
                content += chunk
                if len(content) > stop - start:
                    raise FailedError(f"more than the {stop - start:,} bytes that were asked for")
            return answer, bytes(content)
    except (requests.RequestException, ValueError) as error:
        raise FailedError(_reason(error, url)) from error


def _reason(error: Exception, url: str) -> str:
    """Return why a request failed, without its address: texts of connections name host, port and query."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, type(error)):
            return f"{type(error).__name__}: {cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    text = str(error).removeprefix(f"{urls.without_secrets(url)}: ").partition(": (")[0]
    return type(error).__name__ if "ConnectionPool" in text else f"{type(error).__name__}: {text:.120}"


def _read_with_session(file: RemoteFile, address: str, start: int, stop: int) -> memoryview:
    try:
        answer, content = _request(address, file.access, start, stop, _strong(file.etag))
    except NoRangesError as error:
        raise FailedError(str(error)) from error
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if found is None or (int(found[1]), int(found[2]) + 1) != (start, stop) or len(content) != stop - start:
        raise FailedError(f"bytes {start}-{stop - 1} were asked for, others came")
    if (answer.headers.get("ETag", ""), int(found[3])) != (file.etag, file.size):
        raise ChangedError("changed")
    return memoryview(content)


_sessions = threading.local()


def _session(access: Access) -> requests.Session:
    """Return the session of this thread, whose connections stay open."""
    known: dict[Access, requests.Session] = _sessions.__dict__.setdefault("by_access", {})
    if access not in known:
        known[access] = web.session(access)
    return known[access]


# --- through obstore -----------------------------------------------------------------------


def _open_with_obstore(
    url: str, access: Access, first_bytes: int, sign: Sign | None, *, stay: bool
) -> tuple[RemoteFile, bytes]:
    content, about = _get(url, 0, first_bytes, stay=stay)
    size = about["size"]
    if len(content) != min(first_bytes, size):
        raise FailedError(f"{len(content):,} bytes of {min(first_bytes, size):,} came")
    changed = about["last_modified"]
    # Of a file without date obstore gives the beginning of time; for files in buckets no date is kept.
    modified = format_datetime(changed, usegmt=True) if urls.is_http(url) and changed.timestamp() else ""
    file = RemoteFile(url=url, size=size, etag=about["e_tag"] or "", modified=modified, access=access, sign=sign)
    return file, bytes(content)


def _get(url: str, start: int, stop: int, etag: str = "", *, stay: bool = False) -> tuple[memoryview, ObjectMeta]:
    """Read a range; return it with what the server says of the file.

    Raises ChangedError, FailedError or retry.RefusedError.
    """
    import obstore
    from obstore.exceptions import BaseError, PreconditionError

    store, path = object_stores.find(url, stay=stay)
    options: Any = {"range": (start, stop)}
    if expected := _strong(etag):
        options["if_match"] = expected
    content = bytearray(stop - start)
    at = 0
    try:
        result = obstore.get(store, path, options=options)
        for chunk in result.stream(min_chunk_size=1 << 20):
            part = memoryview(chunk)
            if at + len(part) > len(content):
                raise FailedError(f"more than the {len(content):,} bytes that were asked for")
            content[at : at + len(part)] = part
            at += len(part)
        return memoryview(content)[:at], result.meta
    except PreconditionError as error:
        raise ChangedError("changed") from error
    except (BaseError, OSError) as error:
        found = _STATUS.search(str(error))
        status = int(found[1]) if found else 0
        if isinstance(error, FileNotFoundError):
            status = 404
        if 400 <= status < 500 and status not in retry.TRANSIENT_STATUS:
            raise retry.RefusedError(status) from error
        # What follows its first line may contain the address with its secrets.
        reason = f"HTTP response code {status}" if status else str(error).partition("\n")[0].rpartition(" - ")[2]
        raise FailedError(reason, busy=status in BUSY) from error


def _strong(etag: str) -> str:
    """Return an entity tag if a server compares it byte for byte, as If-Match requires; "" otherwise."""
    return "" if etag.startswith("W/") else etag
