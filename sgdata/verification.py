"""Any output of ours against its own SHA256SUMS."""

from __future__ import annotations

import re
from pathlib import Path

from sgdata import files
from sgdata.errors import OutputError

_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")
RELEASED = "croissant.json"
"""Only a release has one: nothing at all may be added to it."""


def verify(folder: Path) -> list[str]:
    """What differs: one line per file that is missing, changed or not listed; empty where all is as written.

    Not judged, but in a release: hidden files, and what holds times (`files.TIMED`).
    Raises OutputError where there is no SHA256SUMS or it is not one.
    """
    path = folder / files.SUMS
    if not path.is_file():
        raise OutputError(f"{folder}: holds no {files.SUMS}; expected a finished output of sgdata or sgmodel")
    promised = listed(path)
    differences = []
    for name, digest in promised.items():
        # Missing and changed are told apart: the one is fetched again, the other is asked about.
        file = folder / name
        try:
            if not file.is_file():
                differences.append(f"{name}: missing")
            elif (found := files.sha256_file(file)) != digest:
                differences.append(f"{name}: changed, SHA-256 is {found[:16]}..., expected {digest[:16]}...")
        except OSError as error:  # no right to read it, a bad sector, a name too long for any file
            differences.append(f"{name}: cannot be read: {error.strerror}")
    present = files.covered(folder, everything=RELEASED in promised)
    return differences + [f"{name}: not listed" for name in present if name not in promised]


def listed(path: Path) -> dict[str, str]:
    """Relative path to SHA-256, as a SHA256SUMS has them. Raises OutputError where it is not one."""
    # At \n alone: read_text and splitlines take \r and \x0b too, which are a newline with a bit turned over.
    *lines, rest = path.read_bytes().decode(errors="replace").split("\n")
    if rest:
        raise OutputError(f"{path}: ends with {rest!r:.90}, expected a whole line; it was cut short")
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        # A list of hashes is read from elsewhere like any archive: no name may lead out of the folder.
        if not match or Path(match[2]).is_absolute() or ".." in Path(match[2]).parts or match[2] in found:
            raise OutputError(f"{path}: line {number} is {line!r:.90}, expected '<sha256>  <relative path>', once")
        found[match[2]] = match[1]
    return found
