"""Bytes out of the tars of a folder of shards: mapped into memory, to be read anywhere at no cost of a copy."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sgdata.errors import SourceError


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, stop) of a tar."""

    tar: str
    start: int
    stop: int


class Tars(Protocol):
    """Where the bytes of shards come from."""

    def contents(self, spans: Sequence[Span]) -> list[memoryview]:
        """The bytes of each span, some of which may lack where a tar ends too soon. Raises SourceError."""


class Mapped:
    """Tars in a folder of this machine."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """Raises SourceError where one cannot be opened."""
        # For as long as the object lives: opening a file per sample would cost more than decoding it.
        self._views = {name: memoryview(_map(folder / name)) for name in names}

    def contents(self, spans: Sequence[Span]) -> list[memoryview]:
        """Views, not copies."""
        return [self._views[span.tar][span.start : span.stop] for span in spans]


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as handle:
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read ({error}), the index names it; run sgdata verify") from None
