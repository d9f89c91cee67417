"""Release the shards of several places: their builds, locks and keys as those of one build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sgdata import output_names
from sgdata.builds import patch_table
from sgdata.datasets import build_patches
from sgdata.errors import SourceError
from sgdata.packing import place_sources
from sgdata.safe_names import file_name
from sgdata.scenes import lock
from sgdata.shards import contracts, shard_index
from sgdata.types import Contract

FOLDER = "places"
"""Folder of a release with a folder for each place, which holds its lock and recipe."""


def check(source: Path, contract: Contract, builds: Mapping[str, Path]) -> lock.Lock:
    """Return a lock with the scenes of all builds, if the shards were packed from them.

    Args:
        source: Folder of shards.
        contract: Their contract.
        builds: Builds by place.

    Raises:
        SourceError: A sample is of no build, or a build has other bands, labels or dates.
    """
    keys = {key for place, build in builds.items() for key in _keys(place, build)}
    unknown = set(shard_index.read_index(source)["key"].to_pylist()) - keys
    built = [contracts.read(build) for build in builds.values()]
    differ = [
        place
        for place, built_contract in zip(builds, built, strict=True)
        if contracts.find_differences(contract, built_contract, "predict")
    ]
    if unknown or differ:
        wrong = f"{len(unknown)} unknown samples" if unknown else f"bands or labels of {differ[0]} differ"
        raise SourceError(f"{', '.join(map(str, builds.values())):.300}: not the builds of these shards ({wrong})")
    return merge_locks([lock.read(build / lock.NAME) for build in builds.values()])


def _keys(place: str, build: Path) -> list[str]:
    keys = patch_table.read(build / output_names.PATCHES)["key"].tolist()
    # As the patches were named when they were packed, together or alone.
    return [*keys, *(place_sources.key_with_place(key, place) for key in keys if not build_patches.place_of(build))]


def merge_locks(locks: list[lock.Lock]) -> lock.Lock:
    """Return the first lock with the scenes and days of all; its grid and outputs are those of the first alone."""
    item_of = {item.scene.id: item for build_lock in locks for item in build_lock.items}
    days = sorted(day for build_lock in locks for day in build_lock.dates.split("/"))
    return replace(
        locks[0],
        items=tuple(item_of[name] for name in sorted(item_of)),
        dates=f"{days[0]}/{days[-1]}",
        osm_date=max(build_lock.osm_date for build_lock in locks),
        simulated=any(build_lock.simulated for build_lock in locks),
    )


def documents(builds: Mapping[str, Path]) -> dict[str, Path]:
    """Return the lock and recipe of each place by their paths in a release."""
    return {
        f"{FOLDER}/{file_name(place)}/{name}": build / name
        for place, build in builds.items()
        for name in (lock.NAME, output_names.RECIPE)
    }
