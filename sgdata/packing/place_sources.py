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
        known = ", ".join(places)
        if missing := [place for place in self.held_out if place not in places]:
            raise SettingError(f"--hold-out {missing[0]}: no such place; known: {known}")
        chosen = dict(self.held_out)
        if self.fold:
            number, folds = self.fold
            if not 2 <= folds <= len(places) or not 1 <= number <= folds:
                raise SettingError(
                    f"--fold {number}/{folds}: expected 1/N to N/N with N from 2 to {len(places)} places"
                )
            chosen |= dict.fromkeys(sorted(places)[number - 1 :: folds], TEST)
        if len(chosen) == len(places):
            raise SettingError(f"--hold-out: all of {known} are held out, expected one to train on; hold out fewer")
        return chosen


def parse_split(hold_out: Sequence[str], fold: str | None, places: int) -> PlaceSplit | None:
    """Parse `[SPLIT=]PLACE` and `K/N` texts of a dataset of so many places; None for none. Raises SettingError."""
    if not hold_out and fold is None:
        return None
    if places < 2:
        raise SettingError("--hold-out, --fold: the source is one place; give several builds as --source")
    if hold_out and fold is not None:
        raise SettingError(f"--fold {fold}: --hold-out is given too; give one of them")
    held: dict[str, str] = {}
    for text in hold_out:
        split, equals, place = text.partition("=")
        if not equals or split not in (VAL, TEST):
            split, place = TEST, text
        if held.setdefault(place, split) != split:
            raise SettingError(f"--hold-out {text}: {place} is held out for {held[place]} too; give it once")
    numbers = re.fullmatch(r"(\d{1,6})/(\d{1,6})", fold) if fold is not None else None
    if fold is not None and numbers is None:
        raise SettingError(f"--fold {fold!r:.40}: expected K/N such as 1/5")
    return PlaceSplit(held_out=held, fold=(int(numbers[1]), int(numbers[2])) if numbers else None)


# --- which places --------------------------------------------------------------------------


def find(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the builds of several places by name; none if `paths` is one dataset.

    Args:
        paths: Builds, or folders of builds as `sgdata build --places` writes them.

    Raises:
        SettingError: Two builds are of one place, or a place of a folder has no build.
        SourceError: A path is no build.
    """
    if len(paths) == 1 and not _is_parent(paths[0]):
        return {}
    builds = [build for path in paths for build in (_children(path) if _is_parent(path) else [path])]
    found: dict[str, Path] = {}
    for build in builds:
        files.require_file(build / output_names.PATCHES, "a finished build folder, as each of several sources must be")
        place = build_patches.place_of(build) or build.resolve().name
        if place in found:
            raise SettingError(
                f"--source {build}: is of place '{place}', as {found[place]} is; rename one folder, or build them with "
                "--places"
            )
        found[place] = build
    # Parts of keys must differ as names do.
    if len({safe_names.key_part(place) for place in found}) < len(found):
        raise SettingError(f"--source: places {', '.join(found)} have equal parts of keys; rename a folder")
    return dict(sorted(found.items()))


def _is_parent(path: Path) -> bool:
    return path.is_dir() and not (path / output_names.PATCHES).exists() and bool(_children(path))


def _children(path: Path) -> list[Path]:
    """Return the builds in a folder. Raises SettingError if its summary lists a place without one."""
    children = sorted(child.parent for child in path.glob(f"*/{output_names.PATCHES}"))
    summary = path / place_list.SUMMARY
    listed = files.read_plain(summary).get("places", ()) if children and summary.is_file() else ()
    for row in listed:
        name = row.get("folder") if isinstance(row, dict) else None
        if not isinstance(name, str) or not any(child.name == name for child in children):
            raise SettingError(
                f"{summary}: {name!r:.60} has no finished build in {path}; finish it with the same 'sgdata build', or "
                "name the builds to pack, each as --source"
            )
    return children


# --- their samples -------------------------------------------------------------------------


def list_places(
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
    held = split.splits(list(builds)) if split else {}
    replaced = {TEST} | ({VAL} if VAL in held.values() else set()) if split else set()
    first = next(iter(listings.values()))
    refs: list[SampleRef] = []
    contract = None
    for place, listing in listings.items():
        own = listing.contract
        if contract is not None and own is not None:
            if differences := contracts.find_differences(own, contract, "predict"):
                raise SourceError(
                    f"{builds[place]}: {', '.join(differences)} differ from those of {next(iter(builds.values()))}; "
                    "build all places with one recipe"
                )
            contract = replace(contract, version=_span(contract.version, own.version))
        contract = contract or own
        for ref in listing.refs:
            chosen = held.get(place) or (TRAIN if ref.split in replaced else ref.split)
            meta = ref.meta | {"place": place}
            key = ref.key if "place" in ref.meta else key_of(ref.key, place)
            refs.append(replace(ref, key=key, split=chosen, meta=meta))
    notes = tuple(note for listing in listings.values() for note in listing.notes)
    return replace(first, refs=tuple(refs), contract=contract and replace(contract, shape=None), notes=notes)


def key_of(key: str, place: str) -> str:
    """Return the key of a patch of a build that carries no place with the place in it."""
    tail = TAIL.search(key)
    name, end = (key[: tail.start()], tail[0]) if tail else (key, "")
    return safe_names.key_part(f"{name}-{place}") + end


def _span(one: str, other: str) -> str:
    """Return the days from the first to the last of two versions `A/B` of builds."""
    days = [*one.split("/"), *other.split("/")]
    return one if one == other else f"{min(days)}/{max(days)}"
