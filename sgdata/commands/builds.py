"""Commands that search scenes and build datasets: `plan`, `build`, `clouds`, `drift`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from sgdata import log_lines
from sgdata.commands import places as place_options
from sgdata.commands import printing
from sgdata.commands.options import (
    AllowPrivateHosts,
    Cluster,
    DryRun,
    Out,
    OutOrRecipe,
    Overrides,
    Quiet,
    Workers,
    settings_of,
)
from sgdata.errors import SettingError, one_line
from sgdata.public_commands import Outcome, command

if TYPE_CHECKING:
    from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
    from sgdata.scenes.lock import Lock

app = typer.Typer()

Name = Annotated[
    str | None,
    typer.Argument(help="Build recipe that comes with the package (default: segmunich, with an area given)."),
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="TOML file of a build recipe, in place of NAME.")]
Profile = Annotated[str | None, typer.Option("--profile", help="clean (default), or paper: the recipe NAME-paper.")]
Bbox = Annotated[
    tuple[float, float, float, float] | None,
    typer.Option("--bbox", metavar="W S E N", help="Area as west, south, east and north in degrees."),
]
Aoi = Annotated[
    Path | None, typer.Option("--aoi", help="Area as a file with a polygon: GeoJSON, GeoPackage, Shapefile, KML.")
]
Feature = Annotated[str | None, typer.Option("--feature", help="Feature of --aoi, by name or number.")]
Dates = Annotated[str | None, typer.Option("--dates", metavar="A/B", help="First and last day, as ISO dates.")]
Stac = Annotated[
    str | None, typer.Option("--stac", help="URL of a STAC API, or path of a static catalogue (default: the recipe's).")
]
Settings = Annotated[bool, settings_of("sgdata.builds.build_recipe", "BuildRecipe")]
# One option for four kinds of source: a path, a URL and the two words cannot be confused.
Osm = Annotated[
    str, typer.Option("--osm", help="overpass, a URL, a file (.osm, .pbf, .json, .gpkg or .parquet of osmnx), or none.")
]
Gap = Annotated[
    Path | None,
    typer.Option("--gap-fill", help="Raster of CORINE codes that labels ground without OpenStreetMap data."),
]
Raster = Annotated[
    Path | None,
    typer.Option("--raster", help="Raster of land cover codes for all classes but streets (sets labels.source)."),
]
Sea = Annotated[
    Path | None, typer.Option("--sea", help="Vector file with the polygons of the sea (default: from coastlines).")
]


def chosen_recipe(
    name: str | BuildRecipe | None,
    recipe: Path | None,
    overrides: Mapping[str, object],
    changes: Sequence[str] | None,
    lock: Path | None = None,
) -> BuildRecipe:
    """Return the recipe of NAME or --recipe with the options given. Raises SettingError if nothing names an area."""
    from sgdata.builds import build_recipe

    given = {key: value for key, value in overrides.items() if value is not None}  # None: the recipe's value is used
    if isinstance(name, build_recipe.BuildRecipe):  # in Python
        return build_recipe.recipe_for(name, given, changes or ())
    own = any(change.startswith("area") for change in changes or ())
    if not (name or recipe or lock or own or any(key in given for key in build_recipe.AREA)):
        raise SettingError(
            "no area is given: add --place, --bbox or --aoi, or NAME for the area of a recipe (of segmunich: Munich)"
        )
    return build_recipe.recipe_for(recipe or name or "segmunich", given, changes or ())


@command(app, epilog="Example: sgdata plan segmunich --bbox 11.5 48.1 11.6 48.2 --dates 2019-04-01/2019-09-30")
def plan(
    name: Name = None,
    bbox: Bbox = None,
    aoi: Aoi = None,
    feature: Feature = None,
    place: place_options.Place = None,
    places: place_options.Places = None,
    stac: Stac = None,
    allow_private_hosts: AllowPrivateHosts = False,
    dates: Dates = None,
    profile: Profile = None,
    recipe: RecipeFile = None,
    changes: Overrides = None,
    settings: Settings = False,
    out: OutOrRecipe = None,
    allow_holes: Annotated[bool, typer.Option("--allow-holes", help="Accept months without enough scenes.")] = False,
    workers: Workers = 1,
) -> Outcome[Any]:
    """Search the catalogue and write a lock: the scenes to use, with scenes per month and bytes. Reads no pixels."""
    from sgdata.builds import build_recipe, pipeline, plan_summary

    overrides: dict[str, object] = {
        "bbox": bbox, "aoi": aoi, "feature": feature, "place": place[0] if place else None, "dates": dates,
        "profile": profile,
    }  # fmt: skip
    several, overrides = place_options.separate(overrides, place, places)
    chosen = chosen_recipe(name or (several and "segmunich") or None, recipe, overrides, changes)
    paths = build_recipe.BuildPaths(
        out=out or Path(chosen.out), stac=stac, workers=workers, allow_private_hosts=allow_private_hosts
    )
    if several:
        jobs = place_options.place_jobs(several, recipe or name, overrides, changes, paths)
        return place_options.plan_places(jobs, paths.out, workers=workers, allow_holes=allow_holes)
    planned = pipeline.plan(chosen, paths)
    holes = plan_summary.describe_sparse_months(plan_summary.count_months(planned))
    refused = f"{holes}; choose other dates or another catalogue, or give --allow-holes"
    return _plan_outcome(planned, chosen, paths, value=planned, refusal=refused if holes and not allow_holes else "")


def _plan_outcome(
    planned: Lock, chosen: BuildRecipe, paths: BuildPaths, *, value: Any, refusal: str = ""
) -> Outcome[Any]:
    title, address = chosen.area.name or chosen.name, paths.stac or chosen.source.stac
    return Outcome(
        value=value,
        show=partial(printing.show_plan, planned, paths, name=title, address=address),
        document=printing.describe_plan(planned, paths, address=address),
        refusal=refusal,
    )


class BuildCommand(TyperCommand):
    """The command `build`, whose help lists the composite rules."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help with the composite rules."""
        self.list_rules()
        super().format_help(ctx, formatter)

    def list_rules(self) -> None:
        """Add the rules to the help of `--composite`; importing them takes a second, so only where help is shown."""
        from sgdata.composite.rules import RULES

        for option in self.params:
            if option.name == "composite":
                rules = "; ".join(f"{name}, {rule.help}" for name, rule in RULES.items())
                option.help = f"Composite rule (default: the recipe's). One of: {rules}."  # type: ignore[attr-defined]


