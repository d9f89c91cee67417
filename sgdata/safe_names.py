"""Make file names of foreign names, and find the files that foreign documents name.

Item ids, splits, keys, classes, recipes and members of shards come from other people's documents. Such a name never
becomes part of a path as it is: a file that is written gets `file_name(name)`, and a file that is read is opened by
`member(folder, name)`. Suffixes are appended to the name with `with_ending`, never replaced, since a dot in a name
means nothing.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path

from sgdata.errors import SourceError

KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
"""Keys of samples: no dot, since WebDataset splits a name at its first dot; no slash, which would make a folder."""
LONGEST_BYTES = 200
"""File systems allow 255 bytes; the rest is for endings, and for the names of temporary files."""
_PUNCTUATION = frozenset("_-.+=,@() ")
# A name with this mark was changed, so that names that were not changed may not contain it.
_MARK = "~"
_READABLE_BYTES = 120
# Names of devices on Windows, with any ending.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})


def file_name(name: str, *, reserved: Collection[str] = ()) -> str:
    """Return `name` as the name of one file or folder, without its ending.

    Ordinary names (letters, digits, space and `_-.+=,@()` of at most 200 bytes) stay as they are. Any other becomes
    its readable part, the mark `~` and 128 bits of its SHA-256, so that different names have different files.

    Args:
        name: Any text.
        reserved: Names that other files of the same folder have.

    Returns:
        1 to 200 bytes without separators and control characters; it neither begins nor ends with a dot or a space.
    """
    if is_ordinary(name) and name not in reserved:
        return name
    # Lone surrogates represent bytes that are not UTF-8; they are distinguished too.
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    kept = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
    readable = unicodedata.normalize("NFC", kept.encode()[:_READABLE_BYTES].decode(errors="ignore")).strip("-")
    return f"{readable}{_MARK}{digest}"


def is_ordinary(name: str) -> bool:
    """Return whether `name` can be the name of a file as it is."""
    return is_safe(name) and _MARK not in name and len(name.encode()) <= LONGEST_BYTES


def is_safe(name: str) -> bool:
    """Return whether a file of this name can be in a folder of every file system, and nowhere else."""
    if not name or not all(_is_plain(letter) or letter == _MARK for letter in name):
        return False
    # A leading dot hides a file, a leading hyphen makes it an option.
    safe_ends = name[0] not in ". -" and name[-1] not in ". "
    # Some file systems store one of several spellings of a letter, so that only one of them may be used.
    one_spelling = unicodedata.is_normalized("NFC", name)
    is_device = name.partition(".")[0].rstrip(" ").lower() in _DEVICES
    return safe_ends and one_spelling and not is_device


def _is_plain(letter: str) -> bool:
    return letter.isalnum() or letter in _PUNCTUATION


def member(folder: Path, name: str) -> Path:
    """Return the path of the regular file `name` in `folder`, where a foreign document gives the name.

    Raises:
        SourceError: The name leads elsewhere, or there is no such file.
    """
    # The mark is allowed: the writer of the document may have made its names by `file_name`.
    if not is_safe(name):
        raise SourceError(
            f"{folder}: names a file {name!r:.90}, expected one in this folder; copy or write the folder again"
        )
    path = folder / name
    # A pipe or device would block or never end.
    if not path.is_file():
        raise SourceError(f"{path}: no regular file, expected the one of the index; copy the folder again")
    return path


def key_part(name: str) -> str:
    """Return `name` as the start of keys of samples (`KEY`); names that cannot be one get a digest."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,65}", name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9_]+', '-', name)[:40].strip('-')}-{digest}".strip("-")


def with_ending(path: Path, ending: str) -> Path:
    """Return `path` with `ending` appended to its name, also where the name has a dot."""
    return path.with_name(path.name + ending)
