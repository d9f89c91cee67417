"""Write a build as SegMunich was released: TIFFs of tifffile in train/ and val/, the makers' band order and codes.

The layout is that of `TUM_128.zip`: `{train,val}/{img,label}/<id>.tif` and `dataset/{train,val}.txt`. Images are
float32 (128, 128, 10), rows, columns and bands; labels are uint8 codes of CORINE level 2, 0 for streets.
"""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sgdata import files, output_names, package_data
from sgdata.datasets import build_patches, cards
from sgdata.errors import OutputError, SettingError
from sgdata.safe_names import file_name
from sgdata.shards import contracts
from sgdata.types import Array, Contract

SPACE, SIDE = "segmunich-osm", 128

Unmapped = Literal["zero", "leave-out"]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """Result of an export.

    Attributes:
        patches: Number of patches by split.
        left_out: Number of patches left out for unmapped pixels.
        zeroed: Number of unmapped pixels that were written as 0.
        pixels: Number of all label pixels that were written.
    """

    patches: dict[str, int]
    left_out: int
    zeroed: int
    pixels: int


def export(build: Path, out: Path, *, own_splits: bool = False, unmapped: Unmapped = "zero") -> ExportResult:
    """Write the patches of a build in the layout, band order and codes of the released SegMunich.

    Args:
        build: Finished build with patches of 128 pixels and the labels `segmunich-osm`.
        out: Folder to write, which must not exist yet.
        own_splits: Write test patches to `test` instead of `val`, which the released set does not have.
        unmapped: Write pixels without a label as 0, since the released codes have none for them, or leave out patches
            that have any.

    Returns:
        The numbers of patches and pixels.

    Raises:
        SettingError: The build has other patches, bands or labels.
        OutputError: The folder exists, or cannot be written.
        SourceError: The build cannot be read.
    """
    contract = contracts.read(build)
    order = _band_order(contract, build)
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"{out}: is not empty; choose another --out")
    codes = _codes()
    counts: Counter[str] = Counter()
    ids: dict[str, list[str]] = {"train": [], "val": []}
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with ExitStack() as stack:
            image, labels = (
                stack.enter_context(build_patches.open_raster(build / name))
                for name in (output_names.IMAGE, output_names.LABELS)
            )
            for ref in build_patches.list_patches(build / output_names.PATCHES, (), 0):
                mask = np.asarray(build_patches.read_window(labels, ref.meta["window"])[0].data)
                unlabelled = int((codes[mask] < 0).sum())
                if unlabelled and unmapped == "leave-out":
                    counts["left out"] += 1
                    continue
                counts["zeroed"] += unlabelled
                name = file_name(ref.key)
                split = ref.split if own_splits or ref.split == "train" else "val"
                pixels = np.ma.filled(build_patches.read_window(image, ref.meta["window"]), contract.nodata or 0)
                _write(partial / file_name(split), name, pixels[order], np.maximum(codes[mask], 0))
                ids.setdefault(split, []).append(name)
        for split, names in ids.items():
            files.write(
                partial / "dataset" / f"{file_name(split)}.txt", "".join(f"{name}\n" for name in names).encode()
            )
        files.write_sums(partial)
        partial.replace(out)
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written: {error.strerror or error}; free space, or choose another --out"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    written = {split: len(names) for split, names in ids.items()}
    total = sum(written.values()) * SIDE**2
    return ExportResult(patches=written, left_out=counts["left out"], zeroed=counts["zeroed"], pixels=total)


def _band_order(contract: Contract, build: Path) -> list[int]:
    """Return the positions of the released bands in the image. Raises SettingError if the build does not fit."""
    released = cards.edition("segmunich", "released").bands
    names = [band.name for band in contract.bands]
    if missing := [name for name in released if name not in names]:
        raise SettingError(f"{build}: has no {', '.join(missing)}; build it with the bands {', '.join(released)}")
    if contract.shape is None or contract.shape[1:] != (SIDE, SIDE):
        raise SettingError(f"{build}: patches are {contract.shape}; build it with patches.size={SIDE}")
    if contract.label_space.name != SPACE:
        space_name = contract.label_space.name
        raise SettingError(f"{build}: labels are '{space_name}'; build it with labels.classes={SPACE} and --osm")
    return [names.index(name) for name in released]


def _codes() -> Array:
    """Return the released code of each class, (256,) int16; -1 for values that are none."""
    codes = np.full(256, -1, np.int16)
    for row in package_data.table("segmunich_labels"):
        codes[int(row["train_index"])] = int(row["file_value"])
    return codes


def _write(folder: Path, name: str, pixels: Array, codes: Array) -> None:
    """Write image and label of one patch."""
    import tifffile

    for part, values in (("img", pixels.transpose(1, 2, 0).astype(np.float32)), ("label", codes.astype(np.uint8))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        # Bytes as the makers' own tool writes them: one page a row, and the shape in the description.
        tifffile.imwrite(folder / part / f"{name}.tif", np.ascontiguousarray(values))
