"""Paint the vectors of the place on the 10 m pixels of a window. Pure; independent of how windows are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from sgdata.simulation import context_textures, noise, shapes, spectra
from sgdata.simulation.sketch import LEAST_HALF_WIDTH_M, GroundArea, GroundLine, Landscape, area_kinds, line_kinds
from sgdata.simulation.spectra import Surface
from sgdata.types import Array, Grid


@dataclass(frozen=True, kw_only=True)
class PaintLayer:
    """One thing to paint: its outline, class (None keeps the class below), look, and whether OSM has it."""

    outline: Any
    label: int | None
    cover: int
    angle: float
    variant: int
    tagged: bool
    epoch: int
    change: int


def layers(landscape: Landscape) -> list[PaintLayer]:
    """Return all layers in painting order: large areas first, changes, then lines by rank."""
    # Large first, so that details lie on top; `variant` breaks ties, for the order of equal keys must not be chance.
    areas = sorted(landscape.areas, key=lambda a: (a.epoch, -a.geometry.area, a.variant))
    lines = sorted(
        (line for line in landscape.lines if line.visible),
        key=lambda line: (line_kinds()[line.kind].rank, line.variant),
    )
    return [
        *(_of_area(area, landscape.ground) for area in areas),
        *(_of_line(line, landscape.ground) for line in lines),
    ]


def _of_area(area: GroundArea, ground: str) -> PaintLayer:
    kind = area_kinds()[area.kind]
    names, angle = kind.covers, 0.0
    if ground == "context":
        names, angle = kind.arrangements, shapes.direction(area.geometry)
    return PaintLayer(
        outline=area.geometry,
        label=kind.label,
        cover=_cover(names[area.variant % len(names)], ground),
        angle=angle,
        variant=area.variant,
        tagged=area.exported and kind.label is not None,
        epoch=area.epoch,
        change=kind.change,
    )


def _cover(name: str, ground: str) -> int:
    ids = context_textures.cover_ids() if ground == "context" else spectra.cover_ids()
    return ids[name]


def _of_line(line: GroundLine, ground: str) -> PaintLayer:
    road = line_kinds()[line.kind]
    half = LEAST_HALF_WIDTH_M if road.label is not None else LEAST_HALF_WIDTH_M / 2
    # Flat ends: pieces of one street (bridges) would otherwise overlap in half discs.
    outline = line.geometry.buffer(max(road.width_m / 2, half), cap_style="flat")
    tagged = line.exported and road.label is not None
    return PaintLayer(
        outline=outline, label=road.label, cover=_cover(road.cover, ground), angle=0.0, variant=line.variant,
        tagged=tagged, epoch=1, change=0,
    )  # fmt: skip


def layers_near(tree: shapely.STRtree, all_layers: Sequence[PaintLayer], grid: Grid) -> list[PaintLayer]:
    """Return the layers that touch a grid, in painting order."""
    # The tree answers in any order; sorted indices are the painting order again.
    return [all_layers[i] for i in np.sort(tree.query(shapely.box(*grid.bounds)))]


def _rasterise(values: list[tuple[Any, int]], grid: Grid, dtype: str) -> Array:
    from rasterio.features import rasterize
    from rasterio.transform import Affine

    # rasterize refuses an empty list.
    if not values:
        return np.zeros(grid.shape, dtype)
    raster: Array = rasterize(values, out_shape=grid.shape, transform=Affine(*grid.transform), dtype=dtype)
    return raster


def paint(layers: Sequence[PaintLayer], grid: Grid, *, seed: int, epoch: int, ground: str = "plain") -> Surface:
    """Render the surface of `grid` in an epoch; every pixel is painted, also with class 0."""
    existing = [layer for layer in layers if layer.epoch <= epoch]
    labelled = [layer for layer in existing if layer.label is not None]
    # Burnt once as numbers of layers: cover and variant are look-ups, and both are sure to come from the same layer.
    index = _rasterise([(layer.outline, i) for i, layer in enumerate(existing)], grid, "int32")
    label = _rasterise([(layer.outline, layer.label or 0) for layer in labelled], grid, "uint8")
    tagged = _rasterise([(layer.outline, 1) for layer in existing if layer.tagged], grid, "uint8")
    cover = np.array([layer.cover for layer in existing], np.uint8)[index]
    variant = np.array([layer.variant for layer in existing], np.int64)[index]
    if ground == "context":
        angle = np.array([layer.angle for layer in existing], np.float32)[index]
        return context_textures.textured(_addresses(grid), seed, cover, variant, angle, label, tagged)
    return _textured(grid, seed, cover, variant, label, tagged)


def changes(layers: Sequence[PaintLayer], grid: Grid) -> Array:
    """Return (H, W) uint8 changes between the epochs (`sketch.Kind.change`), where no street is on top."""
    changed = _rasterise([(layer.outline, layer.change) for layer in layers if layer.change], grid, "uint8")
    # What is new under an old street cannot be seen.
    streets = _rasterise([(layer.outline, 1) for layer in layers if layer.label == 0], grid, "uint8")
    return np.where(streets == 1, 0, changed).astype(np.uint8)


def _addresses(grid: Grid) -> tuple[Array, Array]:
    """Return rows and columns counted from the corner of the MGRS tile 32UPU: the same in every window."""
    rows = np.arange(grid.shape[0]) + round((5_400_000 - grid.origin[1]) / 10)
    return rows, np.arange(grid.shape[1]) + round((grid.origin[0] - 600_000) / 10)


def _textured(grid: Grid, seed: int, cover: Array, variant: Array, label: Array, tagged: Array) -> Surface:
    """Return mixture, brightness and vigour fields that vary by parcel, in patches of 60 to 400 m, and by pixel."""
    rows, cols = _addresses(grid)
    first, second, numbers = spectra.mixtures()
    share, spread, grain, texture = np.moveaxis(numbers[cover], -1, 0)
    # Each field has a seed of its own: mixture, brightness and vigour must not rise and fall together.
    fine = noise.lattice(seed + 1, rows, cols, 1.3)
    patch = noise.fractal(seed + 2, rows, cols, (24, 9, 4))
    wide = noise.fractal(seed + 3, rows, cols, (40, 14))
    of_parcel = noise.uniform(seed + 4, variant) - np.float32(0.5)
    mix = share + spread * (grain * fine + (1 - grain) * patch + 1.2 * of_parcel)
    speckle = noise.lattice(seed + 5, rows, cols, 1.1)
    bright = texture * (0.65 * speckle + 0.5 * patch) + 0.22 * (noise.uniform(seed + 6, variant) - np.float32(0.5))
    vigour = texture * (0.4 * fine + 0.6 * wide) + 0.26 * (noise.uniform(seed + 7, variant) - np.float32(0.5))
    # By parcel: one farmer sows one field in one day.
    phase = noise.hashed(seed + 8, variant.ravel()).reshape(variant.shape) % np.uint32(spectra.PHASES)
    return Surface(
        a=(first[cover] * spectra.PHASES + phase).astype(np.uint16),
        b=(second[cover] * spectra.PHASES + phase).astype(np.uint16),
        mix=np.clip(mix, 0, 1).astype(np.float32),
        bright=bright.astype(np.float32),
        vigour=vigour.astype(np.float32),
        relief=np.zeros(label.shape, np.float32),
        label=label,
        tagged=tagged,
        cover=cover,
    )
