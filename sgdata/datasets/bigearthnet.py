"""Read BigEarthNet-S2 v1 and v2: a folder per patch with one GeoTIFF per band at its native size.

Patch names are kept and not parsed as time or scene: in v1 zeros are missing and seconds reach 61. v1 labels are
names of the 43 classes in a JSON beside the bands; v2 labels, splits and countries are in `metadata.parquet`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import package_data, parquet_tables
from sgdata.datasets import archives, cards
from sgdata.datasets.types import SampleListing, SampleRef, ShardRecipe, SourceMember
from sgdata.errors import SourceError
from sgdata.rasters import small_tiff
from sgdata.types import Array, Contract, LabelSpace, Sample

PATCH_M = 1200
# v1 names have defects (five-digit times), so they are matched, but no field is taken from them.
_PATCH = {
    "v1": re.compile(r"S2[AB]_MSIL2A_\d{8}T\d{5,6}_\d{1,2}_\d{1,2}"),
    "v2": re.compile(r"S2[AB]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T\d{2}[A-Z]{3}_\d{2}_\d{2}"),
}
_COLUMNS: dict[str, parquet_tables.ColumnKind] = {
    "patch_id": "text", "labels": "texts", "split": "text", "country": "text",
}  # fmt: skip
_METADATA = {"official": "metadata.parquet", "snow and cloud": "metadata_for_patches_with_snow_cloud_or_shadow.parquet"}
# v2 has `validation` where most loaders expect `val` (torchgeo issue 2825).
_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_LABELS = "labels_metadata.json"
_STORED_BYTES = 230_000


def list_samples(source: Path, recipe: ShardRecipe) -> SampleListing:
    """List the patches of edition `v1` or `v2` in `source`.

    v2 takes labels and splits from the table of the recipe's `splits`, in or beside the source, and leaves out patches
    that it does not list; without the table every patch goes to `all`, without labels.
    """
    edition = cards.edition("bigearthnet", recipe.edition)
    space = cards.label_space("bigearthnet", recipe.labels)
    listing = archives.list_members(source)
    file_names = {*(f"{band}.tif" for band in edition.bands), _LABELS}
    patches: dict[str, dict[str, SourceMember]] = {}
    # Folders may be nested to any depth, so patches are recognised by their own name.
    for member in listing.members:
        folder, _, file = member.name.rpartition("/")
        patch = folder.rpartition("/")[2]
        name = file.removeprefix(f"{patch}_")
        # Keyed by folder: if a patch is here twice, bands of the two copies must not mix.
        if name in file_names and _PATCH[edition.name].fullmatch(patch):
            patches.setdefault(folder, {})[name] = member
    if not patches:
        expected = f"no patch folder of BigEarthNet {edition.name}; try --edition with the other edition"
        raise archives.dataset_not_found(source, listing, expected)
    notes: list[str] = []
    table = _METADATA.get(recipe.splits, "")
    metadata = _metadata(source, table) if edition.name == "v2" else {}
    if edition.name == "v2" and not metadata:
        notes.append(f"no {table or 'table'} in or beside {source.name}: samples have no labels")
        space = cards.label_space("bigearthnet", "none")
    named_patches = [(folder.rpartition("/")[2], members) for folder, members in patches.items()]
    listed_patches = [(name, members) for name, members in named_patches if not metadata or name in metadata]
    if len(listed_patches) < len(patches):
        notes.append(f"{len(patches) - len(listed_patches)} patches are not in {table}: left out")
    index = _class_ids(space)
    refs = tuple(_ref(name, members, metadata.get(name), index) for name, members in listed_patches)
    return SampleListing(refs=refs, edition=edition, labels=space, rejected=listing.rejected, notes=tuple(notes))


def _metadata(source: Path, name: str) -> dict[str, dict[str, Any]]:
    """Map patch names to rows of the table `name`; empty if there is no such file."""
    for folder in (source, source.parent):
        path = folder / name
        if name and path.is_file():
            table = parquet_tables.read(path, _COLUMNS, list(_COLUMNS))
            return {row["patch_id"]: row for row in table.to_pylist()}
    return {}


def _ref(
    name: str, of_name: Mapping[str, SourceMember], row: dict[str, Any] | None, index: Mapping[str, int | None]
) -> SampleRef:
    meta: dict[str, Any] = {}
    if row:
        meta = {**_labels(row["labels"], index), "country": row["country"]}
    members = tuple(member for _, member in sorted(of_name.items()))
    split = _SPLITS.get(row["split"], row["split"]) if row else "all"
    return SampleRef(key=name, split=split, members=members, bytes=_STORED_BYTES, meta=meta)


@contextmanager
def open_source(source: Path, contract: Contract) -> Iterator[Callable[[SampleRef], Sample]]:
    """Open `source`; the function reads `image_10m` (4, 120, 120), `image_20m` (6, 60, 60), `image_60m` (2, 20, 20)."""
    with archives.open_archive(source) as content:
        index = _class_ids(contract.label_space)
        yield lambda ref: _read(ref, content, contract, index)


def _read(ref: SampleRef, content: archives.Content, contract: Contract, index: Mapping[str, int | None]) -> Sample:
    members = {member.name.rpartition(f"/{ref.key}_")[2]: member for member in ref.members}
    missing = [band.name for band in contract.bands if f"{band.name}.tif" not in members]
    if missing:
        raise SourceError(f"band {', '.join(missing)} is missing, expected one file a band")
    groups: dict[str, list[Array]] = {}
    corners = set()
    meta: dict[str, Any] = {}
    for band in contract.bands:
        picture = small_tiff.read(content(members[f"{band.name}.tif"]))
        # 120, 60 and 20 pixels over the same 1200 m.
        side = PATCH_M // band.gsd_m
        if picture.pixels.shape != (1, side, side) or picture.pixels.dtype != np.uint16:
            actual = f"{picture.pixels.dtype} {picture.pixels.shape}"
            raise SourceError(f"{band.name} is {actual}, expected uint16 (1, {side}, {side})")
        # Bands of different sizes share only the upper left corner.
        if picture.georeference:
            corners.add(
                (picture.georeference.epsg, picture.georeference.transform[2], picture.georeference.transform[5])
            )
            meta = meta or small_tiff.place_metadata(picture)
        groups.setdefault(f"image_{band.gsd_m}m", []).append(picture.pixels[0])
    if len(corners) > 1:
        raise SourceError(f"bands have different corners {sorted(corners)}: expected one upper left corner")
    meta |= ref.meta
    if _LABELS in members:
        meta |= _parse_labels_json(content(members[_LABELS]), index)
    arrays = {name: np.stack(planes) for name, planes in groups.items()}
    return Sample(key=ref.key, split=ref.split, arrays=arrays, meta=meta)


def _parse_labels_json(content: bytes, index: Mapping[str, int | None]) -> dict[str, Any]:
    """Return labels, date and scene from a v1 `_labels_metadata.json`."""
    try:
        document = json.loads(content)
        names, date = list(map(str, document["labels"])), str(document["acquisition_date"])[:10]
        scene = str(document["tile_source"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"labels_metadata.json is damaged: {type(error).__name__}: {error}") from None
    return {**_labels(names, index), "date": date, "scene": scene}


def _class_ids(space: LabelSpace) -> dict[str, int | None]:
    """Map names of the 43 and of the 19 classes to ids of `space`; None for those of the 43 that the 19 drop."""
    id_of: dict[str, int | None] = dict(zip(space.names, space.ids, strict=True))
    # A table, since code for this mapping was once applied in the wrong order (torchgeo issue 1127).
    if len(space.ids) == 19:
        for row in package_data.table("bigearthnet_43_to_19"):
            id_of.setdefault(row["label43_as_in_v1_json"], id_of.get(row["label19"]))
    return id_of


def _labels(names: list[str], index: Mapping[str, int | None]) -> dict[str, Any]:
    """Return `labels`, the sorted ids, and `label_names`, the names as published."""
    # The label space 'none', of v2 without its table: an empty list would mean "no class".
    if not index:
        return {}
    unknown = [name for name in names if name not in index]
    if unknown:
        raise SourceError(f"labels {unknown!r:.120} are not in the label space, expected its {len(index)} names")
    ids = {index[name] for name in names} - {None}
    return {"labels": sorted(ids), "label_names": list(names)}
