"""Rows of a GPU check: kept in `gpu-check.json`, shown in `gpu-check.md`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sgdata import files
from sgdata.errors import SourceError

JSON, MARKDOWN = "gpu-check.json", "gpu-check.md"
SKIPPED, FAILED = "skipped: ", "failed: "
ENVIRONMENT = "environment"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. A figure that does not apply, or was not measured, is None.

    Attributes:
        part: Number of the part, 1 to 8.
        size: Size of the model.
        px: Side of the images in pixels.
        mode: What was measured.
        batch: Samples of one step; pairs for change detection, tiles for prediction.
        images_per_s: Samples per second.
        mfu: Achieved model FLOP/s as a share of the device's dense peak in bf16, of mode "fp8" in FP8.
        peak_gb: Largest memory allocated on the device, in 10^9 bytes.
        seconds: Duration of the whole row, with set-up, compilation and warm-up.
        note: Further figures, or `SKIPPED` or `FAILED` followed by the reason.
    """

    part: int
    size: str = "-"
    px: int | None = None
    mode: str
    batch: int | None = None
    images_per_s: float | None = None
    mfu: float | None = None
    peak_gb: float | None = None
    seconds: float = 0.0
    note: str = ""

    @property
    def key(self) -> tuple[int, str, int | None, str]:
        """Return the fields that identify a row in a check."""
        return (self.part, self.size, self.px, self.mode)

    @property
    def finished(self) -> bool:
        """Whether the row was measured, neither skipped nor failed."""
        return not self.note.startswith((SKIPPED, FAILED))


def read(folder: Path) -> list[Row]:
    """Read the rows of an earlier check; none where `folder` holds no check. Raises SourceError."""
    path = folder / JSON
    if not path.is_file():
        return []
    try:
        return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise SourceError(f"{path}: expected rows of a GPU check, got {error}; remove the file") from None


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Write all rows as JSON and as Markdown. Raises OutputError."""
    files.write(folder / JSON, files.pretty_json([dataclasses.asdict(row) for row in rows]))
    files.write(folder / MARKDOWN, markdown(rows).encode())


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| part | size | px | mode | batch | images/s | MFU | peak GB | seconds | note |",
        "| --: | --- | --: | --- | --: | --: | --: | --: | --: | --- |",
    ]
    for row in rows:
        cells = [
            str(row.part),
            row.size,
            _figure(row.px, "d"),
            row.mode,
            _figure(row.batch, "d"),
            _figure(row.images_per_s, ",.1f"),
            _figure(row.mfu, ".1%"),
            _figure(row.peak_gb, ".1f"),
            f"{row.seconds:.1f}",
            row.note.replace("|", "/"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
