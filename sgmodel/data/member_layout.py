"""Positions, shapes, types and checksums of the arrays of samples, from the index of their shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdata import output_names, parquet_tables
from sgdata.errors import SettingError, SourceError
from sgdata.shards import array_codec
from sgdata.types import Array, Codec
from sgmodel.data import upsample

DATES = ("image_before", "image_after")
"""Images of a pair."""


@dataclass(frozen=True, kw_only=True)
class MemberLayout:
    """Position, shape and type of one array of every sample.

    Attributes:
        start: First byte in the tar of the sample.
        size: Bytes of the encoded array.
        shape: (N, axes) shapes.
        stored: (N,) types.
        dtype: The type that represents the values of all samples.
        crc32: CRC-32 of the member; empty for shards without checksums.
        trailer: Bytes of the member after the array, which the checksum covers.
    """

    start: list[int]
    size: list[int]
    shape: NDArray[np.int64]
    stored: NDArray[np.str_]
    dtype: str
    crc32: list[int] = field(default_factory=list)
    trailer: int = 0


def read_layout(rows: Any, name: str, folder: Path, codec: Codec) -> MemberLayout:
    """Return the member `name` of samples by their rows of the index of `folder`. Raises SettingError, SourceError."""
    columns = set(rows.column_names)
    if f"{name}_offset" not in columns:
        has = sorted(c.removesuffix("_offset") for c in columns if c.endswith("_offset"))
        raise SettingError(f"{folder}: samples have no '{name}'; they have {', '.join(has)}; give shards that have it")
    kinds: dict[str, parquet_tables.ColumnKind]
    kinds = {"offset": "count", "size": "count", "shape": "counts", "dtype": "text"}
    if f"{name}_crc32" in columns:
        kinds["crc32"] = "count"
    where = f"{folder / output_names.INDEX}"
    parquet_tables.check(rows, {f"{name}_{part}": kind for part, kind in kinds.items()}, where)
    column = {part: rows[f"{name}_{part}"] for part in kinds}
    shapes = column["shape"].to_pylist()
    if len({len(shape) for shape in shapes}) > 1 or not shapes or not shapes[0]:
        raise SourceError(f"{where}: '{name}' has shapes of different numbers of axes, or of none; pack again")
    shape, size = np.array(shapes, np.int64), column["size"].to_numpy()
    stored = np.array(column["dtype"].to_pylist())
    # Those of most and of fewest values: where they can be, all can.
    ratio = shape.astype(float).prod(axis=1) / np.maximum(size, 1)
    for row in (int(ratio.argmax()), int(ratio.argmin())):
        array_codec.check_size(shapes[row], str(stored[row]), int(size[row]))
    return MemberLayout(
        start=column["offset"].to_pylist(),
        size=size.tolist(),
        shape=shape,
        stored=stored,
        dtype=common_dtype(stored, f"{folder}: '{name}'"),
        crc32=column["crc32"].to_pylist() if "crc32" in column else [],
        trailer=array_codec.trailer_bytes(codec, shape.shape[1]) if "crc32" in column else 0,
    )


def sample_layout(rows: Any, names: Sequence[str], folder: Path, codec: Codec) -> dict[str, MemberLayout]:
    """Return members of samples by name, with an image as it is stored: whole, in groups of bands, or at two dates.

    An image alone of pairs is that of each date, as twice as many samples: what needs no mask takes pairs too.

    Raises SettingError, SourceError.
    """
    stored = {name.removesuffix("_offset") for name in rows.column_names if name.endswith("_offset")}
    if "image" not in stored and tuple(names) == ("image",) and set(DATES) <= stored:
        return {"image": _of_dates(rows, folder, codec)}
    # The finest group comes first, whose size is that of the sample.
    groups = [name for name in upsample.GROUPS if name in stored and "image" not in stored]
    parts = [part for name in names for part in (groups if name == "image" and groups else [name])]
    return {part: read_layout(rows, part, folder, codec) for part in parts}


def _of_dates(rows: Any, folder: Path, codec: Codec) -> MemberLayout:
    """Return both dates of pairs as one member, those of a pair after each other. Raises SettingError, SourceError."""
    before, after = (read_layout(rows, name, folder, codec) for name in DATES)

    def turns(first: Sequence[int], second: Sequence[int]) -> list[int]:
        return [value for pair in zip(first, second, strict=True) for value in pair]

    stored = np.stack([before.stored, after.stored], axis=1).ravel()
    return MemberLayout(
        start=turns(before.start, after.start),
        size=turns(before.size, after.size),
        shape=np.stack([before.shape, after.shape], axis=1).reshape(-1, before.shape.shape[1]),
        stored=stored,
        dtype=common_dtype(stored, f"{folder}: '{' and '.join(DATES)}'"),
        crc32=turns(before.crc32, after.crc32),
        trailer=before.trailer,
    )


def common_dtype(stored: NDArray[np.str_], what: str) -> str:
    """Return the type of samples that represents the values of all. Raises SettingError if none does."""
    types = sorted(set(stored.tolist()))  # fMoW mixes uint16 and float32
    try:
        common = np.result_type(*types).name
    except TypeError:
        common = ""
    if common not in types:
        raise SettingError(f"{what} has types {types}, expected one that represents the values of the others")
    return common


_SIGNED = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}


def to_tensor(name: str, array: Array) -> Tensor:
    """Return an array as a tensor of a type that torch's operators take, in which no value of 32 bits changes.

    Args:
        name: Name of the array; images become floating-point numbers.
        array: The array as stored.
    """
    if name.startswith("image"):
        return torch.from_numpy(array.astype(np.promote_types(array.dtype, np.float32)))
    return torch.from_numpy(array.astype(_SIGNED.get(array.dtype.name, array.dtype)))
