"""Derive the clear mask of each scene from its mask layer, over the whole area."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files
from sgdata.composite import cloud_masks, rules, staging
from sgdata.composite.rules import VERSION, CompositeSettings
from sgdata.composite.visits import SIGHT, STRIP_PIXELS, Observed
from sgdata.rasters import grid
from sgdata.types import Array, Grid, Window

# Coverage of a scene is counted on every eighth pixel of its sight.
THINNED = 8


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
