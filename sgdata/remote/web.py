"""Send HTTP requests; check host, size and duration of every response."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sgdata import urls
from sgdata.errors import SourceError
from sgdata.limits import DOCUMENT_BYTES, DOCUMENT_SECONDS, PROBE_BYTES, REDIRECTS, Limit
from sgdata.remote.allowed_addresses import Access, access_of, check_host

if TYPE_CHECKING:
    import requests

CHUNK_BYTES = 2**16
ENCODINGS = {"", "identity", "gzip", "deflate"}
"""Transfers that expand a chunk at most 1032 times. Others can make gigabytes of one."""


def ask(
    method: str,
    url: str,
    *,
    access: Access | None = None,
    limit: Limit = DOCUMENT_BYTES,
    seconds: Limit = DOCUMENT_SECONDS,
    stream: bool = False,
    **options: Any,
) -> requests.Response:
    """Send one request.

    Args:
        method: GET, POST or HEAD.
        url: Address; every address that it redirects to is checked as well.
        access: Hosts that may be asked; default: those of an address that the user named.
        limit: Most bytes of the answer, decoded.
        seconds: Longest time for the whole answer.
        stream: Leave the body to `chunks`.
        options: Further arguments of `requests.Session.request`, such as headers and timeout.

    Returns:
        The response, its body read unless `stream`.

    Raises:
        SourceError: A host may not be asked, or the answer is too large.
        requests.RequestException: No complete answer.
    """
    with session(access or access_of(url), limit=limit, seconds=seconds) as opened:
        return opened.request(method, url, stream=stream, **options)


def session(
    access: Access,
    *,
    limit: Limit = DOCUMENT_BYTES,
    seconds: Limit = DOCUMENT_SECONDS,
    headers: Mapping[str, str] = MappingProxyType({}),
    headers_for: str = "",
) -> requests.Session:
    """Return a session whose requests are checked as in `ask`; bodies of streamed responses are left alone.

    `headers` are sent to scheme, host and port of `headers_for` and nowhere else.
    """
    import requests

    class CheckedSession(requests.Session):
        def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            # Called once more for every redirect.
            check_host(request.url or "", access)
            for name, value in headers.items():
                request.headers.pop(name, None)
                if urlsplit(request.url or "")[:2] == urlsplit(headers_for)[:2]:
                    request.headers[name] = value
            streamed = options.pop("stream", False)
            deadline = time.monotonic() + seconds.most
            response = super().send(request, stream=True, **options)
            if not streamed:
                _read_body(response, limit, deadline)
            return response

        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target = super().get_redirect_target(resp)
            if target is not None:
                # requests would read the whole body of a redirect.
                resp.close()
                resp._content = b""
            return target

    opened = CheckedSession()
    opened.max_redirects = REDIRECTS.most
    opened.headers["Accept-Encoding"] = "gzip, deflate"
    return opened


def _read_body(response: requests.Response, limit: Limit, deadline: float) -> None:
    """Read the body of a response into memory, where `response.content` expects it."""
    if response._content is False:  # requests' mark of a body that is not read
        response._content = b"".join(chunks(response, limit=limit, deadline=deadline))
        response._content_consumed = True


def chunks(
    response: requests.Response,
    *,
    limit: Limit | None = None,
    deadline: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[bytes]:
    """Yield the decoded body of a streamed response as it arrives.

    Args:
        response: Response of `ask(..., stream=True)`.
        limit: Most bytes.
        deadline: Time by `clock` at which the transfer is given up, however steadily it drips.
        clock: Seconds of a monotonic clock.

    Raises:
        SourceError: More bytes than the limit.
        requests.RequestException: The connection broke or the time is up.
    """
    import requests
    import urllib3

    url = urls.without_secrets(response.url)
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    declared = response.headers.get("Content-Length", "")
    size = 0
    try:
        if encoding not in ENCODINGS:
            raise SourceError(f"{url}: answer in encoding {encoding!r:.40}, expected gzip or none; download it")
        if limit and declared.isdigit():
            limit.check(int(declared), f"{url}: answer announces")
        while True:
            # One receive at a time, because a slow server could delay a full chunk indefinitely.
            chunk = response.raw.read1(CHUNK_BYTES, decode_content=True)
            if not chunk:
                return
            size += len(chunk)
            if limit:
                limit.check(size, f"{url}: answer of more than")
            if deadline is not None and clock() > deadline:
                raise requests.Timeout(f"{url}: no end of the answer in time, after {size:,} bytes")
            yield chunk
    except (urllib3.exceptions.HTTPError, OSError) as error:
        if isinstance(error, requests.RequestException):
            raise
        raise requests.ConnectionError(f"{url}: answer broken off after {size:,} bytes: {error}") from error
    finally:
        response.close()


def range_probe(url: str, access: Access, *, headers: Mapping[str, str] | None = None) -> str:
    """Return the final address of a file that GDAL will read in ranges, after all redirects.

    GDAL follows redirects itself and takes as many bytes as come, so both are tested before. An address that
    cannot be reached is returned as it is: GDAL reports why.

    Raises:
        SourceError: It leads to a host that may not be asked, or the server sends a body without a length.
    """
    import requests

    asked = {"Range": "bytes=0-0", "Accept-Encoding": "identity", **(headers or {})}
    try:
        with ask("GET", url, access=access, stream=True, headers=asked, timeout=20) as answer:
            if answer.status_code == 200 and not answer.headers.get("Content-Length", "").isdigit():
                raise SourceError(
                    f"{urls.without_secrets(url)}: server gives neither ranges nor a length; download the file first"
                )
            if answer.status_code == 206 and sum(len(chunk) for chunk in chunks(answer, limit=PROBE_BYTES)) > 1:
                raise SourceError(
                    f"{urls.without_secrets(url)}: server sends more than it is asked for; download it first"
                )
            return answer.url
    except (requests.RequestException, ValueError):
        return url
