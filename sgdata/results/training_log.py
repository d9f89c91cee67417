"""Read the log of a training run: one JSON object of finite figures per line, each with its step."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgdata import files
from sgdata.errors import SourceError

LARGEST = 1e300
"""Figures that a chart can show: beyond it, sums and axes overflow."""
SPEED = {
    "images_per_s": ("images/s", "{:.4g}"),
    "step_s": ("seconds a step", "{:.4g}"),
    "tflops": ("TFLOP/s", "{:.3g}"),
    "mfu": ("MFU", "{:.1%}"),
    "wait_share": ("data wait", "{:.1%}"),
    "memory_gb": ("memory in GB", "{:.3g}"),
}
"""Names of the figures of speed of a run, and their format."""


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
            values = files.parse_json(line)
        except ValueError as error:
            raise SourceError(f"{path}: line {number} cannot be read: {error!s:.120}; run the training again") from None
        if not isinstance(values, dict) or not is_number(values.get("step")):
            raise SourceError(
                f"{path}: line {number} is {line!r:.80}, expected figures with a 'step'; run the training again"
            )
        if not all(value is None or is_number(value) for value in values.values()):
            raise SourceError(
                f"{path}: line {number} has a figure that is no number: {line!r:.120}; run the training again"
            )
        steps.append(values)
    return steps


def is_number(value: Any) -> bool:
    """Return whether `value` is a figure that a chart can show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


# --- speed ---------------------------------------------------------------------------------


def pace(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Summarise the lines of `timings.jsonl`: the median of each figure, and the share of time spent waiting for data.

    The first line, whose steps also prepare kernels and buffers, is left out where there are more. None for figures
    that are not known, such as MFU on a device of unknown peak.
    """
    lines = lines[1:] or lines
    values = {name: [line[name] for line in lines if line.get(name) is not None] for name in SPEED}
    medians = {name: statistics.median(each) if each else None for name, each in values.items()}
    total = sum(line["step_s"] for line in lines)
    return medians | {"wait_share": sum(line["wait_s"] for line in lines) / total if total else None}


def describe(pace: Mapping[str, float | None]) -> dict[str, str]:
    """Return the figures of `pace` as text by what they are; "-" for what is not known."""
    return {label: "-" if pace[name] is None else form.format(pace[name]) for name, (label, form) in SPEED.items()}
