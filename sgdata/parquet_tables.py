"""Check the columns of Parquet tables against what a reader expects, before any value is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

from sgdata.errors import SourceError

ColumnKind = Literal["text", "texts", "count", "counts", "number"]
"""Text, a list of texts, an integer of at least 0, a list of such integers, a number or none."""


def read(
    source: Path | BinaryIO,
    kinds: Mapping[str, ColumnKind] | None = None,
    columns: list[str] | None = None,
    *,
    origin: str = "",
) -> Any:
    """Read a Parquet file as a pyarrow.Table whose columns `kinds` are all there, complete and of these kinds.

    Messages name the file `origin`, by default the path.

    Raises:
        SourceError: The file is damaged, names a column twice, or a column is missing or not as expected.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    origin = origin or str(source)
    try:
        table = pq.read_table(source, columns=columns)
        table.validate(full=True)  # texts that are not UTF-8, offsets that lead out of a buffer
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{origin}: not a readable Parquet file: {error!s:.300}; fetch or write it again") from None
    if len(set(table.column_names)) < table.num_columns:
        raise SourceError(f"{origin}: two columns have one name; write it again")
    check(table, kinds or {}, origin)
    return table


def check(table: Any, kinds: Mapping[str, ColumnKind], origin: str, *, complete: bool = True) -> None:
    """Check columns of a pyarrow.Table; `complete`: no value may be null.

    Raises:
        SourceError: A column is missing, of another type, or has a value that its kind excludes.
    """
    import pyarrow.compute as pc

    for name, kind in kinds.items():
        if name not in table.column_names:
            raise SourceError(
                f"{origin}: has no column '{name}', only {', '.join(table.column_names):.200}; write it again"
            )
        column = table[name]
        if not _types(kind)(column.type):
            raise SourceError(f"{origin}: column '{name}' is of type {column.type}, expected {kind}; write it again")
        if complete and column.null_count:
            raise SourceError(
                f"{origin}: column '{name}' lacks {column.null_count} of {len(column)} values; write it again"
            )
        values = pc.list_flatten(column) if kind in ("texts", "counts") else column
        if kind in ("texts", "counts") and values.null_count:
            raise SourceError(f"{origin}: column '{name}' has lists with missing values; write it again")
        if kind == "number" and not pc.all(pc.is_finite(values), min_count=0).as_py():
            raise SourceError(f"{origin}: column '{name}' has values that are NaN or infinite; write it again")
        if kind in ("count", "counts") and len(values) and (pc.min(values).as_py() or 0) < 0:
            raise SourceError(f"{origin}: column '{name}' has {pc.min(values)}, expected 0 or more; write it again")


def _types(kind: ColumnKind) -> Callable[[Any], bool]:
    """Return the test for Arrow types of a kind."""
    import pyarrow.types as pt

    def is_text(of: Any) -> bool:
        return bool(pt.is_string(of) or pt.is_large_string(of))

    def is_list(of: Any) -> bool:
        return bool(pt.is_list(of) or pt.is_large_list(of) or pt.is_fixed_size_list(of))

    tests: dict[ColumnKind, Callable[[Any], bool]] = {
        "text": is_text,
        "count": pt.is_integer,
        "number": lambda of: pt.is_floating(of) or pt.is_integer(of),
        "texts": lambda of: is_list(of) and is_text(of.value_type),
        "counts": lambda of: is_list(of) and pt.is_integer(of.value_type),
    }
    return tests[kind]
