"""Read EuroSAT: one file per patch in a folder per class, GeoTIFFs of 13 bands (B8A last) or RGB JPEGs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sgdata.datasets import archives, cards
from sgdata.datasets.types import SampleListing, SampleRef, ShardRecipe
from sgdata.errors import SourceError
from sgdata.rasters import small_jpeg, small_tiff
from sgdata.types import DISPLAY, Array, Contract, Sample

# The older archive nests the classes in ds/images/remote_sensing/otherDatasets/sentinel_2/tif.
_NAME = r"(?:.*/)?([A-Za-z]+)/(\1_\d+)\."
_FILES = {"ms": re.compile(rf"{_NAME}(?i:tiff?)"), "rgb": re.compile(rf"{_NAME}(?i:jpe?g)")}
_EXPECTED = {
    "ms": "no AnnualCrop/AnnualCrop_1.tif; expected EuroSAT_MS as distributed, or try --edition rgb",
    "rgb": "no AnnualCrop/AnnualCrop_1.jpg; expected EuroSAT_RGB as distributed, or try --edition ms",
}
# Stored bytes per byte of the file: GeoTIFFs are not compressed, JPEGs are.
_STORED = {"ms": 0.6, "rgb": 3.5}


def list_samples(source: Path, recipe: ShardRecipe) -> SampleListing:
    """List every `<Class>/<Class>_<n>` of the edition's file type at any depth of `source`; the split is `all`."""
    edition = cards.edition("eurosat", recipe.edition)
    space = cards.label_space("eurosat", recipe.labels)
    listing = archives.list_members(source)
    refs, rejected = [], list(listing.rejected)
    for member in listing.members:
        match = _FILES[edition.name].fullmatch(member.name)
        if match and match[1] in space.names:
            meta = {"labels": [space.ids[space.names.index(match[1])]], "label_names": [match[1]]}
            size = int(member.size * _STORED[edition.name])
            refs.append(SampleRef(key=match[2], split="all", members=(member,), bytes=size, meta=meta))
        elif match:
            rejected.append((member.name, f"'{match[1]}' is not one of the {len(space.names)} classes"))
    if not refs:
        raise archives.dataset_not_found(source, listing, _EXPECTED[edition.name])
    return SampleListing(refs=tuple(refs), edition=edition, labels=space, rejected=tuple(rejected))


@contextmanager
def open_source(source: Path, contract: Contract) -> Iterator[Callable[[SampleRef], Sample]]:
    """Open `source`; the function reads `image`, (13, 64, 64) uint16 or (3, 64, 64) uint8, or raises SourceError."""
    shape = cards.edition("eurosat", contract.version).shape
    decode, dtype = (_jpeg, "uint8") if contract.level == DISPLAY else (_geotiff, "uint16")
    with archives.open_archive(source) as content:

        def read(ref: SampleRef) -> Sample:
            # The order of bands is checked over all samples (`band_check`), since one cloud would fail a patch.
            pixels, place = decode(content(ref.members[0]))
            if pixels.shape != shape or pixels.dtype != dtype:
                raise SourceError(f"image is {pixels.dtype} {pixels.shape}, expected {dtype} {shape}")
            meta = {**ref.meta, **place, "source_id": ref.members[0].name}
            return Sample(key=ref.key, split=ref.split, arrays={"image": pixels}, meta=meta)

        yield read


def _geotiff(content: bytes) -> tuple[Array, dict[str, Any]]:
    picture = small_tiff.read(content)
    return np.asarray(picture.pixels), small_tiff.place_metadata(picture)


def _jpeg(content: bytes) -> tuple[Array, dict[str, Any]]:
    return small_jpeg.read(content), {}
