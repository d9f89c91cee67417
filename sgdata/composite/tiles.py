"""Scenes to composite: staged mask layers -> sights; one tile through all scenes -> its composite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files
from sgdata.composite import cloud_masks, rules, staging
from sgdata.rasters import grid, resample
from sgdata.scenes import offsets, product_metadata
from sgdata.types import Array, Grid, Window

# A composite tile shrinks until its observations fit: memory is flat in the number of dates.
TILE_BYTES = 40 << 20

THREADS, READERS = 2, 4
"""Scenes or tiles at work at a time in one process, and files read for them: inflating, hashing, reducing and waiting
for a server all let other threads run."""

SIGHT = "sight"
VERSION = 2
"""Counts changes of masks or composites that change a pixel: what an older version left in scratch is not used."""

# Sides of tiles, unless the area or the caller ends them: whole pixels of 20 m and 60 m, in pairs.
NEST = 12

# Masks are worked on in strips of about this size: memory is flat in the area.
STRIP_PIXELS = 1 << 19

# Coverage of a scene is counted on every eighth pixel of its sight.
THINNED = 8


@dataclass(frozen=True, kw_only=True)
class CompositeSettings:
    """How many dates become one. `max_obs` scenes at most are looked at, the clearest together; 0: all."""

    method: rules.Method
    max_obs: int
    bap: rules.BapSettings

    @property
    def reach_m(self) -> float:
        """How far the rule wants to know of clouds."""
        return self.bap.cloud_m if self.method == "bap" else 0


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One staged scene: its pass, its day (since 1970), the offset to add to its DN, its staged files by band."""

    id: str
    overpass: str
    day: int
    offset: int
    files: dict[str, staging.Staged]

    @property
    def clear_share(self) -> float | None:
        """Share of the area (and the margin that buffers need) that may be looked at; None where nothing was masked."""
        sight = self.files.get(SIGHT)
        return None if sight is None else round(float(np.count_nonzero(sight.pixels) / sight.pixels.size), 6)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One scene to be staged: its pass, its day (since 1970) and the files to fetch by band."""

    id: str
    overpass: str
    day: int
    pieces: dict[str, staging.Piece]
    product: str | None = None
    """Where the product metadata lie that tell the offset, and the service that signs that address."""
    tokens: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that decides a composite tile; `folder` keeps finished tiles."""

    grid: Grid
    bands: tuple[str, ...]
    kernel: resample.Kernel
    settings: CompositeSettings
    scenes: tuple[Observed, ...]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Masking:
    """All that decides the sights of an area, on their own lattice; `folder` keeps them."""

    grid: Grid
    settings: cloud_masks.MaskSettings
    reach_m: float
    folder: Path

    @property
    def bright(self) -> Path:
        """What the guard found, one byte a pixel."""
        return self.folder / "bright.bin"

    @property
    def strips(self) -> list[Window]:
        """Parts of whole blocks, which the neighbourhood of clouds is counted on."""
        return list(grid.strips(self.grid.shape, STRIP_PIXELS, multiple=cloud_masks.block_px(self.grid.gsd_m)))


# --- scenes --------------------------------------------------------------------------------


def visit(scene: Visit, *, lattice: Grid) -> tuple[Observed, offsets.Evidence]:
    """Stage all files of a scene and test its offset. Raises SourceError."""
    observed = scout(scene)
    told = product_metadata.offset(scene.product, scene.tokens) if scene.product else None
    return observed, replace(evidence(observed, lattice), product=told)


def scout(scene: Visit) -> Observed:
    """Stage the files of a scene and ask no more of it."""
    staged = dict(zip(scene.pieces, _readers().map(staging.stage, scene.pieces.values()), strict=True))
    return Observed(id=scene.id, overpass=scene.overpass, day=scene.day, offset=0, files=staged)


@cache
def _readers() -> ThreadPoolExecutor:
    """Per process."""
    return ThreadPoolExecutor(READERS)


