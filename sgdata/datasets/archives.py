"""List and read the files of a dataset in a folder (and zips in it), a zip or a tar.

Nothing is unpacked, so nothing can be written outside a folder; hostile members (a name with `..`, an absolute
name, a link, a device, a duplicate, an enormous file) are rejected by name and the rest is used. A compressed tar
(gzip, zstd, bzip2) allows no random access: one pass lists it, another reads the contents (`open_stream`).
"""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sgdata import files
from sgdata.datasets.types import SourceMember
from sgdata.errors import SourceError
from sgdata.limits import MEMBER_BYTES, MEMBER_COUNT

Content = Callable[[SourceMember], bytes]

_LARGEST_HEADER = 2**20
_SKIP_BYTES = 2**20
# First bytes (RFC 1952; RFC 8878, 3.1.1; bzip2) and the name of the codec in Arrow.
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_ARCHIVE_SUFFIX = re.compile(r"\.(tar|tgz|gz|zst|bz2|7z|rar|zip)[a-z0-9.]*$")
_LFS = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class MemberListing:
    """Members of a source.

    Attributes:
        members: Usable members, sorted by name.
        rejected: Name and reason of each member that cannot be used.
    """

    members: tuple[SourceMember, ...]
    rejected: tuple[tuple[str, str], ...] = ()


def list_members(source: Path) -> MemberListing:
    """List the files of a folder, zip or tar without reading their contents.

    Raises:
        SourceError: There is no such source, or it is not a readable folder, zip or tar.
    """
    files.require_file(source, "a folder, zip or tar of a dataset as distributed")
    if source.is_dir():
        members_with_reasons = _list_folder(source)
    elif zipfile.is_zipfile(source):
        members_with_reasons = _list_zip(source)
    else:
        members_with_reasons = _list_tar(source)
    # The first member of a name counts; unpacking a tar would keep the last, and readers could take either.
    member_of: dict[str, SourceMember] = {}
    rejected = []
    for member, reason in members_with_reasons:
        # AppleDouble files, which macOS packs beside each file under a similar name.
        if "/._" in member.name or member.name.startswith(("._", "__MACOSX/")):
            continue
        reason = reason or _reason_to_reject(member, member_of)
        if reason:
            rejected.append((member.name, reason))
        else:
            member_of[member.name] = member
    members = tuple(member for _, member in sorted(member_of.items()))
    return MemberListing(members=members, rejected=tuple(sorted(rejected)))


def dataset_not_found(source: Path, listing: MemberListing, message: str) -> SourceError:
    """Return the error of a reader that finds no sample: `message` says what it expects, the rest what is there."""
    names = [member.name for member in listing.members]
    # Downloads under a name that is on no card, or in parts.
    packed = [name for name in names if _ARCHIVE_SUFFIX.search(name)]
    there = f"; it holds {len(names)} files, such as {(packed or names)[0]}" if names else "; it is empty"
    cure = "; join the parts of an archive, and give it as --source" if packed else ""
    return SourceError(f"{source}: {message}{there}{cure}")


def _reason_to_reject(member: SourceMember, earlier: dict[str, SourceMember]) -> str:
    if member.name.startswith("/") or ".." in member.name.split("/") or "\\" in member.name or "\0" in member.name:
        return "name leads out of the archive"
    if member.name in earlier:
        return "second member of this name"
    if not 0 <= member.size <= MEMBER_BYTES.most:
        return f"{member.size} bytes, at most {MEMBER_BYTES.most} are read"
    return ""


