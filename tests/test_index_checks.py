"""Test that an index of shards is compared with what an index can be before a value of it is used."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_shards import write

from sgdata import output_names
from sgdata.errors import SourceError
from sgdata.shards import shard_index


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("index") / "shards", train=3, val=1)


def setting(column: str, value: Any, row: int = 1) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        at = table.column_names.index(column)
        return table.set_column(at, column, pa.array(values, table.schema.field(column).type))

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (setting("image_offset", 2**40), "'image' ends at"),
        (setting("image_offset", 2**62), "'image' is at byte 4611686018427387904"),
        (setting("mask_size", 2**62), "of 4611686018427387904 bytes"),
        (setting("mask_size", 10**7), "'mask' ends at"),
        (setting("image_offset", -1), "'image_offset' has -1, expected 0 or more"),
        (setting("meta_offset", 10**9), "'meta' ends at"),
        (setting("meta_size", None), "lacks 1 of 4 values"),
        (setting("image_size", None), "some samples have a part of image_offset"),
        (setting("image_crc32", None), "some samples have a part of image_offset"),
        (setting("image_shape", [12, 2**30, 32]), "shapes that cannot be in its bytes"),
        (setting("image_shape", [12, 0, 32]), "shapes that cannot be in its bytes"),
        (setting("image_shape", []), "or no axis"),
        (setting("mask_dtype", "object"), "'mask' has type 'object'"),
        (setting("west", math.nan), "'west' has values that are NaN or infinite"),
        (setting("north", math.inf), "'north' has values that are NaN or infinite"),
        (setting("key", "../x"), "key '../x' cannot be that of a sample"),
        (setting("key", "toy-00000"), "1 keys occur twice"),
        (setting("sha256", None), "'sha256' lacks 1 of 4"),
        (lambda table: table.drop_columns(["labels"]), "no column 'labels'"),
        (lambda table: table.drop_columns(["image_size"]), "some samples have a part of image_offset"),
        (lambda table: table.drop_columns(["image_dtype"]), "some samples have a part of image_offset"),
        (lambda table: table.set_column(0, "key", pa.array(range(4))), "'key' is of type int64, expected text"),
    ],
)
def test_what_no_index_has_is_refused_by_name(
    change: Callable[[pa.Table], pa.Table], told: str, folder: Path, tmp_path: Path
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / output_names.INDEX).unlink()
    pq.write_table(change(pq.read_table(folder / output_names.INDEX)), tmp_path / output_names.INDEX)
    with pytest.raises(SourceError, match=told):
        shard_index.read_index(tmp_path)


def test_samples_without_a_member_are_read(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / output_names.INDEX).unlink()
    table = pq.read_table(folder / output_names.INDEX)
    for column in [name for name in table.column_names if name.startswith("mask_")]:
        table = setting(column, None)(table)
    pq.write_table(table, tmp_path / output_names.INDEX)
    assert shard_index.read_index(tmp_path)["mask_offset"].null_count == 1
