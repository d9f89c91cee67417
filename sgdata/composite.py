"""One pixel from many dates: `medoid` picks a date, `median` mixes them. Pure, exact integer arithmetic.

Observations are (T, C, H, W) unsigned DN, 0 = no data, `usable` (T, H, W) says which may be looked at (clear, all
bands valid). Each rule is a numba kernel beside a numpy `reference_*` that tests hold it equal to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np

from sgdata.types import Array

Method = Literal["medoid", "median"]

DISTANCE_BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
"""SEPAL's medoid measures in these (blue green red nir swir1 swir2), whatever else is carried along."""

NO_VALUE = 65535
"""Provenance: no date chosen, no score."""


@dataclass(frozen=True, kw_only=True)
class Composite:
    """`image` (C, H, W) as the observations, 0 where no date was usable; the rest (H, W) uint16.

    `index` is the date chosen (NO_VALUE where none, or where dates are mixed), `valid` how many dates were
    usable, `score` the rule's own figure x 10000 (NO_VALUE where it has none).
    """

    image: Array
    index: Array
    valid: Array
    score: Array


def reduce(observations: Array, usable: Array, *, method: Method, distance: tuple[int, ...]) -> Composite:
    """The composite by `method`; `distance` holds the positions of the medoid's distance bands."""
    bands, height, width = observations.shape[1:]
    image = np.zeros((bands, height, width), observations.dtype)
    index = np.full((height, width), NO_VALUE, np.uint16)
    score = np.full((height, width), NO_VALUE, np.uint16)
    valid = usable.sum(axis=0, dtype=np.uint16)
    if method == "medoid":
        _medoid(observations, usable, np.asarray(distance, np.int64), image, index, score)
    else:
        _median(observations, usable, image)
    return Composite(image=image, index=index, valid=valid, score=score)


@numba.njit(cache=True, nogil=True)
def _select(values: Array, count: int, rank: int) -> int:
    """The value of `rank` among the first `count`, which end up partly sorted round it (Hoare's selection)."""
    low, high = 0, count - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return int(values[rank])


@numba.njit(cache=True, nogil=True)
def _twice_median(values: Array, count: int) -> int:
    """Twice the median, which is whole even where an even count has it between two values."""
    upper = _select(values, count, count // 2)
    if count % 2:
        return 2 * upper
    # After the selection all values before `count // 2` are at most `upper`: the lower middle is their largest.
    lower = int(values[0])
    for i in range(1, count // 2):
        lower = max(lower, int(values[i]))
    return lower + upper


@numba.njit(cache=True, nogil=True)
def _median(observations: Array, usable: Array, image: Array) -> None:
    dates, bands, height, width = observations.shape
    values = np.empty(dates, observations.dtype)
    line = np.empty((width, dates), observations.dtype)
    for y in range(height):
        for b in range(bands):
            # Gather a line of pixels first: dates lie far apart in memory.
            for t in range(dates):
                for x in range(width):
                    line[x, t] = observations[t, b, y, x]
            for x in range(width):
                count = 0
                for t in range(dates):
                    if usable[t, y, x]:
                        values[count] = line[x, t]
                        count += 1
                if count:
                    image[b, y, x] = (_twice_median(values, count) + 1) // 2


@numba.njit(cache=True, nogil=True)
def _medoid(observations: Array, usable: Array, distance: Array, image: Array, index: Array, score: Array) -> None:
    dates, bands, height, width = observations.shape
    values = np.empty(dates, observations.dtype)
    line = np.empty((width, dates), observations.dtype)
    away = np.empty((width, dates), np.int64)
    for y in range(height):
        away[:] = 0
        for b in distance:
            for t in range(dates):
                for x in range(width):
                    line[x, t] = observations[t, b, y, x]
            for x in range(width):
                count = 0
                for t in range(dates):
                    if usable[t, y, x]:
                        values[count] = line[x, t]
                        count += 1
                if count:
                    middle = _twice_median(values, count)
                    for t in range(dates):
                        step = 2 * np.int64(line[x, t]) - middle
                        away[x, t] += step * step
        for x in range(width):
            best = -1
            for t in range(dates):
                if usable[t, y, x] and (best < 0 or away[x, t] < away[x, best]):
                    best = t
            if best >= 0:
                index[y, x] = best
                score[y, x] = min(np.int64(np.sqrt(away[x, best]) / 2 + 0.5), 65534)
                for b in range(bands):
                    image[b, y, x] = observations[best, b, y, x]


def reference_median(observations: Array, usable: Array) -> Array:
    """(C, H, W): per band the middle usable value, half up between two; 0 where no date is usable."""
    return np.floor(_middle(observations, usable) + 0.5).astype(observations.dtype)


def reference_medoid(observations: Array, usable: Array, distance: tuple[int, ...]) -> Array:
    """(H, W): the usable date nearest (Euclid) to the per-band median; ties go to the lowest, -1 where none."""
    near = observations[:, distance]
    away = ((near - _middle(near, usable)) ** 2).sum(axis=1)
    return np.where(usable.any(axis=0), np.where(usable, away, np.inf).argmin(axis=0), -1)


def _middle(values: Array, usable: Array) -> Array:
    """(T, C, H, W) -> (C, H, W) float64: mean of the two middle usable values, 0 where there is none."""
    ranked = np.sort(np.where(usable[:, None], values, np.inf), axis=0)
    count = usable.sum(axis=0)[None, None]
    lower = np.take_along_axis(ranked, np.maximum(count - 1, 0) // 2, axis=0)[0]
    upper = np.take_along_axis(ranked, np.where(count > 0, count // 2, 0), axis=0)[0]
    return np.where(count[0] > 0, (lower + upper) / 2, 0.0)
