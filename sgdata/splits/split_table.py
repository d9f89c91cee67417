"""Read and write split tables: one row per sample, one column per drawn split, and what is known of published lists.

The file is gzipped text. Its first line is a JSON object with the dataset, the settings of the draws, and name, count
and SHA-256 of the published lists, which are not copied; the second line names the columns. A cell is `val`, `test`,
empty for a sample left out, or of a train sample the smallest label budget that has it.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgdata import files
from sgdata.errors import SettingError
from sgdata.limits import DOCUMENT_BYTES
from sgdata.splits.block_split import LEFT_OUT
from sgdata.splits.ground_splits import Draw, DrawSettings

FORMAT = 1
SUFFIX = ".tsv.gz"
PREFIX = "ground-"
ALL = "all"
"""Cell of a train sample that is in no budget."""


@dataclass(frozen=True, kw_only=True)
class PublishedList:
    """Name, size and hash of a published list, which is not copied.

    Attributes:
        name: Name of the split set on the dataset's card.
        split: Split that the list is of.
        samples: Number of samples.
        sha256: SHA-256 over its sorted keys, one a line (`digest`), whatever the format of the list.
    """

    name: str
    split: str
    samples: int
    sha256: str

    def matches(self, keys: Iterable[str]) -> bool:
        """Return whether `keys`, in any order, are those of the list."""
        return digest(keys) == self.sha256


@dataclass(frozen=True, kw_only=True)
class SplitTableHeader:
    """First line of a split table.

    Attributes:
        format: Version of the format.
        dataset: Name of the dataset.
        settings: How the splits were drawn.
        published: Published lists.
    """

    format: int
    dataset: str
    settings: DrawSettings
    published: tuple[PublishedList, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SplitTable:
    """Drawn splits of a dataset.

    Attributes:
        header: Settings and published lists.
        keys: Sample keys, in the order of the file.
        columns: Name of each split and its cells, parallel to `keys`.
    """

    header: SplitTableHeader
    keys: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]

    def assignment(self, name: str) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Return the split and the label budgets of each sample of the split `name`; samples left out are absent."""
        budgets = self.header.settings.budgets
        meaning = {cell: ("train", budgets[at:]) for at, cell in enumerate(budgets)}
        meaning |= {"val": ("val", ()), "test": ("test", ()), ALL: ("train", ())}
        return {key: meaning[cell] for key, cell in zip(self.keys, self.columns[name], strict=True) if cell != LEFT_OUT}


def digest(keys: Iterable[str]) -> str:
    """Return the SHA-256 over sorted keys, one a line."""
    return files.sha256("".join(f"{key}\n" for key in sorted(keys)).encode())


def cells(draw: Draw, budgets: Sequence[str]) -> tuple[str, ...]:
    """Return the cells of a drawn split."""
    names = [*budgets, ALL]  # -1 is the last
    pairs = zip(draw.parts.tolist(), draw.budgets.tolist(), strict=True)
    return tuple(names[budget] if part == "train" else part for part, budget in pairs)


def write(path: Path, table: SplitTable) -> None:
    """Write a split table, keys in natural order (AnnualCrop_2 before AnnualCrop_10). Raises OutputError."""
    order = sorted(range(len(table.keys)), key=lambda at: _natural(table.keys[at]))
    lines = [files.canonical_json(table.header).decode().rstrip("\n"), "\t".join(("name", *table.columns))]
    lines += ["\t".join((table.keys[at], *(column[at] for column in table.columns.values()))) for at in order]
    # No file name and no time in the header of gzip, so that equal tables are equal files.
    files.write(path, gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))


def _natural(key: str) -> list[tuple[int, str]]:
    return [(len(part.lstrip("0")) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", key)]


def read(path: Path) -> SplitTable:
    """Read a split table.

    Args:
        path: The file.

    Returns:
        The table, whose cells and keys are known to be valid.

    Raises:
        SettingError: It is missing, damaged or of another format, or a cell or key is not as expected.
    """
    lines = _lines(path)
    if len(lines) < 2 or not lines[0].startswith("{"):
        raise SettingError(f"{path}: not a split table; expected a line of JSON, a header and a row per sample")
    try:
        document = files.parse_json(lines[0].encode())
    except ValueError as error:
        raise SettingError(f"{path}: the first line is no JSON: {error}; make it again") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise SettingError(f"{path}: not a split table of format {FORMAT}; make it again, or update sgdata")
    header = files.parse(SplitTableHeader, document, str(path))
    first, *names = lines[1].split("\t")
    allowed = {"val", "test", LEFT_OUT, ALL, *header.settings.budgets}
    rows = [line.split("\t") for line in lines[2:]]
    for number, row in enumerate(rows, start=3):
        if len(row) != 1 + len(names) or not set(row[1:]) <= allowed:
            raise SettingError(
                f"{path}: line {number} is {lines[number - 1]!r:.90}; expected a name and {len(names)} cells of "
                f"{', '.join(sorted(allowed - {LEFT_OUT}))} or nothing"
            )
    keys = tuple(row[0] for row in rows)
    if first != "name" or len(set(names)) < len(names) or len(set(keys)) < len(keys):
        raise SettingError(f"{path}: a name or column occurs twice; expected each once")
    return SplitTable(
        header=header, keys=keys, columns={name: tuple(row[at] for row in rows) for at, name in enumerate(names, 1)}
    )


def _lines(path: Path) -> list[str]:
    try:
        with gzip.open(path) as handle:
            content = handle.read(DOCUMENT_BYTES.most + 1)
        DOCUMENT_BYTES.check(len(content), str(path))
        return list(io.StringIO(content.decode()).read().splitlines())
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingError(f"{path}: cannot be read as a split table ({reason}); expected gzipped text") from None
