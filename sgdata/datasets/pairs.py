"""Read pairs of dates with a change map: two builds of one area and a raster of changes, named by a TOML file.

    before = "build-2020"
    after = "build-2022"
    change = "archive/truth/change.tif"

Paths are relative to that file. The patches and their split are those of the first build; a change is any value of
the map above 0. Pixels without data on either date are unlabelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files
from sgdata.datasets import build_patches, cards
from sgdata.datasets.types import SampleListing, SampleRef, ShardRecipe, SourceMember
from sgdata.errors import SourceError
from sgdata.rasters import geotiff, grids, opening
from sgdata.shards import contracts, statistics
from sgdata.types import Array, Contract, Sample

_STORED_SHARE = 0.7


@dataclass(frozen=True, kw_only=True)
class PairPaths:
    """Document of a pair; paths are relative to it.

    Attributes:
        before: build of the first date.
        after: build of the second date.
        change: raster of the change map.
    """

    before: str
    after: str
    change: str


def find(source: Path, recipe: ShardRecipe) -> SampleListing:
    """List the patches of the first build. Raises SettingError, or SourceError if the two builds do not agree."""
    before, after, change = _paths(source)
    ours, theirs = contracts.read(before), contracts.read(after)
    # Two dates must agree in the same fields as data and the weights of a model.
    differ = contracts.find_differences(theirs, ours, "fine-tune")
    if differ:
        raise SourceError(f"{after}: differs from {before} in {', '.join(differ)}; build both alike")
    members = tuple(
        SourceMember(name=name, size=path.stat().st_size)
        for name, path in (("before", before / files.IMAGE), ("after", after / files.IMAGE))
    )
    refs = build_patches.list_patches(before / files.PATCHES, members, 4 * len(ours.bands) * _STORED_SHARE)
    space = cards.label_space("pairs", recipe.labels)
    # Statistics of both dates are computed from the samples.
    contract = replace(ours, dataset="pairs", label_space=space, statistics={}, splits={}, fingerprint="")
    return SampleListing(
        refs=refs,
        edition=cards.edition("pairs", recipe.edition),
        labels=space,
        contract=contract,
        read=(before / files.IMAGE, after / files.IMAGE, *opening.files_of(change)),
    )


@contextmanager
def open_source(source: Path, contract: Contract) -> Iterator[Callable[[SampleRef], Sample]]:
    """Open both builds and the map; the function reads `image_before`, `image_after` (C, H, W), `mask` (H, W)."""
    before, after, change = _paths(source)
    with ExitStack() as stack:
        paths = (before / files.IMAGE, after / files.IMAGE, change)
        # The user names the map, which may be a virtual raster.
        uses: tuple[opening.Use, ...] = ("output", "output", "user")
        opened = [build_patches.open_raster(path, use=use) for path, use in zip(paths, uses, strict=True)]
        rasters = [stack.enter_context(one) for one in opened]
        first = geotiff.read_header(rasters[0]).grid
        # Windows are in pixels, so a shifted raster would be read without an error.
        for raster in rasters:
            if differ := grids.find_differences(geotiff.read_header(raster).grid, first):
                place = f"{raster.shape} at {raster.transform[2]:g}, {raster.transform[5]:g}"
                message = f"{raster.name}: {place} is another grid than that of {paths[0]}"
                raise SourceError(f"{message}: {'; '.join(differ)}")
        yield lambda ref: _read(ref, rasters, contract.nodata)


def _read(ref: SampleRef, rasters: list[Any], nodata: int | None) -> Sample:
    first, second, change = (build_patches.read_window(raster, ref.meta["window"]) for raster in rasters)
    unknown = np.ma.getmaskarray(change)[0]
    for image in (first, second):  # a change is unknown if either date has no data
        known = statistics.seen(np.ma.getdata(image), nodata) & ~np.ma.getmaskarray(image)
        unknown = unknown | ~known.all(axis=0)
    mask: Array = np.ma.MaskedArray((np.ma.getdata(change)[0] > 0).astype(np.uint8), unknown)
    arrays = {"image_before": first, "image_after": second, "mask": mask}
    return Sample(key=ref.key, split=ref.split, arrays=arrays, meta={**ref.meta, "crs": str(rasters[0].crs)})


def _paths(source: Path) -> tuple[Path, Path, Path]:
    pair = files.read(PairPaths, source)
    before, after, change = (source.parent / path for path in (pair.before, pair.after, pair.change))
    for build in (before, after):
        files.require_finished(build)
    return before, after, files.require_file(change, "the change map that the pair names")
