"""Note size and hash of files, so that a later run reuses only unchanged ones.

A note `.NAME.note` beside a file holds its size and SHA-256. It is written last, so that a file without a note, cut
short, zeroed or swapped with another is recomputed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sgdata import files


@contextmanager
def write_with_note(path: Path, made_from: str = "") -> Iterator[Path]:
    """Yield a temporary path whose file becomes `path`, and note what was written.

    It is not flushed to the disk: what a power failure damages does not agree with its note and is recomputed.

    Args:
        path: The file.
        made_from: Identity of what the file is made from, where its name does not say it.

    Raises:
        OutputError: The file cannot be written.
    """
    with files.replacing(path, durable=False) as temporary:
        yield temporary
    write_note(path, made_from, durable=False)


def write_note(path: Path, made_from: str = "", *, durable: bool = True) -> None:
    """Note size and content of a file that was just written. Raises OutputError."""
    files.write(_note(path), files.checked_json(_state(path, made_from)), durable=durable)


def is_unchanged(path: Path, made_from: str = "") -> bool:
    """Return whether `path` is as `write_with_note` wrote it, from the same sources."""
    noted = files.read_checked_json(_note(path))
    try:
        # The size first, since hashing takes time.
        return noted is not None and path.stat().st_size == noted.get("bytes") and noted == _state(path, made_from)
    except OSError:
        return False


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.note")


def _state(path: Path, made_from: str) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": files.sha256_file(path), "made_from": made_from}
