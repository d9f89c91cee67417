"""Keep the first bytes of remote files, and what their servers said of them, so that a later run asks for pixels only.

Later requests for other bytes name the kept ETag: a file that has changed since is noticed.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

from sgdata import files, urls
from sgdata.remote.allowed_addresses import Access
from sgdata.remote.ranges import RemoteFile, Sign


def path_of(folder: Path, href: str) -> Path:
    """Return where the header of a file is kept in a folder."""
    return folder / f"{files.sha256(urls.without_secrets(href).encode())[:32]}.json"


def write(path: Path, href: str, file: RemoteFile, parts: Mapping[int, bytes]) -> None:
    """Keep the header of a file, unless it is redirected or its server gives neither ETag nor date.

    Args:
        path: As `path_of` returns it.
        href: Address that was asked for.
        file: What its server said.
        parts: Bytes of the file by where they begin.
    """
    if not (file.url == href or file.sign) or not (file.etag or file.modified):
        return
    document = {
        "size": file.size,
        "etag": file.etag,
        "modified": file.modified,
        "parts": {str(start): base64.b64encode(content).decode() for start, content in parts.items()},
    }
    with files.replacing(path, durable=False) as temporary:  # what a power failure leaves of it is noticed
        temporary.write_bytes(files.checked_json(document))


def read(path: Path, href: str, access: Access, sign: Sign | None = None) -> tuple[RemoteFile, dict[int, bytes]] | None:
    """Return a file and the parts that are kept of it; None if there are none, or damaged ones.

    Args:
        path: As `path_of` returns it.
        href: Address of the file.
        access: Hosts that may be asked.
        sign: Function that signs the address anew; None if no service signs it.
    """
    document = files.read_checked_json(path)
    try:
        if document is None:
            return None
        parts = {int(start): base64.b64decode(content) for start, content in document["parts"].items()}
        size, etag, modified = int(document["size"]), str(document["etag"]), str(document["modified"])
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    return RemoteFile(url=href, size=size, etag=etag, modified=modified, access=access, sign=sign), parts
