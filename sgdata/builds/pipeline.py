"""Build a Sentinel-2 composite with OpenStreetMap labels of an area: plan, fetch, composite, label, cut, finish."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from sgdata import files, local_paths, output_lock, output_names, pool, progress, urls
from sgdata.builds import (
    build_contract,
    build_folder,
    build_recipe,
    cut_patches,
    disk_space,
    fetch_scenes,
    plan_summary,
)
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe, assets, check, resolved
from sgdata.composite import rules, select_dates, tiles
from sgdata.errors import OutputError, SettingError
from sgdata.labels import class_tables, make_labels, osm_features, rasterize
from sgdata.rasters import grids, resample, vectors
from sgdata.scenes import aoi, coverage, geocoding, lock, offsets, search
from sgdata.scenes.lock import Item, Lock
from sgdata.scenes.types import Dropped, Unusable
from sgdata.shards import contracts
from sgdata.staging.scene_staging import StagedScene
from sgdata.types import Grid

log = logging.getLogger("sgdata")

PLACE = "place.geojson"
"""The outline of a place given by name, kept in the output because a geocoder's answer may change."""


# --- plan ----------------------------------------------------------------------------------


def plan(recipe: BuildRecipe, paths: BuildPaths) -> Lock:
    """Search the catalogue and write the lock (state `planned`) into `paths.out`, without reading pixels.

    Args:
        recipe: What to build, from `sgdata.build_recipe`.
        paths: Where to write the lock, and the catalogue if not the recipe's.

    Returns:
        The lock: the scenes of the area with the offsets to expect, and the scenes left out with the reason.

    Raises:
        SettingError: Area or dates are invalid, or no scene can be used.
        SourceError: More items than the recipe allows lack what is needed.
        ServiceError: The catalogue cannot be reached.
        OutputError: `paths.out` holds a finished build.
    """
    check(recipe)
    if files.is_finished(paths.out):
        raise OutputError(f"{paths.out}: holds a finished build, whose lock would be lost; choose another --out")
    grid, outline = resolve_area(recipe, paths)
    address = paths.stac or recipe.source.stac
    query = search.Query(
        collection=recipe.source.collection,
        bounds=aoi.in_degrees(grid),
        dates=recipe.dates,
        bands=assets(recipe),
        leave_out=recipe.leave_out,
        baselines=recipe.source.baselines,
    )
    scenes, left_out = search.search(address, query, allow_private_hosts=paths.allow_private_hosts)
    unusable = [scene for scene in left_out if isinstance(scene, Unusable)]
    usable, dropped = coverage.select_tiles(scenes, grid, unusable, outline=outline)
    fetch_scenes.check_lost(recipe, len(usable), dropped)
    if not usable:
        reasons = "; ".join(f"{item.id}: {item.reason}" for item in dropped[:3])
        raise SettingError(
            f"area in {grid.crs}: 0 of {len(scenes)} scenes in {address} can be used ({reasons}); "
            "choose another area, dates or catalogue"
        )
    build_lock = Lock(
        format=lock.FORMAT,
        state="planned",
        recipe_sha256=build_recipe.sha256(recipe, grid, outline),
        collection=recipe.source.collection,
        dates=recipe.dates,
        osm_date=recipe.osm_date,
        grid=grid,
        items=tuple(
            Item(scene=scene, expected_offset=offsets.expected_offset(scene, level=recipe.source.level, planned=True))
            for scene in usable
        ),
        dropped=(*(scene for scene in left_out if scene not in unusable), *dropped),
        tag_table_sha256=class_tables.sha256(recipe.labels.classes),
        versions=lock.versions(),
        simulated=search.is_simulated(address),
        baselines=recipe.source.baselines,
        outline=outline,
    )
    if not plan_summary.summarise_area(build_lock).covered:
        raise SettingError(f"area: none of the {len(usable)} scenes in {address} covers any of it; choose another area")
    lock.write(paths.out / lock.NAME, build_lock)
    if sparse_months := plan_summary.describe_sparse_months(plan_summary.count_months(build_lock)):
        log.warning("%s: %s", address, sparse_months)
    if plan_summary.mixes_twins(build_lock):
        log.warning("%s: %s", address, plan_summary.describe_baselines(build_lock))
    return build_lock


def resolve_area(recipe: BuildRecipe, paths: BuildPaths, locked: Lock | None = None) -> tuple[Grid, str | None]:
    """Return grid and outline of the lock, or of the recipe's area. Raises SettingError if no patch fits into it."""
    if locked:
        grid, outline = locked.grid, locked.outline
    else:
        area = geocoding.locate_place(recipe.area, paths.out / PLACE, offline=paths.offline)
        grid = aoi.resolve(area)
        outline = aoi.outline(area, grid)
    if not cut_patches.windows(grid, outline, recipe.patches):  # before any pixel is read
        prefix = "inside the outline in " if outline else ""
        size = f"{grid.shape} pixels, holds no patch of {recipe.patches.size}"
        raise SettingError(f"area: {prefix}{size}; take a larger area or a smaller patches.size")
    return grid, outline


