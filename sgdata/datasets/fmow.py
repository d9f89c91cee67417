"""fMoW-Sentinel: 13-band float64 GeoTIFFs of varying size, driven by the CSVs; what they do not list is left out.

The values are medians, so nearly half end in .5: stored as uint16 of 2 x DN at scale 5e-5 where that is exact,
else as float32 of 2 x DN, verified file by file. Missing pixels are 0 in all bands.
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
from sgdata.datasets.types import Member, SampleListing, SampleRef, ShardRecipe
from sgdata.errors import SourceError
from sgdata.rasters import small_tiff
from sgdata.types import Array, Contract, LabelSpace, Sample

CSVS = {"train.csv": "train", "val.csv": "val", "test_gt.csv": "test"}
FOLDERS = {"train": "train", "val": "val", "test": "test", "test_gt": "test"}
DOUBLED = 2
TIFF = (".tif", ".tiff")
_STEM = re.compile(r"(.+)_(\d+)_(\d+)")  # greedy: category names hold underscores


def find(source: Path, recipe: ShardRecipe) -> SampleListing:
    """The rows of the CSVs in or beside `source` that have an image; keys are `<split>-<category>_<place>_<image>`.

    Without any CSV, every image there is: the split from its folder (`train`, `val`, `test` or `test_gt`), else `all`.
    """
    edition = cards.edition("fmow", recipe.edition)
    space = cards.label_space("fmow", recipe.labels)
    listing = archives.listing(source)
    images = _images(listing.members, space)
    if not images:
        raise archives.nothing(source, listing, "no train/airport/airport_0/airport_0_6.tif; expected fMoW-Sentinel")
    rows = _rows(source, listing.members, {split for split, _ in images})
    if rows:
        wanted = {at: member for at, member in images.items() if at in rows}
        # All TIFFs, whatever their names: what the archive holds too much is to be accounted for.
        images_there = {member.name for member in listing.members if member.name.lower().endswith(TIFF)}
        surplus = sorted(images_there - {member.name for member in wanted.values()})
        notes = [f"{len(surplus)} images are in no CSV: left out, such as {surplus[0]}"] if surplus else []
        absent = len(rows.keys() - images.keys())
        notes += [f"{absent} rows of the CSVs have no image here"] * bool(absent)
    else:
        wanted, notes = images, ["no train.csv, val.csv or test_gt.csv: images are taken as they lie"]
    refs = tuple(_ref(at, member, rows.get(at), space) for at, member in wanted.items())
    # Halves of medians become whole numbers; the contract says so by its scale.
    doubled = replace(edition, scale=edition.scale / DOUBLED)
    return SampleListing(refs=refs, edition=doubled, labels=space, rejected=listing.rejected, notes=tuple(notes))


def _images(members: tuple[Member, ...], space: LabelSpace) -> dict[tuple[str, str], Member]:
    """(split, stem) to image, of every TIFF whose name is `<category>_<place>_<image>`."""
    images = {}
    for member in members:
        path = PurePosixPath(member.name)
        match = _STEM.fullmatch(path.stem)
        # Names are never split at `_` from the left: categories hold underscores and hyphens.
        if path.suffix.lower() in TIFF and match and match[1] in space.names:
            split = next((FOLDERS[part] for part in reversed(path.parts[:-1]) if part in FOLDERS), "all")
            images[split, path.stem] = member
    return images


def _rows(source: Path, members: tuple[Member, ...], splits: set[str]) -> dict[tuple[str, str], dict[str, str]]:
    """(split, stem) to CSV row, for the splits that have images here."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, split in CSVS.items():
        # Beside an archive, or anywhere in a folder: who unpacks into a folder of the same name nests them.
        places = [source.parent / name, *(source / m.name for m in members if m.name.rpartition("/")[2] == name)]
        held = [path for path in places if path.is_file()]
        if not held or split not in splits:
            continue
        try:
            table = list(csv.DictReader(io.StringIO(held[0].read_text(encoding="utf-8"))))
            # No image_path in the official files: it is built from the three columns, whose order the README has wrong.
            for row in table:
                rows[split, f"{row['category']}_{int(row['location_id'])}_{int(row['image_id'])}"] = row
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise SourceError(f"{held[0]}: not a CSV of fMoW-Sentinel: {type(error).__name__}: {error}") from None
    return rows


def _ref(at: tuple[str, str], member: Member, row: dict[str, str] | None, space: LabelSpace) -> SampleRef:
    split, stem = at
    match = _STEM.fullmatch(stem)
    category = match[1] if match else ""
    meta: dict[str, Any] = {"labels": [space.ids[space.names.index(category)]], "label_names": [category]}
    if row:
        meta["date"] = (row.get("timestamp") or "")[:10] or None
    # Deflated float64 holds about as many bytes as bitshuffled uint16.
    return SampleRef(key=f"{split}-{stem}", split=split, members=(member,), bytes=member.size, meta=meta)


@contextmanager
def reading(source: Path, contract: Contract) -> Iterator[Callable[[SampleRef], Sample]]:
    """Open `source`; the function reads `image` (13, H, W) of 2 x DN, uint16 or float32, or raises SourceError."""
    with archives.opened(source) as content:

        def read(ref: SampleRef) -> Sample:
            picture = small_tiff.read(content(ref.members[0]))
            image = doubled(picture.pixels)
            meta = {**ref.meta, **small_tiff.located(picture), "source_id": ref.members[0].name}
            return Sample(key=ref.key, split=ref.split, arrays={"image": image}, meta=meta)

        yield read


def doubled(pixels: Array) -> Array:
    """2 x DN, lossless: uint16 if every value is then whole and fits, else float32. Raises SourceError if neither."""
    # Compared below value by value, which NaN never equals.
    if not np.isfinite(pixels).all():
        raise SourceError(f"image holds {np.count_nonzero(~np.isfinite(pixels))} NaN or infinite values")
    twice = pixels.astype(np.float64) * DOUBLED
    if twice.min(initial=0) >= 0 and twice.max(initial=0) <= 65_535 and np.array_equal(twice, np.rint(twice)):
        return twice.astype(np.uint16)
    if np.abs(twice).max() > np.finfo(np.float32).max or not np.array_equal(twice.astype(np.float32), twice):
        raise SourceError("image holds values that float32 cannot hold exactly")
    return twice.astype(np.float32)