def _list_folder(source: Path) -> Iterator[tuple[SourceMember, str]]:
    # Plain strings and scandir: a dataset may be millions of files, and path objects cost more than the disk.
    start = len(str(source)) + 1
    pending, followed = [str(source)], {os.path.realpath(source)}
    while pending:
        try:
            entries = list(os.scandir(folder := pending.pop()))
        except OSError as error:
            yield SourceMember(name=folder[start:] or ".", size=0), f"cannot be read: {error.strerror}"
            continue
        for entry in entries:
            # Hidden files belong to the system or to an interrupted download (`.NAME.partial`).
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                # Datasets on clusters may consist of links. Each target once, since links may form a cycle.
                target = os.path.realpath(entry.path) if entry.is_symlink() else ""
                if target in followed:
                    yield SourceMember(name=entry.path[start:], size=0), "link to a folder that is listed already"
                    continue
                followed |= {target} - {""}
                pending.append(entry.path)
            elif entry.name.endswith(".zip") and entry.is_file():
                # OSCD comes as three zips side by side. One that is also unpacked here counts once.
                if os.path.isdir(entry.path[:-4]):  # noqa: PTH112 - strings, as above
                    continue
                for member, reason in _list_zip(Path(entry.path)):
                    yield replace(member, name=f"{entry.path[start:]}/{member.name}"), reason
            # A file that changes before its content is read is recognised by its size.
            elif entry.is_file():
                yield SourceMember(name=entry.path[start:].replace(os.sep, "/"), size=entry.stat().st_size), ""
            else:
                yield SourceMember(name=entry.path[start:], size=0), "not a plain file, or a broken link"


def _list_zip(source: Path) -> Iterator[tuple[SourceMember, str]]:
    try:
        with zipfile.ZipFile(source) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise SourceError(f"{source}: not a readable zip: {error}; download it again") from None
    for header in infos:
        if not header.filename.endswith("/"):  # `is_dir` fails for a name without characters
            kind = (header.external_attr >> 28) & 0xF
            reason = "encrypted" if header.flag_bits & 1 else "not a plain file" if kind not in (0, 8) else ""
            yield SourceMember(name=header.filename, size=header.file_size), reason


def _list_tar(source: Path) -> Iterator[tuple[SourceMember, str]]:
    try:
        with _open_forward(source) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]
            while (header := archive.next()) is not None:
                archive.members.clear()  # tarfile keeps every header: gigabytes for BigEarthNet
                stream.count += 1
                if header.size > MEMBER_BYTES.most and _codec(source):
                    # To skip it takes decompressing it: hours for the terabytes that a few kilobytes can claim.
                    raise SourceError(
                        f"{source}: member '{header.name}' claims {header.size} bytes; fetch the tar again"
                    )
                if not header.isdir():
                    reason = "" if header.isreg() and not header.issparse() else "not a plain file"
                    yield SourceMember(name=header.name, size=header.size, offset=header.offset_data), reason
            # tarfile treats an unreadable header as the end; the true end is a block of zeros (POSIX pax).
            if stream.last.strip(b"\0") or not stream.last:
                raise tarfile.ReadError(f"no end mark, damaged or cut short at byte {stream.tell()}")
    except SourceError:
        raise
    except Exception as error:  # on damaged bytes tarfile and the decompressors raise errors of many types
        message = " ".join(str(error).split())[:120]
        raise SourceError(f"{source}: not a folder, zip or tar ({message}); unpack it, or download it again") from None


def is_stream(source: Path) -> bool:
    """Return whether a source must be read sequentially: a compressed tar."""
    return source.is_file() and not zipfile.is_zipfile(source) and _codec(source) is not None


def _codec(source: Path) -> str | None:
    with source.open("rb") as handle:
        start = handle.read(4)
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)