@command(
    app,
    cls=BuildCommand,
    epilog="Example: sgdata build segmunich --aoi area.geojson --stac archive/catalog.json --osm city.osm",
)
def build(
    name: Name = None,
    bbox: Bbox = None,
    aoi: Aoi = None,
    feature: Feature = None,
    place: place_options.Place = None,
    places: place_options.Places = None,
    stac: Stac = None,
    allow_private_hosts: AllowPrivateHosts = False,
    osm: Osm = "overpass",
    offline: Annotated[bool, typer.Option("--offline", help="Use cached OpenStreetMap responses only.")] = False,
    dates: Dates = None,
    own_name: Annotated[str | None, typer.Option("--name", help="Name of the dataset (default: the recipe's).")] = None,
    osm_date: Annotated[
        str | None, typer.Option("--osm-date", help="Day of the OpenStreetMap data (default: the last of --dates).")
    ] = None,
    offset_source: Annotated[
        str | None,
        typer.Option(
            "--offset-source", help="Source of offsets: pixels or metadata (default: both, which must agree)."
        ),
    ] = None,
    composite: Annotated[
        str | None, typer.Option("--composite", help="Composite rule (default: the recipe's).")
    ] = None,
    max_obs: Annotated[int | None, typer.Option("--max-obs", min=1, help="Use at most this many scenes.")] = None,
    profile: Profile = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Folder of cloud masks, <item id>.tif, nonzero where cloudy.")
    ] = None,
    recipe: RecipeFile = None,
    changes: Overrides = None,
    settings: Settings = False,
    lock: Annotated[Path | None, typer.Option("--lock", help="Use the scenes of this lock; do not search.")] = None,
    exact: Annotated[bool, typer.Option("--locked", help="Fail if the build differs from the lock.")] = False,
    cluster: Cluster = None,
    out: OutOrRecipe = None,
    gap_fill: Gap = None,
    raster: Raster = None,
    sea: Sea = None,
    scratch: Annotated[Path | None, typer.Option("--scratch", help="Keep staged pixels in this folder.")] = None,
    workers: Workers = 1,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> Outcome[Path]:
    """Build a dataset of an area: plan, fetch, composite, label, cut into patches. Resumes an interrupted build.

    Exits with 3 if some pixels have no clear observation, files of some scenes could not be read, or many OpenStreetMap
    features were lost.
    """
    from sgdata.builds import build_recipe, pipeline
    from sgdata.datasets import cards
    from sgdata.scenes import lock as locks

    log_lines.listen(quiet)
    overrides: dict[str, object] = {
        "bbox": bbox, "aoi": aoi, "feature": feature, "place": place[0] if place else None, "dates": dates,
        "composite": composite, "osm_date": osm_date, "labels": "raster" if raster else None,
        "offset_source": offset_source, "max_obs": max_obs, "profile": profile, "mask": "external" if masks else None,
        "name": own_name and cards.check_own_name(own_name, "segmunich"),
    }  # fmt: skip
    several, overrides = place_options.separate(overrides, place, places)
    chosen = chosen_recipe(name or (several and "segmunich") or None, recipe, overrides, changes, lock)
    paths = build_recipe.BuildPaths(
        out=out or Path(chosen.out), stac=stac, osm=osm, offline=offline, masks=masks, gap_fill=gap_fill, raster=raster,
        sea=sea, workers=workers, cluster=cluster, scratch=scratch, allow_private_hosts=allow_private_hosts,
    )  # fmt: skip
    if several:
        jobs = place_options.place_jobs(several, recipe or name, overrides, changes, paths, locks=lock, exact=exact)
        return place_options.build_places(jobs, paths.out, workers, cluster, dry_run=dry_run)
    # Read before anything is fetched, so that a wrong path fails at once.
    locked = locks.read(lock) if lock else None
    if dry_run:
        return _plan_outcome(locked or pipeline.plan(chosen, paths), chosen, paths, value=paths.out)
    return build_outcome(pipeline.build(chosen, paths, locked=locked, exact=exact))


