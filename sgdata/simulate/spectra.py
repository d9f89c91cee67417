"""Surface reflectance of the simulated ground: materials, their year, mixtures and variation. Pure.

A pixel is a mixture of two *materials years* (calendars), shifted in time by its parcel, times brightness and
vigour fields. Values are typical Sentinel-2 L2A digital numbers (reflectance x 10,000, offset 0) in the order of
`sentinel2.L2A_BANDS`; B10 sees no ground and is absent, as in L2A. The table was fixed before any model was tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from sgdata.simulate.noise import Field
from sgdata.types import Array

# Material: B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12.
MATERIALS: dict[str, tuple[int, ...]] = {
    "crop": (250, 290, 600, 310, 860, 2950, 3900, 4100, 4250, 4250, 1900, 850),
    "young": (450, 520, 820, 800, 1250, 2100, 2450, 2600, 2750, 2800, 2350, 1600),
    "rape_flower": (340, 390, 1300, 950, 1500, 2900, 3500, 3700, 3800, 3800, 2050, 1050),
    "ripe": (600, 720, 1150, 1400, 1850, 2350, 2600, 2750, 2900, 2950, 3200, 2000),
    "stubble": (700, 860, 1230, 1600, 1880, 2060, 2200, 2350, 2500, 2550, 3450, 2650),
    "soil": (640, 780, 1060, 1370, 1580, 1720, 1830, 1930, 2030, 2080, 2750, 2350),
    "pale_soil": (850, 1060, 1470, 1880, 2090, 2240, 2380, 2480, 2590, 2640, 3400, 3000),
    "grass": (300, 350, 720, 460, 1080, 2550, 3150, 3300, 3450, 3500, 2250, 1150),
    "dry_grass": (460, 560, 920, 980, 1420, 2050, 2330, 2480, 2620, 2660, 2950, 1900),
    "leaf": (200, 230, 490, 250, 720, 2350, 3100, 3250, 3400, 3400, 1600, 700),
    "bare_tree": (330, 390, 540, 640, 880, 1180, 1360, 1470, 1620, 1680, 1950, 1280),
    "needle": (150, 180, 330, 220, 450, 1280, 1600, 1720, 1820, 1860, 880, 430),
    "shrub": (250, 300, 570, 420, 840, 1980, 2450, 2600, 2720, 2750, 1950, 1050),
    "bare_shrub": (380, 450, 650, 760, 1060, 1450, 1650, 1780, 1920, 1980, 2250, 1500),
    "reed": (270, 320, 540, 480, 800, 1600, 1950, 2050, 2130, 2150, 1500, 800),
    "dead_reed": (430, 520, 780, 900, 1180, 1480, 1640, 1760, 1880, 1920, 1950, 1250),
    "water": (330, 320, 340, 220, 170, 130, 120, 110, 95, 90, 60, 40),
    "silty_water": (480, 540, 760, 540, 470, 310, 290, 260, 220, 200, 120, 80),
    "asphalt": (780, 830, 930, 1020, 1080, 1130, 1180, 1230, 1290, 1340, 1500, 1440),
    "concrete": (1300, 1400, 1600, 1750, 1850, 1920, 1980, 2050, 2100, 2150, 2450, 2350),
    "tile_roof": (640, 740, 980, 1550, 1850, 2000, 2100, 2250, 2350, 2400, 2850, 2650),
    "dark_roof": (650, 680, 760, 830, 880, 930, 980, 1030, 1090, 1130, 1300, 1300),
    "metal_roof": (1900, 2080, 2350, 2450, 2550, 2620, 2680, 2750, 2850, 2900, 3050, 2850),
    "white_roof": (3700, 4200, 4650, 4850, 4950, 5050, 5100, 5150, 5200, 5250, 4700, 4200),
    "gravel": (1250, 1450, 1820, 2120, 2270, 2360, 2420, 2520, 2620, 2680, 3200, 3000),
    "sand": (1350, 1650, 2200, 2650, 2850, 3000, 3100, 3200, 3320, 3380, 4100, 3750),
    "ballast": (690, 780, 930, 1080, 1180, 1230, 1280, 1330, 1430, 1480, 1880, 1880),
}  # fmt: skip

# Year of a cover: (day of year, material), linear between, around the turn of the year.
CALENDARS: dict[str, tuple[tuple[int, str], ...]] = {
    "wheat": ((20, "young"), (75, "young"), (128, "crop"), (165, "crop"), (198, "ripe"), (212, "stubble"),
              (262, "soil"), (300, "soil"), (340, "young")),
    "barley": ((20, "young"), (70, "young"), (118, "crop"), (148, "crop"), (178, "ripe"), (192, "stubble"),
               (225, "young"), (270, "soil"), (310, "young")),
    "rape": ((20, "young"), (80, "young"), (112, "rape_flower"), (135, "rape_flower"), (155, "crop"),
             (192, "ripe"), (205, "stubble"), (250, "soil"), (285, "young")),
    "maize": ((40, "soil"), (118, "soil"), (150, "pale_soil"), (178, "young"), (205, "crop"), (250, "crop"),
              (272, "ripe"), (285, "stubble"), (320, "soil")),
    "beet": ((40, "soil"), (105, "pale_soil"), (140, "young"), (175, "crop"), (275, "crop"), (298, "soil")),
    "catch_crop": ((30, "dry_grass"), (95, "soil"), (130, "young"), (170, "crop"), (205, "stubble"),
                   (245, "young"), (275, "grass"), (330, "dry_grass")),
    "fallow": ((30, "dry_grass"), (110, "dry_grass"), (150, "grass"), (220, "dry_grass"), (340, "dry_grass")),
    "grass": ((30, "dry_grass"), (85, "dry_grass"), (118, "grass"), (152, "grass"), (160, "dry_grass"),
              (185, "grass"), (205, "dry_grass"), (240, "grass"), (290, "grass"), (340, "dry_grass")),
    "lawn": ((30, "dry_grass"), (80, "dry_grass"), (110, "grass"), (290, "grass"), (340, "dry_grass")),
    "broadleaf": ((30, "bare_tree"), (100, "bare_tree"), (130, "leaf"), (265, "leaf"), (298, "shrub"),
                  (320, "bare_tree")),
    "needle": ((1, "needle"),),
    "shrub": ((30, "bare_shrub"), (95, "bare_shrub"), (130, "shrub"), (270, "shrub"), (315, "bare_shrub")),
    "reed": ((40, "dead_reed"), (115, "dead_reed"), (160, "reed"), (255, "reed"), (310, "dead_reed")),
    "rough": ((40, "dry_grass"), (110, "dry_grass"), (145, "shrub"), (200, "dry_grass"), (320, "dry_grass")),
}  # fmt: skip
CALENDARS |= {name: ((1, name),) for name in MATERIALS if name not in CALENDARS}


@dataclass(frozen=True, kw_only=True)
class Cover:
    """One look of the ground: `share` +- `spread` of calendar `b` in `a`, patchy at fine or coarse `grain`."""

    a: str
    b: str
    share: float
    spread: float
    grain: float = 0.5
    texture: float = 0.08


def _cover(a: str, b: str, share: float, spread: float, grain: float = 0.5, texture: float = 0.08) -> Cover:
    return Cover(a=a, b=b, share=share, spread=spread, grain=grain, texture=texture)


COVERS: dict[str, Cover] = {
    "wheat": _cover("wheat", "soil", 0.08, 0.08, 0.1, 0.05),
    "barley": _cover("barley", "soil", 0.10, 0.08, 0.1, 0.05),
    "rape": _cover("rape", "soil", 0.06, 0.06, 0.1, 0.05),
    "maize": _cover("maize", "pale_soil", 0.10, 0.10, 0.1, 0.05),
    "beet": _cover("beet", "soil", 0.12, 0.10, 0.1, 0.05),
    "catch_crop": _cover("catch_crop", "soil", 0.12, 0.10, 0.1, 0.06),
    "fallow": _cover("fallow", "rough", 0.30, 0.20, 0.3, 0.08),
    "orchard": _cover("grass", "broadleaf", 0.45, 0.22, 0.7, 0.09),
    "vineyard": _cover("lawn", "pale_soil", 0.35, 0.18, 0.5, 0.07),
    "meadow": _cover("grass", "rough", 0.15, 0.15, 0.2, 0.06),
    "wet_meadow": _cover("grass", "reed", 0.30, 0.22, 0.2, 0.07),
    "broadleaf": _cover("broadleaf", "needle", 0.12, 0.15, 0.5, 0.11),
    "needle": _cover("needle", "broadleaf", 0.12, 0.14, 0.5, 0.12),
    "mixed": _cover("needle", "broadleaf", 0.50, 0.28, 0.4, 0.12),
    "plantation": _cover("shrub", "needle", 0.35, 0.25, 0.4, 0.10),
    "deep_water": _cover("water", "silty_water", 0.20, 0.12, 0.0, 0.04),
    "river": _cover("silty_water", "water", 0.30, 0.15, 0.0, 0.05),
    "scrub": _cover("shrub", "rough", 0.42, 0.28, 0.4, 0.10),
    "heath": _cover("rough", "shrub", 0.30, 0.22, 0.3, 0.09),
    "shingle": _cover("gravel", "sand", 0.40, 0.30, 0.4, 0.10),
    "rough_ground": _cover("pale_soil", "rough", 0.40, 0.25, 0.3, 0.10),
    "reed": _cover("reed", "silty_water", 0.14, 0.16, 0.3, 0.09),
    "bog": _cover("reed", "rough", 0.40, 0.25, 0.3, 0.09),
    "pit": _cover("gravel", "pale_soil", 0.45, 0.30, 0.3, 0.11),
    "building_site": _cover("pale_soil", "concrete", 0.35, 0.28, 0.6, 0.12),
    "landfill": _cover("soil", "rough", 0.40, 0.25, 0.4, 0.11),
    "park": _cover("lawn", "broadleaf", 0.40, 0.32, 0.3, 0.09),
    "pitch": _cover("lawn", "dry_grass", 0.12, 0.10, 0.3, 0.04),
    "cemetery": _cover("broadleaf", "concrete", 0.30, 0.18, 0.7, 0.10),
    "allotments": _cover("lawn", "tile_roof", 0.25, 0.18, 0.9, 0.12),
    "court": _cover("asphalt", "broadleaf", 0.35, 0.22, 0.6, 0.12),
    "old_town": _cover("tile_roof", "asphalt", 0.35, 0.22, 0.9, 0.15),
    "blocks": _cover("tile_roof", "dark_roof", 0.45, 0.30, 0.6, 0.14),
    "houses": _cover("lawn", "tile_roof", 0.36, 0.26, 0.9, 0.14),
    "gardens": _cover("lawn", "broadleaf", 0.40, 0.26, 0.8, 0.12),
    "villas": _cover("broadleaf", "dark_roof", 0.32, 0.24, 0.8, 0.14),
    "slabs": _cover("lawn", "dark_roof", 0.42, 0.30, 0.6, 0.13),
    "yard": _cover("asphalt", "gravel", 0.35, 0.25, 0.5, 0.12),
    "white_hall": _cover("white_roof", "metal_roof", 0.15, 0.12, 0.3, 0.05),
    "metal_hall": _cover("metal_roof", "dark_roof", 0.30, 0.20, 0.4, 0.07),
    "dark_hall": _cover("dark_roof", "gravel", 0.25, 0.18, 0.4, 0.08),
    "campus": _cover("lawn", "metal_roof", 0.45, 0.30, 0.6, 0.13),
    "farmyard": _cover("tile_roof", "yard_ground", 0.50, 0.28, 0.8, 0.13),
    "road": _cover("asphalt", "concrete", 0.12, 0.12, 0.4, 0.07),
    "street": _cover("asphalt", "lawn", 0.22, 0.16, 0.6, 0.09),
    "track": _cover("gravel", "lawn", 0.68, 0.20, 0.5, 0.08),
    "rail": _cover("ballast", "rough", 0.22, 0.16, 0.4, 0.09),
    "verge": _cover("rough", "grass", 0.45, 0.22, 0.4, 0.08),
    "clearcut": _cover("rough", "soil", 0.40, 0.22, 0.5, 0.11),
}  # fmt: skip
CALENDARS["yard_ground"] = ((1, "asphalt"),)
COVER_ID = {name: number for number, name in enumerate(COVERS)}
PHASES = 8
PHASE_DAYS = 3.5
"""Parcels of one crop differ by up to four such steps in either direction."""

BRIGHTNESS = np.array([1.0, 1.0, 1.0, 1.1, 1.0, 0.8, 0.8, 0.8, 0.8, 0.8, 0.9, 1.0], np.float32)
VIGOUR = np.array([-0.5, -0.6, -0.3, -1.0, -0.4, 0.4, 0.6, 0.6, 0.6, 0.6, -0.5, -0.9], np.float32)
"""Band loadings of the two fields of variation: all bands together, and more against less living leaf."""


@cache
def _calendar_numbers() -> dict[str, int]:
    return {name: number for number, name in enumerate(CALENDARS)}


def mixtures() -> tuple[Array, Array, Array]:
    """Per cover: calendar of a, calendar of b (ints), and (share, spread, grain, texture) as (covers, 4)."""
    numbers, covers = _calendar_numbers(), COVERS.values()
    numeric = np.array([(c.share, c.spread, c.grain, c.texture) for c in covers], np.float32)
    return np.array([numbers[c.a] for c in covers]), np.array([numbers[c.b] for c in covers]), numeric


def table(day: int) -> Field:
    """(12, calendars x PHASES): DN of every calendar on a day of the year, for each parcel phase."""
    days = day + PHASE_DAYS * (np.arange(PHASES) - (PHASES - 1) / 2)
    rows = []
    for keys in CALENDARS.values():
        stops = np.array([stop for stop, _ in keys], float)
        spectra = np.array([MATERIALS[name] for _, name in keys], float)
        rows.append(np.stack([np.interp(days, stops, spectra[:, band], period=365) for band in range(12)]))
    return np.concatenate(rows, axis=1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What stays of the ground over the year, per 10 m pixel: (H, W) each.

    `a`, `b` index the columns of `table`; `mix` is the share of b; `bright` and `vigour` are relative fields;
    `label` is the land cover class, `tagged` whether OpenStreetMap knows it, `cover` the index into COVERS.
    """

    a: Array
    b: Array
    mix: Field
    bright: Field
    vigour: Field
    label: Array
    tagged: Array
    cover: Array


def reflectance(surface: Surface, day: int) -> Field:
    """(12, H, W) DN (offset 0, float) of the clear ground on a day, seen through a [1 2 1] point spread."""
    columns = table(day)
    result = np.empty((12, *surface.mix.shape), np.float32)
    for band in range(12):
        values = columns[band]
        ground = values[surface.a]
        ground += (values[surface.b] - ground) * surface.mix
        ground *= 1 + BRIGHTNESS[band] * surface.bright + VIGOUR[band] * surface.vigour
        result[band] = blurred(ground)
    return np.maximum(result, 1)


def blurred(image: Field) -> Field:
    """The image under [1 2 1]/4 in both directions; edges repeat."""
    padded = np.pad(image, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) * np.float32(1 / 16))


def coarser(image: Array, factor: int) -> Field:
    """Means of `factor` x `factor` pixels over the last two axes."""
    *lead, height, width = image.shape
    pieces = image.reshape(*lead, height // factor, factor, width // factor, factor)
    return np.asarray(pieces.mean(axis=(-3, -1), dtype=np.float32))
