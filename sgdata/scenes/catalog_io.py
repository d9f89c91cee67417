"""Read the documents of STAC catalogues: files and hosts that may be named, sizes, depth, number and time checked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pystac
import requests
from pystac.stac_io import DefaultStacIO
from pystac_client.stac_api_io import StacApiIO

from sgdata import documents, web
from sgdata.access import REMOTE, Access, admit
from sgdata.errors import ServiceError, SgdataError, SourceError
from sgdata.limits import CATALOG_DEPTH, CATALOG_DOCUMENTS, SEARCH_SECONDS

TIMEOUT_S = 60.0


class _Checked(pystac.StacIO):
    """The checks that both readers share.

    Attributes:
        access: what the documents may name.
        session: HTTP session that asks no other hosts.
    """

    access: Access
    session: requests.Session

    def _start(self, access: Access) -> None:
        self.access = access
        self.session = web.session(access)
        self._count = 0
        self._deadline = time.monotonic() + SEARCH_SECONDS.most

    def _count_one(self) -> None:
        self._count += 1
        CATALOG_DOCUMENTS.check(self._count, "catalogue")
        if time.monotonic() > self._deadline:
            spent = f"{self._count} documents in {SEARCH_SECONDS.most} s"
            raise ServiceError(f"catalogue: no end after {spent}; ask for a smaller area or shorter dates")

    def read_json(self, source: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a JSON document of bounded size. Raises SourceError, and what `read_text` raises."""
        where = str(source.href if isinstance(source, pystac.Link) else source).partition("?")[0]
        document = documents.parse_json(self.read_text(source, *args, **kwargs), where)
        if not isinstance(document, dict):
            raise SourceError(f"{where}: is a {type(document).__name__}, expected a STAC object")
        return document

    @contextmanager
    def as_default(self) -> Iterator[None]:
        """Let pystac read with this object where it takes its default, as for collections of old items."""
        before = pystac.StacIO._default_io
        pystac.StacIO.set_default(lambda: self)
        try:
            yield
        finally:
            pystac.StacIO._default_io = before


class RemoteIO(_Checked, StacApiIO):
    """Reads an API or a static catalogue over HTTP, and nothing else."""

    def __init__(self, access: Access) -> None:
        """Open a session."""
        super().__init__(max_retries=None, timeout=TIMEOUT_S)
        self._start(access)

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        """Read a document. Raises SourceError, and what pystac-client raises."""
        self._count_one()
        if not isinstance(source, pystac.Link):
            admit(str(source), self.access)
        return super().read_text(source, *args, **kwargs)


class FileIO(_Checked, DefaultStacIO):
    """Reads a catalogue on disk, and the documents that it links to."""

    def __init__(self, access: Access) -> None:
        """Open a session for links to servers."""
        super().__init__()
        self._start(access)

    def read_text_from_href(self, href: str) -> str:
        """Read a document. Raises SourceError, FileNotFoundError, requests.RequestException."""
        self._count_one()
        admitted = admit(href, self.access)
        if not REMOTE.match(admitted):
            return documents.read_bytes(Path(admitted)).decode("utf-8")
        answer = self.session.get(admitted, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.text


def walk(catalog: pystac.Catalog, path: tuple[str, ...] = ()) -> Iterator[pystac.Item]:
    """Yield the items of a static catalogue and of all catalogues below it.

    Raises:
        SourceError: a catalogue is below itself, or they nest too deeply.
    """
    here = str(catalog.get_self_href())
    if here in path:
        raise SourceError(f"{here}: catalogue is below itself, through {path[-1]}; remove that link")
    path = (*path, here)
    CATALOG_DEPTH.check(len(path), here)
    yield from catalog.get_items(recursive=False)
    for child in catalog.get_children():
        yield from walk(child, path)


def refusal(error: BaseException | None) -> SgdataError | None:
    """Return the error of this project that pystac turned into one of its own, None if there is none."""
    while error is not None and not isinstance(error, SgdataError):
        error = error.__cause__ or error.__context__
    return error
