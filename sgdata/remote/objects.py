"""Read whole objects and byte ranges of them, on disk or on a server; one that does not exist is no error.

Stores of many objects, such as Zarr, leave out those without data. Only a plain answer that an object does not exist
counts as that: any other failure is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sgdata import urls
from sgdata.errors import SourceError
from sgdata.limits import Limit
from sgdata.remote.access import Access


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder or prefix of objects.

    Attributes:
        href: absolute path or URL, admitted by `access.admit` where a document names it.
        access: hosts that may be asked; None: those of an address that the user named.
    """

    href: str
    access: Access | None = None

    def at(self, key: str) -> str:
        """Return the address of an object; for messages, pass it through `urls.without_secrets`."""
        return urls.joined(self.href, key) if "://" in self.href else f"{self.href}/{key}"

    def read(self, key: str, limit: Limit) -> bytes | None:
        """Return an object, None if it does not exist. Raises SourceError if it cannot be read or is too large."""
        found = self.read_range(key, 0, limit.most + 1)
        if found is None:
            return None
        limit.check(len(found), urls.without_secrets(self.at(key)))
        return found

    def read_range(self, key: str, start: int, stop: int | None = None) -> bytes | None:
        """Return bytes of an object.

        Args:
            key: name of the object below the folder; never the text of a document.
            start: first byte; negative: counted from the end.
            stop: one past the last byte; None: the end.

        Returns:
            The bytes, fewer where the object ends before `stop`; None if it does not exist.

        Raises:
            SourceError: it cannot be read.
        """
        if "://" not in self.href:
            return _read_file(Path(self.href), key, start, stop)
        raise SourceError(f"{urls.without_secrets(self.href)}: Zarr is read from disk only; download it")


def _read_file(root: Path, key: str, start: int, stop: int | None) -> bytes | None:
    path = root / key
    try:
        if not path.exists():
            return None
        # A link or a pipe, which a store has no reason to hold, would lead elsewhere or never end.
        if not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
            raise SourceError(f"{path}: is no file of its store; leave it out")
        with path.open("rb") as handle:
            size = handle.seek(0, 2)
            first = max(size + start, 0) if start < 0 else start
            handle.seek(first)
            return handle.read(max((size if stop is None else min(stop, size)) - first, 0))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}; fetch it again or leave it out") from error