def sighted(
    scenes: tuple[Observed, ...],
    settings: cloud_masks.MaskSettings,
    *,
    area: Grid,
    reach_m: float,
    folder: Path,
    run: Callable[..., Iterable[Any]],
) -> tuple[Observed, ...]:
    """The scenes, each with its sight (`masks`) among its staged files, on one lattice that reaches beyond the area.

    `run(task, items)` does the work, `folder` keeps it. What a strip cannot know of its neighbours it is told, so that
    no edge shows. Raises SourceError where layers do not nest.
    """
    layer = settings.asset
    if layer is None or not scenes:
        return scenes
    west, south, east, north = area.bounds
    reach = layer_reach_m(settings, reach_m)
    theirs = replace(scenes[0].files[layer].lattice, crs=area.crs)
    target = grid.windowed(theirs, grid.over(theirs, (west - reach, south - reach, east + reach, north + reach)))
    decides = (VERSION, settings, reach_m, target, [(scene.id, scene.files[layer].sha256) for scene in scenes])
    folder = folder / files.sha256(files.canonical_json(decides))[:16]
    masking = Masking(grid=target, settings=settings, reach_m=reach_m, folder=folder)
    if settings.guard and not masking.bright.exists():
        shares, size = np.stack(list(run(partial(_cloudiness, masking), scenes))), cloud_masks.block_px(target.gsd_m)
        # Each strip with the blocks it lies in, and no more, for it may go to another machine.
        parts = ((part, shares[:, part.row // size : -(-(part.row + part.height) // size)]) for part in masking.strips)
        with files.replacing(masking.bright, durable=False) as temporary, temporary.open("wb") as handle:
            for roofs in run(partial(_bright, masking, scenes), parts):
                roofs.tofile(handle)
    found = run(partial(_sight, masking), scenes)
    return tuple(replace(scene, files=scene.files | {SIGHT: sight}) for scene, sight in zip(scenes, found, strict=True))


def _kinds(masking: Masking, scene: Observed, strip: Window) -> Array:
    part = grid.windowed(masking.grid, strip)
    layer = scene.files[masking.settings.asset or ""]
    return cloud_masks.kinds(
        staging.on_grid(layer, part, kernel="nearest", beyond=cloud_masks.BEYOND), masking.settings
    )


def _cloudiness(masking: Masking, scene: Observed) -> Array:
    return cloud_masks.cloudiness((_kinds(masking, scene, strip) for strip in masking.strips), masking.grid.gsd_m)


def _bright(masking: Masking, scenes: tuple[Observed, ...], part: tuple[Window, Array]) -> Array:
    """One strip and the (T, h, w) cloudiness of its blocks, through all dates in order: float sums depend on it."""
    strip, shares = part
    guard = cloud_masks.Guard((strip.height, strip.width), masking.grid.gsd_m)
    for scene, share in zip(scenes, shares, strict=True):
        guard.add(_kinds(masking, scene, strip), share)
    return guard.bright()


def _sight(masking: Masking, scene: Observed) -> staging.Staged:
    path = masking.folder / f"{scene.id}.bin"
    # The folder's name holds all that decides the bytes: what an earlier run left here is this.
    if not path.exists():
        lattice, settings = masking.grid, masking.settings
        halo = cloud_masks.halo_px(settings, lattice.gsd_m, masking.reach_m)
        guard = replace(_staged(masking.bright, lattice), dtype="bool") if settings.guard else None
        with files.replacing(path, durable=False) as temporary, temporary.open("wb") as handle:
            for strip in masking.strips:
                first, last = max(strip.row - halo, 0), min(strip.row + strip.height + halo, lattice.shape[0])
                seen = _kinds(masking, scene, replace(strip, row=first, height=last - first))
                roofs = None if guard is None else guard.rows(first, last)
                sight = cloud_masks.sight(seen, roofs, settings, gsd_m=lattice.gsd_m, reach_m=masking.reach_m)
                sight[strip.row - first :][: strip.height].tofile(handle)
    return _staged(path, masking.grid)


def _staged(path: Path, lattice: Grid) -> staging.Staged:
    return staging.Staged(path=str(path), lattice=lattice, dtype="uint8", sha256="", holes=False)


def layer_reach_m(mask: cloud_masks.MaskSettings, reach_m: float) -> float:
    """How far beyond the area the mask layer is needed."""
    return max(mask.cloud_buffer_m, mask.shadow_buffer_m, reach_m)


def wanted(scenes: tuple[Observed, ...], settings: CompositeSettings) -> list[int]:
    """Positions of the sighted scenes whose pixels can matter: the others need not be read.

    `bap`: scenes that could win somewhere, if their haze were the least and that of all others the worst.
    """
    every = list(range(len(scenes)))
    sights = [scene.files[SIGHT] for scene in scenes if SIGHT in scene.files]
    if not sights:
        return every[: settings.max_obs or None]
    if settings.max_obs and settings.max_obs < len(scenes):
        every = sorted(rules.spread([sight.pixels[::THINNED, ::THINNED] > 0 for sight in sights], settings.max_obs))
    if settings.method != "bap":
        return every
    by_sight, haze = settings.bap.of_sight(sights[0].lattice.gsd_m).astype(np.int32), settings.bap.of_haze()
    # Not seen at all: far below whatever is, so that one table settles both.
    by_sight[0] = np.iinfo(np.int32).min // 2
    tables = {n: by_sight + np.int32(settings.bap.of_date(scenes[n].day) + haze.min()) for n in every}
    needed: set[int] = set()
    for strip in grid.strips(sights[0].lattice.shape, STRIP_PIXELS):
        # What each pixel is sure to reach with the worst haze; who cannot reach that with the least is not read.
        floor = np.zeros((strip.height, strip.width), np.int32)
        for n in every:
            np.maximum(floor, tables[n][sights[n].rows(strip.row, strip.row + strip.height)], out=floor)
        floor = np.maximum(floor - np.int32(haze.max() - haze.min()), 0)
        for n in set(every) - needed:
            if (tables[n][sights[n].rows(strip.row, strip.row + strip.height)] >= floor).any():
                needed.add(n)
    return [n for n in every if n in needed]


# --- tiles ---------------------------------------------------------------------------------


def tile_shape(job: Job, most: int) -> tuple[int, int]:
    """Height and width, `most` at the most, of tiles whose (T, C, H, W) DN, sights and result fit in TILE_BYTES.

    As wide as can be, for rows lie together in the staged files.
    """
    # Rules that go band by band hold one at a time; of each date there is a sight, and whether it is usable.
    each = len(job.scenes) * (2 * max(len(looked_at(job)), 1) + 2) + 2 * (len(job.bands) + 4)
    pixels = TILE_BYTES // each
    width = min(job.grid.shape[1], most, max(pixels // NEST**2, 1) * NEST)
    return min(most, max(pixels // width // NEST, 1) * NEST), width


def looked_at(job: Job) -> tuple[str, ...]:
    """Bands of which every date is needed at once; of the others only the chosen dates are, or one band at a time."""
    return tuple(b for b in rules.LOOKS_AT.get(job.settings.method, job.bands) if b in job.bands)


def observations(job: Job, window: Window) -> tuple[Array, Array]:
    """(T, C, H, W) uint16 DN with offsets settled in the bands looked at, and (T, H, W) uint8 sight.

    Sight is 0 where any band of the job has no data. Where granules of one pass overlap they hold the same pixels
    twice: the first valid one in order counts.
    """
    target = grid.windowed(job.grid, window)
    bands = looked_at(job)
    stack = np.zeros((len(job.scenes), len(bands), *target.shape), np.uint16)
    sights = np.zeros((len(job.scenes), *target.shape), np.uint8)
    seen: dict[str, Array] = {}
    for scene, planes, sight in zip(job.scenes, stack, sights, strict=True):
        if not set(job.bands) <= scene.files.keys():
            continue  # scouted, and cannot win
        for band, plane in zip(bands, planes, strict=True):
            plane[:] = staging.on_grid(scene.files[band], target, kernel=job.kernel, offset=scene.offset)
        valid = np.ones(target.shape, np.bool_)
        # A pixel needs all bands valid (SEPAL); bands without a hole need not be looked at to know that.
        for band in job.bands:
            if scene.files[band].holes:
                known = planes[bands.index(band)] if band in bands else None
                valid &= (staging.on_grid(scene.files[band], target, kernel="nearest") if known is None else known) > 0
        before = seen.get(scene.overpass)
        use = valid.copy()
        if before is not None:
            use &= ~before
            valid |= before
        seen[scene.overpass] = valid
        if SIGHT in scene.files:
            sight[:] = staging.on_grid(scene.files[SIGHT], target, kernel="nearest") * use
        else:
            sight[:] = use
    return stack, sights


def composite_tile(job: Job, window: Window) -> Path:
    """Compute one tile, or take it from an earlier run: a `.npy` of (C + 4, h, w) uint16.

    The image, then item index, valid count, days since 1970 and score as in `builds.PROVENANCE_BANDS`.
    """
    path = job.folder / f"r{window.row:06d}-c{window.col:06d}-{window.height}x{window.width}.npy"
    if path.exists():
        return path
    stack, sights = observations(job, window)
    usable = cloud_masks.best_sights(sights)
    content = np.zeros((len(job.bands) + 4, window.height, window.width), np.uint16)
    image = content[: len(job.bands)]
    # Rules that mix dates choose none: index and score stay without value.
    index = score = np.full(usable.shape[1:], rules.NO_VALUE, np.uint16)
    match job.settings.method:
        case "medoid":
            index, score = rules.medoid(stack, usable)
        case "maxndvi":
            index, score = rules.maxndvi(stack, usable)
        case "bap":
            usable = sights > 0
            gsd = next((s.files[SIGHT].lattice.gsd_m for s in job.scenes if SIGHT in s.files), 20.0)
            # Without a mask layer all sights are 1; `check` refuses bap then, any size will do.
            days = tuple(scene.day for scene in job.scenes)
            index, score = rules.bap(stack, sights, days, job.settings.bap, gsd)
        case "median":
            _middle(job, window, usable, image)
        case "geomedian":
            image[:] = rules.geomedian(stack, usable)
    if job.settings.method in {"medoid", "maxndvi", "bap"}:
        _picked(job, window, stack, index, image)
    dates = np.array([*(scene.day for scene in job.scenes), rules.NO_VALUE], np.uint16)
    day = dates[np.minimum(index, len(job.scenes))]
    for plane, values in zip(content[-4:], (index, usable.sum(axis=0, dtype=np.uint16), day, score), strict=True):
        plane[:] = values
    with files.replacing(path, durable=False) as temporary, temporary.open("wb") as handle:
        np.save(handle, content)
    return path


def _middle(job: Job, window: Window, usable: Array, image: Array) -> None:
    """Fill `image` (C, h, w) with the median of each band over the usable dates."""
    staged = [(n, scene) for n, scene in enumerate(job.scenes) if set(job.bands) <= scene.files.keys()]
    stack = np.zeros((len(job.scenes), 1, 0, 0), np.uint16)

    @cache
    def by_blocks(factor: int) -> Array | None:
        coarse = usable[:, ::factor, ::factor]
        return coarse if np.array_equal(resample.finer(coarse, factor, kernel="nearest"), usable) else None

    for band, out in zip(job.bands, image, strict=True):
        target, looks = grid.windowed(job.grid, window), usable
        places = (staging.place(scene.files[band], target) for _, scene in staged)
        (factor, *shift), *others = {(factor, row % factor, col % factor) for factor, row, col in places} or {(1, 0, 0)}
        # Repeats of one coarse pixel have one median: taken there if dates are usable by whole coarse pixels.
        if factor > 1 and not any(shift) and not others and job.kernel == "nearest":
            coarse = by_blocks(factor)
            if coarse is not None:
                target, looks = grid.coarser(target, factor), coarse
        if stack.shape[2:] != target.shape:  # bands of one size share the memory, whose first touch costs most
            stack = np.zeros((len(job.scenes), 1, *target.shape), np.uint16)
        for n, scene in staged:
            stack[n, 0] = staging.on_grid(scene.files[band], target, kernel=job.kernel, offset=scene.offset)
        out[:] = resample.finer(rules.median(stack, looks)[0], window.height // target.shape[0], kernel="nearest")


def _picked(job: Job, window: Window, stack: Array, index: Array, image: Array) -> None:
    """Fill `image` (C, h, w) of zeros with all bands of the date chosen at each pixel."""
    target, bands = grid.windowed(job.grid, window), looked_at(job)
    # Upsampling costs more than anything else here: only for the dates that won in this tile.
    for n in np.unique(index[index != rules.NO_VALUE]):
        scene, here = job.scenes[n], index == n
        for band, out in zip(job.bands, image, strict=True):
            if band in bands:
                plane = stack[n, bands.index(band)]
            else:
                plane = staging.on_grid(scene.files[band], target, kernel=job.kernel, offset=scene.offset)
            np.copyto(out, plane, where=here)


def evidence(scene: Observed, lattice: Grid) -> offsets.Evidence:
    """The offset test over the whole area, strip by strip, on DN as they are stored."""
    needed = ("SCL", *offsets.TEST_BANDS)
    if any(name not in scene.files for name in needed):
        return offsets.Evidence(eligible=0, dark_share=0.0)
    eligible = dark = 0
    # One of the grid's pixels for each of the classification's, which are coarser: repeats tell nothing new.
    step = max(round(scene.files["SCL"].lattice.gsd_m / lattice.gsd_m), 1)
    for strip in grid.strips(lattice.shape, 4 * STRIP_PIXELS, multiple=step):
        target = grid.windowed(lattice, strip)
        classes, *bands = (_thinned(scene.files[name], target, step) for name in needed)
        counted = offsets.count(classes, np.stack(bands))
        eligible, dark = eligible + counted[0], dark + counted[1]
    share = dark / (eligible * len(offsets.TEST_BANDS)) if eligible else 0.0
    return offsets.Evidence(eligible=eligible, dark_share=round(share, 6))


def _thinned(staged: staging.Staged, target: Grid, step: int) -> Array:
    """Every `step`th pixel of the target, down and across."""
    if any(size % step for size in (*staging.place(staged, target), *target.shape)):
        return staging.on_grid(staged, target, kernel="nearest")[::step, ::step]
    return staging.on_grid(staged, grid.coarser(target, step), kernel="nearest")  # no repeats to be skipped
