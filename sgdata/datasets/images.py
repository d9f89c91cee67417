"""Read the user's own images: a table with a GeoTIFF a row and, where there are labels, a mask or a class name.

The format of the table is that of `sgdata.datasets.sample_tables`, with the column `image`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sgdata.datasets import cards, sample_tables, table_rasters
from sgdata.datasets.types import SampleListing, SampleRef, ShardRecipe
from sgdata.errors import SettingError
from sgdata.types import Array, Contract, LabelSpace, Sample

IGNORE = 255
"""Value of masks that is no class, unless the table names another."""


def list_samples(source: Path, recipe: ShardRecipe) -> SampleListing:
    """List the rows of a table of images. Raises SettingError, SourceError."""
    table = sample_tables.read(source, ("image",))
    bands, nodata = table_rasters.read_bands_and_nodata(table)
    space = _label_space(table)
    refs = table_rasters.list_refs(table)
    if space.task == "single-label":
        ids = dict(zip(space.names, space.ids, strict=True))
        labelled = zip(refs, table.rows, strict=True)
        for ref, row in labelled:
            if row.label:
                ref.meta.update(labels=[ids[row.label]], label_names=[row.label])
    return SampleListing(
        refs=refs,
        edition=cards.edition("images", recipe.edition),
        labels=space,
        contract=sample_tables.contract(table, "images", space, bands, nodata),
        rejected=table.rejected,
        shared_files=table_rasters.find_sources(table),
    )


def _label_space(table: sample_tables.SampleTable) -> LabelSpace:
    """Return the label space that the table states: classes of masks or of whole images, or none."""
    document, labels = table.document, {row.label for row in table.rows if row.label}
    masked = any(row.mask for row in table.rows)
    if masked and labels:
        raise SettingError(f"{table.folder}: some rows have a mask, others a label; expected one kind in a table")
    if masked and not document.classes:
        raise SettingError(f"{table.folder}: masks without names; add classes = [...] to a TOML document")
    if not masked and not labels:
        return LabelSpace(name="none", task="none")
    names = document.classes or tuple(sorted(labels))
    if unknown := sorted(labels - set(names)):
        raise SettingError(
            f"{table.folder}: label {', '.join(unknown):.90} is not one of {', '.join(names):.200}; add it"
        )
    ids = tuple(range(len(names)))
    if not masked:
        return LabelSpace(name=document.name, task="single-label", ids=ids, names=names)
    ignore = IGNORE if document.ignore is None else document.ignore
    if ignore in ids:
        raise SettingError(f"{table.folder}: ignore is {ignore}, the value of class '{names[ignore]}'; change it")
    return LabelSpace(name=document.name, task="segmentation", ids=ids, names=names, ignore=ignore)


@contextmanager
def open_source(source: Path, contract: Contract) -> Iterator[Callable[[SampleRef], Sample]]:
    """Open the images of a table; the function reads `image` (C, H, W) and, in a table with masks, `mask` (H, W)."""
    with table_rasters.open_rasters(source.parent) as rasters:

        def read(ref: SampleRef) -> Sample:
            image, *masks = rasters(ref)
            arrays: dict[str, Array] = {"image": table_rasters.read_image(image, ref, contract)}
            if contract.label_space.task == "segmentation":
                # A row without a mask is unlabelled, so that a split may have both kinds.
                arrays["mask"] = np.full(arrays["image"].shape[1:], contract.label_space.ignore_index)
                if masks:
                    arrays["mask"] = table_rasters.read_mask(masks[0], ref)
            return Sample(key=ref.key, split=ref.split, arrays=arrays, meta=table_rasters.sample_metadata(image, ref))

        yield read
