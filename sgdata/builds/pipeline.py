"""SegMunich, built anew: best-pixel Sentinel-2 composite and OpenStreetMap labels of Munich or any other area."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

from sgdata import files, progress
from sgdata.builds import build_folder, cut, finish
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe, assets, check, resolved
from sgdata.composite import clear_masks, cloud_masks, rules, staging, tiles, visits
from sgdata.errors import OutputError, SettingError, SourceError
from sgdata.labels import class_tables, osm_features, paint, rasterize
from sgdata.rasters import grid, resample
from sgdata.scenes import aoi, coverage, lock, offsets, search, signing
from sgdata.scenes.lock import Item, Lock
from sgdata.scenes.types import Asset, Dropped, Scene
from sgdata.sentinel2 import BAND
from sgdata.types import Grid

log = logging.getLogger("sgdata")

PLACE = "place.geojson"
"""The outline of a place asked for by name: kept beside the output, for a geocoder may answer otherwise tomorrow."""


# --- plan ----------------------------------------------------------------------------------


def plan(recipe: BuildRecipe, places: BuildPaths) -> Lock:
    """Search once and write the lock (state `planned`) into `places.out`; fetches no pixel.

    Raises SettingError (area, dates, no scene), ServiceError, SourceError (of an item), OutputError (a build is there).
    """
    check(recipe)
    if files.is_finished(places.out):
        raise OutputError(f"{places.out}: holds a finished build, whose lock would be lost; choose another --out")
    lattice = ground(recipe, places)
    where = places.stac or recipe.source.stac
    query = search.Query(
        collection=recipe.source.collection,
        bounds=aoi.in_degrees(lattice),
        dates=recipe.dates,
        bands=assets(recipe),
        leave_out=recipe.leave_out,
    )
    found, twins = search.search(where, query)
    scenes, elsewhere = coverage.suited(found, lattice)
    if not scenes:
        reasons = "; ".join(f"{item.id}: {item.reason}" for item in elsewhere[:3])
        raise SettingError(f"area in {lattice.crs}: 0 of {len(found)} scenes in {where} can be used ({reasons})")
    planned = Lock(
        format=lock.FORMAT,
        state="planned",
        recipe_sha256=lock.sha256(resolved(recipe, lattice)),
        collection=recipe.source.collection,
        dates=recipe.dates,
        osm_date=recipe.osm_date,
        grid=lattice,
        items=tuple(Item(scene=scene, expected_offset=_promised(scene, recipe)) for scene in scenes),
        dropped=(*twins, *elsewhere),
        tag_table_sha256=class_tables.sha256(recipe.labels.classes),
        versions=lock.versions(),
        simulated=search.simulated(where),
    )
    lock.write(places.out / lock.NAME, planned)
    if missing := coverage.holes(coverage.months(planned)):
        log.warning("%s: %s", where, missing)
    return planned


def ground(recipe: BuildRecipe, places: BuildPaths, locked: Lock | None = None) -> Grid:
    """The lattice of the lock or of the recipe's area. Raises SettingError where no patch fits into it."""
    outline = places.out / PLACE
    lattice = locked.grid if locked else aoi.resolve(osm_features.located(recipe.area, outline, offline=places.offline))
    if recipe.patches.size > min(lattice.shape):  # now, not after an hour of pixels
        raise SettingError(f"area of {lattice.shape} pixels holds no patch of {recipe.patches.size}; take a larger one")
    return lattice


def _promised(scene: Scene, recipe: BuildRecipe, product: int | None = None) -> int | None:
    level = recipe.source.level
    return offsets.expected(scene.provider, scene.collection, scene.baseline, level=level, product=product)


# --- build ---------------------------------------------------------------------------------


