"""Files of a prediction: rasters, a table of patches or samples, pictures of classes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, assert_never

import numpy as np

from sgdata import files, output_names
from sgdata.errors import OutputError
from sgdata.rasters import cog
from sgdata.types import Array, Grid, LabelSpace, Task, Window
from sgmodel.inference import tiling

ROWS, CLASSES, PROBABILITIES, EMBEDDINGS = output_names.PATCHES, "classes.tif", "probabilities.tif", "embeddings.tif"
PICTURES = "classes"
BLOCK = 512


def remove_previous(out: Path) -> None:
    """Remove the files of an earlier prediction from `out`, which the checksums of this one would otherwise cover."""
    names = (output_names.SUMS, ROWS, CLASSES, f"{CLASSES}.aux.xml", "classes.qml", PROBABILITIES, EMBEDDINGS)
    for path in [*(out / name for name in names), *sorted(out.glob(f"{PICTURES}/*.png"))]:
        path.unlink(missing_ok=True)


# --- rasters -------------------------------------------------------------------------------


class ScratchMap:
    """A map in a temporary file: rows are added as they are predicted, and read back in blocks of a raster.

    Within a line the values are ordered block by block and in each block band by band, so that a block of the raster
    is one strided view. No map is held in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")

    def add(self, rows: Array) -> None:
        """Add the next rows (K, h, W)."""
        for line, col in itertools.product(range(rows.shape[1]), range(0, rows.shape[2], BLOCK)):
            self.file.write(rows[:, line, col : col + BLOCK].tobytes())

    def blocks(self, grid: Grid, style: cog.RasterStyle) -> Iterator[tuple[Window, Array]]:
        """Yield the map (K, h, w) block by block, in the order of the raster."""
        self.file.flush()
        (height, width), bands, size = grid.shape, len(style.descriptions), np.dtype(style.dtype).itemsize
        for row, col in itertools.product(range(0, height, BLOCK), range(0, width, BLOCK)):
            shape = (min(BLOCK, height - row), bands, min(BLOCK, width - col))
            offset = bands * size * (row * width + col)
            strides = (bands * size * width, size * shape[2], size)
            # Mapped again for each block, so that the pages of the blocks before can leave memory.
            mapped = np.memmap(self.path, np.uint8, "r")
            values: Array = np.ndarray(shape, style.dtype, mapped, offset, strides=strides)
            yield Window(row=row, col=col, height=shape[0], width=shape[2]), values.transpose(1, 0, 2)

    def __enter__(self) -> ScratchMap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class MapFiles:
    """Rasters that a prediction writes, with their grid and label space.

    Attributes:
        out: Folder.
        space: Label space of the answers; without ids they are embeddings.
        grid: Grid of the map.
        channels: Number of values per cell.
        classes: Whether to write the most likely class of each cell.
        values: Whether to write all values of each cell.
        tags: Tags of the rasters.
    """

    out: Path
    space: LabelSpace
    grid: Grid
    channels: int
    classes: bool
    values: bool
    tags: dict[str, str]


def write_maps(maps: MapFiles, outputs: Iterable[tiling.Row]) -> None:
    """Write the rasters of `maps` from rows of outputs; one raster is written at a time.

    Raises:
        OutputError: A file cannot be written.
    """
    with (
        files.writing(maps.out),
        ScratchMap(maps.out / ".classes") as classes,
        ScratchMap(maps.out / ".values") as values,
    ):
        for _, output, valid in outputs:
            if maps.classes:
                classes.add(most_likely(maps.space, output, valid)[None])
            if maps.values:
                _mask_and_round(output, valid, rounded=value_file(maps.space.task) == PROBABILITIES)
                values.add(output)
        if maps.values:
            _write_values(maps, values)
        if maps.classes:
            _write_classes(maps, classes)


def _mask_and_round(output: Array, valid: Array, *, rounded: bool) -> None:
    """Set cells without data to NaN and round probabilities to 1/1024, in place.

    In place because a row of tiles of a wide scene may take a hundred megabytes. Rounded values end in zero bits and
    compress to a quarter.
    """
    if rounded:
        np.rint(output * np.float32(1024), out=output)
        output /= 1024
    output[:, ~valid] = np.nan


