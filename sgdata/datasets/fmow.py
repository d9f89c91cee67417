"""Read fMoW-Sentinel: 13-band float64 GeoTIFFs of varying size, listed in CSVs.

The values are medians, so nearly half end in .5. They are stored as 2 x DN at scale 5e-5: uint16 if that is exact,
else float32. Missing pixels are 0 in all bands.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sgdata.datasets import archives, cards
from sgdata.datasets.types import SampleListing, SampleRef, ShardRecipe, SourceMember
from sgdata.errors import SourceError
from sgdata.rasters import small_tiff
from sgdata.types import Array, Contract, LabelSpace, Sample

CSVS = {"train.csv": "train", "val.csv": "val", "test_gt.csv": "test"}
FOLDERS = {"train": "train", "val": "val", "test": "test", "test_gt": "test"}
DOUBLED = 2
TIFF = (".tif", ".tiff")
_STEM = re.compile(r"(.+)_(\d+)_(\d+)")  # greedy, since category names have underscores


def list_samples(source: Path, recipe: ShardRecipe) -> SampleListing:
    """List the images that the CSVs in or beside `source` name; keys are `<split>-<category>_<place>_<image>`.

    Without any CSV all images are listed, with the split of their folder (`train`, `val`, `test`, `test_gt`) or `all`.
    """
    edition = cards.edition("fmow", recipe.edition)
    space = cards.label_space("fmow", recipe.labels)
    listing = archives.list_members(source)
    images = _images(listing.members, space)
    if not images:
        raise archives.dataset_not_found(
            source, listing, "no train/airport/airport_0/airport_0_6.tif; expected fMoW-Sentinel"
        )
    rows = _rows(source, listing.members, {split for split, _ in images})
    if rows:
        selected = {split_and_stem: member for split_and_stem, member in images.items() if split_and_stem in rows}
        # Of all TIFFs, whatever their names, since a note reports what is left out.
        images_there = {member.name for member in listing.members if member.name.lower().endswith(TIFF)}
        surplus = sorted(images_there - {member.name for member in selected.values()})
        notes = [f"{len(surplus)} images are in no CSV: left out, such as {surplus[0]}"] if surplus else []
        absent = len(rows.keys() - images.keys())
        if absent:
            notes.append(f"{absent} rows of the CSVs have no image here")
    else:
        selected, notes = images, ["no train.csv, val.csv or test_gt.csv: all images are used"]
    refs = tuple(
        _ref(split_and_stem, member, rows.get(split_and_stem), space) for split_and_stem, member in selected.items()
    )
    # The scale of the contract is that of the stored 2 x DN.
    stored = replace(edition, scale=edition.scale / DOUBLED)
    return SampleListing(refs=refs, edition=stored, labels=space, rejected=listing.rejected, notes=tuple(notes))


def _images(members: tuple[SourceMember, ...], space: LabelSpace) -> dict[tuple[str, str], SourceMember]:
    """Map (split, stem) to the image, for every TIFF named `<category>_<place>_<image>`."""
    images = {}
    for member in members:
        path = PurePosixPath(member.name)
        match = _STEM.fullmatch(path.stem)
        # Not split at the first `_`: categories have underscores and hyphens.
        if path.suffix.lower() in TIFF and match and match[1] in space.names:
            split = next((FOLDERS[part] for part in reversed(path.parts[:-1]) if part in FOLDERS), "all")
            images[split, path.stem] = member
    return images


def _rows(source: Path, members: tuple[SourceMember, ...], splits: set[str]) -> dict[tuple[str, str], dict[str, str]]:
    """Map (split, stem) to the CSV row, for splits that have images here."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, split in CSVS.items():
        # Beside an archive, or anywhere in a folder: unpacking into a folder of the same name nests them.
        candidates = [source.parent / name, *(source / m.name for m in members if m.name.rpartition("/")[2] == name)]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None or split not in splits:
            continue
        try:
            table = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
            # The official files lack image_path; it is built from three columns, whose order the README has wrong.
            for row in table:
                rows[split, f"{row['category']}_{int(row['location_id'])}_{int(row['image_id'])}"] = row
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise SourceError(
                f"{path}: not a CSV of fMoW-Sentinel: {type(error).__name__}: {error}; fetch it again"
            ) from None
    return rows


def _ref(
    split_and_stem: tuple[str, str], member: SourceMember, row: dict[str, str] | None, space: LabelSpace
) -> SampleRef:
    split, stem = split_and_stem
    match = _STEM.fullmatch(stem)
    category = match[1] if match else ""
    meta: dict[str, Any] = {"labels": [space.ids[space.names.index(category)]], "label_names": [category]}
    if row:
        meta["date"] = (row.get("timestamp") or "")[:10] or None
    # Deflated float64 holds about as many bytes as bitshuffled uint16.
    return SampleRef(key=f"{split}-{stem}", split=split, members=(member,), bytes=member.size, meta=meta)


@contextmanager
def open_source(source: Path, contract: Contract) -> Iterator[Callable[[SampleRef], Sample]]:
    """Open `source`; the function reads `image` (13, H, W) of 2 x DN, uint16 or float32, or raises SourceError."""
    with archives.open_archive(source) as content:

        def read(ref: SampleRef) -> Sample:
            picture = small_tiff.read(content(ref.members[0]))
            image = double_dn(picture.pixels)
            meta = {**ref.meta, **small_tiff.place_metadata(picture), "source_id": ref.members[0].name}
            return Sample(key=ref.key, split=ref.split, arrays={"image": image}, meta=meta)

        yield read


def double_dn(pixels: Array) -> Array:
    """Return 2 x DN as uint16 if that is exact, else as float32. Raises SourceError if neither is exact.

    Args:
        pixels: Values in DN, of any shape.
    """
    # NaN would fail the comparisons below with a misleading message.
    if not np.isfinite(pixels).all():
        raise SourceError(f"image holds {np.count_nonzero(~np.isfinite(pixels))} NaN or infinite values, expected none")
    twice = pixels.astype(np.float64) * DOUBLED
    if twice.min(initial=0) >= 0 and twice.max(initial=0) <= 65_535 and np.array_equal(twice, np.rint(twice)):
        return twice.astype(np.uint16)
    if np.abs(twice).max() > np.finfo(np.float32).max or not np.array_equal(twice.astype(np.float32), twice):
        raise SourceError("image holds values that float32 cannot hold exactly")
    return twice.astype(np.float32)
