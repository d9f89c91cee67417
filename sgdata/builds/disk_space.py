"""Compare what a build writes with the free space of the disks."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from sgdata.builds import build_cost
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.errors import OutputError
from sgdata.scenes.lock import Lock


def check_disk(recipe: BuildRecipe, build_lock: Lock, paths: BuildPaths) -> None:
    """Raise OutputError if the disks of the scratch folder and the output cannot hold what a build writes."""
    settings = recipe.composite
    # How many scenes a rule that selects by score will read is not known before: at least one.
    scenes = settings.max_obs or (1 if settings.rule.score_range else len(build_lock.items))
    needed_bytes: Counter[int] = Counter()
    folder_of: dict[int, Path] = {}
    for folder, size in (
        (paths.scratch_folder, build_cost.scratch_bytes(build_lock, min(scenes, len(build_lock.items)))),
        (paths.out, build_cost.output_bytes(build_lock)),
    ):
        disk = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if disk == folder else 0
        needed_bytes[disk.stat().st_dev] += max(size - written, 0)
        folder_of.setdefault(disk.stat().st_dev, disk)
    for device, folder in folder_of.items():
        free = shutil.disk_usage(folder).free
        if needed_bytes[device] > free:
            raise OutputError(
                f"{folder}: {free / 1e6:,.1f} MB of disk are free, expected about {needed_bytes[device] / 1e6:,.1f} MB "
                f"for {len(build_lock.items)} scenes; free some, give --scratch on another disk, or a smaller area"
            )
