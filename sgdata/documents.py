"""Read untrusted bytes, gzip, JSON and XML, checking size limits before allocating."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path
from typing import Any

from sgdata.errors import SourceError
from sgdata.limits import DOCUMENT_BYTES, DOCUMENT_VALUES, Limit

GZIP = b"\x1f\x8b"


def read_bytes(path: Path, limit: Limit = DOCUMENT_BYTES) -> bytes:
    """Read a file that must be smaller than the limit. Raises SourceError, FileNotFoundError."""
    try:
        with path.open("rb") as handle:
            # One byte more: pipes and devices have no size beforehand.
            content = handle.read(limit.most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}; check its permissions and its disk") from None
    limit.check(len(content), str(path))
    return content


def unpack_gzip(content: bytes, origin: str, limit: Limit = DOCUMENT_BYTES) -> bytes:
    """Decompress gzip, of one or more members; other content is returned as it is. Raises SourceError."""
    parts, size = [], 0
    if not content.startswith(GZIP):
        return content
    while content:
        decoder = zlib.decompressobj(wbits=31)
        try:
            part = decoder.decompress(content, limit.most + 1 - size)
        except zlib.error as error:
            raise SourceError(f"{origin}: cannot be unpacked: {error}; delete it and fetch it again") from None
        parts.append(part)
        size += len(part)
        limit.check(size, f"{origin}: unpacks to more than")
        if not decoder.eof:
            raise SourceError(f"{origin}: cannot be unpacked: ends too soon; delete it and fetch it again")
        content = decoder.unused_data.lstrip(b"\0")  # as gzip pads to whole blocks of tapes
    return b"".join(parts)


def parse_bounded_json(content: bytes | str, origin: str, limit: Limit = DOCUMENT_VALUES) -> Any:
    """Parse JSON with a bounded number of values, which take some 100 bytes each. Raises SourceError."""
    # Counted before they are made; those inside strings count as well.
    if isinstance(content, bytes):
        count = content.count(b",") + content.count(b"[") + content.count(b"{")
    else:
        count = content.count(",") + content.count("[") + content.count("{")
    limit.check(count, origin)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SourceError(
            f"{origin}: cannot be read as JSON: {reason:.100}; begins with {content[:60]!r}; fetch or write it again"
        ) from None


def parse_xml(content: bytes) -> ET.Element:
    """Parse XML without a document type, which may declare entities that expand without limit.

    Raises:
        ValueError: The XML declares a document type.
        xml.etree.ElementTree.ParseError: The XML is malformed.
        LookupError: Its encoding is unknown.
    """
    return ET.fromstring(content, ET.XMLParser(target=_WithoutDoctype()))


class _WithoutDoctype(ET.TreeBuilder):
    def doctype(self, *_: object) -> None:
        raise ValueError("it declares a document type")
