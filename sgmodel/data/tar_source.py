"""Bytes out of the tars of a folder of shards: mapped into memory, or fetched from any URL that fsspec knows.

Of shards that lie elsewhere (http(s), s3, gs, memory) index and contract are mirrored into a local folder, verified by
the `SHA256SUMS` beside them; that folder is then opened as any other. Samples come by ranges of the tars, neighbours
together, and stay in a file of bounded size that takes the place of the oldest first. A range that cannot be had, or
is not what a tar holds there, is an error.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sgdata import file_names, files, retry
from sgdata.errors import SourceError

MARK = "remote.json"
GAP = 2**16  # bytes that cost less to fetch along than a request of their own
LONGEST = 2**24
RETRY = retry.RetryPolicy(tries=4, wait_s=0.2, factor=4.0)
_HEADER = 512  # of a tar member, before its content


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, stop) of a tar."""

    tar: str
    start: int
    stop: int


class Tars(Protocol):
    """Where the bytes of shards come from."""

    def contents(self, spans: Sequence[Span]) -> list[memoryview]:
        """The bytes of each span, some of which may lack where a tar ends too soon. Raises SourceError."""


class Mapped:
    """Tars in a folder of this machine."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """Raises SourceError where one cannot be opened."""
        # For as long as the object lives: opening a file per sample would cost more than decoding it.
        self._views = {name: memoryview(_map(file_names.member(folder, name))) for name in names}

    def contents(self, spans: Sequence[Span]) -> list[memoryview]:
        """Views, not copies."""
        return [self._views[span.tar][span.start : span.stop] for span in spans]


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as handle:
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read ({error}), the index names it; run sgdata verify") from None


# --- over a network ------------------------------------------------------------------------


def mirror(url: str, cache: Path, *, cache_gb: float, stall_s: float = 60.0) -> Path:
    """A folder under `cache` that stands for the folder of shards at `url`. Raises SourceError, OutputError."""
    place = _Place(url, stall_s)
    folder = cache / files.sha256(url.encode())[:16]
    sums = files.parse_sums(place.whole(files.SUMS), f"{url}/{files.SUMS}")
    for name in (files.INDEX, files.CONTRACT):
        path = folder / name
        if not path.is_file() or files.sha256_file(path) != sums.get(name):
            content = place.whole(name)
            if files.sha256(content) != sums.get(name):
                raise SourceError(
                    f"{url}/{name}: {len(content)} bytes that are not those of {files.SUMS}; copy it again"
                )
            files.write(path, content)
    files.write(folder / MARK, files.canonical_json({"url": url, "bytes": int(cache_gb * 1e9), "stall_s": stall_s}))
    return folder


class _Place:
    """A folder at a URL; every read is tried again, waiting longer each time, and then an error."""

    def __init__(self, url: str, stall_s: float) -> None:
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(url.rstrip("/"))
        except (ValueError, ImportError, OSError) as error:  # no such protocol, or its package is not installed
            raise SourceError(f"{url}: cannot be opened: {error}") from None
        self._url, self._stall = url.rstrip("/"), stall_s

    def whole(self, name: str) -> bytes:
        """A file. Raises SourceError."""
        return self.ranges([Span(name, 0, 0)])[0]

    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of each span, all of them; of one that ends at 0 the whole file. Raises SourceError."""
        if not spans:
            return []
        # Names from an index elsewhere must not lead to other files of the server, or of this machine.
        if strange := [span.tar for span in spans if not file_names.is_safe(span.tar)]:
            raise SourceError(f"{self._url}: its index names a file {strange[0]!r:.90}, expected one in that folder")
        complete: dict[int, bytes] = {}

        def attempt() -> None:
            """Request the spans that are not complete yet."""
            missing = [i for i in range(len(spans)) if i not in complete]
            reason = ""
            for i, content in zip(missing, self._ask([spans[i] for i in missing]), strict=True):
                if isinstance(content, bytes) and len(content) == (spans[i].stop - spans[i].start or len(content)):
                    complete[i] = content
                else:
                    problem = f"{len(content)} bytes came" if isinstance(content, bytes) else repr(content)
                    reason = f"{self._url}/{spans[i].tar}: bytes {spans[i].start} to {spans[i].stop}: {problem:.200}"
            if reason:
                raise retry.TransientError(reason)

        try:
            retry.call(attempt, RETRY)
        except retry.TransientError as error:
            raise SourceError(f"{error}; asked {RETRY.tries} times, try again later") from None
        return [complete[i] for i in range(len(spans))]

    def _ask(self, spans: Sequence[Span]) -> list[Any]:
        """Bytes or the exception of each span; many are under way at a time where the file system can."""
        # Only asynchronous file systems (all that reach over a network) know a timeout.
        patience = {"timeout": self._stall} if self._files.async_impl else {}
        paths = [f"{self._root}/{span.tar}" for span in spans]
        starts, stops = [span.start for span in spans], [span.stop or None for span in spans]
        try:
            found: list[Any] = self._files.cat_ranges(paths, starts, stops, on_error="return", **patience)
        except Exception as error:  # whatever the client of a cloud raises
            return [error] * len(spans)
        return found


