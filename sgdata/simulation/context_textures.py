"""Arrange materials inside the parcels of the context ground: rows, roofs, crowns and pools. Pure.

The covers of `catalogs/tables/simulated_arrangements.tsv` share their materials across classes, so that a single pixel
says little about its class. What differs is the pattern of objects of material b on ground of material a, and its size:

- grid: rectangles of `fill_along` x `fill_across` of cells of `along_m` x `across_m`, parallel to the parcel; rows
  where `along_m` is 0.
- clumps: blobs of about `across_m` on a share `fill_across` of the ground.
- channels: winding bands about `across_m` apart on a share `fill_across` of the ground.

Of several materials a parcel draws one, or each lot of a grid its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from sgdata import package_data
from sgdata.simulation import noise, spectra
from sgdata.simulation.noise import Field
from sgdata.simulation.spectra import Surface
from sgdata.types import Array

PATTERNS = ("grid", "clumps", "channels")
# Samples of a pixel per axis, in pixels from its middle: a roof is about as large as a pixel.
SAMPLES = (-1 / 3, 0.0, 1 / 3)
# Columns of the lists of materials, a multiple of 1 to 8: repeated to them, each material is drawn equally often.
CHOICES = 840
# Range of the noise over which ground changes into object, in standard deviations.
SOFTNESS = 0.7


@dataclass(frozen=True, kw_only=True)
class CoverTable:
    """The table as arrays by cover, lengths in pixels; `a` and `b` are (covers, materials) calendars, repeated."""

    a: Array
    b: Array
    pattern: Array
    along: Array
    across: Array
    fill_along: Array
    fill_across: Array
    texture: Array


@cache
def cover_ids() -> dict[str, int]:
    """Map each cover of the context ground to its row in the table."""
    return {row["cover"]: number for number, row in enumerate(package_data.table("simulated_arrangements"))}


@cache
def covers() -> CoverTable:
    """Read the table of arrangements."""
    rows = package_data.table("simulated_arrangements")
    numbers = {name: number for number, name in enumerate(spectra.calendars())}

    def materials(key: str) -> Array:
        return np.array([np.resize([numbers[name] for name in row[key].split()], CHOICES) for row in rows])

    def column(key: str) -> Field:
        return np.array([float(row[key]) for row in rows], np.float32)

    return CoverTable(
        a=materials("a"), b=materials("b"), pattern=np.array([PATTERNS.index(row["pattern"]) for row in rows]),
        along=column("along_m") / 10, across=column("across_m") / 10, fill_along=column("fill_along"),
        fill_across=column("fill_across"), texture=column("texture"),
    )  # fmt: skip


def _grid(rows: Array, cols: Array, angle: Array, variant: Array, cover: Array, seed: int) -> tuple[Field, Array]:
    """Return the share of objects and the number of the lot of the pixels of grids, (N,) each."""
    table = covers()
    along, across, in_lots = table.along[cover], table.across[cover], table.along[cover] > 0
    cos, sin = np.cos(angle), np.sin(angle)
    # Grids of neighbouring parcels do not continue each other.
    start = noise.uniform(seed, variant) * in_lots, noise.uniform(seed + 1, variant)

    def position(down: float, right: float) -> tuple[Array, Array]:
        """Return where a sample of each pixel is, counted in cells of its grid."""
        x, y = cols + right, -(rows + down)
        u = np.where(in_lots, (x * cos + y * sin) / np.maximum(along, 1), 0.5)
        return u + start[0], (y * cos - x * sin) / across + start[1]

    u, v = position(0, 0)
    lot = noise.hashed(seed + 2, variant, np.floor(u), np.floor(v))
    # One lot in eight is not built on, and roofs are up to a quarter larger or smaller. Rows are all alike.
    size = np.where(in_lots, (0.75 + noise.uniform(seed + 3, lot) / 2) * (lot % 8 > 0), 1) / 2
    share = np.zeros(len(rows), np.float32)
    for down in SAMPLES:
        for right in SAMPLES:
            u, v = position(down, right)
            inside = np.abs(u % 1 - 0.5) <= table.fill_along[cover] * size
            share += inside & (np.abs(v % 1 - 0.5) <= table.fill_across[cover] * size)
    return (share / np.float32(len(SAMPLES) ** 2)).astype(np.float32), lot


def _blobs(cover: Array, rows: Array, cols: Array, seed: int) -> Field:
    """Return the share of objects (H, W) in clumps and channels; 0 in grids."""
    table, share = covers(), np.zeros(cover.shape, np.float32)
    for number in np.unique(cover[table.pattern[cover] > 0]):
        here, fill, cell = cover == number, float(table.fill_across[number]), float(table.across[number])
        # One field for all covers of a size: woods continue across the bounds of parcels.
        field = noise.fractal(seed + 10 * round(cell * 10), rows, cols, (cell, cell / 2), 0.5)[here]
        if PATTERNS[table.pattern[number]] == "clumps":
            depth = field - NormalDist().inv_cdf(1 - fill)
        else:
            depth = NormalDist().inv_cdf(0.5 + fill / 2) - np.abs(field)
        share[here] = np.clip(0.5 + depth / SOFTNESS, 0, 1)
    return share


def textured(
    addresses: tuple[Array, Array], seed: int, cover: Array, variant: Array, angle: Array, label: Array, tagged: Array
) -> Surface:
    """Return the surface of pixels at `addresses` (rows and columns); all arrays are (H, W), `angle` in radians."""
    rows, cols = addresses
    table = covers()
    share = _blobs(cover, rows, cols, seed + 20)
    parcel = noise.hashed(seed + 9, variant.ravel()).reshape(cover.shape)
    in_grid = np.nonzero(table.pattern[cover] == PATTERNS.index("grid"))
    lot = parcel.copy()
    share[in_grid], lot[in_grid] = _grid(
        rows[in_grid[0]], cols[in_grid[1]], angle[in_grid], variant[in_grid], cover[in_grid], seed + 30
    )
    unit = np.where(table.along[cover] > 0, lot, parcel)
    phase = parcel % np.uint32(spectra.PHASES)
    # Wide ranges of brightness and vigour, from parcel to parcel and from lot to lot, hide what a material is alone.
    fine, texture = noise.lattice(seed + 1, rows, cols, 1.3), table.texture[cover]
    of_parcel = [noise.uniform(seed + k, variant) - np.float32(0.5) for k in (6, 7)]
    of_lot = noise.uniform(seed + 10, lot.ravel()).reshape(cover.shape) - np.float32(0.5)
    bright = 0.8 * texture * fine + 0.14 * noise.fractal(seed + 3, rows, cols, (60, 20, 8))
    vigour = 0.5 * texture * fine + 0.12 * noise.fractal(seed + 4, rows, cols, (40, 14))
    return Surface(
        a=(table.a[cover, (unit >> 8) % CHOICES] * spectra.PHASES + phase).astype(np.uint16),
        b=(table.b[cover, (unit >> 16) % CHOICES] * spectra.PHASES + phase).astype(np.uint16),
        mix=share,
        bright=(bright + 0.4 * of_parcel[0] + 0.4 * of_lot * share).astype(np.float32),
        vigour=(vigour + 0.4 * of_parcel[1]).astype(np.float32),
        # Crowns and roofs shade each other, the more the lower the sun.
        relief=(texture * (0.6 * fine - 0.4)).astype(np.float32),
        label=label,
        tagged=tagged,
        cover=cover,
    )