class _ForwardStream:
    """Stream for `tarfile` that never seeks backwards and limits the size of headers.

    A pax header may claim any size, which `tarfile` would read whole; a negative size would make it loop forever.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._at = 0
        self.last = b""
        self.count = 0

    def tell(self) -> int:
        return self._at

    def seek(self, to: int) -> None:
        if to < self._at or self.count > MEMBER_COUNT.most:
            raise tarfile.ReadError(f"a member refers back to byte {to}, or is one of more than {MEMBER_COUNT.most}")
        if self._stream.seekable():
            self._at = self._stream.seek(to)
        while self._at < to:
            if not (piece := self._stream.read(min(_SKIP_BYTES, to - self._at))):
                raise tarfile.ReadError(f"ends at byte {self._at}, expected {to}")
            self._at += len(piece)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes, at most {_LARGEST_HEADER} are read")
        self.last = bytes(self._stream.read(size))
        self._at += len(self.last)
        return self.last

    def content(self, size: int) -> bytes:
        """Read the next bytes, of a member whose size was checked."""
        content = bytes(self._stream.read(size))
        self._at += len(content)
        return content


@contextmanager
def _open_forward(source: Path) -> Iterator[_ForwardStream]:
    codec = _codec(source)
    with source.open("rb") as handle:
        if codec is None:
            yield _ForwardStream(handle)
        else:
            import pyarrow as pa

            # Arrow decompresses outside the GIL, reads concatenated parts (pigz, zstd frames) and detects truncation.
            with pa.CompressedInputStream(pa.PythonFile(handle, mode="r"), codec) as stream:
                yield _ForwardStream(stream)


@contextmanager
def open_stream(source: Path) -> Iterator[Content]:
    """Open a compressed tar to read members in the order of their offsets, in one pass.

    Yields a function that returns the bytes of a member; it raises SourceError if the archive differs from its listing.
    """
    with _open_forward(source) as stream:

        def content(member: SourceMember) -> bytes:
            offset = member.offset or 0
            try:
                stream.seek(offset)
                member_content = stream.content(member.size)
                if len(member_content) != member.size:
                    raise EOFError(f"{len(member_content)} of {member.size} bytes left")
            except (OSError, ValueError, EOFError, tarfile.TarError) as error:
                raise SourceError(f"{source}: cannot be read at byte {offset}: {error}; download it again") from None
            return member_content

        yield content


@contextmanager
def open_archive(source: Path) -> Iterator[Content]:
    """Open a source that allows random access.

    Yields a function that returns the bytes of a member; it raises SourceError if they cannot be read completely.
    """
    with ExitStack() as stack:
        zips: dict[Path, zipfile.ZipFile] = {}

        def from_zip(path: Path, name: str, size: int) -> bytes:
            archive = zips.get(path) or stack.enter_context(zipfile.ZipFile(path))
            with zips.setdefault(path, archive).open(name) as handle:
                return handle.read(size + 1)

        def from_folder(member: SourceMember) -> bytes:
            archive, inside, name = member.name.partition(".zip/")
            if inside and (path := source / f"{archive}.zip").is_file():
                return from_zip(path, name, member.size)
            # Without Python's file object, which takes longer than reading: a patch is up to 13 files.
            handle = os.open(f"{source}/{member.name}", os.O_RDONLY)
            try:
                return os.read(handle, member.size + 1)
            finally:
                os.close(handle)

        if source.is_dir():
            yield lambda member: _read_checked(member, lambda: from_folder(member))
        elif zipfile.is_zipfile(source):
            yield lambda member: _read_checked(member, lambda: from_zip(source, member.name, member.size))
        else:
            tar = stack.enter_context(source.open("rb")).fileno()
            yield lambda member: _read_checked(member, lambda: os.pread(tar, member.size, member.offset or 0))


def _read_checked(member: SourceMember, read: Callable[[], bytes]) -> bytes:
    try:
        content = read()
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}; check the file and its disk"
        ) from None
    except Exception as error:  # zlib.error, lzma.LZMAError and other errors of decompressors
        raise SourceError(f"cannot be decompressed: {type(error).__name__}: {error}") from None
    if len(content) != member.size:
        raise SourceError(f"{len(content)} bytes, expected {member.size}: truncated or changed while reading")
    # Copies on git hosts may have a 130-byte text in place of the data.
    if content.startswith(_LFS):
        raise SourceError("is a Git LFS pointer, not the file itself; run 'git lfs pull' in the source")
    return content
