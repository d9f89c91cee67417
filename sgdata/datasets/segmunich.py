"""Read SegMunich: the patches of a build, or the released archive (`TUM_128`).

The released images are TIFFs of 128 x 128 pixels, float32 with whole numbers, B02 B03 B04 B08 first and then the 20 m
bands (measured; the published orders differ). They are stored as uint16 with the bands in wavelength order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sgdata import files, output_names, package_data
from sgdata.datasets import archives, build_patches, cards
from sgdata.datasets.types import SampleListing, SampleRef, ShardRecipe, SourceMember
from sgdata.errors import SettingError, SourceError
from sgdata.rasters import dihedral, small_tiff
from sgdata.shards import contracts
from sgdata.types import Array, Contract, Sample

STORED_SHARE = 0.7
"""Share of the raw bytes that remains after bitshuffle and lz4, about."""


def list_samples(source: Path, recipe: ShardRecipe) -> SampleListing:
    """List the samples of a build folder (it has a table of patches) or of the released archive."""
    if (source / output_names.PATCHES).is_file():
        return _list_build(source, recipe.labels)
    return _list_released(source, recipe)


@contextmanager
def open_source(source: Path, contract: Contract) -> Iterator[Callable[[SampleRef], Sample]]:
    """Open `source`; the function reads `image` (C, H, W) and `mask` (H, W), or raises SourceError."""
    if (source / output_names.PATCHES).is_file():
        with ExitStack() as stack:
            images = {name: stack.enter_context(build_patches.open_raster(source / name)) for name in _rasters(source)}
            yield lambda ref: _read_patch(ref, images)
    else:
        shape = (len(contract.bands), 128, 128)
        index = index_of_file_value()
        with archives.open_archive(source) as content:
            yield lambda ref: _read_released(ref, content, shape, index)


# --- a build -----------------------------------------------------------------------


def _list_build(source: Path, labels: str) -> SampleListing:
    members = tuple(SourceMember(name=name, size=(source / name).stat().st_size) for name in _rasters(source))
    contract = contracts.read(source)
    # The shipped recipe names the labels of the released patches; any other value was chosen by the user.
    painted = contract.label_space.name
    if labels not in {painted, "segmunich-released"}:
        raise SettingError(f"{source}: labels '{labels}': this build has labels '{painted}'; expected those")
    refs = build_patches.list_patches(source / output_names.PATCHES, members, 2 * len(contract.bands) * STORED_SHARE)
    if place := build_patches.place_of(source):
        refs = tuple(replace(ref, meta=ref.meta | {"place": place}) for ref in refs)
    edition = cards.edition("segmunich", "build")
    return SampleListing(refs=refs, edition=edition, labels=contract.label_space, contract=contract)


def _rasters(source: Path) -> list[str]:
    """List the rasters to cut patches from; a build without OpenStreetMap has no labels."""
    files.require_file(source / output_names.IMAGE, "a finished build folder of 'sgdata build segmunich'")
    files.require_finished(source)
    return (
        [output_names.IMAGE, output_names.LABELS] if (source / output_names.LABELS).is_file() else [output_names.IMAGE]
    )


def _read_patch(ref: SampleRef, images: dict[str, Any]) -> Sample:
    window = ref.meta["window"]
    arrays = {"image": build_patches.read_window(images[output_names.IMAGE], window)}
    if output_names.LABELS in images:
        arrays["mask"] = build_patches.read_window(images[output_names.LABELS], window)[0]
    meta = {**ref.meta, "crs": str(images[output_names.IMAGE].crs)}
    return Sample(key=ref.key, split=ref.split, arrays=arrays, meta=meta)


# --- the released archive ------------------------------------------------------------------


def _list_released(source: Path, recipe: ShardRecipe) -> SampleListing:
    """List `[TUM_128/]{train,val,test}/{img,label}/<id>.tif`; images without a label are rejected.

    The released splits have about ten rotated and mirrored copies of each window, also across splits. Copies share the
    `group` of their meta; copies of a training window are left out of val and test unless the recipe's splits are
    `released`.
    """
    edition = cards.edition("segmunich", "released")
    listing = archives.list_members(source)
    images: dict[tuple[str, str], SourceMember] = {}
    labels: dict[tuple[str, str], SourceMember] = {}
    for member in listing.members:
        parts = PurePosixPath(member.name).parts
        # The authors' training script reads test/, the archive has val/.
        if len(parts) >= 3 and parts[-1].endswith(".tif") and parts[-3] in ("train", "val", "test"):
            kind = {"img": images, "label": labels}.get(parts[-2])
            if kind is not None:
                kind[parts[-3], parts[-1].removesuffix(".tif")] = member
    if not images:
        expected = f"neither a build ({output_names.PATCHES}) nor the released train/img/<id>.tif"
        raise archives.dataset_not_found(source, listing, expected)
    size = int(128 * 128 * 2 * len(edition.bands) * STORED_SHARE)
    refs = []
    for split, name in (split_and_name for split_and_name in images if split_and_name in labels):
        # Ids of copies may have any characters; a dot or a blank would end the key of a tar member.
        key = f"{split}-{re.sub(r'[^A-Za-z0-9_-]', '-', name)}"
        members = (images[split, name], labels[split, name])
        refs.append(SampleRef(key=key, split=split, members=members, bytes=size))
    unlabelled = tuple(
        (images[split_and_name].name, "image without label") for split_and_name in sorted(images.keys() - labels.keys())
    )
    space = cards.label_space("segmunich", "segmunich-released")
    grouped = _add_groups(refs, source)
    # Copies within train are kept, as published; they can be recognised by their group.
    training_groups = {ref.meta["group"] for ref in grouped if ref.split == "train"}
    as_published = recipe.splits == "released"
    selected = tuple(r for r in grouped if as_published or r.split == "train" or r.meta["group"] not in training_groups)
    copies = len(grouped) - len({ref.meta["group"] for ref in grouped})
    notes = []
    if copies and not as_published:
        notes.append(f"{len(grouped) - len(selected)} copies of training patches in val or test: left out")
    if copies:
        notes.append(f"{copies} of {len(grouped)} patches are copies of another, turned or mirrored")
    rejected = listing.rejected + unlabelled
    return SampleListing(refs=selected, edition=edition, labels=space, rejected=rejected, notes=tuple(notes))


def _add_groups(refs: list[SampleRef], source: Path) -> list[SampleRef]:
    """Return the refs with a hash of the pixels that rotation and mirroring do not change, as their `group`."""
    grouped = []
    with archives.open_archive(source) as content:
        for ref in refs:
            try:
                group = dihedral.d4_hash(small_tiff.read(content(ref.members[0])).pixels)
            except SourceError:  # goes into the quarantine list when the sample is packed
                group = ref.key
            grouped.append(replace(ref, meta={"group": group}))
    return grouped


def index_of_file_value() -> Array:
    """Return the train index of each file value, (256,) int16, -1 for values that the released labels lack."""
    # Of all 256 values, so that unknown ones are refused; the original code passes them to the loss.
    index = np.full(256, -1, np.int16)
    for row in package_data.table("segmunich_labels"):
        index[int(row["file_value"])] = int(row["train_index"])
    return index


def _read_released(ref: SampleRef, content: archives.Content, shape: tuple[int, int, int], index: Array) -> Sample:
    image, codes = (small_tiff.read(content(member)).pixels for member in ref.members)
    if image.shape != shape:
        raise SourceError(f"image is {image.shape}, expected {shape}")
    # Compared before the cast, which is undefined for NaN and values out of range.
    if image.dtype.kind not in "uif" or not ((image >= 0) & (image <= 65_535) & (image == np.floor(image))).all():
        raise SourceError("image holds values that are not whole numbers in 0..65535")
    pixels = image.astype(np.uint16)
    if codes.shape != (1, 128, 128) or codes.dtype.kind not in "ui":
        raise SourceError(f"label is {codes.dtype} {codes.shape}, expected whole numbers (1, 128, 128)")
    if codes.min() < 0 or codes.max() > 255 or (index[codes] < 0).any():
        raise SourceError(
            f"label values {np.unique(codes).tolist()[:20]} are not all SegMunich codes, expected those alone"
        )
    arrays = {"image": pixels, "mask": index[codes[0]].astype(np.uint8)}
    return Sample(key=ref.key, split=ref.split, arrays=arrays, meta={**ref.meta, "source_id": ref.members[0].name})
