"""Read a table of the user's own samples, one row each: images, mask, split, and what their files do not say.

    name = "ponds"
    bands = ["B02", "B03", "B04", "B08"]
    level = "L2A"
    nodata = 0
    classes = ["land", "water"]
    table = "samples.csv"

A key of the document holds for all rows, a column of the table (CSV or Parquet) or a key of a row in `[[samples]]` for
one. The CSV or Parquet file alone is a table too, whose columns state everything. Paths are relative to the file that
is given, document or table. Rows that cannot be used are rejected one by one; the order of the rows changes nothing.
"""

from __future__ import annotations

import csv
import datetime as dt
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from sgdata import files, parquet_tables, safe_names, sentinel2
from sgdata.errors import SettingError, SourceError
from sgdata.types import CONTRACT_FORMAT, Contract, LabelSpace, Level

Rejected = tuple[str, str]
_LISTS, _NUMBERS = ("bands",), ("nodata", "gsd_m")
# Of the facts that a contract states once, so that rows which differ cannot be used together.
_SHARED = ("bands", "level", "nodata", "gsd_m")


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One sample of a table; empty or unset where the document says it for all rows.

    Attributes:
        key: Name, unique in the table; default: that of its first image file, without the ending.
        image: Image, of a table of images.
        before: Image of the first date, of a table of pairs.
        after: Image of the second date.
        mask: Raster of class ids, or of what changed; a row without one is unlabelled.
        label: Class of the whole image, by name, in place of a mask.
        split: Split, such as train, val or test.
        date: Day of the image, as 2021-06-30.
        date_after: Day of the second image.
        bands: Names of the bands in the order of the files; default: those that the file gives them.
        level: Product level.
        nodata: Value of pixels without data, beside what the files mark themselves.
        gsd_m: Side of a pixel on the ground in metres; default: that of the finest band.
    """

    key: str = ""
    image: str = ""
    before: str = ""
    after: str = ""
    mask: str = ""
    label: str = ""
    split: str = "all"
    date: str = ""
    date_after: str = ""
    bands: tuple[str, ...] = ()
    level: str = ""
    nodata: float | None = None
    gsd_m: float | None = None

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of the images, one or two."""
        return tuple(path for path in (self.image, self.before, self.after) if path)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the images and the mask."""
        return (*self.images, self.mask) if self.mask else self.images


@dataclass(frozen=True, kw_only=True)
class SampleDocument:
    """Document of a table of samples.

    Attributes:
        name: Name of the data, which becomes the version in their contract; default: that of the file.
        table: CSV or Parquet file of the rows, in place of `samples`.
        samples: The rows.
        bands: Names of the bands in the order of the files.
        level: Product level.
        nodata: Value of pixels without data, beside what the files mark themselves.
        gsd_m: Side of a pixel on the ground in metres.
        scale: Factor from stored values to reflectance.
        offset: Added to stored values before scaling.
        classes: Names of the classes; the position of a name is its value in masks.
        ignore: Value of masks that is no class; default: 255 in masks of classes, none in those of changes.
    """

    name: str = ""
    table: str = ""
    samples: tuple[dict[str, Any], ...] = ()
    bands: tuple[str, ...] = ()
    level: str = ""
    nodata: float | None = None
    gsd_m: float | None = None
    scale: float = sentinel2.MSI.scale
    offset: float = 0.0
    classes: tuple[str, ...] = ()
    ignore: int | None = None


@dataclass(frozen=True, kw_only=True)
class SampleTable:
    """A table as read.

    Attributes:
        document: What holds for all rows.
        folder: Folder that paths are relative to.
        rows: Usable rows, sorted by key, with what the document says filled in.
        rejected: First file of each other row, and why it cannot be used.
    """

    document: SampleDocument
    folder: Path
    rows: tuple[SampleRow, ...]
    rejected: tuple[Rejected, ...]


def read(source: Path, images: Sequence[str]) -> SampleTable:
    """Read a table and reject the rows that cannot be used, without opening their images.

    Args:
        source: TOML document, or CSV or Parquet file of rows.
        images: Columns of the images of a sample: `image`, or `before` and `after`.

    Raises:
        SettingError: The document is malformed, or a column is unknown or missing.
        SourceError: The file cannot be read.
    """
    document, rows_file, plain = _plain_rows(source)
    folder = source.parent
    columns = dict.fromkeys(name for row in plain for name in row)
    names = [field.name for field in fields(SampleRow) if field.name not in {"image", "before", "after"} - {*images}]
    if unknown := sorted(set(columns) - set(names)):
        raise SettingError(
            f"{rows_file}: column {', '.join(map(repr, unknown)):.200} is unknown; expected some of {', '.join(names)}"
        )
    if missing := sorted(set(images) - set(columns)):
        raise SettingError(f"{rows_file}: no column {', '.join(missing)}; expected {', '.join(images)} for each sample")
    rows: list[SampleRow] = []
    rejected: list[Rejected] = []
    for values in plain:
        try:
            rows.append(_row(values, document, images))
        except SettingError as error:
            # Not by its number: the order of the rows decides nothing.
            name = values.get("key") or values.get(images[0]) or values
            rejected.append((str(values.get(images[0], "")), f"row '{name!s:.80}': {error}"))
    for check in (_missing_files, _repeated, _find_deviating):
        wrong = check(rows, folder)
        rejected += [(row.images[0], f"row '{row.key}': {wrong[row]}") for row in rows if row in wrong]
        rows = [row for row in rows if row not in wrong]
    if not rows:
        why = f"; the first: {min(rejected)[1]}" if rejected else ""
        raise SourceError(f"{source}: not one row of {len(plain)} can be used{why}; correct the table")
    ordered = tuple(sorted(rows, key=lambda row: row.key))
    return SampleTable(document=document, folder=folder, rows=ordered, rejected=tuple(sorted(rejected)))


def _plain_rows(source: Path) -> tuple[SampleDocument, Path, list[dict[str, Any]]]:
    """Return the document, the file that has the rows, and the rows without empty values."""
    files.require_file(source, "a table of samples: TOML, CSV or Parquet")
    if source.suffix in (".csv", ".parquet"):
        return SampleDocument(name=source.stem), source, list(_of_table(source))
    document = files.read(SampleDocument, source)
    document = replace(document, name=document.name or source.stem)
    if bool(document.table) == bool(document.samples):
        raise SettingError(f"{source}: expected either table = FILE or [[samples]]")
    if document.samples:
        return document, source, list(document.samples)
    path = files.require_file(source.parent / document.table, "the table that the document names")
    if path.suffix not in (".csv", ".parquet"):
        raise SettingError(f"{path}: table of the kind {path.suffix!r}; expected .csv or .parquet")
    return document, path, list(_of_table(path))


def _of_table(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV or Parquet file, with texts in place of days, and without empty values."""
    if path.suffix == ".parquet":
        for row in parquet_tables.read(path).to_pylist():
            yield {
                name: value.isoformat() if isinstance(value, dt.date) else value
                for name, value in row.items()
                if value is not None and value != ""
            }
        return
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, strict=True, restkey="")
            for row in reader:
                if "" in row or None in row.values():
                    raise ValueError(f"line {reader.line_num} has not {len(reader.fieldnames or ())} values")
                yield {name.strip(): value.strip() for name, value in row.items() if value.strip()}
    except (OSError, ValueError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as CSV: {error}; write it again, as UTF-8 with commas") from None


def _row(values: dict[str, Any], document: SampleDocument, images: Sequence[str]) -> SampleRow:
    """Return one row with what the document says for all. Raises SettingError."""
    typed = dict(values)
    for name in set(_LISTS) & set(typed):
        if isinstance(typed[name], str):
            typed[name] = re.split(r"[\s,;]+", typed[name].strip())
    for name in set(_NUMBERS) & set(typed):
        if isinstance(typed[name], str):
            try:
                typed[name] = float(typed[name])
            except ValueError:
                raise SettingError(f"{name} is {typed[name]!r:.40}, expected a number") from None
    typed = {name: str(value) if name == "key" else value for name, value in typed.items()}
    row = files.parse(SampleRow, typed, "the table")
    if absent := [name for name in images if not getattr(row, name)]:
        raise SettingError(f"no path under {', '.join(absent)}; give one")
    stated = {name: getattr(document, name) for name in _SHARED if getattr(row, name) in ((), "", None)}
    row = replace(row, **stated, key=row.key or Path(row.images[0]).stem)
    if not safe_names.KEY.fullmatch(row.key):
        raise SettingError(f"key {row.key!r:.90}: expected 1 to 80 of the characters A-Z a-z 0-9 _ -")
    if row.level not in get_args(Level):
        raise SettingError(f"level is {row.level!r:.20}: expected one of {', '.join(get_args(Level))}")
    if unknown := [name for name in row.bands if name not in sentinel2.BAND]:
        raise SettingError(f"bands {' '.join(unknown):.90} are unknown; expected some of {' '.join(sentinel2.BAND)}")
    if len(set(row.bands)) < len(row.bands):
        raise SettingError(f"bands {' '.join(row.bands)}: expected each once")
    if row.mask and row.label:
        raise SettingError("has a mask and a label; expected one of them")
    for name in ("date", "date_after"):
        try:
            dt.date.fromisoformat(getattr(row, name) or "2000-01-01")
        except ValueError:
            raise SettingError(f"{name} is {getattr(row, name)!r:.20}, expected a day such as 2021-06-30") from None
    return row


# --- what makes a row unusable -------------------------------------------------------------


def _missing_files(rows: Iterable[SampleRow], folder: Path) -> dict[SampleRow, str]:
    wrong = {}
    for row in rows:
        if absent := [path for path in row.paths if not (folder / path).exists()]:
            wrong[row] = f"no file {', '.join(absent)}"
    return wrong


def _repeated(rows: Iterable[SampleRow], folder: Path) -> dict[SampleRow, str]:
    """Return all rows that share a key, since any of them may be the intended one."""
    counts = Counter(row.key for row in rows)
    return {row: f"{counts[row.key]} rows have this key, expected one" for row in rows if counts[row.key] > 1}


def _find_deviating(rows: Iterable[SampleRow], folder: Path) -> dict[SampleRow, str]:
    """Return the rows that differ from most in a fact that the contract states once."""
    wrong = {}
    for name in ("bands", "level", "gsd_m"):
        counts = Counter(_comparable(getattr(row, name)) for row in rows)
        # Of equally many the first by name, so that the order of the rows decides nothing.
        most_common = min(counts, key=lambda value: (-counts[value], _shown(value)), default=None)
        for row in rows:
            if _comparable(getattr(row, name)) != most_common:
                wrong[row] = f"{name} is {_shown(getattr(row, name))}, that of most rows is {_shown(most_common)}"
    return wrong


def _comparable(value: Any) -> Any:
    # Files may have the bands in different orders.
    return frozenset(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return " ".join(sorted(value)) if isinstance(value, tuple | frozenset) else str(value)


# --- contract ------------------------------------------------------------------------------


def contract(
    table: SampleTable, dataset: str, space: LabelSpace, bands: Sequence[str], nodata: float | None
) -> Contract:
    """Return the contract of the samples of a table, without statistics, splits and fingerprint.

    Args:
        table: The table.
        dataset: Name of the dataset.
        space: Label space of the samples.
        bands: Names of the bands, in any order.
        nodata: Value of pixels without data in the files; None if there is none.
    """
    first = table.rows[0]
    stated = [row.nodata for row in table.rows if row.nodata is not None]
    number = stated[0] if stated else nodata
    return Contract(
        format=CONTRACT_FORMAT,
        dataset=dataset,
        version=table.document.name,
        bands=tuple(band for band in sentinel2.MSI.bands if band.name in bands),
        level=first.level,  # type: ignore[arg-type]  # one of them, see `_row`
        scale=table.document.scale,
        offset=table.document.offset,
        nodata=int(number) if number is not None and float(number).is_integer() else None,
        resampling="none",
        resampling_version=1,
        shape=None,
        label_space=space,
        statistics={},
        splits={},
        fingerprint="",
        gsd_m=first.gsd_m,
    )
