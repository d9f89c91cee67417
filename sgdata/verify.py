"""Any output of ours against its own SHA256SUMS."""

from __future__ import annotations

import re
from pathlib import Path

from sgdata import files
from sgdata.errors import OutputError

_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")


def verify(folder: Path) -> list[str]:
    """What differs: one line per file that is missing, changed or not listed; empty where all is as written.

    Not judged: hidden files, and what holds times (`files.TIMED`).
    Raises OutputError where there is no SHA256SUMS or it is not one.
    """
    path = folder / files.SUMS
    if not path.is_file():
        raise OutputError(f"{folder}: holds no {files.SUMS}; expected a finished output of sgdata or sgmodel")
    listed = _listed(path)
    differences = []
    for name, digest in listed.items():
        # Missing and changed are told apart: the one is fetched again, the other is asked about.
        file = folder / name
        if not file.is_file():
            differences.append(f"{name}: missing")
        elif (found := files.sha256_file(file)) != digest:
            differences.append(f"{name}: changed, SHA-256 is {found[:16]}..., expected {digest[:16]}...")
    return differences + [f"{name}: not listed" for name in sorted(_present(folder) - set(listed))]


def _listed(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    listed = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        # A list of hashes is read from elsewhere like any archive: no name may lead out of the folder.
        if not match or Path(match[2]).is_absolute() or ".." in Path(match[2]).parts:
            raise OutputError(f"{path}: line {number} is {line!r:.90}, expected '<sha256>  <relative path>'")
        listed[match[2]] = match[1]
    return listed


def _present(folder: Path) -> set[str]:
    """Relative names of the files that a SHA256SUMS of this folder should list."""
    found = set()
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        # Times and curves differ between equal runs; locks and journals are of the machine.
        outside = any(part.startswith(".") or part in files.TIMED for part in parts)
        if path.is_file() and not outside and parts != (files.SUMS,):
            found.add("/".join(parts))
    return found
