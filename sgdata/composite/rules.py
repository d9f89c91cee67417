"""Composite rules: reduce many dates of a pixel to one. Pure.

`RULES` says of each rule which bands it reads, whether it picks a date or mixes dates, and its kernel: a new rule needs
its name in `Method`, its entry in `RULES` and its kernel, with the loops over pixels in `kernels`.

Arrays are (T, C, H, W) uint16 DN with 0 = no data; `usable` (T, H, W) marks the pixels to use (clear, all bands valid).
Sums are exact integers and ties go to the earliest date, so that results depend neither on tiles nor on threads.
`tests/composite_reference.py` has each kernel in plain numpy; tests compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from sgdata.composite import kernels
from sgdata.composite.kernels import NO_VALUE
from sgdata.types import Array

Method = Literal["medoid", "bap", "maxndvi", "median", "geomedian"]

VERSION = 5
"""Version of masks and composites, raised when pixels change: scratch files of another version are not reused."""


@dataclass(frozen=True, kw_only=True)
class BapSettings:
    """Settings of the best available pixel rule in FORCE's form (Griffiths 2013, Frantz 2019).

    The score of a date is the weighted mean of four: day of year, year, distance to clouds and haze. The values of
    `year_factor` and `haze_dn` in the recipes are our choice: FORCE's own could not be confirmed.

    Attributes:
        day_of_year: Centre of the Gaussian over the day of year.
        sigma_days: Its standard deviation in days.
        year: Preferred year.
        year_factor: Factor for each year of distance from `year`.
        cloud_m: D in metres of the score of the distance d to clouds, 1 / (1 + exp(-10 / D (d - D / 2))).
        haze_dn: H of the haze score 1 / (1 + exp(10 / 200 (HOT - H))), with HOT = B02 - B04 / 2 in DN.
        weights: Weights of day of year, year, cloud distance and haze.
    """

    day_of_year: int
    sigma_days: float
    year: int
    year_factor: float
    cloud_m: float
    haze_dn: float
    weights: tuple[float, float, float, float]

    def date_score(self, day: int) -> int:
        """Return the part of the score x 10000 that a date adds to each of its pixels: day of year and year.

        Args:
            day: Day, counted from 1970-01-01.
        """
        when = date(1970, 1, 1) + timedelta(days=day)
        away = abs(when.timetuple().tm_yday - self.day_of_year)
        away = min(away, 365 - away)  # the calendar is periodic
        doy = math.exp(-0.5 * (away / self.sigma_days) ** 2)
        year = self.year_factor ** abs(when.year - self.year)
        return self._scaled(self.weights[0] * doy + self.weights[1] * year)

    def cloud_scores(self, gsd_m: float) -> Array:
        """Return (256,) int64: the part of the score x 10000 by clear score; doubtful ones count as distance 0.

        Args:
            gsd_m: Pixel size in metres in which clear scores count distances.
        """
        steepness = 10 / self.cloud_m
        distances = [clear_score * gsd_m if clear_score < 128 else 0 for clear_score in range(256)]
        scores = [self.weights[2] / (1 + math.exp(-steepness * (d - self.cloud_m / 2))) for d in distances]
        return np.array([self._scaled(score) for score in scores], np.int64)

    @lru_cache(maxsize=4)  # noqa: B019 - settings are small, frozen and few
    def haze_scores(self) -> Array:
        """Return (4096,) int64: the part of the score x 10000 by 2 HOT + 2048; the ends hold for all values beyond."""
        hot = [(twice - 2048) / 2 for twice in range(4096)]
        scores = [self.weights[3] / (1 + math.exp(0.05 * (h - self.haze_dn))) for h in hot]
        return np.array([self._scaled(score) for score in scores], np.int64)

    def _scaled(self, score: float) -> int:
        return round(score / sum(self.weights) * 10_000)


@dataclass(frozen=True, kw_only=True)
class CompositeSettings:
    """Settings of the reduction of many dates to one image.

    Attributes:
        method: Composite rule, which reduces the dates of a pixel to one value.
        max_obs: Number of scenes to use at most, the clearest together; 0 for all.
        bap: Settings of the rule `bap`.
    """

    method: Method
    max_obs: int
    bap: BapSettings

    @property
    def rule(self) -> PickRule | CombineRule:
        """The entry of `RULES` for this method."""
        return RULES[self.method]

    @property
    def reach_m(self) -> float:
        """Distance in metres up to which the rule uses the distance to clouds."""
        return self.bap.cloud_m if self.rule.needs_mask else 0


@dataclass(frozen=True, kw_only=True)
class TileStack:
    """All dates of one tile, the input of a rule.

    Attributes:
        dn: (T, C, H, W) uint16 in the bands of the rule.
        mask_scores: (T, H, W) uint8 clear scores, as in `clear_score`, also of dates that were not read.
        clear_scores: The same, 0 where a date was not read.
        usable: (T, H, W) bool, True where a date has data and is clear.
        days: Days since 1970.
        mask_gsd_m: Pixel size in which clear scores count distances.
    """

    dn: Array
    mask_scores: Array
    clear_scores: Array
    usable: Array
    days: tuple[int, ...]
    mask_gsd_m: float


@dataclass(frozen=True, kw_only=True)
class CompositeRule:
    """Fields of every composite rule.

    Attributes:
        help: One line for the command line.
        needs_mask: The rule weighs the distance to clouds and doubtful pixels; others get the best dates of each pixel.
        score_range: (256,) least and greatest score of a day by clear score, whatever its pixels are: scenes that
            cannot win are not read. None: every scene can matter.
    """

    help: str
    needs_mask: bool = False
    score_range: Callable[[CompositeSettings, int, float], tuple[Array, Array]] | None = None


@dataclass(frozen=True, kw_only=True)
class PickRule(CompositeRule):
    """Rule that picks one date per pixel by a few bands; the other bands are read of the chosen dates only.

    Attributes:
        bands: Bands that the rule needs.
        kernel: Returns (H, W) uint16 date and score, NO_VALUE where no date is usable.
        some_bands: Whether the rule works with those of its bands that the recipe has.
    """

    bands: tuple[str, ...]
    kernel: Callable[[TileStack, CompositeSettings], tuple[Array, Array]]
    some_bands: bool = False

    def missing(self, bands: tuple[str, ...]) -> list[str]:
        """Return the bands that the rule lacks in `bands`.

        Args:
            bands: Names of the bands of the recipe.
        """
        missing = [band for band in self.bands if band not in bands]
        return [] if self.some_bands and len(missing) < len(self.bands) else missing

    def bands_to_read(self, bands: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of `bands` of which the kernel needs every date at once.

        Args:
            bands: Names of the bands of the recipe.
        """
        return tuple(band for band in self.bands if band in bands)


