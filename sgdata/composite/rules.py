"""One pixel from many dates: rules that pick a date, and rules that mix them. Pure.

`medoid`, `bap` and `maxndvi` look at a few bands and say which date is taken: only that date's other bands are ever
needed. `median` and `geomedian` mix all dates band by band. Observations are (T, C, H, W) uint16 DN, 0 = no data,
`usable` (T, H, W) says which may be looked at (clear, all bands valid). Sums are exact integers, ties go to the
lowest date: nothing depends on tiles or threads. Each kernel has a double in plain numpy that it is held equal to, in
`tests/composite_reference.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import Literal

import numba
import numpy as np

from sgdata.composite import rules
from sgdata.types import Array

Method = Literal["medoid", "bap", "maxndvi", "median", "geomedian"]

# SEPAL's medoid measures in these (blue green red nir swir1 swir2), whatever else is carried along.
DISTANCE_BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")

# Bands by which a rule picks its date, which the median does not: it goes band by band. Who is not here mixes all.
LOOKS_AT: dict[Method, tuple[str, ...]] = {
    "medoid": DISTANCE_BANDS,
    "bap": ("B02", "B04"),
    "maxndvi": ("B04", "B08"),
    "median": (),
}

# Provenance: no date chosen, no score.
NO_VALUE = 65535

# Weiszfeld's iteration stops after this many rounds, or when the point moved less than this in DN.
ROUNDS, NEAR_DN = 50, 0.01


@dataclass(frozen=True, kw_only=True)
class BapSettings:
    """Best available pixel in FORCE's form (Griffiths 2013, Frantz 2019): the weighted mean of four scores.

    `year_factor` and `haze_dn` of the recipes are our choice: FORCE's own constants could not be confirmed.

    Day of year: Gaussian round `day_of_year`, `sigma_days` wide. Year: `year_factor` for each year from `year`.
    Cloud distance: 1 / (1 + exp(-10 / D (d - D / 2))), D = `cloud_m`. Haze: 1 / (1 + exp(10 / 200 (HOT - H))),
    HOT = B02 - B04 / 2 in DN, H = `haze_dn`. `weights` in this order.
    """

    day_of_year: int
    sigma_days: float
    year: int
    year_factor: float
    cloud_m: float
    haze_dn: float
    weights: tuple[float, float, float, float]

    def of_date(self, day: int) -> int:
        """Score x 10000 that a day (since 1970) brings to every pixel."""
        when = date(1970, 1, 1) + timedelta(days=day)
        away = abs(when.timetuple().tm_yday - self.day_of_year)
        away = min(away, 365 - away)  # the year is round
        doy = math.exp(-0.5 * (away / self.sigma_days) ** 2)
        year = self.year_factor ** abs(when.year - self.year)
        return self._scaled(self.weights[0] * doy + self.weights[1] * year)

    def of_sight(self, gsd_m: float) -> Array:
        """(256,) int64: score x 10000 by sight (`masks`): its cloud distance, and none if doubtful."""
        steep = 10 / self.cloud_m
        away = [sight * gsd_m if sight < 128 else 0 for sight in range(256)]
        return np.array(
            [self._scaled(self.weights[2] / (1 + math.exp(-steep * (d - self.cloud_m / 2)))) for d in away], np.int64
        )

    @lru_cache(maxsize=4)  # noqa: B019 - settings are small, frozen and few
    def of_haze(self) -> Array:
        """(4096,) int64: score x 10000 by 2 HOT + 2048, the ends for all beyond."""
        hot = [(twice - 2048) / 2 for twice in range(4096)]
        return np.array(
            [self._scaled(self.weights[3] / (1 + math.exp(0.05 * (h - self.haze_dn)))) for h in hot], np.int64
        )

    def _scaled(self, score: float) -> int:
        return round(score / sum(self.weights) * 10_000)


# --- rules that pick a date ----------------------------------------------------------------


def medoid(looked: Array, usable: Array) -> tuple[Array, Array]:
    """(H, W) uint16 date nearest (Euclid) to the per-band median, NO_VALUE where none, and that distance in DN."""
    index, score = _unset(looked)
    _medoid(looked, usable, network(len(looked)), index, score)
    return index, score


def maxndvi(looked: Array, usable: Array) -> tuple[Array, Array]:
    """(H, W) uint16 greenest date by (red, nir), and its (NDVI + 1) x 10000."""
    index, score = _unset(looked)
    _maxndvi(looked, usable, index, score)
    return index, score


def bap(
    looked: Array, sights: Array, days: tuple[int, ...], settings: BapSettings, gsd_m: float
) -> tuple[Array, Array]:
    """(H, W) uint16 date of the best score by (blue, red) and sights (T, H, W) of `gsd_m`, and score x 10000."""
    index, score = _unset(looked)
    # All three parts are tables of integers: no exp per pixel, and the same score on every machine.
    dated = np.array([settings.of_date(day) for day in days], np.int64)
    _bap(looked, sights, dated, settings.of_sight(gsd_m), settings.of_haze(), index, score)
    return index, score


def _unset(looked: Array) -> tuple[Array, Array]:
    shape = looked.shape[2:]
    return np.full(shape, NO_VALUE, np.uint16), np.full(shape, NO_VALUE, np.uint16)


@numba.njit(cache=True, nogil=True)
def _bap(
    looked: Array, sights: Array, dated: Array, by_sight: Array, by_haze: Array, index: Array, score: Array
) -> None:
    dates, _, height, width = looked.shape
    for y in range(height):
        for x in range(width):
            best = -1
            for t in range(dates):
                if sights[t, y, x]:  # doubtful looks compete too: their cloud score is the worst
                    hot = 2 * np.int64(looked[t, 0, y, x]) - np.int64(looked[t, 1, y, x]) + 2048
                    total = dated[t] + by_sight[sights[t, y, x]] + by_haze[min(max(hot, 0), 4095)]  # type: ignore[index]
                    if total > best:
                        best = total
                        index[y, x] = t
                        score[y, x] = min(total, 65534)


@numba.njit(cache=True, nogil=True)
def _maxndvi(looked: Array, usable: Array, index: Array, score: Array) -> None:
    dates, _, height, width = looked.shape
    for y in range(height):
        for x in range(width):
            best, over = np.int64(-2), np.int64(1)  # NDVI is never below -1
            for t in range(dates):
                red, nir = np.int64(looked[t, 0, y, x]), np.int64(looked[t, 1, y, x])
                # a / b > c / d as a d > c b: no rounding decides between near equals
                if usable[t, y, x] and (nir - red) * over > best * (nir + red):
                    best, over = nir - red, nir + red
                    index[y, x] = t
            if index[y, x] != NO_VALUE:
                score[y, x] = (10_000 * (best + over)) // over


def spread(clear: list[Array], count: int) -> list[int]:
    """`count` of the (H, W) bool views: each next one is that which adds most where least was seen clear before.

    A clear look counts half, a third ... of the first one; ties go to the lowest.
    """
    views = np.stack(clear).reshape(len(clear), -1)
    looks = np.zeros(views.shape[1], np.int64)
    chosen: list[int] = []
    for _ in range(min(count, len(clear))):
        # 720720 divides by 1 to 16: whole numbers, so that no order of summing decides between equals.
        gain = np.array([-1 if n in chosen else (720_720 // (1 + looks[view])).sum() for n, view in enumerate(views)])
        best = int(gain.argmax())
        chosen.append(best)
        looks += views[best]
    return chosen


# --- rules that mix dates ------------------------------------------------------------------


def median(observations: Array, usable: Array) -> Array:
    """(C, H, W): per band the middle usable value, half up between two; 0 where no date is usable."""
    image = np.zeros(observations.shape[1:], observations.dtype)
    _median(observations, usable, network(len(observations)), image)
    return image


def geomedian(observations: Array, usable: Array) -> Array:
    """(C, H, W): the spectrum with the least summed distance to all usable ones (Roberts 2017), rounded half up."""
    image = np.zeros(observations.shape[1:], observations.dtype)
    _geomedian(observations, usable, image)
    return image


@numba.njit(cache=True, nogil=True)
def _geomedian(observations: Array, usable: Array, image: Array) -> None:
    dates, bands, height, width = observations.shape
    values, point, moved = np.empty((dates, bands)), np.empty(bands), np.empty(bands)
    for y in range(height):
        for x in range(width):
            n = 0
            for t in range(dates):
                if usable[t, y, x]:
                    for b in range(bands):
                        values[n, b] = observations[t, b, y, x]
                    n += 1
            if n == 0:
                continue
            # The mean is a good start: the sum of distances has one minimum only, unless all lie on a line.
            for b in range(bands):
                point[b] = values[:n, b].mean()
            for _ in range(ROUNDS):
                moved[:] = 0
                total = 0.0
                for t in range(n):
                    squares = 0.0
                    for b in range(bands):
                        squares += (values[t, b] - point[b]) ** 2
                    # An observation under the point would weigh infinitely: half a DN is near enough.
                    weight = 1 / max(np.sqrt(squares), 0.5)
                    total += weight
                    for b in range(bands):
                        moved[b] += weight * values[t, b]
                step = 0.0
                for b in range(bands):
                    moved[b] /= total
                    step = max(step, abs(moved[b] - point[b]))
                    point[b] = moved[b]
                if step < NEAR_DN:
                    break
            for b in range(bands):
                image[b, y, x] = np.uint16(point[b] + 0.5)


def network(count: int) -> Array:
    """(K, 2) int64: the comparators, in order, that sort `count` values (Batcher's odd-even merge sort).

    The same comparisons whatever the values: a whole line of pixels is sorted at once in vector registers.
    """
    pairs: list[tuple[int, int]] = []
    p = 1
    while p < count:
        k = p
        while k >= 1:
            for j in range(k % p, count - k, 2 * k):
                low = (i + j for i in range(min(k, count - j - k)))
                pairs += [(i, i + k) for i in low if i // (2 * p) == (i + k) // (2 * p)]
            k //= 2
        p *= 2
    return np.array(pairs, np.int64).reshape(-1, 2)


@numba.njit(cache=True, nogil=True)
def _sorted_line(observations: Array, usable: Array, pairs: Array, b: int, y: int, line: Array) -> None:
    """Fill `line` (T, W) with band b of row y, each pixel's usable values first and in order."""
    dates, width = line.shape
    for t in range(dates):
        for x in range(width):
            # The largest value stands for "none": it sorts last, and as a real value it is equal to itself.
            line[t, x] = observations[t, b, y, x] if usable[t, y, x] else 65535
    for k in range(pairs.shape[0]):
        low, high = line[pairs[k, 0]], line[pairs[k, 1]]
        for x in range(width):
            one, other = low[x], high[x]
            low[x] = min(one, other)
            high[x] = max(one, other)


@numba.njit(cache=True, nogil=True)
def _places(usable: Array, y: int, places: Array) -> None:
    """Fill `places` (2, W) with where in their order the two middle ones of each pixel's usable values stand."""
    places[:] = 0
    for t in range(usable.shape[0]):
        for x in range(usable.shape[2]):
            places[1, x] += usable[t, y, x]
    for x in range(usable.shape[2]):
        n = places[1, x]
        # No value at all: a place that no date has.
        places[0, x], places[1, x] = ((n - 1) // 2, n // 2) if n else (65535, 65535)


@numba.njit(cache=True, nogil=True)
def _middles(line: Array, places: Array, twice: Array) -> None:
    """Fill `twice` (W) with the sum of the two middle values of a sorted line, which is twice the median."""
    twice[:] = 0
    # Not looked up but selected: a pass over all dates in vector registers is quicker than a jump per pixel.
    for t in range(line.shape[0]):
        low, high = places[0], places[1]
        for x in range(line.shape[1]):
            value = np.uint32(line[t, x])
            twice[x] += (value if low[x] == t else np.uint32(0)) + (value if high[x] == t else np.uint32(0))


@numba.njit(cache=True, nogil=True)
def _median(observations: Array, usable: Array, pairs: Array, image: Array) -> None:
    dates, bands, height, width = observations.shape
    line, places, twice = (
        np.empty((dates, width), np.uint16),
        np.empty((2, width), np.uint16),
        np.empty(width, np.uint32),
    )
    for y in range(height):
        _places(usable, y, places)
        for b in range(bands):
            _sorted_line(observations, usable, pairs, b, y, line)
            _middles(line, places, twice)
            for x in range(width):
                image[b, y, x] = (twice[x] + np.uint32(1)) >> np.uint32(1)


@numba.njit(cache=True, nogil=True)
def _medoid(observations: Array, usable: Array, pairs: Array, index: Array, score: Array) -> None:
    dates, bands, height, width = observations.shape
    line, places, twice = (
        np.empty((dates, width), np.uint16),
        np.empty((2, width), np.uint16),
        np.empty(width, np.uint32),
    )
    # Twice the median is whole, so twice the distance is too: float64 holds these squares exactly.
    away, nearest = np.empty((dates, width), np.float64), np.empty(width, np.float64)
    for y in range(height):
        away[:] = 0
        _places(usable, y, places)
        for b in range(bands):
            _sorted_line(observations, usable, pairs, b, y, line)
            _middles(line, places, twice)
            for t in range(dates):
                for x in range(width):
                    step = np.float64(np.int32(2 * np.int32(observations[t, b, y, x]) - np.int32(twice[x])))
                    away[t, x] += step * step
        nearest[:] = np.inf
        for t in range(dates):
            for x in range(width):
                nearer = usable[t, y, x] and away[t, x] < nearest[x]
                nearest[x] = away[t, x] if nearer else nearest[x]
                index[y, x] = t if nearer else index[y, x]
        for x in range(width):
            if nearest[x] < np.inf:
                score[y, x] = min(np.sqrt(nearest[x]) / 2 + 0.5, 65534.0)


VERSION = 2
"""Counts changes of masks or composites that change a pixel: what an older version left in scratch is not used."""


@dataclass(frozen=True, kw_only=True)
class CompositeSettings:
    """How many dates become one. `max_obs` scenes at most are looked at, the clearest together; 0: all."""

    method: rules.Method
    max_obs: int
    bap: rules.BapSettings

    @property
    def reach_m(self) -> float:
        """How far the rule wants to know of clouds."""
        return self.bap.cloud_m if self.method == "bap" else 0
