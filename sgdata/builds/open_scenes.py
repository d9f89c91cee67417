"""Open the scenes of a lock as one lazy xarray.Dataset, with offsets, masks and one grid, as composites read them."""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sgdata import output_names, urls
from sgdata.builds import fetch_scenes
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe, recipe_for
from sgdata.composite import cloud_masks
from sgdata.errors import SettingError, SourceError
from sgdata.rasters import grids, vectors
from sgdata.scenes import lock, offsets, types
from sgdata.sentinel2 import MSI
from sgdata.staging import scene_staging, window_staging
from sgdata.staging.scene_staging import CLEAR_SCORE, SceneRequest, StagedScene
from sgdata.types import Array, Grid, Window

if TYPE_CHECKING:
    import xarray

log = logging.getLogger("sgdata")


def open_scenes(
    path: str | Path,
    *,
    stac: str | Path | None = None,
    recipe: str | Path | BuildRecipe | None = None,
    bands: Sequence[str] | None = None,
    masks: str | Path | None = None,
    scratch: str | Path | None = None,
    chunk_px: int = 512,
) -> xarray.Dataset:
    """Open the scenes of a plan or a build as they enter its composite, read by dask when they are computed.

    The mask layers are read at once, since bright roofs are distinguished from clouds by all dates; bands are not.

    Args:
        path: Lock, or the folder of a plan or a build.
        stac: URL or path of the catalogue; None for the recipe's.
        recipe: Recipe by name, path or itself, for bands, resampling and masks; None for that of the build, or of
            segmunich for a plan.
        bands: Bands to open; None for all of the recipe. A date counts as without data by these bands.
        masks: Folder of masks, for the mask method external.
        scratch: Folder that keeps the mask layers, which all workers of a cluster must see; None for a temporary one.
        chunk_px: Side of the chunks in pixels.

    Returns:
        `image` (time, band, y, x) float32 DN with offsets corrected, NaN where a date is not clear or has no data;
        `clear` (time, y, x) bool; coordinates `time` (UTC), `id` and `overpass` of the scenes, and the CRS as rioxarray
        reads it; attribute `scale` (reflectance per DN). Where granules of one overpass overlap, the first counts.

    Raises:
        SettingError: Dask is not installed, a band is not in the recipe, or the lock is malformed.
        SourceError: The lock is missing, or a mask layer cannot be read.
    """
    path = Path(path)
    build_lock = lock.read(path)
    recipe_file = (path if path.is_dir() else path.parent) / output_names.RECIPE
    build_recipe = recipe_for(recipe if recipe is not None else recipe_file if recipe_file.is_file() else "segmunich")
    band_names = build_recipe.bands if bands is None else tuple(bands)
    if not band_names or not set(band_names) <= set(build_recipe.bands):
        raise SettingError(f"bands {list(band_names)}: expected some of the recipe's, {', '.join(build_recipe.bands)}")
    build_recipe = replace(build_recipe, bands=band_names)
    folder = Path(scratch) if scratch is not None else Path(tempfile.mkdtemp(prefix="sgdata-scenes-"))
    paths = BuildPaths(
        out=folder,
        scratch=folder,
        stac=None if stac is None else str(stac),
        masks=None if masks is None else Path(masks),
    )
    return _dataset(_prepare(build_lock, build_recipe, paths), build_lock, chunk_px)


@dataclass(frozen=True, kw_only=True)
class SceneStack:
    """All that decides the pixels of the dataset.

    Attributes:
        grid: Grid of the dataset.
        bands: Bands in order.
        requests: The files of each scene.
        scenes: Scenes with their offset, mask layers and clear scores.
        kernel: Resampling of bands that are coarser than the grid.
        outline: Outline outside which nothing is clear, as WKT.
    """

    grid: Grid
    bands: tuple[str, ...]
    requests: tuple[SceneRequest, ...]
    scenes: tuple[StagedScene, ...]
    kernel: Any
    outline: str | None


def _prepare(build_lock: lock.Lock, recipe: BuildRecipe, paths: BuildPaths) -> SceneStack:
    """Read the mask layers of all scenes and compute their clear scores."""
    requests = tuple(
        fetch_scenes.scene_request(item.scene, recipe, build_lock.grid, paths) for item in build_lock.items
    )
    mask_requests = [
        replace(request, windows={name: window for name, window in request.windows.items() if name not in recipe.bands})
        for request in requests
    ]
    staged = list(paths.run(scene_staging.stage_files, mask_requests))
    if dropped := [window for window in staged if isinstance(window, types.Dropped)]:
        raise SourceError(
            f"{len(dropped)} scenes cannot be read: {types.reasons(dropped)}; try later, or leave them out"
        )
    with_offsets = tuple(
        replace(scene, offset=_offset(item))
        for item, scene in zip(build_lock.items, staged, strict=True)
        if isinstance(scene, StagedScene)
    )
    undecided = [item.scene.id for item in build_lock.items if item.offset is None]
    if undecided:
        log.warning(
            "offsets of %d scenes are those of metadata, untested: %s", len(undecided), ", ".join(undecided[:3])
        )
    return SceneStack(
        grid=build_lock.grid,
        bands=recipe.bands,
        requests=requests,
        scenes=fetch_scenes.add_clear_masks(recipe, with_offsets, build_lock.grid, paths),
        kernel=recipe.resampling,
        outline=build_lock.outline,
    )


