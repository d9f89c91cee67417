"""Pack the builds of several places as one dataset: list their patches under their places, and split by places."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sgdata import files, output_names, safe_names
from sgdata.builds import place_list
from sgdata.datasets import build_patches
from sgdata.datasets.types import SampleListing, SampleRef
from sgdata.errors import SettingError, SourceError
from sgdata.shards import contracts

TAIL = re.compile(r"-r\d+-c\d+")
"""The end of the key of a patch, after the name of the dataset and of its place."""
TEST, VAL, TRAIN = "test", "val", "train"


@dataclass(frozen=True, kw_only=True)
class PlaceSplit:
    """A split by places.

    Attributes:
        held_out: Split (val or test) of places that are held out, by place.
        fold: Number of the fold that is tested, from 1, and of folds; None for no fold.
    """

    held_out: Mapping[str, str]
    fold: tuple[int, int] | None = None

    def splits(self, places: Sequence[str]) -> dict[str, str]:
        """Return the split of each place that is held out. Raises SettingError."""
        names = ", ".join(places)
        if unknown := [place for place in self.held_out if place not in places]:
            raise SettingError(f"--hold-out {unknown[0]}: no such place; known: {names}")
        split_of = dict(self.held_out)
        if self.fold:
            number, folds = self.fold
            if not 2 <= folds <= len(places) or not 1 <= number <= folds:
                raise SettingError(
                    f"--fold {number}/{folds}: expected 1/N to N/N with N from 2 to {len(places)} places"
                )
            split_of |= dict.fromkeys(sorted(places)[number - 1 :: folds], TEST)
        if len(split_of) == len(places):
            raise SettingError(f"--hold-out: all of {names} are held out, expected one to train on; hold out fewer")
        return split_of


def parse_split(hold_out: Sequence[str], fold: str | None, place_count: int) -> PlaceSplit | None:
    """Parse `[SPLIT=]PLACE` and `K/N` texts of a dataset of so many places; None for none. Raises SettingError."""
    if not hold_out and fold is None:
        return None
    if place_count < 2:
        raise SettingError("--hold-out, --fold: the source is one place; give several builds as --source")
    if hold_out and fold is not None:
        raise SettingError(f"--fold {fold}: --hold-out is given too; give one of them")
    held_out: dict[str, str] = {}
    for text in hold_out:
        split, equals, place = text.partition("=")
        if not equals or split not in (VAL, TEST):
            split, place = TEST, text
        if held_out.setdefault(place, split) != split:
            raise SettingError(f"--hold-out {text}: {place} is held out for {held_out[place]} too; give it once")
    numbers = re.fullmatch(r"(\d{1,6})/(\d{1,6})", fold) if fold is not None else None
    if fold is not None and numbers is None:
        raise SettingError(f"--fold {fold!r:.40}: expected K/N such as 1/5")
    return PlaceSplit(held_out=held_out, fold=(int(numbers[1]), int(numbers[2])) if numbers else None)


# --- which places --------------------------------------------------------------------------


def find_builds(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the builds of several places by name; none if `paths` is one dataset.

    Args:
        paths: Builds, or folders of builds as `sgdata build --places` writes them.

    Raises:
        SettingError: Two builds are of one place, or a place of a folder has no build.
        SourceError: A path is no build.
    """
    if len(paths) == 1 and not _is_parent(paths[0]):
        return {}
    builds = [build for path in paths for build in (_list_builds(path) if _is_parent(path) else [path])]
    build_of: dict[str, Path] = {}
    for build in builds:
        files.require_file(build / output_names.PATCHES, "a finished build folder, as each of several sources must be")
        place = build_patches.place_of(build) or build.resolve().name
        if place in build_of:
            raise SettingError(
                f"--source {build}: is of place '{place}', as {build_of[place]} is; rename one folder, or build "
                "them with --places"
            )
        build_of[place] = build
    # Parts of keys must differ as names do.
    if len({safe_names.key_part(place) for place in build_of}) < len(build_of):
        raise SettingError(f"--source: places {', '.join(build_of)} have equal parts of keys; rename a folder")
    return dict(sorted(build_of.items()))


def _is_parent(path: Path) -> bool:
    return path.is_dir() and not (path / output_names.PATCHES).exists() and bool(_list_builds(path))


def _list_builds(path: Path) -> list[Path]:
    """Return the builds in a folder. Raises SettingError if its summary lists a place without one."""
    builds = sorted(build.parent for build in path.glob(f"*/{output_names.PATCHES}"))
    summary = path / place_list.SUMMARY
    rows = files.read_plain(summary).get("places", ()) if builds and summary.is_file() else ()
    for row in rows:
        name = row.get("folder") if isinstance(row, dict) else None
        if not isinstance(name, str) or not any(build.name == name for build in builds):
            raise SettingError(
                f"{summary}: {name!r:.60} has no finished build in {path}; finish it with the same 'sgdata build', or "
                "name the builds to pack, each as --source"
            )
    return builds


# --- their samples -------------------------------------------------------------------------


def merge_listings(
    builds: Mapping[str, Path], listings: Mapping[str, SampleListing], split: PlaceSplit | None
) -> SampleListing:
    """Return the samples of all places as one listing, each with its place.

    Args:
        builds: Builds by place.
        listings: Their samples.
        split: Split by places; None to keep the splits of the builds. Patches of places that are not held out keep
            their part, but for those that would be tested, or validated beside a place held out for that: they train.

    Raises:
        SettingError: A place is unknown.
        SourceError: The builds do not have the same bands, labels and settings.
    """
    held_out = split.splits(list(builds)) if split else {}
    replaced = {TEST} | ({VAL} if VAL in held_out.values() else set()) if split else set()
    first = next(iter(listings.values()))
    refs: list[SampleRef] = []
    contract = None
    for place, listing in listings.items():
        place_contract = listing.contract
        if contract is not None and place_contract is not None:
            if differences := contracts.find_differences(place_contract, contract, "predict"):
                raise SourceError(
                    f"{builds[place]}: {', '.join(differences)} differ from those of {next(iter(builds.values()))}; "
                    "build all places with one recipe"
                )
            contract = replace(contract, version=_version_span(contract.version, place_contract.version))
        contract = contract or place_contract
        for ref in listing.refs:
            new_split = held_out.get(place) or (TRAIN if ref.split in replaced else ref.split)
            meta = ref.meta | {"place": place}
            key = ref.key if "place" in ref.meta else key_with_place(ref.key, place)
            refs.append(replace(ref, key=key, split=new_split, meta=meta))
    notes = tuple(note for listing in listings.values() for note in listing.notes)
    return replace(first, refs=tuple(refs), contract=contract and replace(contract, shape=None), notes=notes)


def key_with_place(key: str, place: str) -> str:
    """Return the key of a patch of a build that carries no place with the place in it."""
    tail = TAIL.search(key)
    name, end = (key[: tail.start()], tail[0]) if tail else (key, "")
    return safe_names.key_part(f"{name}-{place}") + end


def _version_span(first: str, second: str) -> str:
    """Return the days from the first to the last of two versions `A/B` of builds."""
    days = [*first.split("/"), *second.split("/")]
    return first if first == second else f"{min(days)}/{max(days)}"
