"""Download the official files of a dataset by the addresses and checksums of its card.

A file gets its name only when it is complete and its digest is right; until then it is `.<name>.partial`, and an
interrupted download resumes by range. `SHA256SUMS` lists the SHA-256 of every file, also where the dataset's authors
publish none, so that two downloads can be compared.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sgdata import files, output_lock, output_names, progress, safe_names
from sgdata.datasets import cards
from sgdata.datasets.types import DatasetFile
from sgdata.errors import OutputError, ServiceError, SettingError
from sgdata.limits import DOWNLOAD_BYTES_PER_S, DOWNLOAD_SECONDS
from sgdata.remote import retry, web

# Without the lists of the splits the images cannot be used as published.
DEFAULT_PARTS = ("images", "splits")
CHUNK_BYTES = 2**16  # the most that a dropped connection loses
CONNECT_S, STALL_S = 10.0, 60.0
RETRY = retry.RetryPolicy(tries=5, wait_s=2.0)


@dataclass(frozen=True, kw_only=True)
class DownloadPlan:
    """Files left to download.

    Attributes:
        sources: The files, in the order of the card.
        bytes: Bytes left to download, of the files whose size is known.
        unsized: Number of files without a known size.
        free: Free bytes on the disk of the output folder.
    """

    sources: tuple[DatasetFile, ...]
    bytes: int
    unsized: int
    free: int


def plan(dataset: str, release: str, out: Path, parts: Sequence[str] = ()) -> DownloadPlan:
    """List the files that `fetch` would download, without contacting a server.

    Args:
        dataset: Name of a dataset of the catalogue.
        release: Name of one of its editions.
        out: Folder to download into; files that it lists as verified are skipped.
        parts: Parts of the card to download; default images and splits.

    Returns:
        The files to download, the bytes that they need and the bytes that are free.

    Raises:
        SettingError: An unknown dataset, edition or part, an edition without files, or a file without a known address.
    """
    edition = cards.edition(dataset, release)
    available = sorted({source.part for source in edition.sources})
    unknown = sorted(set(parts) - set(available))
    if not available:
        if cards.card(dataset).licence.redistribution == "owner":
            raise SettingError(f"{dataset}: nothing to download; give files of your own to 'sgdata shard {dataset}'")
        raise SettingError(f"{dataset} {release}: nothing to download; it is made with 'sgdata build'")
    if unknown:
        raise SettingError(f"{dataset} {release} has no part {', '.join(unknown)}; known: {', '.join(available)}")
    selected = [source for source in edition.sources if source.part in (parts or DEFAULT_PARTS)]
    # A verified file is not hashed again: 66 GB take minutes.
    verified = _read_sums(out)
    unfinished = [source for source in selected if source.file not in verified or not (out / source.file).is_file()]
    without_url = [source.file for source in unfinished if not source.url]
    if without_url:
        home = cards.card(dataset).home
        raise SettingError(f"{dataset}: no address is known of {', '.join(without_url)}; see {home}")
    missing = sum(source.bytes - _size(_partial_path(out, source)) for source in unfinished if source.bytes)
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    unsized = sum(source.bytes is None for source in unfinished)
    free = shutil.disk_usage(existing).free
    return DownloadPlan(sources=tuple(unfinished), bytes=max(missing, 0), unsized=unsized, free=free)


def fetch(plan: DownloadPlan, out: Path, *, policy: retry.RetryPolicy = RETRY, stall_s: float = STALL_S) -> None:
    """Download the files of a plan into `out`.

    Args:
        plan: Result of `plan`.
        out: Folder for the files.
        policy: How often to try each address.
        stall_s: Seconds without a byte after which a connection is given up.

    Raises:
        OutputError: The disk is too small, a file cannot be written, or `out` holds another output such as a build.
        ServiceError: A file cannot be had from any of its addresses; names every failure.
    """
    if plan.bytes > plan.free:
        raise OutputError(f"{out}: needs {plan.bytes:,} bytes, {plan.free:,} are free; choose another --out or --part")
    with output_lock.only_writer(out, ""):
        # One file at a time, listed as soon as it is verified: an interruption costs one file at most.
        for source in plan.sources:
            try:
                digest = _download(source, out, policy, stall_s)
            except OSError as error:
                raise OutputError(
                    f"{out / source.file}: cannot be written: {error.strerror or error}; free space"
                ) from None
            sums = _read_sums(out) | {source.file: digest}
            files.write(out / output_names.SUMS, files.format_sums(dict(sorted(sums.items()))))


def _read_sums(out: Path) -> dict[str, str]:
    """Map the names of the verified files to their SHA-256."""
    return files.read_sums(out) if files.is_finished(out) else {}


def _download(source: DatasetFile, out: Path, policy: retry.RetryPolicy, stall_s: float) -> str:
    """Download one file from the first address that gives it and return its SHA-256. Raises ServiceError."""
    from requests import RequestException

    path = _partial_path(out, source)
    failures: dict[str, None] = {}  # as an ordered set: equal failures are reported once
    # ValueError: a redirect to an invalid address.
    failed = (RequestException, retry.TransientError, ServiceError, ValueError)

    def attempt(url: str) -> str:
        try:
            if _size(path) != source.bytes:
                _download_rest(url, path, source, stall_s)
            return _verify(path, source)
        except failed as error:
            failures[f"{url}: {' '.join(str(error).split())[:150]}"] = None
            raise

    for url in (source.url, *source.mirrors):
        try:
            digest = retry.call(partial(attempt, url), policy, retry_on=_is_transient)
        except failed:
            continue
        path.rename(out / source.file)
        _etag_path(path).unlink(missing_ok=True)
        return digest
    raise ServiceError(f"{source.file}: cannot be fetched: {'; '.join(failures)}; try again later")


def _download_rest(url: str, path: Path, source: DatasetFile, stall_s: float) -> None:
    """Append the missing bytes of a file. Raises ServiceError if the answer is too short, too long or an HTML page."""
    start = _size(path)
    etag = _etag_path(path)
    # Ranges and sizes must be of the file, not of a compressed transfer of it.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if etag.is_file():  # without it, the end of a new version could follow the start of an old one
            headers["If-Range"] = etag.read_text()
    with web.ask("GET", url, headers=headers, stream=True, timeout=(CONNECT_S, stall_s)) as response:
        content_range, _, full_size = response.headers.get("Content-Range", "").partition("/")
        if response.status_code == 416:  # no bytes after `start`: the digest decides whether the file is complete
            if source.bytes is None and not source.algorithm and full_size != str(start):
                path.unlink()
                raise ServiceError(f"holds {full_size or 'fewer'} bytes, {start} are here; downloading again")
            return
        if response.status_code in retry.TRANSIENT_STATUS:
            raise retry.BusyError(response)
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        if response.status_code != 206 or not content_range.startswith(f"bytes {start}-"):
            start = 0
        # An HTML page with status 206, appended to good bytes, could not be recognised any more.
        if start and length.isdigit() and content_range != f"bytes {start}-{start + int(length) - 1}":
            raise ServiceError(f"says it sends {content_range}, and {length} bytes")
        if response.headers.get("ETag", "").startswith('"'):
            etag.write_text(response.headers["ETag"])
        # The size of the whole file, since a server may send less than the requested range.
        total = int(full_size) if full_size.isdigit() else start + int(length) if length.isdigit() else source.bytes
        if total is None and not source.algorithm and "Transfer-Encoding" not in response.headers:
            raise ServiceError("no Content-Length and no checksum: truncation could not be detected")
        _append_body(response, path, start, total, source)
    if total is not None and _size(path) != total:
        raise ServiceError(f"ended after {_size(path)} of {total} bytes")


def _append_body(response: Any, path: Path, start: int, total: int | None, source: DatasetFile) -> None:
    """Write the body of a response to `path` from byte `start` on."""
    # An endless answer must not fill the disk.
    limit = source.bytes if source.bytes is not None else total
    remaining = (total or 0) - start
    deadline = time.monotonic() + DOWNLOAD_SECONDS.most + remaining / DOWNLOAD_BYTES_PER_S.most
    chunks = _regroup(web.chunks(response, deadline=deadline))
    label = f"fetching {source.file}"
    count = -(-remaining // CHUNK_BYTES)
    with path.open("r+b" if start else "wb") as handle:
        handle.seek(start)
        for number, chunk in enumerate(progress.track(chunks, label=label, total=count)):
            # None of the files of a card begins with "<": not a table, not a list, not an archive.
            if not number and not start and chunk.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
                raise ServiceError("server returned HTML instead of the file (login page?)")
            if limit is not None and handle.tell() + len(chunk) > limit:
                raise ServiceError(f"sends more than {limit} bytes")
            handle.write(chunk)


def _regroup(received: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the bytes in chunks of CHUNK_BYTES, the last one shorter."""
    buffer = bytearray()
    for chunk in received:
        buffer += chunk
        while len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer[:CHUNK_BYTES])
            del buffer[:CHUNK_BYTES]
    if buffer:
        yield bytes(buffer)


def _verify(path: Path, source: DatasetFile) -> str:
    """Return the SHA-256 of a complete file; remove one of the wrong size or digest and raise ServiceError."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", source.algorithm or "sha256"}}
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            for digest in digests.values():
                digest.update(chunk)
    actual = digests[source.algorithm or "sha256"].hexdigest()
    size = _size(path)
    if source.bytes not in (None, size) or (source.algorithm and actual != source.digest):
        # Otherwise every later run would resume the damaged file.
        path.unlink()
        _etag_path(path).unlink(missing_ok=True)
        expected = f"{source.bytes or 'any'} of {source.digest[:16]}"
        raise ServiceError(f"{size} bytes of {actual[:16]}..., expected {expected}")
    return digests["sha256"].hexdigest()


def _is_transient(error: BaseException) -> bool:
    """Return whether another try may help: any failure but a client error (4xx) of the server and a full disk."""
    from requests import RequestException

    if isinstance(error, RequestException):
        return error.response is None or not 400 <= error.response.status_code < 500
    return not isinstance(error, OSError)


def _partial_path(out: Path, source: DatasetFile) -> Path:
    return out / f".{source.file}.partial"


def _etag_path(path: Path) -> Path:
    return safe_names.with_ending(path, ".etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
