"""The official files of a dataset, by the addresses and checksums of its card: resumed by range, verified, told first.

A file has its name only when it is whole and its digest is right; until then it is `.<name>.partial`. The SHA-256
of each stands in `SHA256SUMS`, also where its makers publish none: the next download can be compared with yours.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdata import files, progress
from sgdata.datasets import cards
from sgdata.datasets.types import Source
from sgdata.errors import OutputError, ServiceError, SettingError

# Without the lists of the splits the images cannot be used as published.
DEFAULT_PARTS = ("images", "splits")
PIECE = 2**16  # what a dropped connection costs at most
CONNECT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a silent server is waited for, and how often an address is tried again, waiting longer each time."""

    stall_s: float = 60.0
    tries: int = 5
    wait_s: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Need:
    """What is still to be fetched into a folder: the files, their bytes, and how many of them tell no size."""

    sources: tuple[Source, ...]
    bytes: int
    unsized: int
    free: int


def plan(dataset: str, release: str, out: Path, parts: Sequence[str] = ()) -> Need:
    """What `fetch` would do, without asking a server. `parts` are those of the card; default images and splits.

    Raises SettingError on an unknown part and on a file that the card has no address for.
    """
    edition = cards.edition(dataset, release)
    known = sorted({source.part for source in edition.sources})
    unknown = sorted(set(parts) - set(known))
    if not known:
        raise SettingError(f"{dataset} {release}: nothing to download; it is made with 'sgdata build'")
    if unknown:
        raise SettingError(f"{dataset} {release} has no part {', '.join(unknown)}; known: {', '.join(known)}")
    chosen = [source for source in edition.sources if source.part in (parts or DEFAULT_PARTS)]
    # What was verified once is not hashed again: 66 GB take minutes.
    held = _listed(out)
    left = [source for source in chosen if not (source.file in held and (out / source.file).is_file())]
    unaddressed = [source.file for source in left if not source.url]
    if unaddressed:
        home = cards.card(dataset).home
        raise SettingError(f"{dataset}: no address is known of {', '.join(unaddressed)}; see {home}")
    need = sum((source.bytes or 0) - _size(_partial(out, source)) * bool(source.bytes) for source in left)
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    unsized = sum(source.bytes is None for source in left)
    return Need(sources=tuple(left), bytes=max(need, 0), unsized=unsized, free=shutil.disk_usage(place).free)


def fetch(need: Need, out: Path, patience: Patience | None = None) -> None:
    """Fetch what `plan` found. Raises OutputError where the disk is too small, ServiceError naming every attempt."""
    if need.bytes > need.free:
        raise OutputError(f"{out}: needs {need.bytes:,} bytes, {need.free:,} are free; choose another --out or --part")
    with files.only_writer(out):
        # One after the other: what is whole is listed at once, and an interruption costs one file at most.
        for source in need.sources:
            try:
                digest = _one(source, out, patience or Patience())
            except OSError as error:
                raise OutputError(f"{out / source.file}: cannot be written: {error.strerror or error}") from None
            listed = _listed(out) | {source.file: digest}
            lines = "".join(f"{value}  {name}\n" for name, value in sorted(listed.items()))
            files.write(out / files.SUMS, lines.encode())


def _listed(out: Path) -> dict[str, str]:
    """File name to SHA-256 of what was fetched and verified before."""
    path = out / files.SUMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _one(source: Source, out: Path, patience: Patience) -> str:
    """Fetch one file, from the next address where one fails for good; its SHA-256."""
    from requests import RequestException

    partial = _partial(out, source)
    said = []
    for url in (source.url, *source.mirrors):
        for attempt in range(patience.tries):
            try:
                if _size(partial) != source.bytes:
                    _more(url, partial, source, patience)
                digest = _verified(partial, source)
            except (RequestException, ServiceError, ValueError) as error:  # ValueError: led to no address
                said.append(f"{url}: {' '.join(str(error).split())[:150]}")
                if isinstance(error, RequestException) and _refused(error):
                    break  # asking again would not help
                time.sleep(patience.wait_s * 2**attempt)
            else:
                partial.rename(out / source.file)
                _etag(partial).unlink(missing_ok=True)
                return digest
    raise ServiceError(f"{source.file}: cannot be fetched: {'; '.join(dict.fromkeys(said))}; try again later")


