"""Read objects below a folder, on disk, on a web server or in a bucket: byte ranges of them, or small ones as a whole.

Stores of many objects, such as Zarr, leave out those without data. Only a plain answer that an object does not exist
counts as that: any other failure is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sgdata import urls
from sgdata.errors import SourceError
from sgdata.limits import Limit
from sgdata.remote import file_identity, kept_headers, object_stores, ranges
from sgdata.remote.allowed_addresses import Access, access_of, check_host
from sgdata.remote.ranges import RangeRetries, RemoteFile

HEAD_BYTES, DOCUMENT_BYTES = 1 << 13, 1 << 18
"""Bytes that are read of an object when it is opened, and of a document."""
LARGEST_KEPT = 1 << 24
"""Bytes of the largest document that is kept."""


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An open object.

    Attributes:
        shown: Address for messages.
        size: Number of bytes.
        identity: What differs once the object has changed; "" if the store does not say.
        head: Its first bytes.
        fetch: Function that reads other bytes, from a first to one past the last.
    """

    shown: str
    size: int
    identity: str
    head: bytes = field(repr=False)
    fetch: Callable[[int, int], bytes] = field(repr=False)

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop` (exclusive). Raises SourceError if it ends before, or cannot be read."""
        if not 0 <= start <= stop <= self.size:
            raise SourceError(f"{self.shown}: ends too soon, after {self.size:,} bytes; fetch it again or leave it out")
        content = self.head[start:stop] if stop <= len(self.head) else self.fetch(start, stop)
        if len(content) != stop - start:
            raise SourceError(f"{self.shown}: changed while it was read; try again")
        return content


@dataclass(frozen=True, kw_only=True)
class ObjectFolder:
    """A folder or prefix of objects.

    Attributes:
        href: Absolute path or URL, admitted by `access.admit` where a document names it.
        access: Hosts that may be asked; None: those of an address that the user named.
        headers: Folder that keeps what is read of remote objects when they are opened; None to keep nothing.
        documents: Whether they are documents, which are kept as a whole; of others some bytes must be asked for again.
        retries: How often requests are repeated.
    """

    href: str
    access: Access | None = None
    headers: Path | None = None
    documents: bool = False
    retries: RangeRetries = field(default_factory=RangeRetries)

    def at(self, key: str) -> str:
        """Return the address of an object; for messages, pass it through `urls.without_secrets`."""
        return urls.joined(self.href, key)

    def open(self, key: str) -> StoredObject | None:
        """Open an object.

        Args:
            key: Its name below the folder; never the text of a document.

        Returns:
            The object; None if it does not exist.

        Raises:
            SourceError: It cannot be read.
        """
        href = self.at(key)
        if urls.is_http(href) or (href.startswith("s3://") and object_stores.can_read(href)):
            return self._open_remote(href)
        if "://" in href:
            return _open_in_bucket(href)
        return _open_file(Path(self.href), key)

    def is_kept(self, key: str) -> bool:
        """Return whether the header of an object is kept from an earlier run."""
        return self.headers is not None and kept_headers.path_of(self.headers, self.at(key)).is_file()

    def drop_if_changed(self, key: str) -> None:
        """Give up what is kept of the folder if an object of it has changed since. Raises SourceError if that fails."""
        href, access = self.at(key), self.access or access_of(self.at(key))
        known = kept_headers.read(kept_headers.path_of(self.headers, href), href, access) if self.headers else None
        if known is None:
            return
        try:
            opened = ranges.open_file(href, access, first_bytes=1, retries=self.retries)
        except ranges.NoRangesError:
            opened = None
        if opened is None or _state(opened[0]) != _state(known[0]):
            self._drop()

    def _drop(self) -> None:
        for path in self.headers.glob("*.json") if self.headers else ():  # also of what belongs to it
            path.unlink(missing_ok=True)

    def _open_remote(self, url: str) -> StoredObject | None:
        shown, access = urls.without_secrets(url), self.access or access_of(url)
        kept = self.headers and kept_headers.path_of(self.headers, url)
        known = kept_headers.read(kept, url, access) if kept else None
        if known is not None and 0 in known[1]:
            check_host(url, access)
            file, head = known[0], known[1][0]
        else:
            first_bytes = DOCUMENT_BYTES if self.documents else HEAD_BYTES
            try:
                opened = ranges.open_file(url, access, first_bytes=first_bytes, retries=self.retries)
            except ranges.NoRangesError as error:
                message = f"{shown}: server gives no ranges ({error!s:.80}); download the product"
                raise SourceError(message) from None
            if opened is None:
                return None
            file, head = opened
            if self.documents and len(head) < file.size <= LARGEST_KEPT:
                head += self._fetch(file, shown, len(head), file.size)
            # Pixels in the first bytes would be taken without asking whether they have changed.
            if kept and (self.documents or file.size > len(head)):
                kept_headers.write(kept, url, file, {0: head})
        # Of files in buckets pixels are compared, as `file_identity.identify_address` says.
        known_by = file_identity.of_headers(file.etag, file.modified, file.size) if urls.is_http(url) else ""
        fetch = partial(self._fetch, file, shown)
        return StoredObject(shown=shown, size=file.size, identity=known_by, head=head, fetch=fetch)

    def _fetch(self, file: RemoteFile, shown: str, start: int, stop: int) -> bytes:
        try:
            return bytes(ranges.read(file, start, stop, self.retries))
        except ranges.ChangedError as error:
            self._drop()
            raise SourceError(f"{shown}: changed while it was read; try again") from error

    def read(self, key: str, limit: Limit) -> bytes | None:
        """Return an object, None if it does not exist. Raises SourceError if it cannot be read or is too large."""
        found = self.open(key)
        if found is None:
            return None
        limit.check(found.size, found.shown)
        return found.read(0, found.size)


def _state(file: RemoteFile) -> tuple[str, int]:
    """Return what differs once a file has changed, as `ranges.read` compares it; the date without an ETag."""
    return file.etag or file.modified, file.size


def _open_file(root: Path, key: str) -> StoredObject | None:
    path = root / key

    def fetch(start: int, stop: int) -> bytes:
        try:
            with path.open("rb", buffering=0) as handle:
                handle.seek(start)
                return handle.read(stop - start)
        except OSError as error:
            raise SourceError(_unreadable(str(path), error.strerror)) from error

    try:
        if not path.exists():
            return None
        # A link or a pipe, which a store has no reason to hold, would lead elsewhere or never end.
        if not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
            raise SourceError(f"{path}: is no file of its store; leave it out")
        size = path.stat().st_size
    except OSError as error:
        raise SourceError(_unreadable(str(path), error.strerror)) from error
    head = fetch(0, min(size, HEAD_BYTES))
    return StoredObject(shown=str(path), size=size, identity="", head=head, fetch=fetch)


def _open_in_bucket(href: str) -> StoredObject | None:
    from sgdata.remote import buckets  # not at the top: most products lie in no bucket

    shown = urls.without_secrets(href)
    try:
        file = buckets.open_object(href)
        size = file.size()

        def fetch(start: int, stop: int) -> bytes:
            try:
                content: bytes = file.read_at(stop - start, start)
                return content
            except OSError as error:
                raise SourceError(_unreadable(shown, str(error))) from error

        head = fetch(0, min(size, HEAD_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SourceError(_unreadable(shown, str(error))) from error
    return StoredObject(shown=shown, size=size, identity="", head=head, fetch=fetch)


def _unreadable(shown: str, reason: str | None) -> str:
    return f"{shown}: cannot be read: {urls.redact(' '.join(str(reason).split())):.160}; fetch it again or leave it out"
