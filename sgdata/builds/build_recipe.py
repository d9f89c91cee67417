"""The recipe of a build, and the paths that a build reads and writes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sgdata import files, local_paths, package_data, pool, urls
from sgdata.composite import cloud_masks, rules
from sgdata.errors import SettingError
from sgdata.labels.rasterize import LabelSettings
from sgdata.rasters import resample
from sgdata.scenes import aoi, offsets, search
from sgdata.sentinel2 import MSI
from sgdata.splits.block_split import SplitSettings
from sgdata.types import Grid, Level

THREADS = 2
"""Tasks at a time in a single process: reading and numba kernels release the GIL."""

SETTINGS = {
    "name": "name",
    "osm_date": "osm_date",
    "offset_source": "offset.source",
    "composite": "composite.method",
    "max_obs": "composite.max_obs",
    "mask": "mask.method",
    "labels": "labels.source",
}
"""Settings by the short names that the command line and `recipe_for` take."""
AREA = ("bbox", "aoi", "place")
SHORT_NAMES = (*AREA, "feature", "dates", "profile", *SETTINGS)


@dataclass(frozen=True, kw_only=True)
class SceneSource:
    """Default source of scenes.

    Attributes:
        stac: URL or path of the catalogue.
        collection: Collection of the catalogue.
        level: Product level.
        tokens: URL of a service that signs the URLs of files; that of Planetary Computer is built in.
        max_unusable_share: Share of the scenes of the needed tiles that a build may do without because their items lack
            what is needed or their files cannot be read; above it the run stops.
        baselines: Processing baselines to use, such as 02.12; of an acquisition that was processed several times the
            first of them is taken. Empty: all, the newest first.
    """

    stac: str
    collection: str
    level: Level
    tokens: str = ""
    max_unusable_share: float = 0.2
    baselines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PatchSettings:
    """Patches cut from the composite.

    Attributes:
        size: Side in pixels.
        stride: Step from one patch to the next in pixels.
    """

    size: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class BuildRecipe:
    """All settings that change the pixels and labels of a build (`recipes/build/*.toml`).

    Attributes:
        name: Name of the dataset.
        dates: First and last day of the scenes, YYYY-MM-DD/YYYY-MM-DD.
        osm_date: Day of the OpenStreetMap data.
        bands: Bands of the image, in order.
        resampling: Kernel for bands that are coarser than the grid.
        composite: Composite rule and its settings.
        area: Area to build.
        source: Catalogue, collection and level of the scenes.
        mask: Cloud masks.
        offset: How offsets are decided.
        labels: Labels from OpenStreetMap.
        patches: Size and stride of patches.
        split: Split of patches into train, val and test.
        out: Default output folder.
        leave_out: Ids of items not to use.
        place: Name of the place, where several are built; part of the keys of patches.
    """

    name: str
    dates: str
    osm_date: str
    bands: tuple[str, ...]
    resampling: resample.Kernel
    composite: rules.CompositeSettings
    area: aoi.Area
    source: SceneSource
    mask: cloud_masks.MaskSettings
    offset: offsets.OffsetSettings
    labels: LabelSettings
    patches: PatchSettings
    split: SplitSettings
    out: str
    leave_out: tuple[str, ...] = ()
    place: str | None = None

    @property
    def title(self) -> str:
        """Name of the dataset, with that of the place if it has one."""
        return f"{self.name}-{self.place}" if self.place else self.name


@dataclass(frozen=True, kw_only=True)
class BuildPaths:
    """Paths and machine settings of a build, which do not change its output.

    Attributes:
        out: Output folder.
        stac: URL or path of the catalogue; None for the recipe's.
        osm: 'overpass', URL of such a service, path of a file, 'none' for a build without labels, or a GeoDataFrame
            as `osmnx.features_from_*` returns it.
        offline: Use only the OpenStreetMap responses that an earlier build of `out` stored.
        raster: Raster of codes, for labels.source raster.
        gap_fill: Raster of CORINE level 2 codes for ground without OpenStreetMap labels; None to leave it unlabelled.
        sea: Vector file with the polygons of the sea; None to build them from the coastlines of OpenStreetMap.
        workers: Number of processes.
        cluster: Address of a Dask scheduler, used instead of `workers`.
        scratch: Scratch folder to keep; None for one in `out` that is removed when the build is complete.
        masks: Folder of rasters `<item id>.tif` for the mask method external, not 0 where a scene is masked.
        allow_private_hosts: Whether a remote catalogue may name hosts of the local network.
        tile_px: Longest side of a tile of the composite in pixels.
    """

    out: Path
    stac: str | None = None
    osm: str | Any = "overpass"
    offline: bool = False
    gap_fill: Path | None = None
    raster: Path | None = None
    sea: Path | None = None
    workers: int = 1
    cluster: str | None = None
    scratch: Path | None = None
    masks: Path | None = None
    allow_private_hosts: bool = False
    tile_px: int = 4096

    def __post_init__(self) -> None:
        """Take texts as paths: in Python both are common."""
        for name in ("out", "gap_fill", "raster", "sea", "scratch", "masks"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        for name in ("stac", "osm"):
            if isinstance(value := getattr(self, name), Path):
                object.__setattr__(self, name, str(value))

    @property
    def scratch_folder(self) -> Path:
        """Folder of staged windows and finished tiles."""
        return self.scratch or self.out / ".scratch"

    @property
    def run(self) -> partial[Iterator[Any]]:
        """`pool.run` with the workers of this machine."""
        return partial(
            pool.run, workers=self.workers, cluster=self.cluster, threads=THREADS, folder=self.scratch_folder
        )


def recipe_for(
    recipe: str | Path | BuildRecipe, settings: Mapping[str, object] = MappingProxyType({}), changes: Sequence[str] = ()
) -> BuildRecipe:
    """Read a build recipe and override some of its settings.

    Args:
        recipe: Name of a recipe that comes with the package, path of a TOML file, or a recipe.
        settings: Settings by short name: bbox, aoi (with feature) or place; dates (which also sets osm_date to the last
            day), osm_date, composite, labels, mask, max_obs, offset_source, profile. None leaves a setting as it is,
            but is refused for an area, which would silently be that of the recipe.
        changes: `a.b=value` texts for any setting, applied last.

    Returns:
        The recipe with all overrides applied.

    Raises:
        SettingError: The recipe does not exist, or a setting is unknown or has a wrong type, or `out` is a URL.
    """
    for key, value in settings.items():
        if key not in SHORT_NAMES:
            near = difflib.get_close_matches(key, SHORT_NAMES, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(SHORT_NAMES)}"
            raise SettingError(f"build_recipe: unknown setting {key!r:.60}; {hint}")
        if value is None and key in AREA:
            raise SettingError(f"build_recipe: {key} is None, expected an area; leave it out for that of the recipe")
    given = {key: value for key, value in settings.items() if value is not None}
    if isinstance(recipe, BuildRecipe):
        origin, document = f"recipe {recipe.name}", files.to_plain(recipe)
    else:
        is_file = isinstance(recipe, Path) or recipe.endswith(".toml")
        path = Path(recipe) if is_file else _find_shipped(str(recipe), str(given.get("profile", "clean")))
        origin, document = str(path), files.read_plain(path)
    area = {key: files.to_plain(given[key]) for key in AREA if key in given}
    if area:
        document["area"] = area
    if "feature" in given:
        document["area"] = document["area"] | {"feature": given["feature"]}
    if "dates" in given:
        # Labels of a later day could show changes that the images do not.
        document |= {"dates": given["dates"], "osm_date": str(given["dates"]).rpartition("/")[2]}
    for change in (*(f"{SETTINGS[key]}={given[key]}" for key in SETTINGS if key in given), *changes):
        files.override(document, change)
    parsed = files.parse(BuildRecipe, document, origin)
    local_paths.require_local(parsed.out, "out", writes=True)
    return parsed


def _find_shipped(name: str, profile: str) -> Path:
    folder = package_data.folder("recipes") / "build"
    path = folder / (f"{name}.toml" if profile == "clean" else f"{name}-{profile}.toml")
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.toml")))
        raise SettingError(f"no build recipe '{path.stem}'; known: {names}, or give a file of your own")
    return path


def check(recipe: BuildRecipe) -> None:
    """Raise SettingError if settings of a recipe do not fit together."""
    unknown = [band for band in recipe.bands if band not in MSI.by_name]
    if unknown or not recipe.bands or len(set(recipe.bands)) != len(recipe.bands):
        hint = f"; {', '.join(unknown)} is not one" if unknown else ""
        raise SettingError(
            f"bands {list(recipe.bands)}: expected different bands of {MSI.name}, such as B02, B8A{hint}"
        )
    search.parse_dates(recipe.dates)  # first, since the day of OpenStreetMap follows them
    try:
        datetime.fromisoformat(recipe.osm_date)
    except ValueError:
        raise SettingError(f"osm_date {recipe.osm_date!r}: expected a day such as 2020-04-01; correct it") from None
    rule = recipe.composite.rule
    if lacking := rule.missing(recipe.bands):
        raise SettingError(f"composite {recipe.composite.method}: needs {', '.join(lacking)}; add to bands")
    if rule.needs_mask and recipe.mask.method == "none":
        raise SettingError(
            f"composite {recipe.composite.method}: needs the distance to clouds, which mask method none does not give; "
            "choose mask method scl"
        )


def resolved(recipe: BuildRecipe, grid: Grid, outline: str | None = None) -> BuildRecipe:
    """Return the recipe as it is written and hashed: its area as data, its addresses without secrets."""
    stac, tokens = (urls.without_secrets(url) for url in (recipe.source.stac, recipe.source.tokens))
    source = replace(recipe.source, stac=stac, tokens=tokens)
    return replace(recipe, area=aoi.Area(grid=grid, outline=outline, gsd_m=grid.gsd_m), source=source)


def sha256(recipe: BuildRecipe, grid: Grid, outline: str | None = None) -> str:
    """Return the hash of a resolved recipe; `place` counts only where it is set."""
    document = files.to_plain(resolved(recipe, grid, outline))
    if recipe.place is None:
        # Locks of builds of one place keep the hashes that they had before recipes had this setting.
        del document["place"]
    return files.sha256(files.canonical_json(document))


def assets(recipe: BuildRecipe) -> tuple[str, ...]:
    """Return the bands and layers that a build reads; for L2A with the classes, for the offset test."""
    layers = set()
    if recipe.source.level == "L2A":
        layers.add(MSI.classes.layer)
    if recipe.mask.asset is not None and recipe.mask.asset != cloud_masks.EXTERNAL:
        layers.add(recipe.mask.asset)
    return (*recipe.bands, *sorted(layers))