class Ranged:
    """The tars of a mirrored folder; `contents` may be asked by several threads at once."""

    def __init__(self, folder: Path) -> None:
        """Raises SourceError."""
        told = json.loads((folder / MARK).read_bytes())
        self._place, self._url = _Place(told["url"], told["stall_s"]), told["url"]
        self._held = _Ring(folder, told["bytes"])

    def contents(self, spans: Sequence[Span]) -> list[memoryview]:
        """The bytes of each span. Raises SourceError."""
        held = {span: self._held.get(span) for span in spans}
        found = {span: content for span, content in held.items() if content is not None}
        runs = together([span for span in held if span not in found])
        for (run, members), content in zip(runs, self._place.ranges([run for run, _ in runs]), strict=True):
            for span in members:
                at = span.start - run.start
                if not _is_member(content[at - _HEADER : at], span.stop - span.start):
                    raise SourceError(
                        f"{self._url}/{span.tar}: no member at byte {span.start}; run sgdata verify there"
                    )
                found[span] = content[at : at + span.stop - span.start]
                self._held.put(span, found[span])
        return [memoryview(found[span]) for span in spans]


def _is_member(header: bytes, size: int) -> bool:
    """Whether a tar has a member of at least `size` bytes here: bytes of some other place would be taken for pixels."""
    octal = header[124:135]
    return header[257:262] == b"ustar" and octal.isdigit() and int(octal, 8) >= size


def together(spans: Sequence[Span]) -> list[tuple[Span, list[Span]]]:
    """Spans, each with the tar header before it, as few ranges to ask for."""
    runs: list[tuple[Span, list[Span]]] = []
    for span in sorted(spans, key=lambda span: (span.tar, span.start)):
        run = runs[-1][0] if runs else Span("", 0, 0)
        near = span.tar == run.tar and span.start - _HEADER - run.stop < GAP and span.stop - run.start < LONGEST
        if near:
            runs[-1] = (Span(run.tar, run.start, max(run.stop, span.stop)), [*runs[-1][1], span])
        else:
            runs.append((Span(span.tar, span.start - _HEADER, span.stop), [span]))
    return runs


class _Ring:
    """The bytes last fetched, in a file without a name: gone with the process, however that ends."""

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
                # What is left of the round before lies behind the head: it is the oldest.
                while self._at and next(iter(self._at.values())) >= self._head:
                    self._at.popitem(last=False)
                self._head = 0
            while self._at and self._head <= next(iter(self._at.values())) < self._head + len(content):
                self._at.popitem(last=False)
            try:
                os.pwrite(self._file, content, self._head)
            except OSError:  # a full disk: what is not kept is fetched again
                return
            self._at[span] = self._head
            self._head += len(content)
