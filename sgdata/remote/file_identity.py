"""Detect whether a source has changed since an earlier run read it, without reading all of it.

Of a local file size, inode and times are compared, and the content of parts of it; of a file on a web server its ETag,
date and size. Of scenes in a store, or on a server that gives none of these, pixels are compared where they are staged
(`sgdata.staging.window_staging`). Datasets may have millions of files: of these the content of a few is compared, the
rest of all.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sgdata import files, urls
from sgdata.errors import SgdataError

if TYPE_CHECKING:
    from sgdata.remote.allowed_addresses import Access

PART_BYTES = 2**16
SAMPLED = 8
"""Files of a set whose content is compared."""


def identify_files(paths: Iterable[str | Path]) -> str:
    """Return the identity of a set of local files; it differs where one was changed, replaced, added or removed."""
    every = sorted({os.fspath(path) for path in paths})
    states = [_state(path) for path in every]
    some = sorted({int(at) for at in np.linspace(0, len(every) - 1, min(len(every), SAMPLED))})
    return files.sha256(repr((states, [_content(every[at], states[at]) for at in some])).encode())


def identify_address(href: str, access: Access | None = None) -> str | None:
    """Return the identity of one file: a path, a path in an archive, or a URL.

    Returns:
        The identity; "" if a server or store gives no ETag, date or size, or if it is an array of files there; None if
        it does not give the file.
    """
    if href.startswith(("s3://", "gs://", "az://")) or (urls.is_http(href) and urls.is_zarr(href)):
        return ""  # an array of a Zarr store is many files
    if not re.match(r"https?://", href):
        path = Path(re.sub(r"^(?:/vsi\w+/|[a-z+]+://)", "", href))
        if path.is_dir():  # an array of a Zarr store
            return identify_files(file for file in path.rglob("*") if file.is_file())
        return identify_files([file for file in (path, *path.parents) if file.is_file()][:1])
    import requests

    from sgdata.remote import web

    try:
        # One byte is asked for, since signatures may allow GET only.
        asked = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
        with web.ask("GET", href, access=access, stream=True, headers=asked, timeout=5) as answer:
            if not answer.ok:
                return None
            headers = [answer.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Range")]
            return _of_headers(headers)
    except (requests.RequestException, SgdataError, ValueError):
        return None


def of_headers(etag: str, modified: str, size: int) -> str:
    """Return what `identify_address` returns for a file of `size` bytes with this ETag and date; "" for none."""
    return _of_headers([etag, modified, f"bytes 0-0/{size}"])


def _of_headers(headers: list[str]) -> str:
    return files.sha256(files.canonical_json(headers)) if any(headers[:2]) else ""


def _state(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)  # noqa: PTH116 - paths of millions of files would take as long as the disk
    except OSError:
        return ()
    # The time of change too: it cannot be set back as that of modification can.
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=1024)
def _content(path: str, state: tuple[int, ...]) -> str:
    """Return the hash of the start, middle and end of a file in a state that `_state` gives."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as handle:  # noqa: PTH123 - as above
            for start in (0, state[0] // 2, max(state[0] - PART_BYTES, 0)) if state else ():
                handle.seek(start)
                digest.update(handle.read(PART_BYTES))
    except OSError:
        return ""
    return digest.hexdigest()
