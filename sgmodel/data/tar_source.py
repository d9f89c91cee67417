"""Read members of the tars in a folder of shards: from local files, or from any URL that fsspec supports.

For remote shards (http(s), s3, gs, memory) index and contract are mirrored into a local folder, verified by the
`SHA256SUMS` beside them; that folder is then opened like any other. Samples are fetched by byte ranges of the tars,
adjacent ones in one request, and cached in a file of bounded size that overwrites the oldest first. A range that cannot
be fetched, or that does not begin with a tar member, is an error.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sgdata import files, output_names, safe_names, urls
from sgdata.errors import SourceError
from sgdata.remote import retry

MARK = "remote.json"
GAP = 2**16  # unneeded bytes between two members that cost less than a second request
LONGEST = 2**24
RETRY = retry.RetryPolicy(tries=4, wait_s=0.2, longest_wait_s=20.0)
RETRY_S = 300.0
"""Seconds for which failed reads are repeated: less than the 10 minutes after which other processes stop waiting."""
log = logging.getLogger("sgdata")
_HEADER = 512  # of a tar member, before its content


STOP = threading.Event()
"""Set by a signal that ends the run: no further waiting for a server."""


def pause(seconds: float) -> None:
    """Wait before another try. Raises SourceError if STOP is set."""
    if STOP.wait(seconds):
        raise SourceError("stopped while waiting for a server")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, stop) of a tar."""

    tar: str
    start: int
    stop: int


class Tars(Protocol):
    """A reader of spans of tars."""

    def contents(self, spans: Sequence[Span]) -> list[memoryview]:
        """Return the bytes of each span, fewer where a tar is truncated. Raises SourceError."""


class LocalTars:
    """Local tars, held open."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """Open the tars `names` of a folder. Raises SourceError."""
        # For the lifetime of the object: opening a file per sample would cost more than decoding it.
        self._folder = folder
        self._files = {name: _opened(safe_names.member(folder, name)) for name in names}
        weakref.finalize(self, _close, list(self._files.values()))

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the tars again in the process that unpickles this object."""
        return LocalTars, (self._folder, tuple(self._files))

    def contents(self, spans: Sequence[Span]) -> list[memoryview]:
        """Return the bytes of each span. Raises SourceError."""
        # Read, not mapped: where a mapped file is cut short or its disk fails, the system ends the process.
        try:
            return [_read(self._files[span.tar], span) for span in spans]
        except OSError as error:
            raise SourceError(f"{self._folder}: a tar cannot be read: {error.strerror}; run sgdata verify") from None


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error}), the index names it; run sgdata verify") from None


def _read(file: int, span: Span) -> memoryview:
    """Return the bytes of a span up to the end of its tar; an index may declare any number."""
    stop = min(span.stop, os.fstat(file).st_size)
    return memoryview(os.pread(file, max(stop - span.start, 0), span.start))


def _close(opened: Sequence[int]) -> None:
    for file in opened:
        os.close(file)


# --- over a network ------------------------------------------------------------------------


def mirror(url: str, cache: Path, *, cache_gb: float, stall_s: float = 60.0, retry_s: float = RETRY_S) -> Path:
    """Mirror index and contract of the shards at a URL into a folder under `cache`, which is then opened like shards.

    Args:
        url: URL of the folder of shards.
        cache: Folder of all mirrors.
        cache_gb: Maximum size of the cached samples, per process.
        stall_s: Timeout of a request in seconds.
        retry_s: Seconds for which a failed read is repeated.

    Returns:
        The folder of the mirror, which `Samples` and `load` take in place of a folder of shards.

    Raises:
        SourceError: A file cannot be fetched, or its checksum differs.
        OutputError: The mirror cannot be written.
    """
    remote = RemoteFolder(url, stall_s, retry_s)
    url = urls.remember(url)
    # Without secrets, so that the cache neither has them nor depends on them.
    folder = cache / files.sha256(url.encode())[:16]
    listed = remote.whole(output_names.SUMS)
    sums = files.parse_sums(listed, f"{url}/{output_names.SUMS}")
    for name in (output_names.INDEX, output_names.CONTRACT):
        path = folder / name
        if not path.is_file() or files.sha256_file(path) != sums.get(name):
            content = remote.whole(name)
            if files.sha256(content) != sums.get(name):
                raise SourceError(
                    f"{url}/{name}: {len(content)} bytes whose SHA-256 differs from {output_names.SUMS}; copy it again"
                )
            files.write(path, content)
    mark = {"url": url, "bytes": int(cache_gb * 1e9), "stall_s": stall_s, "retry_s": retry_s}
    files.write(folder / MARK, files.canonical_json(mark))
    files.write(folder / output_names.SUMS, listed)
    return folder


