"""Recompute the noise-free, cloud-free scenes of an archive from `simulation.json`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import shapely

from sgdata import files, output_names
from sgdata.errors import SettingError
from sgdata.rasters import grids
from sgdata.sentinel2 import BAND, L2A_BANDS
from sgdata.simulation import ground, scenarios, spectra, surface
from sgdata.simulation.scenarios import Scenario
from sgdata.types import Array, Grid, Window

# The bands of each native resolution, in the order of every truth array.
ORDER: dict[int, tuple[str, ...]] = {
    gsd: tuple(name for name in L2A_BANDS if BAND[name].gsd_m == gsd) for gsd in (10, 20, 60)
}
# Pixels around a window that the point spread may draw on. It needs one; six keep the 20 m and 60 m grids whole.
HALO = 6
# A multiple of 6 too, for the same reason; one field of a tile is 4 MB, and dozens of them live at once.
TILE = 1020


def read_scenario(archive: Path) -> Scenario:
    """Read the scenario in `archive/simulation.json`. Raises SettingError."""
    document = files.read_plain(archive / output_names.SIMULATION)
    kinds = document["layout"], document.get("ground", "plain")
    return scenarios.create(document["seed"], document["size_km"], document["dates"], *kinds)


def grow(grid: Grid, window: Window) -> Grid:
    """Return the grid of a window and its halo."""
    height, width = window.height + 2 * HALO, window.width + 2 * HALO
    return grids.crop(grid, Window(row=window.row - HALO, col=window.col - HALO, height=height, width=width))


def to_native_gsd(image: Array) -> dict[int, Array]:
    """Average (12, H, W) at 10 m to (C, H', W') for each gsd, bands in `ORDER`."""
    # Means of the finished 10 m picture: so bands of one pass agree with each other, as those of one telescope do.
    bands = {gsd: image[[L2A_BANDS.index(name) for name in names]] for gsd, names in ORDER.items()}
    return {gsd: group if gsd == 10 else spectra.coarsen(group, gsd // 10) for gsd, group in bands.items()}


def remove_halo(pixels: Array) -> Array:
    """Remove the halo from the last two axes."""
    return pixels[..., HALO:-HALO, HALO:-HALO]


def clear_ground(below: spectra.Surface, day: int) -> Array:
    """Return (12, H, W) float DN of the clear ground inside the halo of a surface, on a day of the year."""
    return remove_halo(spectra.reflectance(below, day))


def to_dn(image: Array) -> Array:
    """Round float DN to uint16, at least 1, since 0 means no data."""
    # Half up: numpy's round goes to even, which would leave a comb of DN in flat areas.
    return np.asarray(np.clip(np.floor(image + 0.5), 1, 65535), np.uint16)


def scene(archive: Path, item_id: str) -> dict[int, Array]:
    """Return (C, H, W) uint16 by gsd: DN of one date without noise and clouds (offset 0), on the grid of the area.

    Raises SettingError where the archive has no such item.
    """
    scenario = read_scenario(archive)
    matching = [candidate for candidate in scenarios.scenes(scenario) if candidate.id == item_id]
    if not matching:
        raise SettingError(f"item '{item_id}' is not in {archive}; see its sentinel-2-l2a folder for the ids")
    all_layers = _layers(scenario)
    tree = shapely.STRtree([layer.outline for layer in all_layers])
    day = matching[0].time.timetuple().tm_yday
    # The generator that made the archive runs again, tile by tile as then: a second copy of it would prove nothing.
    height, width = scenario.area.shape
    image = {
        gsd: np.empty((len(names), height * 10 // gsd, width * 10 // gsd), np.uint16) for gsd, names in ORDER.items()
    }
    for window in grids.cut_tiles(scenario.area.shape, TILE):
        around = grow(scenario.area, window)
        near = surface.layers_near(tree, all_layers, around)
        below = surface.paint(near, around, seed=scenario.seed, epoch=matching[0].epoch, ground=scenario.ground)
        for gsd, bands in to_native_gsd(clear_ground(below, day)).items():
            rows, cols = grid_slices(window, gsd)
            image[gsd][:, rows, cols] = to_dn(bands)
    return image


@lru_cache(maxsize=1)
def _layers(scenario: Scenario) -> list[surface.PaintLayer]:
    """Return the layers, kept for the next date."""
    return surface.layers(ground.build(scenario))


def grid_slices(window: Window, gsd: int) -> tuple[slice, slice]:
    """Return the rows and columns of a 10 m window on the grid of `gsd`."""
    k = gsd // 10
    return Window(row=window.row // k, col=window.col // k, height=window.height // k, width=window.width // k).slices
