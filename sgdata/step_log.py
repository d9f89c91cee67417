"""Read the log of a training run: one JSON object of finite figures per line, each with its step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sgdata import files
from sgdata.errors import SourceError

LARGEST = 1e300
"""Figures that a chart can show: beyond it, sums and axes overflow."""


def read(path: Path, *, unfinished: bool = False) -> list[dict[str, Any]]:
    """Return the lines of a log as figures by name.

    Args:
        path: The log.
        unfinished: Whether the run is under way or was killed, and its last line may be incomplete.

    Raises:
        SourceError: A line is damaged.
    """
    steps = []
    lines = path.read_bytes().split(b"\n")
    rest = lines.pop()
    if rest and not unfinished:
        raise SourceError(f"{path}: ends with {rest!r:.80}, expected a complete line; run the training again")
    for number, line in enumerate(lines, 1):
        try:
            figures = files.parse_json(line)
        except ValueError as error:
            raise SourceError(f"{path}: line {number} cannot be read: {error!s:.120}; run the training again") from None
        if not isinstance(figures, dict) or not is_number(figures.get("step")):
            raise SourceError(f"{path}: line {number} is {line!r:.80}, expected figures with a 'step'")
        if not all(value is None or is_number(value) for value in figures.values()):
            raise SourceError(f"{path}: line {number} has a figure that is no number: {line!r:.120}")
        steps.append(figures)
    return steps


def is_number(value: Any) -> bool:
    """Return whether `value` is a figure that a chart can show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
