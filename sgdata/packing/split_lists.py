"""Assign samples to splits: by the user's lists, by published lists, or by a split table of the catalogue."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdata import package_data
from sgdata.errors import SettingError

if TYPE_CHECKING:
    from sgdata.datasets.types import SampleListing, ShardRecipe, SplitSet
    from sgdata.splits.split_table import PublishedList, SplitTable

Assignment = Mapping[str, tuple[str, tuple[str, ...]]]
"""Sample key to its split and the label budgets that have it."""


def assign_set(listing: SampleListing, recipe: ShardRecipe, source: Path, folder: Path | None) -> SampleListing:
    """Return the samples under the splits of the recipe's split set.

    Args:
        listing: Samples, under the split `all` or those of the files.
        recipe: Recipe, whose `splits` names a split set of the card or a column of the split table.
        source: Path of the dataset, in or beside which published lists are sought.
        folder: Folder with published lists or a split table, in place of these places and of the catalogue.

    Raises:
        SettingError: There is no such split set, a list cannot be read, or the lists are not the published ones.
    """
    if folder is not None and not folder.is_dir():
        raise SettingError(
            f"--splits {folder}: no such folder; give the folder of the lists, and the name of a split set as --split"
        )
    name, table = recipe.splits, find_table(recipe.dataset, folder)
    split_set = next((candidate for candidate in listing.edition.splits if candidate.name == name), None)
    if name and split_set is None:
        if table is None or name not in table.columns:
            known_names = [candidate.name for candidate in listing.edition.splits] + list(
                table.columns if table else ()
            )
            names = ", ".join(known_names) or "none; leave --split out"
            raise SettingError(f"splits = '{name}': edition {listing.edition.name} has no such splits; known: {names}")
        return assign(listing, table.assignment(name))
    lists = find_lists(split_set, (folder,) if folder else (source, source.parent)) if split_set else {}
    if split_set and split_set.files and folder and not lists:
        raise SettingError(
            f"--splits {folder}: lacks a list of '{name}': {', '.join(split_set.files.values())}; add them"
        )
    if not lists:
        notes = listing.notes
        if {ref.split for ref in listing.refs} == {"all"}:
            notes = (*notes, "no split list: every sample went to the split 'all'")
        return replace(listing, notes=notes)
    if table:
        check_published(lists, name, table.header.published)
    return assign(listing, read_lists(lists))


def find_table(dataset: str, folder: Path | None) -> SplitTable | None:
    """Return the split table of a dataset, from a folder or else from the catalogue; None if there is none."""
    from sgdata.splits import split_table

    for directory in (folder, package_data.folder("catalogs") / "splits"):
        if directory and (path := directory / f"{dataset}{split_table.SUFFIX}").is_file():
            return split_table.read(path)
    return None


def find_lists(split_set: SplitSet, folders: tuple[Path, ...]) -> dict[str, Path]:
    """Return the published lists by split from the first folders that have them; none unless all of them are there."""
    lists: dict[str, Path] = {}
    for split, file in split_set.files.items():
        for path in (folder / name for folder in folders for name in (file, file.removesuffix(".gz"))):
            if path.is_file():
                lists.setdefault(split, path)
    # An incomplete set is ignored: with train but without val, the samples of val would be left out.
    return lists if len(lists) == len(split_set.files) else {}


def check_published(lists: Mapping[str, Path], name: str, published_lists: tuple[PublishedList, ...]) -> None:
    """Refuse lists that differ from the published ones of which count and SHA-256 are known. Raises SettingError."""
    for published in published_lists:
        if published.name == name and published.split in lists:
            keys = read_keys(lists[published.split])
            if not published.matches(keys):
                raise SettingError(
                    f"{lists[published.split]}: {len(keys)} samples that are not those of the published list '{name}' "
                    f"{published.split} ({published.samples}, SHA-256 {published.sha256[:16]}); get it again, or give "
                    f"your own list as --split-list {published.split}=FILE"
                )


def read_lists(lists: Mapping[str, Path]) -> Assignment:
    """Return the assignment of lists by split. Raises SettingError."""
    split_of: dict[str, tuple[str, tuple[str, ...]]] = {}
    for split, path in lists.items():
        for key in read_keys(path):
            # A sample in two splits is a leak.
            if split_of.setdefault(key, (split, ()))[0] != split:
                raise SettingError(f"{path}: '{key}' is also in the list of split '{split_of[key][0]}'; keep it in one")
    return split_of


def assign(listing: SampleListing, split_of: Assignment) -> SampleListing:
    """Return the samples under their splits, with budgets; those without one are left out, with a note."""
    refs = []
    for ref in listing.refs:
        if ref.key in split_of:
            split, budgets = split_of[ref.key]
            meta: dict[str, Any] = {**ref.meta, "budgets": list(budgets)} if budgets else ref.meta
            refs.append(replace(ref, split=split, meta=meta))
    unlisted = len(listing.refs) - len(refs)
    absent = len(split_of.keys() - {ref.key for ref in refs})
    notes = listing.notes
    if unlisted:
        notes = (*notes, f"{unlisted} samples are in no split list: left out")
    if absent:
        notes = (*notes, f"{absent} keys of the split lists are not in the source")
    return replace(listing, refs=tuple(refs), notes=notes)


def read_keys(path: Path) -> list[str]:
    """Return the sample keys of a split list: the first column of each line, without folders and file suffix."""
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingError(
            f"{path}: cannot be read ({reason}); expected a text file with one sample key per line"
        ) from None
    # BigEarthNet lists pairs `S2,S1`; EuroSAT lists `River_1.jpg`, of the RGB edition, for the same stems, or
    # `tif/River/River_1.tif 9` with the class.
    names = [re.split(r"[,\s]", line.strip(), maxsplit=1)[0] for line in lines if line.strip()]
    return [name.rpartition("/")[2].removesuffix(".jpg").removesuffix(".tif") for name in names]