# --- build ---------------------------------------------------------------------------------


def build(recipe: BuildRecipe, paths: BuildPaths, *, locked: Lock | None = None, exact: bool = False) -> Path:
    """Build an area: plan unless `locked`, then fetch, composite, label and cut. A killed run continues.

    Args:
        recipe: What to build, from `sgdata.build_recipe`.
        paths: Where inputs are and where to write.
        locked: Follow this lock (of a plan or a build) instead of searching.
        exact: Refuse any deviation from `locked`, which must be of a finished build.

    Returns:
        The finished folder, `paths.out`.

    Raises:
        SettingError: A setting or path is invalid.
        SourceError: An input cannot be read, or is not what its item or the lock says.
        ServiceError: A service cannot be reached.
        OutputError: `paths.out` holds another build or cannot be written, or the run deviates from an exact lock.
    """
    check(recipe)
    paths = pool.absolute(paths) if paths.cluster else paths
    if exact and (locked is None or locked.state != "built"):
        lock_state = f"the lock is {locked.state}" if locked else "no lock is given"
        raise SettingError(f"--locked: {lock_state}; give --lock the one inside a finished build")
    # Inputs are checked before any pixel is read.
    if isinstance(paths.osm, str) and paths.osm not in {"none", "overpass"} and not urls.is_http(paths.osm):
        local_paths.require_local(paths.osm, "--osm", writes=False)
        osm_features.check_suffix(files.require_file(Path(paths.osm), "OpenStreetMap data"))
    for file in (paths.gap_fill, paths.raster, paths.sea):
        if file is not None:
            files.require_file(file, "polygons of the sea" if file == paths.sea else "a raster of classes")
    if (recipe.labels.source == "raster") != (paths.raster is not None):
        raise SettingError(f"labels.source is {recipe.labels.source}, --raster {paths.raster}; give both or neither")
    if paths.raster and isinstance(paths.osm, str) and paths.osm == "none":
        raise SettingError("--raster: streets are drawn over it; give --osm a source of OpenStreetMap data")
    if locked and not exact:  # which refuses other dates
        recipe = use_dates_of_lock(recipe, locked)
    with output_lock.only_writer(paths.out, output_names.IMAGE):
        build_folder.require_unchanged(paths.out, files.toml(resolved(recipe, *resolve_area(recipe, paths, locked))))
        files.mark_unfinished(paths.out)
        for leftover in (*paths.out.glob(".*.partial-*"), *paths.out.glob(".*.plain.tif")):  # of a killed run
            leftover.unlink()
        planned_lock = apply_lock(recipe, locked) if locked else plan(recipe, paths)
        if locked and exact:
            lock.check_equal(locked, replace(planned_lock, answers=locked.answers))  # before any pixel is read
        disk_space.check_disk(recipe, planned_lock, paths)
        # Labels first: a server that refuses, or a damaged file, must not be found after hours of reading pixels.
        answers = write_labels(recipe, planned_lock, paths)
        fetched_lock, scenes = fetch_scenes.fetch_scenes(recipe, planned_lock, paths)
        render(recipe, fetched_lock, scenes, paths, paths.out)
        outputs = write_patches(recipe, fetched_lock, paths)
        finished_lock = replace(fetched_lock, state="built", answers=answers, outputs=outputs)
        if locked and exact:
            lock.check_equal(locked, finished_lock)
        lock.write(paths.out / lock.NAME, finished_lock)
        files.write(
            paths.out / output_names.RECIPE, files.toml(resolved(recipe, finished_lock.grid, finished_lock.outline))
        )
        ids = [item.scene.id for item in finished_lock.items]
        build_folder.write_stac(paths.out, recipe.title, finished_lock.grid, finished_lock.dates, ids)
        files.write_sums(paths.out)
        if paths.scratch is None:
            shutil.rmtree(paths.scratch_folder)
    return paths.out


def use_dates_of_lock(recipe: BuildRecipe, locked: Lock) -> BuildRecipe:
    """Return the recipe with the dates of the images and of OpenStreetMap that the lock has."""
    if recipe.osm_date != locked.osm_date:
        log.warning("osm_date: the lock has %s, which is used in place of %s", locked.osm_date, recipe.osm_date)
    return replace(recipe, dates=locked.dates, osm_date=locked.osm_date)


def apply_lock(recipe: BuildRecipe, locked: Lock) -> Lock:
    """Return the lock with the recipe, tag table and versions of this run, without the items that it leaves out."""
    left_out = [item.scene.id for item in locked.items if item.scene.id in recipe.leave_out]
    for item in locked.items:
        if missing := [name for name in assets(recipe) if name not in item.scene.assets]:
            raise SettingError(f"lock: {item.scene.id} has no asset for {missing[0]}; plan again with this recipe")
    return replace(
        locked,
        items=tuple(item for item in locked.items if item.scene.id not in left_out),
        dropped=(*locked.dropped, *(Dropped(id=name, reason=search.LEFT_OUT) for name in left_out)),
        recipe_sha256=build_recipe.sha256(recipe, locked.grid, locked.outline),
        osm_date=recipe.osm_date,
        tag_table_sha256=class_tables.sha256(recipe.labels.classes),
        versions=lock.versions(),
    )


