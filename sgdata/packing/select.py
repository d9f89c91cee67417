"""Select the samples of a dataset to pack and the contract that they must satisfy; reads no pixel."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sgdata import catalog, files
from sgdata.datasets import archives, cards
from sgdata.datasets.types import Edition, SampleListing, SampleRef, ShardRecipe
from sgdata.errors import SettingError
from sgdata.rasters import resample
from sgdata.types import Contract


def recipe_for(dataset: str, overrides: Sequence[str] = ()) -> ShardRecipe:
    """Return the recipe of a dataset that comes with the package, with some settings overridden.

    Args:
        dataset: Name of the dataset.
        overrides: `key=value` texts, applied in order.

    Raises:
        SettingError: The dataset has no recipe, or an override is unknown or has a wrong type.
    """
    shipped = {path.stem: path for path in (catalog.folder("recipes") / "shard").glob("*.toml")}
    if dataset not in shipped:
        raise SettingError(f"no reader for dataset '{dataset}'; known: {', '.join(sorted(shipped))}")
    return files.read(ShardRecipe, shipped[dataset], overrides)


def list_samples(
    recipe: ShardRecipe,
    source: Path | None,
    find: Callable[[Path, ShardRecipe], SampleListing],
    *,
    splits: Mapping[str, Path] | None = None,
    leave_out: Sequence[Path] = (),
) -> tuple[Path, SampleListing, Contract]:
    """List the samples of a source under their splits, without reading a pixel.

    Args:
        recipe: Recipe of the dataset.
        source: Folder, zip or tar; default the recipe's.
        find: Function of the dataset's reader.
        splits: Split name to a file of sample keys; default the published lists, where they are complete.
        leave_out: Files of sample keys to skip.

    Returns:
        The path of the files (the compressed tar where `source` is a folder that holds one), the listing, and the
        contract without statistics.

    Raises:
        SettingError: A wrong recipe or list.
        SourceError: The source does not hold the dataset.
    """
    source = _archive_in(source or Path(recipe.source), recipe)
    listing = _without(find(source, recipe), leave_out)
    lists = splits or _published_lists(listing.edition, recipe.splits, source)
    listing = _reject_duplicates(_apply_lists(listing, lists))
    contract = listing.contract or cards.contract_of(
        recipe.dataset,
        listing.edition,
        listing.labels,
        resampling=listing.edition.resampling or recipe.kernel,
        resampling_version=resample.VERSION,
    )
    return source, listing, contract


def _archive_in(source: Path, recipe: ShardRecipe) -> Path:
    """Return the compressed tar of the card in a folder written by `sgdata fetch`, else `source` itself."""
    edition = cards.edition(recipe.dataset, recipe.edition)
    paths = [source / each.file for each in edition.sources if each.part == "images"]
    return next((path for path in paths if archives.is_stream(path)), source)


def _without(listing: SampleListing, lists: Sequence[Path]) -> SampleListing:
    """Return the listing without the samples of the lists."""
    if not lists:
        return listing
    unwanted = {key for path in lists for key in _read_keys(path)}
    refs = tuple(ref for ref in listing.refs if ref.key not in unwanted)
    note = f"{len(listing.refs) - len(refs)} samples left out by --leave-out"
    return replace(listing, refs=refs, notes=(*listing.notes, note))


def _published_lists(edition: Edition, name: str, source: Path) -> dict[str, Path]:
    """Return the lists of the split set `name` in or beside `source`; none unless all of them are there."""
    chosen = next((each for each in edition.splits if each.name == name), None)
    if name and chosen is None:
        known = ", ".join(each.name for each in edition.splits) or "none; leave --splits out"
        raise SettingError(f"splits = '{name}': edition {edition.name} has no such splits; known: {known}")
    published = chosen.files if chosen else {}
    lists: dict[str, Path] = {}
    for split, file in published.items():
        names = (file, file.removesuffix(".gz"))
        for path in (folder / name for folder in (source, source.parent) for name in names):
            if path.is_file():
                lists.setdefault(split, path)
    # An incomplete set is ignored: with train but without val, the samples of val would be left out.
    return lists if len(lists) == len(published) else {}


def _apply_lists(listing: SampleListing, lists: Mapping[str, Path]) -> SampleListing:
    """Return the samples under the splits of the lists; a sample in no list is left out, with a note."""
    if not lists:
        notes = listing.notes
        if {ref.split for ref in listing.refs} == {"all"}:
            notes = (*notes, "no split list: every sample went to the split 'all'")
        return replace(listing, notes=notes)
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        for key in _read_keys(path):
            # A sample in two splits is a leak.
            if split_of.setdefault(key, split) != split:
                raise SettingError(f"{path}: '{key}' is also in the list of split '{split_of[key]}'")
    refs = tuple(replace(ref, split=split_of[ref.key]) for ref in listing.refs if ref.key in split_of)
    unlisted = len(listing.refs) - len(refs)
    absent = len(split_of.keys() - {ref.key for ref in refs})
    notes = listing.notes
    if unlisted:
        notes = (*notes, f"{unlisted} samples are in no split list: left out")
    if absent:
        notes = (*notes, f"{absent} keys of the split lists are not in the source")
    return replace(listing, refs=refs, notes=notes)


def _reject_duplicates(listing: SampleListing) -> SampleListing:
    """Keep the first sample of each key and reject the others: the index holds each key once."""
    first: dict[str, SampleRef] = {}
    again = [ref for ref in listing.refs if first.setdefault(ref.key, ref) is not ref]
    rejected = tuple((ref.members[0].name, f"second sample of the key '{ref.key}'") for ref in again)
    return replace(listing, refs=tuple(first.values()), rejected=listing.rejected + rejected)


def _read_keys(path: Path) -> list[str]:
    """Return the sample keys of a split list: the first column of each line, without a file suffix."""
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingError(
            f"{path}: cannot be read ({reason}); expected a text file with one sample key per line"
        ) from None
    # BigEarthNet lists pairs `S2,S1`; EuroSAT lists `River_1.jpg`, of the RGB edition, for the same stems.
    return [line.split(",")[0].strip().removesuffix(".jpg").removesuffix(".tif") for line in lines if line.strip()]