def build_outcome(folder: Path) -> Outcome[Path]:
    """Return a finished build with what differs from what was expected of it."""
    from sgdata.builds import build_folder

    findings = tuple(f"{folder}: {text}" for text in build_folder.describe_findings(folder))
    show = partial(printing.show_folder, folder, findings)
    return Outcome(value=folder, show=show, document={"folder": folder}, findings=findings)


@command(app, epilog="Example: sgdata clouds out/build --out out/masks")
def clouds(
    lock: Annotated[Path, typer.Argument(help="Lock of a plan, or the folder that contains it.")],
    out: Out,
    stac: Stac = None,
    allow_private_hosts: AllowPrivateHosts = False,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Folder of OmniCloudMask weights (default: downloaded).")
    ] = None,
    quiet: Quiet = False,
) -> Outcome[Path]:
    """Write cloud masks by OmniCloudMask (extra 'clouds') for the scenes of a lock, for 'build --lock --masks'."""
    from sgdata.builds import build_recipe
    from sgdata.composite import omnicloudmask
    from sgdata.scenes import lock as locks

    log_lines.listen(quiet)
    address = stac or build_recipe.recipe_for("segmunich").source.stac
    planned = locks.read(lock)  # before the package, which takes seconds
    predict = omnicloudmask.engine(weights)
    return Outcome(value=omnicloudmask.write(planned, out, address, predict, allow_private_hosts=allow_private_hosts))


@command(app, epilog="Example: sgdata drift out/build/segmunich.lock.json")
def drift(
    lock: Annotated[Path, typer.Argument(help="Lock of a plan, or a build folder.")],
    stac: Stac = None,
    allow_private_hosts: AllowPrivateHosts = False,
) -> Outcome[list[str]]:
    """Compare a lock with the catalogue of today: list vanished, changed and new items. Exits with 3 if any differ."""
    from sgdata.builds import build_recipe
    from sgdata.scenes import catalog_drift
    from sgdata.scenes import lock as locks

    # A lock does not record the catalogue, since several providers host the same scenes.
    address = stac or build_recipe.recipe_for("segmunich").source.stac
    differences = catalog_drift.find_drift(locks.read(lock), address, allow_private_hosts=allow_private_hosts)

    def show() -> None:
        print("\n".join(map(one_line, differences)) or f"{lock}: no differences from {address}")

    return Outcome(value=differences, show=show, document={"catalogue": address}, findings=tuple(differences))