@dataclass(frozen=True, kw_only=True)
class CombineRule(CompositeRule):
    """Rule that combines the values of all usable dates.

    Attributes:
        kernel: Takes (T, C, H, W) DN and (T, H, W) `usable`, returns the (C, H, W) image.
        per_band: Whether each band is reduced alone. Then one band at a time is in memory, and bands repeated by
            nearest neighbour are reduced on their own coarse grid, where the result is the same.
    """

    kernel: Callable[[Array, Array], Array]
    per_band: bool

    def missing(self, bands: tuple[str, ...]) -> list[str]:
        """Return the bands that the rule lacks in `bands`: none, since it takes any.

        Args:
            bands: Names of the bands of the recipe.
        """
        return []

    def bands_to_read(self, bands: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of `bands` of which the kernel needs every date at once: none with `per_band`, else all.

        Args:
            bands: Names of the bands of the recipe.
        """
        return () if self.per_band else bands


# --- kernels that pick a date --------------------------------------------------------------


def medoid(dn: Array, usable: Array) -> tuple[Array, Array]:
    """Return (H, W) uint16 date nearest to the per-band median, and its Euclidean distance in DN; NO_VALUE if none.

    Args:
        dn: (T, C, H, W) uint16 DN, 0 where there are no data.
        usable: (T, H, W) bool, the pixels to use.
    """
    index, score = _no_choice(dn)
    kernels.medoid(dn, usable, kernels.network(len(dn)), index, score)
    return index, score


def maxndvi(dn: Array, usable: Array) -> tuple[Array, Array]:
    """Return (H, W) uint16 date with the greatest NDVI, and its (NDVI + 1) x 10000; NO_VALUE if no date is usable.

    Args:
        dn: (T, 2, H, W) uint16 DN of red and near infrared, 0 where there are no data.
        usable: (T, H, W) bool, the pixels to use.
    """
    index, score = _no_choice(dn)
    kernels.maxndvi(dn, usable, index, score)
    return index, score


def bap(
    dn: Array, clear_scores: Array, days: tuple[int, ...], settings: BapSettings, gsd_m: float
) -> tuple[Array, Array]:
    """Return (H, W) uint16 date with the best score, and that score x 10000; NO_VALUE if no date is usable.

    Args:
        dn: (T, 2, H, W) uint16 DN of blue and red, 0 where there are no data.
        clear_scores: (T, H, W) uint8 clear scores as in `clear_score`, which count distances in pixels of `gsd_m`.
        days: Day of each date, counted from 1970-01-01.
        settings: Weights and widths of the four scores.
        gsd_m: Pixel size of the cloud mask in metres.
    """
    index, score = _no_choice(dn)
    # Tables of integers: no exp per pixel, and the same score on every machine.
    dated = np.array([settings.date_score(day) for day in days], np.int64)
    kernels.bap(dn, clear_scores, dated, settings.cloud_scores(gsd_m), settings.haze_scores(), index, score)
    return index, score


def _no_choice(dn: Array) -> tuple[Array, Array]:
    return np.full(dn.shape[2:], NO_VALUE, np.uint16), np.full(dn.shape[2:], NO_VALUE, np.uint16)


# --- kernels that mix dates ----------------------------------------------------------------


def median(observations: Array, usable: Array) -> Array:
    """Return (C, H, W): the median of the usable values of each band, rounded half up; 0 where no date is usable.

    Args:
        observations: (T, C, H, W) uint16 DN, 0 where there are no data.
        usable: (T, H, W) bool, the pixels to use.
    """
    image = np.zeros(observations.shape[1:], observations.dtype)
    kernels.median(observations, usable, kernels.network(len(observations)), image)
    return image


def geomedian(observations: Array, usable: Array) -> Array:
    """Return (C, H, W): the spectrum with the least summed distance to all usable ones, rounded half up.

    Roberts, Mueller & McIntyre 2017, doi:10.1109/TGRS.2017.2723896.

    Args:
        observations: (T, C, H, W) uint16 DN, 0 where there are no data.
        usable: (T, H, W) bool, the pixels to use.
    """
    image = np.zeros(observations.shape[1:], observations.dtype)
    kernels.geomedian(observations, usable, image)
    return image


# --- the rules -----------------------------------------------------------------------------


def _bap_range(settings: CompositeSettings, day: int, gsd_m: float) -> tuple[Array, Array]:
    haze = settings.bap.haze_scores()
    least = settings.bap.cloud_scores(gsd_m).astype(np.int32) + np.int32(settings.bap.date_score(day) + haze.min())
    # A pixel with clear score 0 is not used: far below any other score.
    least[0] = np.iinfo(np.int32).min // 2
    return least, least + np.int32(haze.max() - haze.min())


RULES: dict[Method, PickRule | CombineRule] = {
    "medoid": PickRule(
        help="the date nearest to the median of all dates",
        # SEPAL's medoid measures in these six (blue, green, red, nir, swir1, swir2), whatever else the image has.
        bands=("B02", "B03", "B04", "B08", "B11", "B12"),
        some_bands=True,
        kernel=lambda stack, settings: medoid(stack.dn, stack.usable),
    ),
    "bap": PickRule(
        help="best available pixel: the date with the best score of season, year, cloud distance and haze",
        bands=("B02", "B04"),
        needs_mask=True,
        kernel=lambda stack, settings: bap(stack.dn, stack.clear_scores, stack.days, settings.bap, stack.mask_gsd_m),
        score_range=_bap_range,
    ),
    "maxndvi": PickRule(
        help="the date with the greatest NDVI",
        bands=("B04", "B08"),
        kernel=lambda stack, settings: maxndvi(stack.dn, stack.usable),
    ),
    "median": CombineRule(help="the median of each band", kernel=median, per_band=True),
    "geomedian": CombineRule(help="the geometric median of the spectra", kernel=geomedian, per_band=False),
}

if set(RULES) != set(get_args(Method)):
    raise TypeError(f"RULES has {sorted(RULES)}, Method names {sorted(get_args(Method))}; expected the same rules")