def _offset(item: lock.Item) -> int:
    """Return the offset of a scene: as decided by a build, else by metadata."""
    by_baseline = MSI.offset.value if offsets.states_offset(item.scene.baseline) else 0
    candidates = (item.offset, item.expected_offset, offsets.declared_offset(item.scene), by_baseline)
    return next(value for value in candidates if value is not None)


def _dataset(stack: SceneStack, build_lock: lock.Lock, chunk_px: int) -> xarray.Dataset:
    import rioxarray  # noqa: F401 - adds `.rio` to xarray
    import xarray

    try:
        da: Any = importlib.import_module("dask.array")
    except ImportError:
        raise SettingError("open_scenes: dask is not installed; pip install 'sgdata[cluster]'") from None
    height, width = stack.grid.shape
    count = len(stack.scenes)
    tiles = (_sides(height, chunk_px), _sides(width, chunk_px))
    whole = ((1,) * count, (1,) * len(stack.bands), *tiles)
    dn: Any = da.map_blocks(partial(_read, stack), chunks=whole, dtype=np.uint16, meta=np.empty((0,) * 4, np.uint16))
    zeros = (dn == 0).sum(axis=1, dtype=np.uint8).rechunk({0: -1})
    clear = da.map_blocks(partial(_clear, stack), zeros, dtype=np.bool_, meta=np.empty((0,) * 3, np.bool_))
    by_date = clear.rechunk({0: 1})[:, None]
    image = da.where(by_date, da.maximum(dn, 1).astype(np.float32), np.float32(np.nan))
    scenes = [item.scene for item in build_lock.items]
    times = np.array([scene.time.removesuffix("Z").partition("+")[0] for scene in scenes], "datetime64[ns]")
    west, _, _, north = stack.grid.bounds
    gsd = stack.grid.gsd_m
    made = xarray.Dataset(
        {"image": (("time", "band", "y", "x"), image), "clear": (("time", "y", "x"), clear)},
        coords={
            "time": times,
            "band": list(stack.bands),
            "y": north - gsd * (np.arange(height) + 0.5),
            "x": west + gsd * (np.arange(width) + 0.5),
            "id": ("time", [scene.id for scene in scenes]),
            "overpass": ("time", [scene.overpass for scene in scenes]),
        },
        attrs={"scale": MSI.scale},
    )
    written: xarray.Dataset = made.rio.write_crs(stack.grid.crs)
    return written


def _sides(length: int, side: int) -> tuple[int, ...]:
    return tuple(min(side, length - start) for start in range(0, length, side))


# --- chunks --------------------------------------------------------------------------------


def _window(location: Sequence[tuple[int, int]]) -> Window:
    (top, bottom), (left, right) = location[-2:]
    return Window(row=top, col=left, height=bottom - top, width=right - left)


def _read(stack: SceneStack, block_info: Any = None) -> Array:
    """Return one band of one scene on a chunk, (1, 1, h, w) DN with the offset corrected, 0 without data."""
    location = block_info[None]["array-location"]
    scene, request = stack.scenes[location[0][0]], stack.requests[location[0][0]]
    band = stack.bands[location[1][0]]
    target = grids.crop(stack.grid, _window(location))
    for url in request.signed:
        urls.remember(url)
    values = window_staging.read_unstaged(request.windows[band], target, kernel=stack.kernel, offset=scene.offset)
    return values.astype(np.uint16, copy=False)[None, None]


def _clear(stack: SceneStack, zeros: Array, block_info: Any = None) -> Array:
    """Return (T, h, w) bool: the clear dates of a chunk, of which `zeros` (T, h, w) counts the bands without data."""
    window = _window(block_info[0]["array-location"])
    target = grids.crop(stack.grid, window)
    scores = np.zeros(zeros.shape, np.uint8)
    covered: dict[str, Array] = {}
    inside = None if stack.outline is None else vectors.rasterize_outline(stack.outline, stack.grid)[window.slices]
    for scene, empty, score in zip(stack.scenes, zeros, scores, strict=True):
        valid = scene_staging.judge_data(scene, empty, len(stack.bands), target)
        earlier = covered.get(scene.overpass, np.zeros(target.shape, np.bool_))
        covered[scene.overpass] = valid | earlier
        score[:] = valid & ~earlier if inside is None else valid & ~earlier & inside
        if CLEAR_SCORE in scene.files:
            score[:] *= window_staging.read_on_grid(scene.files[CLEAR_SCORE], target, kernel="nearest")
    return cloud_masks.select_clear(scores)