def _write_values(maps: MapFiles, values: ScratchMap) -> None:
    names = maps.space.names or tuple(f"feature {number}" for number in range(maps.channels))
    style = cog.RasterStyle(descriptions=names, nodata=float("nan"), dtype="float32", tags=maps.tags)
    cog.write(maps.out / value_file(maps.space.task), maps.grid, values.blocks(maps.grid, style), style=style)


def _write_classes(maps: MapFiles, classes: ScratchMap) -> None:
    style = cog.RasterStyle(
        descriptions=("classes",),
        nodata=maps.space.ignore_index,
        dtype=class_type(maps.space),
        overviews="mode",
        tags=maps.tags,
        classes=legend(maps.space),
    )
    cog.write(maps.out / CLASSES, maps.grid, classes.blocks(maps.grid, style), style=style)


def value_file(task: Task) -> str:
    """Return the name of the raster of all values of each cell."""
    match task:
        case "none":
            return EMBEDDINGS
        case "single-label" | "multi-label" | "segmentation" | "change":
            return PROBABILITIES
        case unknown:
            assert_never(unknown)


def class_type(space: LabelSpace) -> Literal["uint8", "uint16", "int32"]:
    """Return the smallest type of maps that holds every class value and the value to ignore."""
    lowest, highest = min(*space.ids, space.ignore_index), max(*space.ids, space.ignore_index)
    if lowest < 0 or highest > 65535:
        return "int32"
    return "uint8" if highest <= 255 else "uint16"


def most_likely(space: LabelSpace, output: Array, valid: Array) -> Array:
    """Return the class values (h, w) of outputs (K, h, w); `ignore_index` where no pixel is valid."""
    ids = np.array([*space.ids, space.ignore_index], class_type(space))
    labels: Array = ids[np.where(valid, output.argmax(axis=0), len(space.ids))]
    return labels


def legend(space: LabelSpace) -> dict[int, tuple[str, str]]:
    """Return name and colour by class value; label spaces without colours get default ones."""
    named = dict(zip(space.ids, zip(space.names, space.palette.values(), strict=True), strict=True))
    return {**named, space.ignore_index: ("no data", "#ffffff")}


# --- rows and pictures ---------------------------------------------------------------------


def output_columns(space: LabelSpace, output: Array) -> dict[str, Any]:
    """Return the columns of one answer (K,): labels, their names and all probabilities, or the embedding."""
    match space.task:
        case "none":
            return {"embedding": output.tolist()}
        case "multi-label":
            chosen = np.flatnonzero(output >= 0.5).tolist()
        case "single-label" | "segmentation" | "change":
            chosen = [int(output.argmax())]
        case unknown:
            assert_never(unknown)
    return {
        "labels": [space.ids[index] for index in chosen],
        "label_names": [space.names[index] for index in chosen],
        "probabilities": output.tolist(),
    }


def write_rows(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write a row per patch or sample as Parquet. Raises OutputError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.replacing(out / ROWS) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")


def write_picture(space: LabelSpace, path: Path, labels: Array) -> None:
    """Write classes (H, W) as PNG: shards have the bounds of a sample, but not its grid.

    Values above 255 make a picture in 16-bit grey, others one with a palette. A negative value to ignore becomes 65535,
    since PNG has none.

    Raises:
        OutputError: A class is beyond 0 to 65535, or the file cannot be written.
    """
    from PIL import Image

    if min(space.ids) < 0 or max(space.ids) > 65535:
        message = f"{path}: classes {min(space.ids)} to {max(space.ids)}, a PNG holds 0 to 65535"
        raise OutputError(f"{message}; predict a raster, or renumber the classes")
    if labels.dtype == np.int32:
        labels = np.where(labels == space.ignore_index, 65535, labels).astype(np.uint16)
    picture = Image.fromarray(labels)
    if labels.dtype == np.uint8:
        palette = np.zeros((256, 3), np.uint8)
        for label, (_, colour) in legend(space).items():
            palette[label] = tuple(bytes.fromhex(colour[1:]))
        picture.putpalette(palette.tobytes())
    # Without waiting for the disk at every sample: SHA256SUMS, written last, covers them all.
    with files.replacing(path, durable=False) as temporary:
        picture.save(temporary, format="PNG")