class RemoteFolder:
    """A folder at a URL; failed reads are repeated with increasing delays for `retry_s` seconds."""

    def __init__(
        self,
        url: str,
        stall_s: float,
        retry_s: float,
        *,
        sleep: Callable[[float], None] = pause,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(url.rstrip("/"))
        except (ValueError, ImportError, OSError) as error:  # no such protocol, or its package is not installed
            raise SourceError(
                f"{url}: cannot be opened: {error}; check the address, or install what it needs"
            ) from None
        self._url, self._stall = urls.without_secrets(url).rstrip("/"), stall_s
        self._retry = partial(retry.call, policy=replace(RETRY, lasting_s=retry_s), sleep=sleep, clock=clock)

    def whole(self, name: str) -> bytes:
        """Fetch a file. Raises SourceError."""
        return self.ranges([Span(name, 0, 0)])[0]

    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        """Fetch each span completely; a span that ends at 0 is the whole file. Raises SourceError."""
        if not spans:
            return []
        # Names from an index elsewhere must not lead to other files of the server, or of this machine.
        if strange := [span.tar for span in spans if not safe_names.is_safe(span.tar)]:
            raise SourceError(
                f"{self._url}: its index names a file {strange[0]!r:.90}, expected one in that folder; copy it again"
            )
        complete: dict[int, bytes] = {}
        tries = 0

        def attempt() -> None:
            """Request the spans that are not complete yet."""
            nonlocal tries
            tries += 1
            missing = [i for i in range(len(spans)) if i not in complete]
            reason, lasting = "", False
            for i, content in zip(missing, self._request([spans[i] for i in missing]), strict=True):
                if isinstance(content, bytes) and len(content) == (spans[i].stop - spans[i].start or len(content)):
                    complete[i] = content
                else:
                    is_part = isinstance(content, bytes)
                    problem = f"received {len(content)} bytes" if is_part else f"{type(content).__name__}: {content}"
                    span = f"bytes {spans[i].start} to {spans[i].stop or 'the end'}"
                    reason = f"{self._url}/{spans[i].tar}: {span}: {problem:.200}"
                    # What a server refuses, or gives in part again and again, will not come by waiting.
                    lasting = lasting or _is_refusal(content) or (isinstance(content, bytes) and tries >= RETRY.tries)
            if lasting:
                raise SourceError(f"{reason}; mend the shards there")
            if reason:
                if tries == RETRY.tries:
                    log.warning("%s; trying again for some minutes", reason)
                raise retry.TransientError(reason)

        try:
            self._retry(attempt)
        except retry.TransientError as error:
            raise SourceError(f"{error}; failed {tries} times, try again later") from None
        return [complete[i] for i in range(len(spans))]

    def _request(self, spans: Sequence[Span]) -> list[Any]:
        """Return the bytes or the exception of each span; asynchronous file systems fetch many at a time."""
        # Only asynchronous file systems, which include all network protocols, have a timeout.
        timeout = {"timeout": self._stall} if self._files.async_impl else {}
        paths = [urls.joined(self._root, span.tar) for span in spans]
        starts, stops = [span.start for span in spans], [span.stop or None for span in spans]
        try:
            contents: list[Any] = self._files.cat_ranges(paths, starts, stops, on_error="return", **timeout)
        except Exception as error:  # clients of cloud storage have exceptions of their own
            return [error] * len(spans)
        return contents


def _is_refusal(error: Any) -> bool:
    """Return whether an exception of a file system says that the file is not there or may not be read."""
    status = getattr(error, "status", 0)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in retry.TRANSIENT_STATUS
    return refused or isinstance(error, FileNotFoundError | PermissionError)


class RemoteTars:
    """Remote tars of a mirrored folder, read by ranges; `contents` may be called by several threads at once."""

    def __init__(self, folder: Path) -> None:
        """Open a folder made by `mirror`. Raises SourceError."""
        self._folder, self._opening = folder, threading.Lock()
        self._open()

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the folder again in the process that unpickles this object."""
        # With the secrets of a signed address, which the folder does not hold and another process does not have.
        return _reopened, (self._folder, urls.recall(self._url))

    def _open(self) -> None:
        mark = json.loads((self._folder / MARK).read_bytes())
        self._url = mark["url"]
        self._remote = RemoteFolder(urls.recall(self._url), mark["stall_s"], mark["retry_s"])
        self._cache = _RingCache(self._folder, mark["bytes"])
        self._process = os.getpid()

    def contents(self, spans: Sequence[Span]) -> list[memoryview]:
        """Return the bytes of each span. Raises SourceError."""
        # A forked process would share the file of the cache, but not notice what others write into it.
        if self._process != os.getpid():
            with self._opening:
                if self._process != os.getpid():
                    self._open()
        cached = {span: self._cache.get(span) for span in spans}
        contents = {span: content for span, content in cached.items() if content is not None}
        runs = merge_spans([span for span in cached if span not in contents])
        for (run, members), content in zip(runs, self._remote.ranges([run for run, _ in runs]), strict=True):
            for span in members:
                at = span.start - run.start
                if not _is_member(content[at - _HEADER : at], span.stop - span.start):
                    raise SourceError(
                        f"{self._url}/{span.tar}: no member at byte {span.start}; run sgdata verify there"
                    )
                contents[span] = content[at : at + span.stop - span.start]
                self._cache.put(span, contents[span])
        return [memoryview(contents[span]) for span in spans]


def _reopened(folder: Path, url: str) -> RemoteTars:
    urls.remember(url)
    return RemoteTars(folder)


def _is_member(header: bytes, size: int) -> bool:
    """Return whether a tar header announces a member of at least `size` bytes; other bytes must not become pixels."""
    octal = header[124:135]
    return header[257:262] == b"ustar" and octal.isdigit() and int(octal, 8) >= size


def merge_spans(spans: Sequence[Span]) -> list[tuple[Span, list[Span]]]:
    """Merge neighbouring spans, each with the tar header before it, into few ranges; return these with their spans."""
    runs: list[tuple[Span, list[Span]]] = []
    for span in sorted(spans, key=lambda span: (span.tar, span.start)):
        run = runs[-1][0] if runs else Span("", 0, 0)
        near = span.tar == run.tar and span.start - _HEADER - run.stop < GAP and span.stop - run.start < LONGEST
        if near:
            runs[-1] = (Span(run.tar, run.start, max(run.stop, span.stop)), [*runs[-1][1], span])
        else:
            runs.append((Span(span.tar, span.start - _HEADER, span.stop), [span]))
    return runs


class _RingCache:
    """The bytes fetched last, in an unlinked file, which the system frees when the process ends for any reason."""

    def __init__(self, folder: Path, size: int) -> None:
        self._file, name = tempfile.mkstemp(dir=folder)
        Path(name).unlink()
        weakref.finalize(self, os.close, self._file)
        self._size, self._head = size, 0
        self._at: OrderedDict[Span, int] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, span: Span) -> bytes | None:
        with self._lock:
            at = self._at.get(span)
            return None if at is None else os.pread(self._file, span.stop - span.start, at)

    def put(self, span: Span, content: bytes) -> None:
        with self._lock:
            if len(content) > self._size:
                return
            if self._head + len(content) > self._size:
                # Entries of the previous round from the head on are the oldest.
                while self._at and next(iter(self._at.values())) >= self._head:
                    self._at.popitem(last=False)
                self._head = 0
            while self._at and self._head <= next(iter(self._at.values())) < self._head + len(content):
                self._at.popitem(last=False)
            try:
                os.pwrite(self._file, content, self._head)
            except OSError:  # a full disk: entries that are not cached are fetched again
                return
            self._at[span] = self._head
            self._head += len(content)
