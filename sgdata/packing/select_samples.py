"""Select the samples of a dataset to pack and the contract that they must satisfy; reads no pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sgdata import files, local_paths, package_data
from sgdata.datasets import archives, cards
from sgdata.datasets.types import SampleListing, SampleRef, ShardRecipe
from sgdata.errors import SettingError
from sgdata.packing import split_lists
from sgdata.rasters import resample
from sgdata.types import Contract

if TYPE_CHECKING:
    from sgdata.packing import place_sources


def recipe_for(dataset: str, overrides: Sequence[str] = ()) -> ShardRecipe:
    """Return the recipe of a dataset that comes with the package, with some settings overridden.

    Args:
        dataset: Name of the dataset.
        overrides: `key=value` texts, applied in order.

    Raises:
        SettingError: The dataset has no recipe, or an override is unknown, has a wrong type or is a URL.
    """
    shipped = {path.stem: path for path in (package_data.folder("recipes") / "shard").glob("*.toml")}
    if dataset not in shipped:
        raise SettingError(f"no reader for dataset '{dataset}'; known: {', '.join(sorted(shipped))}")
    recipe = files.read(ShardRecipe, shipped[dataset], overrides)
    local_paths.require_local(recipe.source, "source", writes=False)
    local_paths.require_local(recipe.out, "out", writes=True)
    if recipe.name is not None:
        cards.check_own_name(recipe.name, dataset)
    return recipe


def download_folder(recipe: ShardRecipe) -> Path:
    """Return the folder to download a dataset into by default: the recipe's source, unless that is a build."""
    source = Path(recipe.source)
    return Path("data") / recipe.dataset if source.parts[:1] == ("out",) else source


@dataclass(frozen=True, kw_only=True)
class SampleInputs:
    """Files beside the dataset that say which samples are packed, in which split and where they are.

    Attributes:
        split_lists: Split name to a file with its sample keys, one per line; in place of a split set.
        leave_out: Files with keys of samples to skip (snow, clouds).
        coordinates: Table of coordinates, see `coordinates.assign_coordinates`.
        splits: Folder with the published lists or the split table of the recipe's `splits`; by default lists are
            sought in and beside the source, and tables in the catalogue.
        builds: Builds by place, in place of a single source.
        places: How to split by places.
    """

    split_lists: Mapping[str, Path] = field(default_factory=dict)
    leave_out: tuple[Path, ...] = ()
    coordinates: Path | None = None
    splits: Path | None = None
    builds: Mapping[str, Path] = field(default_factory=dict)
    places: place_sources.PlaceSplit | None = None


def list_samples(
    recipe: ShardRecipe,
    source: Path | None,
    list_source: Callable[[Path, ShardRecipe], SampleListing],
    inputs: SampleInputs | None = None,
) -> tuple[Path, SampleListing, Contract]:
    """List the samples of a source under their splits, without reading a pixel.

    Args:
        recipe: Recipe of the dataset.
        source: Folder, zip or tar; default the recipe's.
        list_source: Function of the dataset's reader.
        inputs: Lists and tables beside the dataset.

    Returns:
        The path of the files (the compressed tar where `source` is a folder that holds one), the listing, and the
        contract without statistics.

    Raises:
        SettingError: A wrong recipe or list.
        SourceError: The source does not hold the dataset.
    """
    inputs = inputs or SampleInputs()
    if inputs.builds:
        source = next(iter(inputs.builds.values()))
        listing = _list_places(recipe, list_source, inputs)
    else:
        source = _find_archive(source or Path(recipe.source), recipe)
        listing = list_source(source, recipe)
    listing = _leave_out(listing, inputs.leave_out)
    if inputs.coordinates:
        from sgdata.packing import coordinates

        gsd_m = cards.SENSORS[cards.card(recipe.dataset).sensor].finest_gsd_m
        listing = coordinates.assign_coordinates(listing, inputs.coordinates, gsd_m=gsd_m)
    if inputs.split_lists:
        listing = split_lists.assign(listing, split_lists.read_lists(inputs.split_lists))
    else:
        listing = split_lists.assign_set(listing, recipe, source, inputs.splits)
    listing = _reject_duplicates(listing)
    contract = listing.contract or cards.contract_of(
        recipe.dataset,
        listing.edition,
        listing.labels,
        resampling=listing.edition.resampling or recipe.kernel,
        resampling_version=resample.VERSION,
    )
    return source, listing, replace(contract, dataset=recipe.name or contract.dataset, hash=recipe.hash)


def _list_places(
    recipe: ShardRecipe, list_source: Callable[[Path, ShardRecipe], SampleListing], inputs: SampleInputs
) -> SampleListing:
    """List the samples of several builds. Raises SettingError, SourceError."""
    if inputs.places and (inputs.split_lists or recipe.splits or inputs.splits):
        raise SettingError("--hold-out, --fold: a split by other lists is given too; give one of them")
    listings = {place: list_source(build, recipe) for place, build in inputs.builds.items()}
    # Imported here, since it reads builds, and most datasets are none.
    from sgdata.packing import place_sources

    return place_sources.merge_listings(inputs.builds, listings, inputs.places)


def _find_archive(source: Path, recipe: ShardRecipe) -> Path:
    """Return the compressed tar of the card in a folder written by `sgdata fetch`, else `source` itself."""
    edition = cards.edition(recipe.dataset, recipe.edition)
    paths = [source / file.file for file in edition.sources if file.part == "images"]
    return next((path for path in paths if archives.is_stream(path)), source)


def _leave_out(listing: SampleListing, lists: Sequence[Path]) -> SampleListing:
    """Return the listing without the samples of the lists."""
    if not lists:
        return listing
    unwanted = {key for path in lists for key in split_lists.read_keys(path)}
    refs = tuple(ref for ref in listing.refs if ref.key not in unwanted)
    note = f"{len(listing.refs) - len(refs)} samples left out by --leave-out"
    return replace(listing, refs=refs, notes=(*listing.notes, note))


def _reject_duplicates(listing: SampleListing) -> SampleListing:
    """Keep the first sample of each key and reject the others: the index holds each key once."""
    first: dict[str, SampleRef] = {}
    duplicates = [ref for ref in listing.refs if first.setdefault(ref.key, ref) is not ref]
    rejected = tuple((ref.members[0].name, f"second sample of the key '{ref.key}'") for ref in duplicates)
    return replace(listing, refs=tuple(first.values()), rejected=listing.rejected + rejected)