def build(recipe: BuildRecipe, places: BuildPaths, *, locked: Lock | None = None, exact: bool = False) -> Path:
    """Plan (unless `locked`), fetch, composite, label, cut: the finished folder `places.out`.

    A run that was killed goes on where it stopped. `exact` refuses whatever deviates from a lock that was built.
    Raises SgdataError of all four kinds.
    """
    check(recipe)
    if exact and (locked is None or locked.state != "built"):
        raise SettingError(f"--locked: lock is {locked and locked.state}; give --lock the one inside a finished build")
    if places.osm not in {"none", "overpass"} and "://" not in places.osm:
        osm_features.known(files.existing(Path(places.osm), "OpenStreetMap data"))  # now, not after an hour of pixels
    with files.only_writer(places.out, build_folder.IMAGE):
        build_folder.unchanged(places.out, files.toml(resolved(recipe, ground(recipe, places, locked))))
        files.mark_unfinished(places.out)
        for left in (*places.out.glob(".*.partial-*"), *places.out.glob(".*.plain.tif")):  # of a run that was killed
            left.unlink()
        planned = followed(recipe, locked) if locked else plan(recipe, places)
        if locked and exact:
            lock.hold(locked, replace(planned, answers=locked.answers))  # now, not after an hour of pixels
        settled, staged = fetch(recipe, planned, places)
        render(recipe, settled, staged, places, places.out)
        answers, outputs = mark(recipe, settled, places)
        finished = replace(settled, state="built", answers=answers, outputs=outputs)
        if locked and exact:
            lock.hold(locked, finished)
        lock.write(places.out / lock.NAME, finished)
        files.write(places.out / "recipe.toml", files.toml(resolved(recipe, finished.grid)))
        ids = [item.scene.id for item in finished.items]
        build_folder.write_stac(places.out, recipe.name, finished.grid, finished.dates, ids)
        files.write_sums(places.out)
        if places.scratch is None:
            shutil.rmtree(places.scratch_folder)
    return places.out


def followed(recipe: BuildRecipe, locked: Lock) -> Lock:
    """The lock with what this run brings of its own: recipe, tag table and versions, further items left out."""
    left = [item.scene.id for item in locked.items if item.scene.id in recipe.leave_out]
    return replace(
        locked,
        items=tuple(item for item in locked.items if item.scene.id not in left),
        dropped=(*locked.dropped, *(Dropped(id=name, reason=search.LEFT_OUT) for name in left)),
        recipe_sha256=lock.sha256(resolved(recipe, locked.grid)),
        osm_date=recipe.osm_date,
        tag_table_sha256=class_tables.sha256(recipe.labels.classes),
        versions=lock.versions(),
    )


def mark(recipe: BuildRecipe, settled: Lock, places: BuildPaths) -> tuple[dict[str, str], dict[str, str]]:
    """Labels, patches and contract beside the composite; the hashes of OpenStreetMap answers, and of all rasters."""
    answers: dict[str, str] = {}
    space = paint.chosen(recipe.labels).space
    if places.osm != "none":
        source = paint.OsmSource(
            where=places.osm, date=recipe.osm_date, store=places.out / ".osm", offline=places.offline, gap=places.gap
        )
        painted, answers = paint.label(settled.grid, source, recipe.labels)
        build_folder.write_labels(places.out, settled.grid, space, rasterize.SOURCES, painted)
    cut.cut(places.out, recipe.name, settled.grid, recipe.patches, recipe.split, space=space)
    outputs = build_folder.outputs(places.out)
    level, kernel = recipe.source.level, recipe.resampling
    finish.agree(places.out, recipe.name, recipe.dates, level, kernel, space=space, outputs=outputs)
    return answers, outputs


