"""Find the data files of the package: dataset cards and fact tables (`catalogs/`), recipes (`recipes/`)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from sgdata import files
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
        known = sorted(p.stem for p in path.parent.glob("*.tsv"))
        raise SettingError(f"no fact table '{name}'; known: {', '.join(known)}")
    # No quoting: names may contain quotation marks.
    return files.read_table(path, quoting=csv.QUOTE_NONE)


def document(name: str) -> dict[str, Any]:
    """Read the fact document `catalogs/tables/<name>.json`. Raises SettingError."""
    return files.read_plain(folder("catalogs") / "tables" / f"{name}.json")
