"""Read EuroSAT with 13 bands: one GeoTIFF per patch in a folder per class, B8A stored last."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sgdata.datasets import archives, cards
from sgdata.datasets.types import SampleListing, SampleRef, ShardRecipe
from sgdata.errors import SourceError
from sgdata.rasters import small_tiff
from sgdata.types import Contract, Sample

# The older archive nests the classes in ds/images/remote_sensing/otherDatasets/sentinel_2/tif.
_FILE = re.compile(r"(?:.*/)?([A-Za-z]+)/(\1_\d+)\.(?i:tiff?)")
STORED_SHARE = 0.6


def find(source: Path, recipe: ShardRecipe) -> SampleListing:
    """List every `<Class>/<Class>_<n>.tif` at any depth of `source`; the split is `all`."""
    edition = cards.edition("eurosat", recipe.edition)
    space = cards.label_space("eurosat", recipe.labels)
    listing = archives.list_members(source)
    refs, rejected = [], list(listing.rejected)
    for member in listing.members:
        match = _FILE.fullmatch(member.name)
        if match and match[1] in space.names:
            meta = {"labels": [space.ids[space.names.index(match[1])]], "label_names": [match[1]]}
            size = int(member.size * STORED_SHARE)
            refs.append(SampleRef(key=match[2], split="all", members=(member,), bytes=size, meta=meta))
        elif match:
            rejected.append((member.name, f"'{match[1]}' is not one of the {len(space.names)} classes"))
    if not refs:
        raise archives.no_dataset(source, listing, "no AnnualCrop/AnnualCrop_1.tif; expected EuroSAT_MS as distributed")
    return SampleListing(refs=tuple(refs), edition=edition, labels=space, rejected=tuple(rejected))


@contextmanager
def open_source(source: Path, contract: Contract) -> Iterator[Callable[[SampleRef], Sample]]:
    """Open `source`; the function reads `image` (13, 64, 64) uint16, or raises SourceError."""
    shape = cards.edition("eurosat", contract.version).shape
    with archives.open_archive(source) as content:

        def read(ref: SampleRef) -> Sample:
            # The order of bands is checked over all samples (`band_check`), since one cloud would fail a patch.
            picture = small_tiff.read(content(ref.members[0]))
            if picture.pixels.shape != shape or picture.pixels.dtype != np.uint16:
                actual = f"{picture.pixels.dtype} {picture.pixels.shape}"
                raise SourceError(f"image is {actual}, expected uint16 {shape}")
            meta = {**ref.meta, **small_tiff.place_metadata(picture), "source_id": ref.members[0].name}
            return Sample(key=ref.key, split=ref.split, arrays={"image": picture.pixels}, meta=meta)

        yield read
