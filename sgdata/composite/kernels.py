"""Loops over pixels and dates of the composite rules, compiled by numba. Pure.

Arrays are as in `rules`. Each kernel fills the arrays that its caller passes, which hold `NO_VALUE` or 0 at first.
"""

from __future__ import annotations

import numba
import numpy as np

from sgdata.types import Array

NO_VALUE = 65535
"""Value in the provenance raster where no date was chosen, or no score exists."""

MAX_ITERATIONS, TOLERANCE_DN = 50, 0.01
"""Weiszfeld's iteration for the geomedian stops after this many steps, or when the point moves less than this in DN."""


@numba.njit(cache=True, nogil=True)
def bap(
    dn: Array, clear_scores: Array, dated: Array, by_clear_score: Array, by_haze: Array, index: Array, score: Array
) -> None:
    """Fill `index` and `score` (H, W) with the date of the best total score, and that score."""
    dates, _, height, width = dn.shape
    for y in range(height):
        for x in range(width):
            best = -1
            for t in range(dates):
                if clear_scores[t, y, x]:  # doubtful pixels compete too, with the worst cloud score
                    hot = 2 * np.int64(dn[t, 0, y, x]) - np.int64(dn[t, 1, y, x]) + 2048
                    total = dated[t] + by_clear_score[clear_scores[t, y, x]] + by_haze[min(max(hot, 0), 4095)]  # type: ignore[index]
                    if total > best:
                        best = total
                        index[y, x] = t
                        score[y, x] = min(total, 65534)


@numba.njit(cache=True, nogil=True)
def count(usable: Array, counts: Array) -> None:
    """Fill `counts` (H, W) of zeros with the number of usable dates."""
    for y in range(usable.shape[1]):
        for t in range(usable.shape[0]):
            for x in range(usable.shape[2]):
                counts[y, x] += np.uint16(usable[t, y, x])


@numba.njit(cache=True, nogil=True)
def raise_scores(clear_scores: Array, by_clear_score: Array, scores: Array) -> None:
    """Raise `scores` (H, W) to those by clear score where these are greater."""
    height, width = scores.shape
    for y in range(height):
        for x in range(width):
            scores[y, x] = max(scores[y, x], by_clear_score[clear_scores[y, x]])


@numba.njit(cache=True, nogil=True)
def mark_cells(
    clear_scores: Array, by_clear_score: Array, scores: Array, rows: Array, cols: Array, found: Array
) -> None:
    """Set `found` in the cells with a pixel whose score by clear score is at least that of `scores` (H, W).

    `rows` (H) and `cols` (W) say in which row and column of `found` a pixel is.
    """
    height, width = scores.shape
    for y in range(height):
        for x in range(width):
            if by_clear_score[clear_scores[y, x]] >= scores[y, x]:
                found[rows[y], cols[x]] = True


@numba.njit(cache=True, nogil=True)
def mark_winners(index: Array, rows: Array, cols: Array, found: Array) -> None:
    """Set `found` (T, h, w) for the date `index` (H, W) of each pixel, in the cell that `rows` and `cols` give."""
    height, width = index.shape
    for y in range(height):
        for x in range(width):
            if index[y, x] != NO_VALUE:
                found[index[y, x], rows[y], cols[x]] = True


@numba.njit(cache=True, nogil=True)
def maxndvi(dn: Array, usable: Array, index: Array, score: Array) -> None:
    """Fill `index` and `score` (H, W) with the date of the greatest NDVI, and (NDVI + 1) x 10000."""
    dates, _, height, width = dn.shape
    for y in range(height):
        for x in range(width):
            best, over = np.int64(-2), np.int64(1)  # NDVI is never below -1
            for t in range(dates):
                red, nir = np.int64(dn[t, 0, y, x]), np.int64(dn[t, 1, y, x])
                # a / b > c / d as a d > c b: no rounding decides between near equals
                if usable[t, y, x] and (nir - red) * over > best * (nir + red):
                    best, over = nir - red, nir + red
                    index[y, x] = t
            if index[y, x] != NO_VALUE:
                score[y, x] = (10_000 * (best + over)) // over


