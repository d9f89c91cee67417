"""The recipe of a build, and the paths that a build reads and writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sgdata import catalog, files, pool
from sgdata.builds import cut
from sgdata.composite import cloud_masks, rules
from sgdata.errors import SettingError
from sgdata.labels.rasterize import LabelSettings
from sgdata.rasters import resample
from sgdata.scenes import aoi, offsets
from sgdata.sentinel2 import MSI
from sgdata.splits.blocks import SplitSettings
from sgdata.types import Grid, Level

THREADS = 2
"""Tasks at a time in a single process: reading and numba kernels release the GIL."""

SETTINGS = {
    "osm_date": "osm_date",
    "believe": "offset.believe",
    "composite": "composite.method",
    "max_obs": "composite.max_obs",
    "mask": "mask.method",
}
"""Choices that have a name of their own, and the setting that each is."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where scenes come from unless the command line says otherwise: one catalogue, one collection, one level.

    `tokens`: a service that signs every file's URL; Planetary Computer's own is known.
    """

    stac: str
    collection: str
    level: Level
    tokens: str = ""


@dataclass(frozen=True, kw_only=True)
class BuildRecipe:
    """Everything that changes the pixels and labels of a build (`recipes/build/*.toml`)."""

    name: str
    dates: str
    osm_date: str
    bands: tuple[str, ...]
    resampling: resample.Kernel
    composite: rules.CompositeSettings
    area: aoi.Area
    source: Source
    mask: cloud_masks.MaskSettings
    offset: offsets.OffsetSettings
    labels: LabelSettings
    patches: cut.PatchSettings
    split: SplitSettings
    out: str
    leave_out: tuple[str, ...] = ()
    """Ids of items not to use."""


@dataclass(frozen=True, kw_only=True)
class BuildPaths:
    """Where things are on this machine; nothing here may change a byte of the output.

    `stac`: URL or path in place of the recipe's; `osm`: 'overpass', a URL of such a service, a file, or 'none' for
    a build without labels; `offline`: only answers that an earlier build of `out` stored. `scratch` is kept if
    given, else it lies in `out` until the build is complete. `cluster`: a Dask scheduler in place of `workers`.
    `masks`: for mask method external, a folder of `<item id>.tif` that is not 0 where a scene is not to be used.
    `tile_px`: the longest side of a tile of the composite.
    """

    out: Path
    stac: str | None = None
    osm: str = "overpass"
    offline: bool = False
    gap: Path | None = None
    workers: int = 1
    cluster: str | None = None
    scratch: Path | None = None
    masks: Path | None = None
    tile_px: int = 4096

    @property
    def scratch_folder(self) -> Path:
        """Staged windows and finished tiles."""
        return self.scratch or self.out / ".scratch"

    @property
    def run(self) -> partial[Iterator[Any]]:
        """`pool.run` on this machine."""
        return partial(pool.run, workers=self.workers, cluster=self.cluster, threads=THREADS)


def recipe_for(
    recipe: str | Path, chosen: Mapping[str, object] = MappingProxyType({}), changes: Sequence[str] = ()
) -> BuildRecipe:
    """Read a build recipe and override some of its settings.

    Args:
        recipe: name of a recipe that comes with the package, or path of a TOML file.
        chosen: settings by short name: bbox, aoi or place; dates (which also sets osm_date to the last day), osm_date,
            believe, composite, max_obs, mask, profile. None leaves a setting as it is.
        changes: `a.b=value` texts for any setting, applied last.

    Raises:
        SettingError: the recipe does not exist, or a setting is unknown or has a wrong type.
    """
    wanted = {key: value for key, value in chosen.items() if value is not None}
    path = recipe if isinstance(recipe, Path) else _shipped(recipe, str(wanted.get("profile", "clean")))
    document = files.read_plain(path)
    area = {key: files.plain(wanted[key]) for key in ("bbox", "aoi", "place") if key in wanted}
    if area:
        document["area"] = area
    if "dates" in wanted:
        # Labels of a later day would show what the images cannot.
        document |= {"dates": wanted["dates"], "osm_date": str(wanted["dates"]).rpartition("/")[2]}
    for change in (*(f"{SETTINGS[key]}={wanted[key]}" for key in SETTINGS if key in wanted), *changes):
        files.override(document, change)
    return files.parse(BuildRecipe, document, str(path))


def _shipped(name: str, profile: str) -> Path:
    folder = catalog.folder("recipes") / "build"
    path = folder / (f"{name}.toml" if profile == "clean" else f"{name}-{profile}.toml")
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.toml")))
        raise SettingError(f"no build recipe '{path.stem}'; known: {known}, or give a file of your own")
    return path


def check(recipe: BuildRecipe) -> None:
    """Raise SettingError if settings of a recipe do not fit together."""
    unknown = [band for band in recipe.bands if band not in MSI.by_name]
    if unknown or not recipe.bands or len(set(recipe.bands)) != len(recipe.bands):
        raise SettingError(f"bands {list(recipe.bands)}: expected different bands of {MSI.name}, such as B02, B8A")
    rule = recipe.composite.rule
    if missing := rule.missing(recipe.bands):
        raise SettingError(f"composite {recipe.composite.method}: needs {', '.join(missing)}; add to bands")
    if rule.needs_mask and recipe.mask.method == "none":
        raise SettingError(
            f"composite {recipe.composite.method}: needs the distance to clouds, which mask method none does not give; "
            "choose mask method scl"
        )


def resolved(recipe: BuildRecipe, lattice: Grid) -> BuildRecipe:
    """Return the recipe with its area as a grid, as it is hashed and written to the output."""
    return replace(recipe, area=aoi.Area(grid=lattice, gsd_m=lattice.gsd_m))


def assets(recipe: BuildRecipe) -> tuple[str, ...]:
    """Return the bands and layers that a build reads; for L2A with the classes, for the offset test."""
    layers = set()
    if recipe.source.level == "L2A":
        layers.add(MSI.classes.layer)
    if recipe.mask.asset is not None and recipe.mask.asset != cloud_masks.EXTERNAL:
        layers.add(recipe.mask.asset)
    return (*recipe.bands, *sorted(layers))