def fetch(recipe: BuildRecipe, planned: Lock, places: BuildPaths) -> tuple[Lock, tuple[visits.Observed, ...]]:
    """Stage every window, hold it against the lock, test offsets: the lock with both, and the staged scenes.

    Raises SourceError: a file cannot be read or is not what its item or the lock says; an offset contradicts.
    """
    to_stage = [visit(item.scene, recipe, planned.grid, places) for item in planned.items]
    peeks = [replace(v, pieces={b: p for b, p in v.pieces.items() if b == recipe.mask.asset}) for v in to_stage]
    if recipe.composite.method == "bap" or recipe.composite.max_obs:
        scenes = dict(enumerate(progress.track(places.run(visits.scout, peeks), label="mask layers", total=len(peeks))))
    else:
        scenes = dict(enumerate(visits.scout(replace(v, pieces={})) for v in to_stage))
    items, dropped = dict(enumerate(planned.items)), list(planned.dropped)
    task = partial(visits.visit, lattice=planned.grid)
    read: set[int] = set()
    # Scenes that cannot matter are not read; one that is left out may make others matter.
    known = -1
    while known != len(scenes) and (fresh := [n for n in _wanted(recipe, planned, scenes, places) if n not in read]):
        read, known = read | set(fresh), len(scenes)
        runs = progress.track(places.run(task, [to_stage[n] for n in fresh]), label="scenes", total=len(fresh))
        for n, (scene, seen) in zip(fresh, runs, strict=True):
            _same_pixels(items[n], scene.files)
            items[n] = replace(items[n], expected_offset=_promised(items[n].scene, recipe, seen.product))
            if recipe.offset.untestable == "leave-out" and offsets.untestable(items[n].expected_offset, seen):
                dropped.append(Dropped(id=scene.id, reason=f"offset untestable: {seen.eligible} clear pixels"))
                del items[n], scenes[n]
            else:
                items[n] = _decided(items[n], seen, recipe.offset)
                scenes[n] = replace(scene, offset=items[n].offset or 0)
    if not items:
        raise SourceError(f"all {len(to_stage)} scenes show too few clear pixels to test offsets; widen dates or area")
    for n in items:
        if n not in read:
            _same_pixels(items[n], scenes[n].files)
        items[n] = replace(items[n], windows={band: staged.sha256 for band, staged in scenes[n].files.items()})
    order = sorted(items)
    settled = replace(planned, items=tuple(items[n] for n in order), dropped=tuple(dropped))
    return settled, tuple(scenes[n] for n in order)


def _wanted(recipe: BuildRecipe, planned: Lock, scenes: dict[int, visits.Observed], places: BuildPaths) -> list[int]:
    order = sorted(scenes)
    if not any(scene.files for scene in scenes.values()) or recipe.mask.asset is None:
        return order[: recipe.composite.max_obs or None]
    if not (recipe.composite.method == "bap" or recipe.composite.max_obs):
        return order
    sighted = _sighted(recipe, tuple(scenes[n] for n in order), planned.grid, places)
    return [order[n] for n in clear_masks.wanted(sighted, recipe.composite)]


def _sighted(
    recipe: BuildRecipe, scenes: tuple[visits.Observed, ...], lattice: Grid, places: BuildPaths
) -> tuple[visits.Observed, ...]:
    reach, folder = recipe.composite.reach_m, places.scratch_folder / "sights"
    return clear_masks.sighted(scenes, recipe.mask, area=lattice, reach_m=reach, folder=folder, run=places.run)