def _more(url: str, partial: Path, source: Source, patience: Patience) -> None:
    """Append what is missing of a file. Raises ServiceError where the answer is short, too long, or a page."""
    import requests

    start = _size(partial)
    etag = _etag(partial)
    # Ranges and sizes must be of the file, not of a compressed transfer of it.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if etag.is_file():  # or the end of a new version would be put behind the start of the old
            headers["If-Range"] = etag.read_text()
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_S, patience.stall_s)) as answer:
        told, _, whole = answer.headers.get("Content-Range", "").partition("/")
        if answer.status_code == 416:  # nothing behind what is there: the digest tells whether that is right
            if source.bytes is None and not source.algorithm and whole != str(start):
                partial.unlink()
                raise ServiceError(f"holds {whole or 'fewer'} bytes, {start} are here; fetched anew")
            return
        answer.raise_for_status()
        length = answer.headers.get("Content-Length", "")
        start = start if answer.status_code == 206 and told.startswith(f"bytes {start}-") else 0
        # A page under 206: what is put behind the good start could never be told from it again.
        if start and length.isdigit() and told != f"bytes {start}-{start + int(length) - 1}":
            raise ServiceError(f"says it sends {told}, and {length} bytes")
        if answer.headers.get("ETag", "").startswith('"'):
            etag.write_text(answer.headers["ETag"])
        # Of a range, the whole is what counts: a server may give a part of what was asked for.
        total = int(whole) if whole.isdigit() else start + int(length) if length.isdigit() else source.bytes
        if total is None and not source.algorithm and "Transfer-Encoding" not in answer.headers:
            raise ServiceError("tells no length: nobody could see that it was cut short")
        _append(answer, partial, start, total, source)
    if total is not None and _size(partial) != total:
        raise ServiceError(f"ended after {_size(partial)} of {total} bytes")


def _append(answer: Any, partial: Path, start: int, total: int | None, source: Source) -> None:
    # A server without end must not fill the disk.
    most = source.bytes if source.bytes is not None else total
    pieces: Iterator[bytes] = answer.iter_content(PIECE)
    label = f"fetching {source.file}"
    with partial.open("r+b" if start else "wb") as handle:
        handle.seek(start)
        for number, piece in enumerate(progress.track(pieces, label=label, total=-(-((total or 0) - start) // PIECE))):
            # None of these files begins so: not a table, not a list, not an archive.
            if not number and not start and piece.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
                raise ServiceError("answers with a page, not with the file; a login or a notice?")
            if most is not None and handle.tell() + len(piece) > most:
                raise ServiceError(f"sends more than {most} bytes")
            handle.write(piece)


def _verified(partial: Path, source: Source) -> str:
    """SHA-256 of a whole file; one whose size or digest is wrong is removed, or it would be resumed for ever."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", source.algorithm or "sha256"}}
    with partial.open("rb") as handle:
        while piece := handle.read(PIECE):
            for digest in digests.values():
                digest.update(piece)
    found = digests[source.algorithm or "sha256"].hexdigest()
    size = _size(partial)
    if source.bytes not in (None, size) or (source.algorithm and found != source.digest):
        partial.unlink()
        _etag(partial).unlink(missing_ok=True)
        raise ServiceError(f"{size} bytes of {found[:16]}..., expected {source.bytes or 'any'} of {source.digest[:16]}")
    return digests["sha256"].hexdigest()


def _refused(error: Any) -> bool:
    status = error.response.status_code if error.response is not None else 0
    # Timeout, Too Early, Too Many Requests: the three of the class that time cures.
    return 400 <= status < 500 and status not in (408, 425, 429)


def _partial(out: Path, source: Source) -> Path:
    return out / f".{source.file}.partial"


def _etag(partial: Path) -> Path:
    return partial.with_suffix(".etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
