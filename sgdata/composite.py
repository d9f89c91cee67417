"""One pixel from many dates: `medoid` picks a date, `median` mixes them. Pure, exact integer arithmetic.

Observations are (T, C, H, W) uint16 DN, 0 = no data, `usable` (T, H, W) says which may be looked at (clear, all
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
    pairs = network(len(observations))
    if method == "medoid":
        _medoid(observations, usable, pairs, valid, np.asarray(distance, np.int64), image, index, score)
    else:
        _median(observations, usable, pairs, valid, image)
    return Composite(image=image, index=index, valid=valid, score=score)


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
def _median(observations: Array, usable: Array, pairs: Array, valid: Array, image: Array) -> None:
    dates, bands, height, width = observations.shape
    line = np.empty((dates, width), np.uint16)
    for y in range(height):
        for b in range(bands):
            _sorted_line(observations, usable, pairs, b, y, line)
            for x in range(width):
                n = int(valid[y, x])
                if n:
                    middle = np.uint32(line[(n - 1) // 2, x]) + np.uint32(line[n // 2, x])
                    image[b, y, x] = (middle + 1) // 2


@numba.njit(cache=True, nogil=True)
def _medoid(
    observations: Array,
    usable: Array,
    pairs: Array,
    valid: Array,
    distance: Array,
    image: Array,
    index: Array,
    score: Array,
) -> None:
    dates, bands, height, width = observations.shape
    line = np.empty((dates, width), np.uint16)
    # Twice the median is whole, so twice the distance is too: float64 holds these squares exactly.
    middle = np.empty(width, np.float64)
    away = np.empty((dates, width), np.float64)
    for y in range(height):
        away[:] = 0
        for b in distance:
            _sorted_line(observations, usable, pairs, b, y, line)
            for x in range(width):
                n = max(int(valid[y, x]), 1)
                middle[x] = np.float64(line[(n - 1) // 2, x]) + np.float64(line[n // 2, x])
            for t in range(dates):
                for x in range(width):
                    step = 2.0 * observations[t, b, y, x] - middle[x]
                    away[t, x] += step * step
        for x in range(width):
            best = -1
            for t in range(dates):
                if usable[t, y, x] and (best < 0 or away[t, x] < away[best, x]):
                    best = t
            if best >= 0:
                index[y, x] = best
                score[y, x] = min(np.sqrt(away[best, x]) / 2 + 0.5, 65534.0)
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
