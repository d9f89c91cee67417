"""What of a dataset is to be packed, and what its pixels should be: files, splits and lists; reads no pixel."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sgdata import catalog, files
from sgdata.datasets import archives, cards
from sgdata.datasets.types import Edition, Found, Ref, ShardRecipe
from sgdata.errors import SettingError
from sgdata.rasters import resample
from sgdata.types import Contract


def recipe_for(dataset: str, overrides: Sequence[str] = ()) -> ShardRecipe:
    """The shipped recipe of a dataset, with `key=value` overrides. Raises SettingError."""
    shipped = {path.stem: path for path in (catalog.folder("recipes") / "shard").glob("*.toml")}
    if dataset not in shipped:
        raise SettingError(f"no reader for dataset '{dataset}'; known: {', '.join(sorted(shipped))}")
    return files.read(ShardRecipe, shipped[dataset], overrides)


def listed(
    recipe: ShardRecipe,
    source: Path | None,
    find: Callable[[Path, ShardRecipe], Found],
    *,
    splits: Mapping[str, Path] | None = None,
    leave_out: Sequence[Path] = (),
) -> tuple[Path, Found, Contract]:
    """Where the files lie, what is in them under which splits, and what its pixels should be; reads no pixel.

    Without a `source`, that of the recipe. `find` is that of the dataset's reader.
    """
    source = _archive_in(source or Path(recipe.source), recipe)
    found = _without(find(source, recipe), leave_out)
    found = _once(_split(found, splits or _published_lists(found.edition, recipe.splits, source)))
    contract = found.contract or cards.expected(
        recipe.dataset,
        found.edition,
        found.labels,
        resampling=found.edition.resampling or recipe.kernel,
        resampling_version=resample.VERSION,
    )
    return source, found, contract


def _archive_in(source: Path, recipe: ShardRecipe) -> Path:
    """The compressed tar of the card in a folder that `sgdata fetch` filled; any other source is itself."""
    edition = cards.edition(recipe.dataset, recipe.edition)
    held = [source / each.file for each in edition.sources if each.part == "images"]
    return next((path for path in held if archives.is_stream(path)), source)


def _without(found: Found, lists: Sequence[Path]) -> Found:
    """What was found less the samples of the lists."""
    unwanted = {key for path in lists for key in _keys(path)}
    refs = tuple(ref for ref in found.refs if ref.key not in unwanted)
    notes = [f"{len(found.refs) - len(refs)} samples left out by --leave-out"] * bool(lists)
    return replace(found, refs=refs, notes=(*found.notes, *notes))


def _published_lists(edition: Edition, name: str, source: Path) -> dict[str, Path]:
    """The lists of the split set `name` of the card, in or beside `source`; empty where they are not all there."""
    chosen = next((each for each in edition.splits if each.name == name), None)
    if name and chosen is None:
        known = ", ".join(each.name for each in edition.splits)
        raise SettingError(f"splits = '{name}': edition {edition.name} has no such splits; known: {known}")
    # Only complete sets count: train without val would silently put val nowhere.
    listed = chosen.files if chosen else {}
    held: dict[str, Path] = {}
    for split, file in listed.items():
        names = (file, file.removesuffix(".gz"))
        for path in (folder / name for folder in (source, source.parent) for name in names):
            if path.is_file():
                held.setdefault(split, path)
    return held if len(held) == len(listed) else {}


def _split(found: Found, lists: Mapping[str, Path]) -> Found:
    """Samples under the splits of the lists; a sample in no list is left out, and told."""
    if not lists:
        only_all = {ref.split for ref in found.refs} == {"all"}
        told = ("no split list: every sample went to the split 'all'",) if only_all else ()
        return replace(found, notes=found.notes + told)
    where: dict[str, str] = {}
    for split, path in lists.items():
        for key in _keys(path):
            # A sample in two splits is a leak, and no order of the lists makes it right.
            if where.setdefault(key, split) != split:
                raise SettingError(f"{path}: '{key}' is also in the list of split '{where[key]}'")
    refs = tuple(replace(ref, split=where[ref.key]) for ref in found.refs if ref.key in where)
    absent = len(where.keys() - {ref.key for ref in refs})
    notes = [f"{len(found.refs) - len(refs)} samples are in no split list: left out"] * (len(refs) < len(found.refs))
    notes += [f"{absent} keys of the split lists are not in the source"] * bool(absent)
    return replace(found, refs=refs, notes=(*found.notes, *notes))


def _once(found: Found) -> Found:
    """The first sample of each key, the others among what is rejected: their shards may differ, an index has one."""
    first: dict[str, Ref] = {}
    again = [ref for ref in found.refs if first.setdefault(ref.key, ref) is not ref]
    rejected = tuple((ref.members[0].name, f"second sample of the key '{ref.key}'") for ref in again)
    return replace(found, refs=tuple(first.values()), rejected=found.rejected + rejected)


def _keys(path: Path) -> list[str]:
    """Sample keys of a split list: the first column of each line, without a file suffix."""
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: cannot be read as a split list: {error}") from None
    # BigEarthNet lists pairs `S2,S1`; EuroSAT lists `River_1.jpg`, of the RGB edition, for the same stems.
    return [line.split(",")[0].strip().removesuffix(".jpg").removesuffix(".tif") for line in lines if line.strip()]
