"""Read pairs of dates with a change map: a table with two GeoTIFFs a row, or two builds of one area.

The format of a table is that of `sgdata.datasets.sample_tables`, with the columns `before` and `after`. Two builds are
named by a TOML file, relative to itself:

    before = "build-2020"
    after = "build-2022"
    change = "archive/truth/change.tif"

Their patches and the split are those of the first build. A change is any value of the map above 0. Pixels without data
on either date are unlabelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sgdata import files, output_names
from sgdata.datasets import build_patches, cards, sample_tables, table_rasters
from sgdata.datasets.types import SampleListing, SampleRef, ShardRecipe, SourceMember
from sgdata.errors import SettingError, SourceError
from sgdata.rasters import allowed_formats
from sgdata.shards import contracts, statistics
from sgdata.types import Array, Contract, LabelSpace, Sample

_STORED_SHARE = 0.7


@dataclass(frozen=True, kw_only=True)
class PairPaths:
    """Document of a pair of builds; paths are relative to it.

    Attributes:
        before: Build of the first date.
        after: Build of the second date.
        change: Raster of the change map.
    """

    before: str
    after: str
    change: str


def list_samples(source: Path, recipe: ShardRecipe) -> SampleListing:
    """List the rows of a table, or the patches of the first of two builds. Raises SettingError, SourceError."""
    files.require_file(source, "a table of pairs, or a TOML file that names two builds")
    if source.suffix not in (".csv", ".parquet") and "change" in files.read_plain(source):
        return _list_pair(source, recipe)
    table = sample_tables.read(source, ("before", "after"))
    bands, nodata = table_rasters.read_bands_and_nodata(table)
    space = _label_space(table, cards.label_space("pairs", recipe.labels))
    return SampleListing(
        refs=table_rasters.list_refs(table),
        edition=cards.edition("pairs", recipe.edition),
        labels=space,
        contract=sample_tables.contract(table, "pairs", space, bands, nodata),
        rejected=table.rejected,
        shared_files=table_rasters.find_sources(table),
    )


def _label_space(table: sample_tables.SampleTable, default: LabelSpace) -> LabelSpace:
    names = table.document.classes or default.names
    if len(names) != 2:
        raise SettingError(f"{table.folder}: classes is {list(names)}: expected two names, unchanged and changed")
    if any(row.label for row in table.rows):
        raise SettingError(f"{table.folder}: label is a column of images; give pairs a mask of what changed")
    if not any(row.mask for row in table.rows):
        return LabelSpace(name="none", task="none")
    return replace(default, names=names)


def _list_pair(source: Path, recipe: ShardRecipe) -> SampleListing:
    pair = files.read(PairPaths, source)
    before, after = (source.parent / path for path in (pair.before, pair.after))
    for build in (before, after):
        files.require_finished(build)
    change = files.require_file(source.parent / pair.change, "the change map that the pair names")
    ours, theirs = contracts.read(before), contracts.read(after)
    # Two dates must agree in the same fields as data and the weights of a model.
    differ = contracts.find_differences(theirs, ours, "fine-tune")
    if differ:
        raise SourceError(f"{after}: differs from {before} in {', '.join(differ)}; build both alike")
    names = (f"{pair.before}/{output_names.IMAGE}", f"{pair.after}/{output_names.IMAGE}", pair.change)
    members = tuple(SourceMember(name=name, size=(source.parent / name).stat().st_size) for name in names)
    refs = build_patches.list_patches(before / output_names.PATCHES, members, 4 * len(ours.bands) * _STORED_SHARE)
    space = cards.label_space("pairs", recipe.labels)
    # Statistics of both dates are computed from the samples.
    contract = replace(ours, dataset="pairs", label_space=space, statistics={}, splits={}, fingerprint="")
    return SampleListing(
        refs=refs,
        edition=cards.edition("pairs", recipe.edition),
        labels=space,
        contract=contract,
        shared_files=tuple(allowed_formats.files_of(change)[1:]),
    )


@contextmanager
def open_source(source: Path, contract: Contract) -> Iterator[Callable[[SampleRef], Sample]]:
    """Open the pairs; the function reads `image_before`, `image_after` (C, H, W) and, with masks, `mask` (H, W)."""
    with table_rasters.open_rasters(source.parent) as rasters:
        yield lambda ref: _read(ref, rasters(ref), contract)


def _read(ref: SampleRef, rasters: table_rasters.Rasters, contract: Contract) -> Sample:
    first, second = (table_rasters.read_image(raster, ref, contract) for raster in rasters[:2])
    arrays: dict[str, Array] = {"image_before": first, "image_after": second}
    if contract.label_space.task == "change":
        no_data = np.zeros(first.shape[1:], bool)
        for image in (first, second):  # a change is unknown if either date has no data
            valid = statistics.valid_mask(np.ma.getdata(image), contract.nodata) & ~np.ma.getmaskarray(image)
            no_data = no_data | ~valid.all(axis=0)
        # A row without a map is unlabelled, so that a split may have both kinds.
        change: Array = np.ma.MaskedArray(np.zeros(no_data.shape, np.uint8), mask=True)
        if len(rasters) > 2:
            change = table_rasters.read_mask(rasters[2], ref)
        changed = (np.ma.getdata(change) > 0).astype(np.uint8)
        arrays["mask"] = np.ma.MaskedArray(changed, no_data | np.ma.getmaskarray(change))
    return Sample(key=ref.key, split=ref.split, arrays=arrays, meta=table_rasters.sample_metadata(rasters[0], ref))