def visit(scene: Scene, recipe: BuildRecipe, lattice: Grid, places: BuildPaths) -> visits.Visit:
    there = search.located(scene, places.stac or recipe.source.stac)
    found, decide = dict(there.assets), dict(scene.assets)
    if recipe.mask.method == cloud_masks.EXTERNAL:
        if places.masks is None:
            raise SettingError("mask method external needs a folder of rasters <item id>.tif; give --masks DIR")
        path = files.existing(places.masks / f"{scene.id}.tif", "a mask of this scene")
        found[cloud_masks.EXTERNAL] = Asset(href=str(path))
        decide[cloud_masks.EXTERNAL] = Asset(href=files.sha256_file(path))
    pieces = {}
    for band in (*assets(recipe), *(found.keys() & {cloud_masks.EXTERNAL})):
        reach = clear_masks.layer_reach_m(recipe.mask, recipe.composite.reach_m) if band == recipe.mask.asset else 0
        # Named by what decides its bytes: another plan may share it, a changed one may not.
        decides = {"asset": decide[band], "bounds": lattice.bounds, "crs": lattice.crs, "margin": reach}
        kernel = recipe.resampling if band in BAND else "nearest"
        if scene.crs != lattice.crs:  # only where pixels are warped
            decides |= {"kernel": kernel}
        digest = lock.sha256(decides)[:16]
        pieces[band] = staging.Piece(
            name=f"{scene.id} {band}",
            asset=replace(found[band], crs=found[band].crs or (scene.crs if band != cloud_masks.EXTERNAL else None)),
            crs=lattice.crs,
            bounds=lattice.bounds,
            target=places.scratch_folder / "windows" / f"{scene.id}-{band}-{digest}",
            margin_m=reach,
            kernel=kernel,
            tokens=recipe.source.tokens or signing.service(scene.provider, found[band].href),
        )
    told = there.product if offsets.told_by_product(scene.baseline) else None
    return visits.Visit(
        id=scene.id,
        overpass=scene.overpass,
        day=(date.fromisoformat(scene.time[:10]) - date(1970, 1, 1)).days,
        pieces=pieces,
        product=told,
        tokens=recipe.source.tokens or signing.service(scene.provider, told or ""),
    )


def _same_pixels(item: Item, staged: dict[str, staging.Staged]) -> None:
    for band, promised in item.windows.items():
        if band in staged and staged[band].sha256 != promised:
            raise SourceError(
                f"{item.scene.id} {band}: window pixels hash to {staged[band].sha256[:12]}, the lock has "
                f"{promised[:12]}; the catalogue has changed: plan again"
            )


def _decided(item: Item, evidence: offsets.Evidence, settings: offsets.OffsetSettings) -> Item:
    declared = item.scene.declared_offset
    offset = offsets.decide(item.scene.id, item.expected_offset, evidence, declared=declared, believe=settings.believe)
    if declared is not None and declared != offset:
        log.warning("scene %s: its item declares offset %d, decided is %d", item.scene.id, declared, offset)
    return replace(item, offset=offset, dark_share=evidence.dark_share, eligible=evidence.eligible)


def render(
    recipe: BuildRecipe, settled: Lock, scenes: tuple[visits.Observed, ...], places: BuildPaths, folder: Path
) -> None:
    """Composite all tiles and write `image.tif`, `provenance.tif` and `usage.json` into `folder`."""
    task = job(recipe, settled, scenes, places)
    windows = list(grid.tiles(settled.grid.shape, *tiles.tile_shape(task, places.tile_px)))
    runs = places.run(partial(tiles.composite_tile, task), windows)
    paths = progress.track(runs, label="composite", total=len(windows))
    build_folder.write_composite(folder, settled.grid, recipe.bands, zip(windows, paths, strict=True))
    build_folder.write_usage(folder, [(scene.id, scene.clear_share) for scene in task.scenes])


def job(recipe: BuildRecipe, settled: Lock, scenes: tuple[visits.Observed, ...], places: BuildPaths) -> tiles.Job:
    """What decides each tile of the composite, masks included; its folder is that of no job with other pixels."""
    decides = (recipe.bands, recipe.resampling, recipe.composite, recipe.mask, settled.grid)
    items = [(item.scene.id, item.scene.overpass, item.offset, item.windows) for item in settled.items]
    name = lock.sha256([rules.VERSION, resample.VERSION, decides, items])[:16]
    return tiles.Job(
        grid=settled.grid,
        bands=recipe.bands,
        kernel=recipe.resampling,
        settings=recipe.composite,
        scenes=_sighted(recipe, scenes, settled.grid, places),
        folder=places.scratch_folder / "tiles" / name,
    )
