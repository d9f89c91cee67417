"""Files of a dataset wherever they lie: in a folder, a zip or an uncompressed tar, listed and read alike.

Nothing is unpacked, so nothing can be written outside a folder; hostile members (a name with `..`, an absolute
name, a link, a device, a duplicate, an enormous file) are rejected by name and the rest is used.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sgdata import files
from sgdata.errors import SourceError
from sgdata.types import Member

Content = Callable[[Member], bytes]

LARGEST_MEMBER = 2**30
_LFS = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The usable members of a source, sorted by name, and the rejected ones with the reason."""

    members: tuple[Member, ...]
    rejected: tuple[tuple[str, str], ...] = ()


def listing(source: Path) -> Listing:
    """Every file of a folder, zip or tar, without reading contents. Raises SourceError where that cannot be had."""
    files.existing(source, "a folder, zip or tar of a dataset as distributed")
    if source.is_dir():
        found = _in_folder(source)
    elif zipfile.is_zipfile(source):
        found = _in_zip(source)
    else:
        found = _in_tar(source)
    taken: dict[str, Member] = {}
    rejected = []
    for member, reason in found:
        reason = reason or _unsafe(member, taken)
        if reason:
            rejected.append((member.name, reason))
        else:
            taken[member.name] = member
    members = tuple(member for _, member in sorted(taken.items()))
    return Listing(members=members, rejected=tuple(sorted(rejected)))


def _unsafe(member: Member, taken: dict[str, Member]) -> str:
    if member.name.startswith("/") or ".." in member.name.split("/") or "\\" in member.name or "\0" in member.name:
        return "name leads out of the archive"
    if member.name in taken:
        return "second member of this name"
    if member.size > LARGEST_MEMBER:
        return f"{member.size} bytes, at most {LARGEST_MEMBER} are read"
    return ""


def _in_folder(source: Path) -> Iterator[tuple[Member, str]]:
    # Plain strings and scandir: a dataset may be millions of files, and path objects cost more than the disk.
    start = len(str(source)) + 1
    pending = [str(source)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file():
                    yield Member(name=entry.path[start:].replace(os.sep, "/"), size=entry.stat().st_size), ""


def _in_zip(source: Path) -> Iterator[tuple[Member, str]]:
    try:
        with zipfile.ZipFile(source) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise SourceError(f"{source}: not a readable zip: {error}; download it again") from None
    for info in infos:
        if not info.is_dir():
            kind = (info.external_attr >> 28) & 0xF
            reason = "encrypted" if info.flag_bits & 1 else "not a plain file" if kind not in (0, 8) else ""
            yield Member(name=info.filename, size=info.file_size), reason


def _in_tar(source: Path) -> Iterator[tuple[Member, str]]:
    try:
        with tarfile.open(source, "r:") as archive:
            for info in archive:
                if not info.isdir():
                    reason = "" if info.isreg() and not info.issparse() else "not a plain file"
                    yield Member(name=info.name, size=info.size, offset=info.offset_data), reason
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise SourceError(
            f"{source}: not a folder, zip or uncompressed tar ({error}); unpack it, or download it again"
        ) from None


@contextmanager
def opened(source: Path) -> Iterator[Content]:
    """A function that returns the bytes of a member; it raises SourceError where they cannot be had whole."""
    if source.is_dir():

        def from_folder(member: Member) -> bytes:
            with open(f"{source}/{member.name}", "rb") as handle:  # noqa: PTH123 - as above
                return handle.read()

        yield lambda member: _checked(member, lambda: from_folder(member))
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:

            def from_zip(member: Member) -> bytes:
                with archive.open(member.name) as handle:
                    return handle.read(member.size + 1)

            yield lambda member: _checked(member, lambda: from_zip(member))
    else:
        with source.open("rb") as handle:

            def from_tar(member: Member) -> bytes:
                handle.seek(member.offset or 0)
                return handle.read(member.size)

            yield lambda member: _checked(member, lambda: from_tar(member))


def _checked(member: Member, read: Callable[[], bytes]) -> bytes:
    try:
        content = read()
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile) as error:
        raise SourceError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except Exception as error:  # zlib.error, lzma.LZMAError and whatever a decompressor raises on bad bytes
        raise SourceError(f"cannot be decompressed: {type(error).__name__}: {error}") from None
    if len(content) != member.size:
        raise SourceError(f"{len(content)} bytes, expected {member.size}: truncated or changed while reading")
    if content.startswith(_LFS):
        raise SourceError("is a Git LFS pointer, not the file itself; run 'git lfs pull' in the source")
    return content
