"""Stage the files of a scene, and count the evidence for the offset of its DN."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType

import numpy as np

from sgdata import urls
from sgdata.errors import SourceError
from sgdata.rasters import cells, grids
from sgdata.rasters.cells import Cells
from sgdata.remote.allowed_addresses import Access
from sgdata.scenes import offsets, product_metadata
from sgdata.scenes.types import UNREADABLE, Dropped
from sgdata.sentinel2 import MSI, SceneClass
from sgdata.staging import offset_pixels, scene_files, staged_pixels, window_staging
from sgdata.types import Array, Grid, Window

READERS, REMOTE_READERS = 4, 48
"""Files that are read at a time, on disks and on servers: decompressing, hashing and waiting all release the GIL."""

CLEAR_SCORE, BRIGHT_TARGETS = "clear_score", "bright_targets"
"""Keys, among the staged files of a scene, of its clear scores and of the bright targets, the same for all scenes."""

IS_DARK = np.isin(np.arange(256), (SceneClass.WATER, SceneClass.DARK, SceneClass.CLOUD_SHADOW))
"""By class: whether its ground is so dark that several of its bands may be 0 without lacking data."""

# Masks are computed in strips of about this size, so that memory does not grow with the area. Smaller strips would
# spend more on the margins that clear scores depend on.
STRIP_PIXELS = 1 << 21


@dataclass(frozen=True, kw_only=True)
class StagedScene:
    """One scene in scratch.

    Attributes:
        id: Id of the item.
        overpass: Key of the overpass, which scenes of neighbouring tiles share.
        day: Days since 1970.
        offset: Offset to add to its DN.
        files: Staged windows by band.
    """

    id: str
    overpass: str
    day: int
    offset: int
    files: dict[str, staged_pixels.StagedWindow]

    def clear_share(self, area: Grid) -> float | None:
        """Return the share of clear pixels of the mask in the area; None without a mask."""
        scores = self.files.get(CLEAR_SCORE)
        if scores is None:
            return None
        inside = scores.pixels[grids.window_over(scores.grid, area.bounds, margin=0).slices]
        return round(float(np.count_nonzero(inside) / max(inside.size, 1)), 6)

    def has_bands(self, bands: tuple[str, ...]) -> bool:
        """Return whether all the bands are staged, at least in part."""
        return set(bands) <= self.files.keys()

    def is_read(self, bands: tuple[str, ...]) -> bool:
        """Return whether some of the bands are staged; of scenes that cannot win only the mask is."""
        return not self.files.keys().isdisjoint(bands)

    def has_holes(self, bands: tuple[str, ...]) -> bool:
        """Return whether some pixel may have no data, by the classification and those of the bands that are staged."""
        return any(self.files[name].holes for name in (MSI.classes.layer, *bands) if name in self.files)

    def cells(self, bands: tuple[str, ...]) -> Cells | None:
        """Return the cells in which all of the staged `bands` were read; None for the whole window."""
        parts = [part for band in bands if (part := self.files[band].cells) is not None]
        return parts[0].choose(np.logical_and.reduce([part.included for part in parts])) if parts else None


@dataclass(frozen=True, kw_only=True)
class SceneRequest:
    """One scene to stage.

    Attributes:
        id: Id of the item.
        overpass: Key of the overpass, which scenes of neighbouring tiles share.
        day: Days since 1970.
        windows: Windows to read by band.
        product: Address of the product metadata with the offset.
        tokens: Service that signs that address.
        signed: Addresses with the secrets of the catalogue, for a worker in another process; never written.
        required: Whether the scene must not be left out, because the lock to follow has the hashes of its pixels.
        access: Hosts and folders that the addresses may lead to.
        staged: What is staged already.
        tests_offset: Whether to count the evidence for its offset.
        tested: Cells in which it is counted; None for the whole area.
    """

    id: str
    overpass: str
    day: int
    windows: dict[str, scene_files.WindowRequest]
    product: str | None = None
    tokens: str = ""
    signed: tuple[str, ...] = field(default=(), repr=False)
    required: bool = False
    access: Access | None = None
    staged: Mapping[str, staged_pixels.StagedWindow] = field(default_factory=dict)
    tests_offset: bool = True
    tested: Cells | None = None


def stage_scene(
    request: SceneRequest, *, grid: Grid, bands: tuple[str, ...]
) -> tuple[StagedScene, offsets.OffsetEvidence | None] | Dropped:
    """Stage the files of a scene and count the evidence for its offset; or drop it, as `stage_files` does.

    Args:
        request: The scene, with the windows that are missing.
        grid: The grid of the build.
        bands: Bands of the build.
    """
    scene = stage_files(request)
    if isinstance(scene, Dropped):
        return scene
    scene = replace(scene, files={**request.staged, **scene.files})
    if not request.tests_offset:
        return scene, None
    product = None
    try:
        if request.product:
            product = product_metadata.offset(request.product, request.tokens, access=request.access)
    except SourceError as error:
        return _dropped(request, [error])
    return scene, replace(offset_evidence(scene, grid, bands, request.tested), product=product)


def stage_files(request: SceneRequest) -> StagedScene | Dropped:
    """Stage a scene's windows without testing its offset; a scene of which a file cannot be used is dropped.

    Raises:
        SourceError: A file of a scene that is required cannot be used.
    """
    for url in request.signed:
        urls.remember(url)
    pending = {
        band: _readers(REMOTE_READERS if urls.is_http(window.asset.href) else READERS).submit(_stage, window)
        for band, window in request.windows.items()
    }
    results = {band: result.result() for band, result in pending.items()}
    if failed := [result for result in results.values() if isinstance(result, SourceError)]:
        return _dropped(request, failed)
    staged = {band: result for band, result in results.items() if isinstance(result, staged_pixels.StagedWindow)}
    return StagedScene(id=request.id, overpass=request.overpass, day=request.day, offset=0, files=staged)


def _stage(request: scene_files.WindowRequest) -> staged_pixels.StagedWindow | SourceError:
    try:
        return window_staging.stage(request)
    except SourceError as error:
        return error


def _dropped(request: SceneRequest, errors: list[SourceError]) -> Dropped:
    """Return the scene as dropped, with the reason of each file. Raises the first error if the scene is required."""
    if request.required:
        raise errors[0]
    # Without folders and addresses: a lock depends neither on the machine nor on the address of the catalogue.
    texts = [re.sub(r"\S*/|;[^;]*$", "", str(error)).removeprefix(f"{request.id} ") for error in errors]
    return Dropped(id=request.id, reason=f"{UNREADABLE}{', '.join(texts)}")


@cache
def _readers(count: int) -> ThreadPoolExecutor:
    """Return the thread pool of this process with `count` threads."""
    return ThreadPoolExecutor(count)


def data_mask(
    scene: StagedScene, bands: tuple[str, ...], target: Grid, planes: Mapping[str, Array] = MappingProxyType({})
) -> Array:
    """Return (H, W) bool: where a scene has data, by its scene classification and its bands.

    A pixel is no data where the classification says so, and where more than one of its bands is 0. Over dark ground,
    which may reflect nothing in the infrared, it is no data only where all bands are.

    Args:
        scene: The scene.
        bands: Bands of the composite; those that are not staged, or not in a cell, do not count.
        target: The grid to return.
        planes: Bands read already, by name.
    """
    if not scene.has_holes(bands):  # nothing needs to be read
        return np.ones(target.shape, np.bool_)
    zeros = np.zeros(target.shape, np.uint8)
    for band in bands:
        staged, plane = scene.files.get(band), planes.get(band)
        if staged is None or not staged.holes:
            continue
        empty = (window_staging.read_on_grid(staged, target, kernel="nearest") if plane is None else plane) == 0
        zeros += empty if staged.cells is None else empty & cells.on_pixels(staged.cells, target)
    return judge_data(scene, zeros, len(bands), target)


def judge_data(scene: StagedScene, zeros: Array, bands: int, target: Grid) -> Array:
    """Return (H, W) bool: where a scene has data, of whose `bands` bands (H, W) `zeros` are 0 at a pixel."""
    data = np.ones(target.shape, np.bool_)
    layer = scene.files.get(MSI.classes.layer)
    dark = np.zeros(target.shape, np.bool_)
    if layer is not None:
        classes = window_staging.read_on_grid(layer, target, kernel="nearest", beyond=MSI.classes.no_data)
        data &= (classes != MSI.classes.no_data) & (classes < MSI.classes.count)
        dark = IS_DARK[np.minimum(classes, 255)]
    return data & (zeros < bands) & ((zeros <= 1) | dark)


def offset_evidence(
    scene: StagedScene, grid: Grid, bands: tuple[str, ...], tested: Cells | None
) -> offsets.OffsetEvidence:
    """Count the dark pixels of an area, strip by strip, on DN as they are stored.

    Args:
        scene: The scene.
        grid: Grid of the area.
        bands: Bands of the build.
        tested: The cells in which the bands are read; None for all.
    """
    layer, names = scene.files.get(MSI.classes.layer), MSI.offset.test_bands
    if layer is None or not set(names) <= set(bands):
        return offsets.OffsetEvidence(eligible=0, ground=0, valid=0, dark_share=0.0, near_share=0.0)
    totals = np.zeros(5, np.int64)
    untested = 0
    for classes, part in strips_of_classes(layer, grid):
        dn = np.zeros((len(names), *classes.shape), np.uint16)
        within = None if tested is None else cells.enclose(tested, part)
        if tested is None or within is not None:
            inside = within or Window(row=0, col=0, height=classes.shape[0], width=classes.shape[1])
            for name, plane in zip(names, dn, strict=True):
                if name in scene.files:
                    plane[inside.slices] = _thinned(scene.files[name], grids.crop(part, inside), grid.gsd_m)
        if tested is not None:
            inside_cells = cells.on_pixels(tested, part)
            dn *= inside_cells
            untested += int(np.count_nonzero(np.isin(classes, MSI.classes.offset_test) & ~inside_cells))
        totals += offset_pixels.count_test_pixels(classes, dn)
    eligible, ground, valid, *counts = totals.tolist()
    dark, near = (round(number / max(eligible * len(names), 1), 6) for number in counts)
    return offsets.OffsetEvidence(
        eligible=eligible, ground=ground, valid=valid, dark_share=dark, near_share=near, untested=untested
    )


def strips_of_classes(layer: staged_pixels.StagedWindow, grid: Grid) -> Iterator[tuple[Array, Grid]]:
    """Yield the scene classification of an area in strips, with their grids: pixels of its own size, or a little more.

    Each is that of the first pixel of the area under it.
    """
    step = max(round(layer.grid.gsd_m / grid.gsd_m), 1)
    for strip in grids.cut_strips(grid.shape, STRIP_PIXELS, multiple=step):
        target = grids.crop(grid, strip)
        shape = (-(-strip.height // step), -(-strip.width // step))
        part = replace(target, gsd_m=grid.gsd_m * step, shape=shape)
        yield _thinned(layer, part, grid.gsd_m), part


def _thinned(staged: staged_pixels.StagedWindow, part: Grid, gsd_m: float) -> Array:
    """Return the first pixel of `gsd_m` in each pixel of a grid."""
    step = round(part.gsd_m / gsd_m)
    fine = replace(part, gsd_m=gsd_m, shape=(part.shape[0] * step, part.shape[1] * step))
    if any(size % step for size in window_staging.grid_offset(staged, fine)):
        return window_staging.read_on_grid(staged, fine, kernel="nearest")[::step, ::step]
    # The same pixels without repeating them first.
    return window_staging.read_on_grid(staged, part, kernel="nearest")
