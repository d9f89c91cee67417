"""Find the data files of the package: dataset cards and fact tables (`catalogs/`), recipes (`recipes/`)."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Literal

from sgdata.errors import SettingError


def folder(name: str) -> Path:
    """Return the folder `catalogs` or `recipes`, in the installed package or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    # The package first, so that an installed package never reads the files of a folder next to it.
    for parent in (package, package.parent):
        if (parent / name).is_dir():
            return parent / name
    raise SettingError(f"the folder '{name}' is missing beside {package}; reinstall sgdata")


def table(name: str) -> list[dict[str, str]]:
    """Read the fact table `catalogs/tables/<name>.tsv` as one dict per row. Raises SettingError."""
    path = folder("catalogs") / "tables" / f"{name}.tsv"
    if not path.is_file():
        names = sorted(p.stem for p in path.parent.glob("*.tsv"))
        raise SettingError(f"no fact table '{name}'; known: {', '.join(names)}")
    # No quoting: names may contain quotation marks.
    return read_table(path, quoting=csv.QUOTE_NONE)


def document(name: str) -> dict[str, Any]:
    """Read the fact document `catalogs/tables/<name>.json`. Raises SettingError."""
    facts: dict[str, Any] = json.loads((folder("catalogs") / "tables" / f"{name}.json").read_bytes())
    return facts


def read_table(
    path: Path, *, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL, delimiter: Literal["\t", ","] = "\t"
) -> list[dict[str, str]]:
    """Read a table of separated values in UTF-8, whose first line names the columns.

    Returns:
        One dict of column name to text per row; cells missing at the end of a row are empty.

    Raises:
        SettingError: The file cannot be read or decoded, or a row has more cells than there are columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter=delimiter, quoting=quoting, restval=""))
    except (OSError, ValueError, csv.Error) as error:
        kind = "tab" if delimiter == "\t" else "comma"
        raise SettingError(
            f"{path}: cannot be read as a table of {kind}-separated UTF-8 text: {error}; save it as such"
        ) from None
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise SettingError(
                f"{path}: row {number} has more cells than the first has columns ({len(row) - 1}); correct it"
            )
    return rows
