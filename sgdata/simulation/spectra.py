"""Surface reflectance of the simulated ground: materials, their year, mixtures and variation. Pure.

A pixel is a mixture of two *materials years* (calendars), shifted in time by its parcel, times brightness and
vigour fields. Values are typical Sentinel-2 L2A digital numbers (reflectance x 10,000, offset 0) in the order of
`sentinel2.L2A_BANDS`; B10 does not reach the ground and is absent, as in L2A. The tables
`catalogs/tables/simulated_*.tsv` were fixed before any model was tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np

from sgdata import package_data
from sgdata.sentinel2 import L2A_BANDS
from sgdata.simulation import scenarios
from sgdata.simulation.noise import Field
from sgdata.types import Array


@cache
def materials() -> dict[str, tuple[float, ...]]:
    """Return the DN of each material in the order of `L2A_BANDS`."""
    rows = package_data.table("simulated_materials")
    return {row["material"]: tuple(float(row[band]) for band in L2A_BANDS) for row in rows}


@cache
def calendars() -> dict[str, tuple[tuple[int, str], ...]]:
    """Return the year of each calendar: (day of year, material), linear between, around the turn of the year.

    A material that does not change is a calendar too.
    """
    years: dict[str, tuple[tuple[int, str], ...]] = {name: ((1, name),) for name in materials()}
    for row in package_data.table("simulated_calendars"):
        days = (day.split(":") for day in row["days"].split())
        years[row["calendar"]] = tuple((int(day), material) for day, material in days)
    return years


@cache
def cover_ids() -> dict[str, int]:
    """Map each cover to its row in the table."""
    return {row["cover"]: number for number, row in enumerate(package_data.table("simulated_covers"))}


# Farmers sow within some four weeks of each other: parcels of one crop differ by up to 3.5 steps either way. Eight
# fixed phases, so that a day's spectra are one small table and a pixel is a look-up in it.
PHASES = 8
PHASE_DAYS = 3.5

# Band loadings of the two fields of variation. All bands together: moisture and slope.
BRIGHTNESS = np.array([1.0, 1.0, 1.0, 1.1, 1.0, 0.8, 0.8, 0.8, 0.8, 0.8, 0.9, 1.0], np.float32)
# More against less living leaf, as leaf models have it (PROSPECT, Jacquemoud and Baret 1990): chlorophyll darkens
# blue and red, green less; leaf tissue brightens the near infrared; leaf water darkens B11 and B12.
VIGOUR = np.array([-0.5, -0.6, -0.3, -1.0, -0.4, 0.4, 0.6, 0.6, 0.6, 0.6, -0.5, -0.9], np.float32)


@cache
def mixtures() -> tuple[Array, Array, Array]:
    """Return the calendars of a and b by cover, and (share, spread, grain, texture) as (covers, 4).

    A pixel is `share` +- `spread` of b in a, patchy at fine (1) to coarse (0) `grain`, and varies by `texture`.
    """
    numbers = {name: number for number, name in enumerate(calendars())}
    rows = package_data.table("simulated_covers")
    numeric = [[float(row[key]) for key in ("share", "spread", "grain", "texture")] for row in rows]
    first, second = (np.array([numbers[row[key]] for row in rows]) for key in ("a", "b"))
    return first, second, np.array(numeric, np.float32)


def table(day: int) -> Field:
    """Return (12, calendars x PHASES) DN of every calendar on a day of the year, for each parcel phase."""
    # Centred, so that the mean over parcels keeps the calendar's own date.
    days = day + PHASE_DAYS * (np.arange(PHASES) - (PHASES - 1) / 2)
    rows = []
    for keys in calendars().values():
        stops = np.array([stop for stop, _ in keys], float)
        spectra = np.array([materials()[name] for _, name in keys], float)
        rows.append(np.stack([np.interp(days, stops, spectra[:, band], period=365) for band in range(12)]))
    return np.concatenate(rows, axis=1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Properties of the ground that stay over the year, per 10 m pixel: (H, W) each.

    `a`, `b` index the columns of `table`; `mix` is the share of b; `bright` and `vigour` are relative fields, to which
    `relief` is added once for each height by which shadows are longer than things are high; `label` is the land cover
    class, `tagged` whether it is in OpenStreetMap, `cover` the number of its cover.
    """

    a: Array
    b: Array
    mix: Field
    bright: Field
    vigour: Field
    relief: Field
    label: Array
    tagged: Array
    cover: Array


def shadow_length(day: int) -> float:
    """Return the length of a shadow at the overpass on a day of the year, in heights of the thing that casts it."""
    _, elevation = scenarios.sun(datetime(2019, 1, 1, 10, 25, tzinfo=UTC) + timedelta(days=day - 1))
    return 1 / math.tan(math.radians(elevation))


def reflectance(surface: Surface, day: int) -> Field:
    """Return (12, H, W) DN (offset 0, float) of the clear ground on a day, after a [1 2 1] point spread."""
    columns = table(day)
    bright = surface.bright + surface.relief * np.float32(shadow_length(day) - 1)
    result = np.empty((12, *surface.mix.shape), np.float32)
    for band in range(12):
        values = columns[band]
        ground = values[surface.a]
        ground += (values[surface.b] - ground) * surface.mix
        ground *= 1 + BRIGHTNESS[band] * bright + VIGOUR[band] * surface.vigour
        result[band] = blur(ground)
    return np.maximum(result, 1)  # 0 would read as nodata


def blur(image: Field) -> Field:
    """Smooth an image with [1 2 1]/4 in both directions; edges are repeated."""
    # This response is 0 at the Nyquist frequency, where MSI's specification has 0.15 to 0.30: a little softer than
    # the instrument, but without aliases, so that plain means may stand for its 20 m and 60 m detectors.
    padded = np.pad(image, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) * np.float32(1 / 16))


def coarsen(image: Array, factor: int) -> Field:
    """Average `factor` x `factor` pixels over the last two axes."""
    *lead, height, width = image.shape
    blocks = image.reshape(*lead, height // factor, factor, width // factor, factor)
    return np.asarray(blocks.mean(axis=(-3, -1), dtype=np.float32))
