"""SegMunich as samples: the patches of a build of ours, or the released archive (`TUM_128`).

The released images are 128-page TIFFs of float32 whole numbers, B02 B03 B04 B08 first and then the 20 m bands
(measured; the published orders differ). They are stored as uint16 with the bands in wavelength order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sgdata import catalog, files
from sgdata.datasets import archives, build_patches, cards
from sgdata.datasets.types import Member, SampleListing, SampleRef, ShardRecipe
from sgdata.errors import SettingError, SourceError
from sgdata.rasters import dihedral, small_tiff
from sgdata.shards import contracts
from sgdata.types import Array, Contract, Sample

STORED_SHARE = 0.7
"""Of the raw bytes, about what bitshuffle and lz4 leave."""


def find(source: Path, recipe: ShardRecipe) -> SampleListing:
    """The samples of a build folder (it holds `patches.parquet`) or of the released archive."""
    if (source / files.PATCHES).is_file():
        return _find_in_build(source, recipe.labels)
    return _find_released(source, recipe)


@contextmanager
def reading(source: Path, contract: Contract) -> Iterator[Callable[[SampleRef], Sample]]:
    """Open `source`; the function reads `image` (C, H, W) and `mask` (H, W), or raises SourceError."""
    if (source / files.PATCHES).is_file():
        with ExitStack() as stack:
            images = {name: stack.enter_context(_opened(source / name)) for name in _held(source)}
            yield lambda ref: _read_patch(ref, images)
    else:
        stored = cards.edition("segmunich", contract.version).bands
        # Measured on the files: 10 m bands first. The paper, two cards and the authors give three other orders.
        order = [stored.index(band.name) for band in contract.bands]
        index = _index_of_file_value()
        with archives.opened(source) as content:
            yield lambda ref: _read_released(ref, content, order, index)


# --- a build of ours -----------------------------------------------------------------------


def _find_in_build(source: Path, labels: str) -> SampleListing:
    members = tuple(Member(name=name, size=(source / name).stat().st_size) for name in _held(source))
    contract = contracts.read(source)
    # The shipped recipe names those of the released patches; whatever else it names was asked for.
    painted = contract.label_space.name
    if labels not in {painted, "segmunich-released"}:
        raise SettingError(f"{source}: labels '{labels}': this build was painted with '{painted}', and keeps them")
    refs = build_patches.refs(source / files.PATCHES, members, 2 * len(contract.bands) * STORED_SHARE)
    edition = cards.edition("segmunich", "build")
    return SampleListing(refs=refs, edition=edition, labels=contract.label_space, contract=contract)


def _held(source: Path) -> list[str]:
    """The rasters that patches are cut from; a build without OpenStreetMap has no labels."""
    files.existing(source / files.IMAGE, "a finished build folder of 'sgdata build segmunich'")
    return [files.IMAGE, files.LABELS] if (source / files.LABELS).is_file() else [files.IMAGE]


def _opened(path: Path) -> Any:
    import rasterio
    from rasterio.errors import RasterioError

    try:
        return rasterio.open(path)
    except RasterioError as error:
        raise SourceError(f"{path}: not a readable raster: {error}; build it again") from None


def _read_patch(ref: SampleRef, images: dict[str, Any]) -> Sample:
    import rasterio.windows
    from rasterio.errors import RasterioError

    row, col, height, width = ref.meta["window"]
    window = rasterio.windows.Window(col, row, width, height)
    try:
        arrays = {"image": images[files.IMAGE].read(window=window)}
        if files.LABELS in images:
            arrays["mask"] = images[files.LABELS].read(1, window=window)
    except RasterioError as error:
        raise SourceError(f"window {ref.meta['window']} cannot be read: {error}") from None
    meta = {**ref.meta, "crs": str(images[files.IMAGE].crs)}
    return Sample(key=ref.key, split=ref.split, arrays=arrays, meta=meta)


# --- the released archive ------------------------------------------------------------------


def _find_released(source: Path, recipe: ShardRecipe) -> SampleListing:
    """`[TUM_128/]{train,val,test}/{img,label}/<id>.tif`; an image without label is rejected.

    The released sets hold some ten turned and mirrored copies of each window, on both sides of the split. Copies
    share the `group` of their meta, and of a window that train holds none is left in val or test, unless the recipe
    asks for the splits `released`, leaks and all.
    """
    edition = cards.edition("segmunich", "released")
    listing = archives.listing(source)
    images: dict[tuple[str, str], Member] = {}
    labels: dict[tuple[str, str], Member] = {}
    for member in listing.members:
        parts = PurePosixPath(member.name).parts
        # The training script asks for test/, the archive holds val/.
        if len(parts) >= 3 and parts[-1].endswith(".tif") and parts[-3] in ("train", "val", "test"):
            kind = {"img": images, "label": labels}.get(parts[-2])
            if kind is not None:
                kind[parts[-3], parts[-1].removesuffix(".tif")] = member
    if not images:
        raise archives.nothing(
            source, listing, f"neither a build ({files.PATCHES}) nor the released train/img/<id>.tif"
        )
    refs = [
        SampleRef(
            # Ids of the copies are not known beforehand; a dot or a blank would end the key of a tar member.
            key=f"{split}-{re.sub(r'[^A-Za-z0-9_-]', '-', name)}",
            split=split,
            members=(member, labels[split, name]),
            bytes=int(128 * 128 * 2 * len(edition.bands) * STORED_SHARE),
        )
        for (split, name), member in images.items()
        if (split, name) in labels
    ]
    alone = tuple((images[at].name, "image without label") for at in sorted(images.keys() - labels.keys()))
    space = cards.label_space("segmunich", "segmunich-released")
    grouped = _grouped(refs, source)
    # Copies within train are kept: they are what was published; their group tells.
    trained = {ref.meta["group"] for ref in grouped if ref.split == "train"}
    as_published = recipe.splits == "released"
    kept = tuple(r for r in grouped if as_published or r.split == "train" or r.meta["group"] not in trained)
    notes = [f"{len(grouped) - len(kept)} copies of training patches in val or test: left out"] * (not as_published)
    copies = len(grouped) - len({ref.meta["group"] for ref in grouped})
    notes += [f"{copies} of {len(grouped)} patches are copies of another, turned or mirrored"]
    told = tuple(notes) if copies else ()
    return SampleListing(refs=kept, edition=edition, labels=space, rejected=listing.rejected + alone, notes=told)


def _grouped(refs: list[SampleRef], source: Path) -> list[SampleRef]:
    """The refs with the pixel hash of their image, whichever way it is turned; an unreadable one is its own group."""
    grouped = []
    with archives.opened(source) as content:
        for ref in refs:
            try:
                group = dihedral.d4_hash(small_tiff.read(content(ref.members[0])).pixels)
            except SourceError:  # told, and listed, when the sample is packed
                group = ref.key
            grouped.append(replace(ref, meta={"group": group}))
    return grouped


def _index_of_file_value() -> Array:
    """File value -> train index, (256,) int16, -1 where the released labels know no such value."""
    # A table of all 256 values: an unknown one is refused, the original code passes it to the loss.
    index = np.full(256, -1, np.int16)
    for row in catalog.table("segmunich_labels"):
        index[int(row["file_value"])] = int(row["train_index"])
    return index


def _read_released(ref: SampleRef, content: archives.Content, order: list[int], index: Array) -> Sample:
    image, codes = (small_tiff.read(content(member)).pixels for member in ref.members)
    if image.shape != (len(order), 128, 128):
        raise SourceError(f"image is {image.shape}, expected ({len(order)}, 128, 128)")
    # Compared before the cast, which is undefined for what uint16 cannot hold, NaN among it.
    if image.dtype.kind not in "uif" or not ((image >= 0) & (image <= 65_535) & (image == np.floor(image))).all():
        raise SourceError("image holds values that are not whole numbers in 0..65535")
    whole = image.astype(np.uint16)
    if codes.shape != (1, 128, 128) or codes.dtype.kind not in "ui":
        raise SourceError(f"label is {codes.dtype} {codes.shape}, expected whole numbers (1, 128, 128)")
    if codes.min() < 0 or codes.max() > 255 or (index[codes] < 0).any():
        raise SourceError(f"label values {np.unique(codes).tolist()[:20]} are not all SegMunich codes")
    arrays = {"image": whole[order], "mask": index[codes[0]].astype(np.uint8)}
    return Sample(key=ref.key, split=ref.split, arrays=arrays, meta={**ref.meta, "source_id": ref.members[0].name})
