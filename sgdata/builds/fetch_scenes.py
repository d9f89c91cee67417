"""Fetch the scenes of a plan: stage mask layers, select scenes, stage their bands, decide their offsets."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from sgdata import files, progress, urls
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe, assets
from sgdata.composite import cloud_masks, mask_scenes, needed_cells, select_dates, tiles
from sgdata.errors import SettingError, SourceError
from sgdata.rasters import cells
from sgdata.rasters.cells import Cells
from sgdata.remote.allowed_addresses import access_of
from sgdata.safe_names import file_name
from sgdata.scenes import lock, offsets, search, signing, types
from sgdata.scenes.lock import Item, Lock
from sgdata.scenes.types import Asset, Dropped, Scene
from sgdata.sentinel2 import MSI
from sgdata.staging import scene_files, scene_staging, staged_pixels
from sgdata.staging.scene_staging import SceneRequest, StagedScene
from sgdata.types import Grid

log = logging.getLogger("sgdata")

T = TypeVar("T")

HEADERS = ".headers"
"""Folder beside the lock with the headers of remote files: a build that follows the lock again asks for none."""
LAYERS_AT_ONCE, SCENES_AT_ONCE = 16, 8
"""Scenes on servers of which one process reads the mask layer, or all files, at a time: it mostly waits for answers."""
LOST_NAMED, LOST_AT_ONCE = 20, 4
"""Scenes that may be lost before a build stops early: after some were read, and if none was."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One scene of the plan.

    Attributes:
        item: Its item in the lock.
        request: Windows to stage.
        scene: What is staged so far.
        evidence: Evidence for its offset; None until bands are staged.
        decided: Whether its offset is decided.
    """

    item: Item
    request: SceneRequest
    scene: StagedScene
    evidence: offsets.OffsetEvidence | None = None
    decided: bool = False


def fetch_scenes(recipe: BuildRecipe, build_lock: Lock, paths: BuildPaths) -> tuple[Lock, tuple[StagedScene, ...]]:
    """Stage the scenes of a plan that can matter, compare them with the lock, and decide their offsets.

    Returns:
        The lock with offsets and pixel hashes, without the scenes that were dropped; and its scenes, staged.

    Raises:
        SourceError: More scenes than the recipe allows have files that cannot be read or differ from their items; a
            window differs from the lock; an offset cannot be decided.
    """
    mask_results = stage_masks(recipe, build_lock, paths)
    candidates = [result for result in mask_results if isinstance(result, Candidate)]
    dropped = [result for result in mask_results if isinstance(result, Dropped)]
    while pending := select(recipe, build_lock, candidates, paths):
        staged = decide_offsets(recipe, stage_bands(recipe, build_lock, pending, paths))
        results = [staged.get(candidate.scene.id, candidate) for candidate in candidates]
        candidates = [result for result in results if isinstance(result, Candidate)]
        newly_dropped = [result for result in results if isinstance(result, Dropped)]
        # Without dropped scenes, and where a scene turned out to have no data, others may matter.
        dropped += newly_dropped
        again = any(candidate.evidence is None for candidate, _ in pending) or dropped
        if not again and not any(candidate.scene.has_holes(recipe.bands) for candidate in candidates):
            break  # these were the bands of the winners, and nothing that lacks data can change who wins
    check_lost(recipe, len(build_lock.items) - len(types.lost(dropped)), (*build_lock.dropped, *dropped))
    if not candidates:
        count = len(build_lock.items)
        reasons = types.reasons(dropped[:3])
        raise SourceError(
            f"all {count} scenes were left out ({reasons}); widen dates or area, or give --offset-source metadata"
        )
    items = tuple(_set_hashes(candidate, build_lock.grid) for candidate in candidates)
    fetched = replace(build_lock, items=items, dropped=(*build_lock.dropped, *dropped))
    return fetched, tuple(candidate.scene for candidate in candidates)


# --- four steps ----------------------------------------------------------------------------


def stage_masks(recipe: BuildRecipe, build_lock: Lock, paths: BuildPaths) -> list[Candidate | Dropped]:
    """Return a candidate for each item, its mask layer staged where the selection needs it, or the item dropped."""
    requests = [
        replace(scene_request(item.scene, recipe, build_lock.grid, paths), required=bool(item.windows))
        for item in build_lock.items
    ]
    if recipe.mask.asset is not None and _reads_in_part(recipe, build_lock):
        mask_requests = [
            replace(r, windows={b: w for b, w in r.windows.items() if b == recipe.mask.asset}) for r in requests
        ]
        results = progress.track(
            paths.run(scene_staging.stage_files, mask_requests, **_concurrency(mask_requests, LAYERS_AT_ONCE)),
            label="mask layers",
            total=len(mask_requests),
        )
        scenes = list(_stop_if_too_many_lost(recipe, build_lock, results))
    else:
        scenes = [scene_staging.stage_files(replace(request, windows={})) for request in requests]
    staged = zip(build_lock.items, requests, scenes, strict=True)
    return [
        scene if isinstance(scene, Dropped) else Candidate(item=item, request=request, scene=scene)
        for item, request, scene in staged
    ]


def select(
    recipe: BuildRecipe, build_lock: Lock, candidates: list[Candidate], paths: BuildPaths
) -> list[tuple[Candidate, SceneRequest]]:
    """Return the candidates of which more can matter to the composite than is staged yet, and what to stage of them."""
    if not candidates:
        return []
    if recipe.mask.asset is None:
        return _missing(
            build_lock, dict.fromkeys(range(len(candidates))[: recipe.composite.max_obs or None]), candidates
        )
    if not _reads_in_part(recipe, build_lock):
        return _missing(build_lock, dict.fromkeys(range(len(candidates))), candidates)
    grid, settings = build_lock.grid, recipe.composite
    masked = add_clear_masks(recipe, tuple(candidate.scene for candidate in candidates), grid, paths)
    examined = select_dates.examined_dates(masked, settings)
    possible = needed_cells.find_possible(masked, examined, settings, area=grid, bands=recipe.bands)
    if build_lock.format == lock.WHOLE_WINDOWS:
        return _missing(build_lock, dict.fromkeys(possible), candidates)
    layers = {n: _layers(recipe, candidates[n]) for n in possible}
    if pending := _missing(build_lock, {n: names for n, names in layers.items() if names}, candidates):
        return pending
    wanted, tested = {}, {}
    for n, part in possible.items():
        bands, cells_to_test = needed_cells.find_windows(masked[n], part, settings, area=grid, bands=recipe.bands)
        if bands or settings.rule.score_range is None:
            wanted[n], tested[n] = bands, cells_to_test
    if pending := _missing(build_lock, wanted, candidates, tested):
        return pending
    if settings.rule.score_range is None:
        return []
    scenes = tuple(
        replace(scene, offset=candidate.scene.offset) for scene, candidate in zip(masked, candidates, strict=True)
    )
    job = tiles.CompositeJob(
        grid=grid, bands=recipe.bands, kernel=recipe.resampling, settings=settings, scenes=scenes, folder=paths.out
    )
    winners = tiles.find_winners(job, paths.tile_px, paths.run)
    return _missing(
        build_lock, {n: dict.fromkeys(recipe.bands, cells.join(won)) for n, won in winners.items()}, candidates
    )


def _layers(recipe: BuildRecipe, candidate: Candidate) -> dict[str, Cells | None]:
    """Return the layers of a scene that are no bands; they are read as a whole."""
    return {name: None for name in candidate.request.windows if name not in recipe.bands}


def _missing(
    build_lock: Lock,
    wanted: Mapping[int, dict[str, Cells | None] | None],
    candidates: list[Candidate],
    tested: Mapping[int, Cells | None] = MappingProxyType({}),
) -> list[tuple[Candidate, SceneRequest]]:
    """Return the candidates whose windows are not staged, and requests for them.

    Args:
        build_lock: The lock to follow; of windows that it has hashes of, the cells that it names are read too.
        wanted: Cells to stage by band, by position; None for all windows as a whole.
        candidates: All candidates.
        tested: Cells in which the offset of a scene is tested if that was not done, by position.
    """
    found = []
    for n, names in sorted(wanted.items()):
        candidate = candidates[n]
        windows = {}
        for name, part in (dict.fromkeys(candidate.request.windows) if names is None else names).items():
            staged = candidate.scene.files.get(name)
            if staged is None or not cells.hold(staged.cells, part):
                parts = [part] if staged is None else [part, staged.cells]
                parts += [locked_cells(candidate.item, name, build_lock.grid)] if name in candidate.item.windows else []
                windows[name] = replace(candidate.request.windows[name], cells=cells.round_up(cells.join(*parts)))
        first = candidate.evidence is None and (n in tested or not windows.keys().isdisjoint(MSI.by_name))
        if windows or first:
            request = replace(candidate.request, windows=windows, staged=candidate.scene.files, tested=tested.get(n))
            found.append((candidate, replace(request, tests_offset=first)))
    return found


def stage_bands(
    recipe: BuildRecipe, build_lock: Lock, pending: list[tuple[Candidate, SceneRequest]], paths: BuildPaths
) -> Iterator[tuple[str, Candidate | Dropped]]:
    """Yield id and candidate in order with the windows of its request staged, its offset tested if they are the first.

    A scene of which a file cannot be used is dropped.
    """
    requests = [request for _, request in pending]
    task = partial(scene_staging.stage_scene, grid=build_lock.grid, bands=recipe.bands)
    staged = paths.run(task, requests, **_concurrency(requests, SCENES_AT_ONCE))
    results = _stop_if_too_many_lost(recipe, build_lock, progress.track(staged, label="scenes", total=len(pending)))
    for (candidate, _), result in zip(pending, results, strict=True):
        if isinstance(result, Dropped):
            yield candidate.scene.id, result
            continue
        scene, evidence = result
        scene = replace(scene, offset=candidate.scene.offset)
        _check_hashes(candidate.item, scene, build_lock.grid)
        if evidence is None:
            yield scene.id, replace(candidate, scene=scene)
            continue
        expected = offsets.expected_offset(candidate.item.scene, level=recipe.source.level, product=evidence.product)
        item = replace(candidate.item, expected_offset=expected)
        yield scene.id, replace(candidate, item=item, scene=scene, evidence=evidence)


def decide_offsets(
    recipe: BuildRecipe, staged: Iterable[tuple[str, Candidate | Dropped]]
) -> dict[str, Candidate | Dropped]:
    """Return the staged candidates by id with their offsets, or dropped with the reason.

    Raises:
        SourceError: Offsets are undecided, or metadata and pixels contradict each other; all scenes are named.
    """
    decided: dict[str, Candidate | Dropped] = {}
    undecided = []
    for name, candidate in staged:
        if isinstance(candidate, Dropped) or candidate.evidence is None or candidate.decided:
            decided[name] = candidate
            continue
        scene, evidence = candidate.item.scene, candidate.evidence
        decision = offsets.decide(scene, candidate.item.expected_offset, evidence, source=recipe.offset.source)
        if decision.warning:
            log.warning("scene %s: %s", name, decision.warning)
        if decision.untestable and recipe.offset.untestable == "leave-out":
            decided[name] = Dropped(id=name, reason=f"offset untestable: {evidence}")
        elif decision.offset is None:
            undecided.append((name, decision, evidence))
        else:
            decided[name] = _set_offset(candidate, decision.offset, evidence)
    if undecided:
        raise SourceError(offsets.describe_problems(undecided))
    return decided


def _set_offset(candidate: Candidate, offset: int, evidence: offsets.OffsetEvidence) -> Candidate:
    scene = candidate.item.scene
    declared = offsets.declared_offset(scene)
    if declared is not None and declared != offset:
        log.warning("scene %s: its item declares offset %d, decided is %d", scene.id, declared, offset)
    item = replace(candidate.item, offset=offset, dark_share=evidence.dark_share, eligible=evidence.eligible)
    return replace(candidate, item=item, scene=replace(candidate.scene, offset=offset), decided=True)


# --- scenes lost to faults -----------------------------------------------------------------


def check_lost(recipe: BuildRecipe, used_count: int, dropped: Iterable[Dropped]) -> None:
    """Warn of scenes that are left out because of faults, naming them all.

    Args:
        recipe: Has the share that is allowed.
        used_count: Number of scenes that are used.
        dropped: Scenes that are not used; those lost to faults count.

    Raises:
        SourceError: Their share is larger than the recipe allows.
    """
    lost = types.lost(dropped)
    if not lost:
        return
    total, limit = used_count + len(lost), recipe.source.max_unusable_share
    message = f"{len(lost)} of {total} scenes cannot be used: {types.reasons(lost)}"
    if len(lost) > limit * total:
        raise SourceError(
            f"{message}; expected at most {limit:.0%}; mend the source, try later, or raise source.max_unusable_share"
        )
    log.warning("%s; they are left out", message)


def _stop_if_too_many_lost(recipe: BuildRecipe, build_lock: Lock, results: Iterable[T]) -> Iterator[T]:
    """Yield the results of staging, until it is certain that too many are dropped. Raises SourceError."""
    lost = types.lost(build_lock.dropped)
    total = len(build_lock.items) + len(lost)
    staged = 0
    for result in results:
        if isinstance(result, Dropped):
            lost.append(result)
        else:
            staged += 1
        # Try some more, so that one message names them all, but few where nothing could be read so far.
        if len(lost) > max(recipe.source.max_unusable_share * total, LOST_NAMED if staged else LOST_AT_ONCE):
            check_lost(recipe, total - len(lost), lost)
        yield result


# --- their parts ---------------------------------------------------------------------------


def add_clear_masks(
    recipe: BuildRecipe, scenes: tuple[StagedScene, ...], grid: Grid, paths: BuildPaths
) -> tuple[StagedScene, ...]:
    """Return the scenes with their clear masks, kept in the scratch folder."""
    reach, folder = recipe.composite.reach_m, paths.scratch_folder / "clear_masks"
    return mask_scenes.add_clear_masks(scenes, recipe.mask, area=grid, reach_m=reach, folder=folder, run=paths.run)


def scene_request(scene: Scene, recipe: BuildRecipe, grid: Grid, paths: BuildPaths) -> SceneRequest:
    """Return what to stage of a scene: its bands, its layers, and a mask of the user."""
    where = paths.stac or recipe.source.stac
    located, access = (
        search.resolve_hrefs(scene, where),
        access_of(where, allow_private_hosts=paths.allow_private_hosts),
    )
    available, identity = dict(located.assets), dict(scene.assets)
    names = assets(recipe)
    if recipe.mask.method == cloud_masks.EXTERNAL:
        if paths.masks is None:
            raise SettingError("mask method external needs a folder of rasters <item id>.tif; give --masks DIR")
        path = files.require_file(paths.masks / f"{file_name(scene.id)}.tif", "a mask of this scene")
        available[cloud_masks.EXTERNAL] = Asset(href=str(path))
        identity[cloud_masks.EXTERNAL] = Asset(href=files.sha256_file(path))
        names = (*names, cloud_masks.EXTERNAL)
    windows = {}
    for band in names:
        is_layer = band == recipe.mask.asset
        reach = mask_scenes.layer_reach_m(recipe.mask, recipe.composite.reach_m) if is_layer else 0
        # Named by everything that decides its bytes, so that plans share equal windows and no others.
        decides = {"asset": identity[band], "bounds": grid.bounds, "crs": grid.crs, "margin": reach}
        kernel = recipe.resampling if band in MSI.by_name else "nearest"
        if scene.crs != grid.crs:  # only where pixels are warped
            decides |= {"kernel": kernel}
        asset = available[band]
        if band != cloud_masks.EXTERNAL:
            asset = replace(asset, crs=asset.crs or scene.crs)
        windows[band] = scene_files.WindowRequest(
            name=f"{scene.id} {band}",
            asset=asset,
            crs=grid.crs,
            bounds=grid.bounds,
            target=paths.scratch_folder / "windows" / file_name(f"{scene.id}-{band}-{lock.sha256(decides)[:16]}"),
            margin_m=reach,
            kernel=kernel,
            tokens=_tokens(recipe, scene, asset.href),
            access=access,
            headers=paths.out / HEADERS,
        )
    hrefs = [asset.href for asset in available.values()] + [located.product or ""]
    # Of Zarr stores always, since their metadata state the scale too.
    is_read = offsets.states_offset(scene.baseline) or urls.is_zarr(located.product or "")
    product = located.product if is_read else None
    return SceneRequest(
        id=scene.id,
        overpass=scene.overpass,
        day=(date.fromisoformat(scene.time[:10]) - date(1970, 1, 1)).days,
        windows=windows,
        product=product,
        tokens=_tokens(recipe, scene, product or ""),
        signed=tuple(full for href in hrefs if (full := urls.recall(href)) != href),
        access=access,
    )


def _concurrency(requests: list[SceneRequest], count: int) -> dict[str, int]:
    """Return the option of `pool.run` for scenes that are read at a time; none where their files are on disk."""
    remote = any(urls.is_http(window.asset.href) for request in requests for window in request.windows.values())
    return {"threads": count} if remote else {}


def _reads_in_part(recipe: BuildRecipe, build_lock: Lock) -> bool:
    """Whether only some scenes or some cells are read, which mask layers decide."""
    rule = recipe.composite.rule
    return build_lock.format != lock.WHOLE_WINDOWS or recipe.composite.max_obs > 0 or rule.score_range is not None


def _tokens(recipe: BuildRecipe, scene: Scene, href: str) -> str:
    return recipe.source.tokens or signing.service(scene.provider, href)


def _check_hashes(item: Item, scene: StagedScene, grid: Grid) -> None:
    for band, expected in item.windows.items():
        staged = scene.files.get(band)
        if staged is None:
            continue
        part = locked_cells(item, band, grid)
        found = staged.sha256 if part == staged.cells else staged_pixels.compute_hash(staged, part)
        if found != expected:
            raise SourceError(
                f"{item.scene.id} {band}: window pixels hash to {found[:12]}, the lock has "
                f"{expected[:12]}; the catalogue has changed: plan again"
            )


def locked_cells(item: Item, band: str, grid: Grid) -> Cells | None:
    """Return the cells of a window that a lock has the hash of; None for all of it. Raises SettingError."""
    bits = item.cells.get(band)
    if bits is None:
        return None
    part = cells.read_bits(grid.bounds, bits)
    if part is None:
        raise SettingError(f"lock: {item.scene.id} {band}: cells {bits!r:.60} are not those of its grid; plan again")
    return part


def _set_hashes(candidate: Candidate, grid: Grid) -> Item:
    """Return the item of a candidate with the pixel hash of each staged window, and the cells of those read in part."""
    if candidate.evidence is None:
        _check_hashes(candidate.item, candidate.scene, grid)
    staged = candidate.scene.files
    return replace(
        candidate.item,
        windows={band: window.sha256 for band, window in staged.items()},
        cells={band: window.cells.bits for band, window in staged.items() if window.cells is not None},
    )