def network(count: int) -> Array:
    """Return (K, 2) int64: the comparators, in order, that sort `count` values (Batcher's odd-even merge sort).

    The comparisons do not depend on the values, so a whole line of pixels is sorted at once in vector registers.
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
            # Unusable values become the largest one, which sorts last; a real value of that size sorts equal to it.
            line[t, x] = observations[t, b, y, x] if usable[t, y, x] else 65535
    for k in range(pairs.shape[0]):
        low, high = line[pairs[k, 0]], line[pairs[k, 1]]
        for x in range(width):
            one, other = low[x], high[x]
            low[x] = min(one, other)
            high[x] = max(one, other)


@numba.njit(cache=True, nogil=True)
def _middle_ranks(usable: Array, y: int, ranks: Array) -> None:
    """Fill `ranks` (2, W) with the ranks of the two middle ones among each pixel's usable values."""
    ranks[:] = 0
    for t in range(usable.shape[0]):
        for x in range(usable.shape[2]):
            ranks[1, x] += usable[t, y, x]
    for x in range(usable.shape[2]):
        n = ranks[1, x]
        # Without any usable value: a rank that no date has.
        ranks[0, x], ranks[1, x] = ((n - 1) // 2, n // 2) if n else (65535, 65535)


@numba.njit(cache=True, nogil=True)
def _middles(line: Array, ranks: Array, twice: Array) -> None:
    """Fill `twice` (W) with twice the median: the sum of the two middle values of a sorted line."""
    twice[:] = 0
    # Selecting in a pass over all dates uses vector registers, which is faster than one look-up per pixel.
    for t in range(line.shape[0]):
        low, high = ranks[0], ranks[1]
        for x in range(line.shape[1]):
            value = np.uint32(line[t, x])
            twice[x] += (value if low[x] == t else np.uint32(0)) + (value if high[x] == t else np.uint32(0))


@numba.njit(cache=True, nogil=True)
def median(observations: Array, usable: Array, pairs: Array, image: Array) -> None:
    """Fill `image` (C, H, W) with the median of the usable values, rounded half up."""
    dates, bands, height, width = observations.shape
    line, ranks, twice = (
        np.empty((dates, width), np.uint16),
        np.empty((2, width), np.uint16),
        np.empty(width, np.uint32),
    )
    for y in range(height):
        _middle_ranks(usable, y, ranks)
        for b in range(bands):
            _sorted_line(observations, usable, pairs, b, y, line)
            _middles(line, ranks, twice)
            for x in range(width):
                image[b, y, x] = (twice[x] + np.uint32(1)) >> np.uint32(1)


@numba.njit(cache=True, nogil=True)
def medoid(observations: Array, usable: Array, pairs: Array, index: Array, score: Array) -> None:
    """Fill `index` and `score` (H, W) with the date nearest to the median, and its distance in DN, rounded."""
    dates, bands, height, width = observations.shape
    line, ranks, twice = (
        np.empty((dates, width), np.uint16),
        np.empty((2, width), np.uint16),
        np.empty(width, np.uint32),
    )
    # Twice the median is an integer, and so is twice the distance: float64 holds these squares exactly.
    away, nearest = np.empty((dates, width), np.float64), np.empty(width, np.float64)
    for y in range(height):
        away[:] = 0
        _middle_ranks(usable, y, ranks)
        for b in range(bands):
            _sorted_line(observations, usable, pairs, b, y, line)
            _middles(line, ranks, twice)
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


@numba.njit(cache=True, nogil=True)
def geomedian(observations: Array, usable: Array, image: Array) -> None:
    """Fill `image` (C, H, W) with the geometric median of the usable spectra, by Weiszfeld's iteration."""
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
            # Start at the mean: the sum of distances has a single minimum unless all points are collinear.
            for b in range(bands):
                point[b] = values[:n, b].mean()
            for _ in range(MAX_ITERATIONS):
                moved[:] = 0
                total = 0.0
                for t in range(n):
                    squares = 0.0
                    for b in range(bands):
                        squares += (values[t, b] - point[b]) ** 2
                    # An observation at the point itself would have infinite weight: distances are at least half a DN.
                    weight = 1 / max(np.sqrt(squares), 0.5)
                    total += weight
                    for b in range(bands):
                        moved[b] += weight * values[t, b]
                step = 0.0
                for b in range(bands):
                    moved[b] /= total
                    step = max(step, abs(moved[b] - point[b]))
                    point[b] = moved[b]
                if step < TOLERANCE_DN:
                    break
            for b in range(bands):
                image[b, y, x] = np.uint16(point[b] + 0.5)
