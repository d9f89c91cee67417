"""Derive per-scene clear masks from the mask layers, over the whole area."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, reuse
from sgdata.composite import cloud_masks
from sgdata.composite.rules import VERSION
from sgdata.rasters import grids
from sgdata.safe_names import file_name
from sgdata.scenes.types import MASK_NODATA
from sgdata.staging import staged_pixels, window_staging
from sgdata.staging.scene_staging import BRIGHT_TARGETS, CLEAR_SCORE, STRIP_PIXELS, StagedScene
from sgdata.types import Array, Grid, Window


@dataclass(frozen=True, kw_only=True)
class MaskJob:
    """All that decides the clear masks of an area.

    Attributes:
        grid: Grid of the mask layers.
        settings: Settings of masks.
        reach_m: Distance in metres up to which the distance to clouds is needed.
        folder: Folder that keeps the masks.
    """

    grid: Grid
    settings: cloud_masks.MaskSettings
    reach_m: float
    folder: Path

    @property
    def bright_targets(self) -> Path:
        """File of what the bright target filter found, one byte for each pixel."""
        return self.folder / ".bright.bin"

    @property
    def narrow_targets(self) -> Path:
        """File of the bright targets among it, those that are never clear only where they are narrow."""
        return self.folder / ".narrow.bin"

    @property
    def strips(self) -> list[Window]:
        """Strips of whole blocks, on which cloud fractions are counted."""
        return list(grids.cut_strips(self.grid.shape, STRIP_PIXELS, multiple=cloud_masks.block_px(self.grid.gsd_m)))


def add_clear_masks(
    scenes: tuple[StagedScene, ...],
    settings: cloud_masks.MaskSettings,
    *,
    area: Grid,
    reach_m: float,
    folder: Path,
    run: Callable[..., Iterable[Any]],
) -> tuple[StagedScene, ...]:
    """Return the scenes with their clear scores (see `clear_score`) and bright targets among their staged files.

    All are on one grid that reaches beyond the area, and are computed in strips with a margin, so that no edge shows.

    Args:
        scenes: Staged scenes with at least their mask layers.
        settings: How clouds are masked; without a mask layer the scenes are returned as they are.
        area: The grid of the build.
        reach_m: Distance in metres up to which the distance to clouds is needed.
        folder: Where the masks are kept.
        run: `run(task, items)` yields the result of each item.

    Raises:
        SourceError: The pixels of mask layers do not nest.
    """
    layer = settings.asset
    if layer is None or not scenes:
        return scenes
    west, south, east, north = area.bounds
    reach = layer_reach_m(settings, reach_m)
    layer_grid = replace(scenes[0].files[layer].grid, crs=area.crs)
    wider = (west - reach, south - reach, east + reach, north + reach)
    target = grids.crop(layer_grid, grids.find_window(layer_grid, wider))
    decides = (VERSION, settings, reach_m, target, [(scene.id, scene.files[layer].sha256) for scene in scenes])
    folder = folder / files.sha256(files.canonical_json(decides))[:16]
    job = MaskJob(grid=target, settings=settings, reach_m=reach_m, folder=folder)
    if settings.filters and not reuse.is_unchanged(job.bright_targets):
        _write_bright_targets(job, scenes, run)
    if settings.filters and not reuse.is_unchanged(job.narrow_targets):
        _write_strips(job.narrow_targets, run(partial(_narrow_targets, job), job.strips))
    shared = {BRIGHT_TARGETS: _staged(job.bright_targets, job.grid)} if settings.filters else {}
    scores = run(partial(_clear_scores, job), scenes)
    return tuple(
        replace(scene, files=scene.files | shared | {CLEAR_SCORE: one})
        for scene, one in zip(scenes, scores, strict=True)
    )


def _write_bright_targets(job: MaskJob, scenes: tuple[StagedScene, ...], run: Callable[..., Iterable[Any]]) -> None:
    fractions = np.stack(list(run(partial(_cloud_fraction, job), scenes)))
    size = cloud_masks.block_px(job.grid.gsd_m)
    # Each strip travels with the fractions of its own blocks only, since it may go to another machine.
    strips = ((s, fractions[:, s.row // size : -(-(s.row + s.height) // size)]) for s in job.strips)
    _write_strips(job.bright_targets, run(partial(_bright_targets, job, scenes), strips))


def _write_strips(path: Path, strips: Iterable[Array]) -> None:
    with reuse.write_with_note(path) as temporary, temporary.open("wb") as handle:
        for strip in strips:
            handle.write(np.ascontiguousarray(strip).data)  # `tofile` would not notice that a disk is full


def _kinds(job: MaskJob, scene: StagedScene, strip: Window) -> Array:
    layer = scene.files[job.settings.asset or ""]
    target = grids.crop(job.grid, strip)
    values = window_staging.read_on_grid(layer, target, kernel="nearest", beyond=MASK_NODATA)
    return cloud_masks.classify_mask(values, job.settings)


def _cloud_fraction(job: MaskJob, scene: StagedScene) -> Array:
    return cloud_masks.cloud_fraction((_kinds(job, scene, strip) for strip in job.strips), job.grid.gsd_m)


def _bright_targets(job: MaskJob, scenes: tuple[StagedScene, ...], part: tuple[Window, Array]) -> Array:
    """Filter one strip by the (T, h, w) cloud fractions of its blocks."""
    strip, fractions = part
    bright_target_filter = cloud_masks.BrightTargetFilter((strip.height, strip.width), job.grid.gsd_m)
    # In the order of the scenes: sums of floats depend on it.
    for scene, fraction in zip(scenes, fractions, strict=True):
        bright_target_filter.add(_kinds(job, scene, strip), fraction)
    return bright_target_filter.bright()


def _clear_scores(job: MaskJob, scene: StagedScene) -> staged_pixels.StagedWindow:
    path = job.folder / f"{file_name(scene.id)}.bin"
    # The folder's name depends on everything that decides the bytes: a file kept by an earlier run is this one.
    if not reuse.is_unchanged(path):
        grid, settings = job.grid, job.settings
        margin = cloud_masks.margin_px(settings, grid.gsd_m, job.reach_m)
        targets = _staged(job.narrow_targets, grid) if settings.filters else None

        def strips() -> Iterator[Array]:
            for strip in job.strips:
                first, last = max(strip.row - margin, 0), min(strip.row + strip.height + margin, grid.shape[0])
                kinds = _kinds(job, scene, replace(strip, row=first, height=last - first))
                bright = None if targets is None else targets.rows(first, last)
                scores = cloud_masks.clear_score(kinds, bright, settings, gsd_m=grid.gsd_m, reach_m=job.reach_m)
                yield scores[strip.row - first :][: strip.height]

        _write_strips(path, strips())
    return _staged(path, job.grid)


def _narrow_targets(job: MaskJob, strip: Window) -> Array:
    """Return (h, W) uint8: the bright targets of one strip, which depend on their surroundings."""
    targets = _staged(job.bright_targets, job.grid)
    margin = 2 * cloud_masks.roof_px(targets.grid.gsd_m)
    start, stop = max(strip.row - margin, 0), min(strip.row + strip.height + margin, targets.grid.shape[0])
    bright = cloud_masks.bright_targets(targets.rows(start, stop), targets.grid.gsd_m)
    return bright[strip.row - start :][: strip.height]


def _staged(path: Path, grid: Grid) -> staged_pixels.StagedWindow:
    return staged_pixels.StagedWindow(path=str(path), grid=grid, dtype="uint8", sha256="", holes=False)


def layer_reach_m(mask: cloud_masks.MaskSettings, reach_m: float) -> float:
    """Return how far beyond the area, in metres, the mask layer is needed."""
    return max(mask.cloud_buffer_m, mask.shadow_buffer_m, reach_m)