def write_labels(recipe: BuildRecipe, build_lock: Lock, paths: BuildPaths) -> dict[str, str]:
    """Write the label rasters of an area, and return the hashes of the OpenStreetMap answers by name."""
    if isinstance(paths.osm, str) and paths.osm == "none":
        return {}
    source = make_labels.OsmSource(
        address=paths.osm, date=recipe.osm_date, store=paths.out / ".osm", offline=paths.offline,
        gap_fill=paths.gap_fill, sea=paths.sea, raster=paths.raster,
    )  # fmt: skip
    grid = build_lock.grid
    labels = make_labels.label(grid, source, recipe.labels)
    if build_lock.outline:
        outside = ~vectors.rasterize_outline(build_lock.outline, grid)
        labels.painted[0][outside], labels.painted[1][outside] = rasterize.UNMAPPED, 0
    space = make_labels.read_classes(recipe.labels).space
    sources = rasterize.RASTER_SOURCES if paths.raster else rasterize.SOURCES
    build_folder.write_labels(paths.out, grid, space, sources, labels.painted)
    if labels.agreement:
        files.write(paths.out / build_folder.AGREEMENT, files.pretty_json(labels.agreement))
    build_folder.write_label_losses(paths.out, labels.losses, labels.features)
    return dict(labels.answers)


def write_patches(recipe: BuildRecipe, fetched: Lock, paths: BuildPaths) -> dict[str, str]:
    """Write patches and contract beside the composite and its labels; return the pixel hashes of all rasters."""
    space = make_labels.read_classes(recipe.labels).space
    cut_patches.cut(
        paths.out, recipe.title, fetched.grid, recipe.patches, recipe.split, space=space, outline=fetched.outline
    )
    outputs = build_folder.hash_outputs(paths.out)
    level, kernel = recipe.source.level, recipe.resampling
    build_contract.write_contract(paths.out, recipe.name, recipe.dates, level, kernel, space=space, outputs=outputs)
    build_folder.write_image_style(paths.out, recipe.bands, contracts.read(paths.out).statistics)
    return outputs


def render(
    recipe: BuildRecipe, build_lock: Lock, scenes: tuple[StagedScene, ...], paths: BuildPaths, folder: Path
) -> None:
    """Composite all tiles and write `image.tif`, `provenance.tif` and `usage.json` into `folder`."""
    masked = fetch_scenes.add_clear_masks(recipe, scenes, build_lock.grid, paths)
    task = composite_job(recipe, build_lock, masked, paths.scratch_folder)
    windows = list(grids.cut_tiles(build_lock.grid.shape, *tiles.tile_shape(task, paths.tile_px)))
    composited = paths.run(partial(tiles.composite_tile, task), windows)
    tile_files = progress.track(composited, label="composite", total=len(windows))
    inside = vectors.rasterize_outline(build_lock.outline, build_lock.grid) if build_lock.outline else None
    written_tiles = zip(windows, tile_files, strict=True)
    build_folder.write_composite(folder, build_lock.grid, recipe.bands, written_tiles, inside=inside)
    shares = [(scene.id, scene.clear_share(build_lock.grid)) for scene in task.scenes]
    uncovered = sum(tiles.uncovered(task, window, inside) for window in windows)
    build_folder.write_usage(folder, shares, inside=inside, uncovered=uncovered)
    if never_clear := build_folder.describe_never_clear(folder):
        log.info("%s", never_clear)


def composite_job(
    recipe: BuildRecipe, build_lock: Lock, masked: tuple[StagedScene, ...], scratch: Path
) -> tiles.CompositeJob:
    """Return all that decides the tiles of the composite; jobs with other pixels have other folders.

    Args:
        recipe: The recipe.
        build_lock: Lock of the build.
        masked: Scenes with their clear masks.
        scratch: Scratch folder, in which tiles are kept.
    """
    settings = (recipe.bands, recipe.resampling, recipe.composite, recipe.mask, build_lock.grid)
    items = [(item.scene.id, item.scene.overpass, item.offset, item.windows) for item in build_lock.items]
    name = lock.sha256([rules.VERSION, resample.VERSION, settings, items])[:16]
    return tiles.CompositeJob(
        grid=build_lock.grid,
        bands=recipe.bands,
        kernel=recipe.resampling,
        settings=recipe.composite,
        scenes=masked,
        examined=tuple(select_dates.examined_dates(masked, recipe.composite)),
        folder=scratch / "tiles" / name,
    )
