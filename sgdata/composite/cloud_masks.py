"""Derive the clear score of each pixel from the mask layers of all dates. Pure.

Sen2Cor's scene classes (or another layer) are sorted into kinds; a bright target filter, which compares all dates,
unmasks roofs that are classified as clouds; clouds and shadows are widened by a buffer. The result is one byte per
pixel, the *clear score*: 0 not usable, 1-127 clear (distance to the nearest cloud in pixels of the layer), and
DOUBTFUL more where the class is dark or unclassified, which is used only where nothing better exists.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np

from sgdata.scenes.types import MASK_NODATA
from sgdata.sentinel2 import MSI
from sgdata.types import Array

# Kinds of pixels. DIM: dark or unclassified; CLOUD: cloud or cirrus; OTHER: dropped for another reason (snow).
NO_DATA, CLEAR, DIM, CLOUD, SHADOW, OTHER = range(6)

# Method, and name of the layer, of masks that the user provides.
EXTERNAL = "external"

# Bit of a doubtful clear score.
DOUBTFUL = 128
# Largest distance in pixels that a clear score can hold.
MAX_DISTANCE = 127
# Distances along rows are computed in pieces of this many pixels.
PIECE_PX = 64
# Doubtful dates of a pixel are used where they are this many times as many as clear ones.
DARK_GROUND = 3

# Cloud fractions of a neighbourhood are counted on squares of BLOCK_M: they are smooth at that scale.
BLOCK_M, NEIGHBOURHOOD_M = 500, 10_000
# Blocks on each side of a roof that decide whether the day is cloudy there.
NEAR_BLOCKS = 1
# A pixel that exceeds the cloud fraction of its neighbourhood by EXCESS on days when that is below CALM is a bright
# target, not a cloud (SEPAL's rule).
EXCESS, CALM = 0.4, 0.3
# Calm days that the bright target filter needs: 'mostly' means nothing with fewer.
CALM_DAYS = 3
# Ground that is cloud on all dates is a roof only where it is narrower: large halls have 100 to 200 m.
ROOF_M = 200
# Clouds that move must cover a pixel of a bright target on so many days with a smaller probability.
CHANCE = 1e-3
NOT_BRIGHT, BRIGHT, NEVER_CLEAR, PERHAPS_BRIGHT = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """Settings of the cloud mask.

    Attributes:
        method: `scl` masks the Sen2Cor classes in `drop`; `probability` masks where the asset `cloud` (0-100) reaches
            `threshold`; `external` masks where a raster of the user is not 0; `none` masks nothing.
        drop: Sen2Cor classes to mask.
        threshold: Cloud probability in per cent from which a pixel is masked.
        cloud_buffer_m: Distance in metres, between pixel centres, around clouds that is masked as well.
        shadow_buffer_m: The same around cloud shadows.
        bright_target_filter: Apply the bright target filter, which keeps bright roofs that look like clouds; masks of
            the method `external` are used as they are.
    """

    method: Literal["scl", "probability", "external", "none"]
    drop: tuple[int, ...]
    threshold: int
    cloud_buffer_m: float
    shadow_buffer_m: float
    bright_target_filter: bool

    @property
    def filters(self) -> bool:
        """Whether the bright target filter applies."""
        return self.bright_target_filter and self.method != EXTERNAL

    @property
    def asset(self) -> str | None:
        """The layer that the method reads; None for `none`."""
        return {"scl": MSI.classes.layer, "probability": "cloud", "external": EXTERNAL, "none": None}[self.method]


def classify_mask(layer: Array, settings: MaskSettings) -> Array:
    """Map the (H, W) mask layer of the method to (H, W) uint8 kinds."""
    table = np.full(256, CLEAR, np.uint8)
    if settings.method == "probability":
        table[settings.threshold :] = CLOUD
        table[101:] = NO_DATA  # no percentage
    elif settings.method == "external":
        table[1:] = CLOUD
    else:
        classes = MSI.classes
        table[classes.count :] = NO_DATA
        table[list(classes.doubtful)] = DIM
        table[list(settings.drop)] = OTHER
        table[[value for value in classes.clouds if value in settings.drop]] = CLOUD
        if classes.shadow in settings.drop:
            table[classes.shadow] = SHADOW
        table[classes.no_data] = NO_DATA  # even where a recipe does not drop it
    table[MASK_NODATA] = NO_DATA
    kinds = np.empty(layer.shape, np.uint8)
    _look_up(table, layer, kinds)
    return kinds


@numba.njit(cache=True, nogil=True)
def _look_up(table: Array, layer: Array, out: Array) -> None:
    height, width = layer.shape
    for y in range(height):
        for x in range(width):
            out[y, x] = table[min(layer[y, x], 255)]


# --- bright target filter ------------------------------------------------------------------


class BrightTargetFilter:
    """Find the pixels that are classified as cloud more often than their surroundings, over all dates.

    SEPAL's rule with one change: frequencies are taken over the days when the neighbourhood is below CALM, not over
    all days, since a place where most days are overcast would never qualify.
    """

    def __init__(self, shape: tuple[int, int], gsd_m: float) -> None:
        self.gsd_m = gsd_m
        self.calm, self.cloudy = np.zeros(shape, np.uint16), np.zeros(shape, np.uint16)
        self.clear = np.zeros(shape, np.bool_)
        self.expected = np.zeros(shape, np.float32)

    def add(self, kinds: Array, fraction: Array) -> None:
        """Count the (H, W) kinds of one date, given the `cloud_fraction` of their blocks."""
        # Days that are not calm there add nothing.
        expected = _on_pixels(np.where(fraction < CALM, fraction, np.float32(0)), kinds.shape, self.gsd_m)
        calm = (kinds != NO_DATA) & _on_pixels(fraction < CALM, kinds.shape, self.gsd_m)
        self.calm += calm
        self.cloudy += calm & (kinds == CLOUD)
        self.expected += expected * calm
        self.clear |= (kinds == CLEAR) | (kinds == DIM)

    def bright(self) -> Array:
        """Return (H, W) uint8: BRIGHT where cloud classes are not reliable, NEVER_CLEAR if also always cloud.

        PERHAPS_BRIGHT is ground that is clear on some dates, where clouds by chance would look like this too.
        """
        often = (self.calm >= CALM_DAYS) & (self.cloudy - self.expected > EXCESS * self.calm)
        places = np.flatnonzero(often)
        calm, cloudy, expected, clear = (
            each.ravel()[places] for each in (self.calm, self.cloudy, self.expected, self.clear)
        )
        # Of ground that is never clear, all calm days count: pixels that are not cloud then are shadow or snow.
        # One limit for each pair of counts, of which there are few.
        side = int(calm.max(initial=0)) + 1
        pairs = calm.astype(np.int64) * side + np.where(clear, cloudy, calm)
        limits = np.zeros(side**2, np.float32)
        for pair in np.flatnonzero(np.bincount(pairs, minlength=1)):
            limits[pair] = expected_by_chance(int(pair) // side, int(pair) % side)
        proven = expected < limits[pairs]
        bright = np.zeros(often.shape, np.uint8)
        kinds = np.where(proven, np.uint8(BRIGHT), np.uint8(PERHAPS_BRIGHT))
        bright.ravel()[places] = np.where(clear, kinds, np.where(proven, np.uint8(NEVER_CLEAR), np.uint8(NOT_BRIGHT)))
        return bright


@functools.cache
def expected_by_chance(days: int, cloudy: int) -> float:
    """Return the expected number of cloudy days below which moving clouds cover a pixel that often only by CHANCE.

    Hoeffding's inequality (1963, theorem 1): of n independent days, of which m are expected to be cloudy, k > m or more
    are with a probability of at most (m / k)^k ((n - m) / (n - k))^(n - k).

    Args:
        days: N, at least 1.
        cloudy: K, 1 to `days`.
    """
    if cloudy == days:
        return float(days * CHANCE ** (1 / days))
    low, high = 0.0, float(cloudy)
    for _ in range(50):
        mean = (low + high) / 2
        clear = days - cloudy
        bound = cloudy * math.log(mean / cloudy) + clear * math.log((days - mean) / clear)
        low, high = (mean, high) if bound < math.log(CHANCE) else (low, mean)
    return low


def bright_targets(bright: Array, gsd_m: float) -> Array:
    """Return (H, W) uint8: bright targets of each kind, given those of `BrightTargetFilter.bright`.

    Ground that was never seen clear is one only where it is narrow, as roofs are: unlike SEPAL's rule, which would show
    the clouds of ground that has never been seen.
    """
    from scipy import ndimage

    never = bright == NEVER_CLEAR
    if not never.any():
        return bright
    side = 2 * roof_px(gsd_m) + 1
    wide = never.astype(np.uint8)
    # Beyond the edge it may go on.
    for axis in (0, 1):
        wide = ndimage.minimum_filter1d(wide, side, axis, mode="constant", cval=1)
    for axis in (0, 1):
        wide = ndimage.maximum_filter1d(wide, side, axis, mode="constant", cval=0)
    return np.where(never & (wide > 0), np.uint8(NOT_BRIGHT), bright)


def roof_px(gsd_m: float) -> int:
    """Return half of the side in pixels of a square that is too large for a roof."""
    return max(round(ROOF_M / 2 / gsd_m), 1)


def block_px(gsd_m: float) -> int:
    """Return the side of a block in pixels: strips that start at multiples of it have the same blocks as the whole."""
    return max(round(BLOCK_M / gsd_m), 1)


def cloud_fraction(strips: Iterable[Array], gsd_m: float) -> Array:
    """Return (h, w) float32 for one date: the cloud fraction of the valid pixels around each block.

    `strips` holds the kinds of the date from top to bottom, each but the last a whole number of blocks high.
    """
    counted = [(_block_counts(part == CLOUD, gsd_m), _block_counts(part != NO_DATA, gsd_m)) for part in strips]
    cloud, valid = (np.concatenate(column) for column in zip(*counted, strict=True))
    return _fraction(cloud, valid, NEIGHBOURHOOD_M)


def neighbourhood_fraction(mask: Array, valid: Array, gsd_m: float, side_m: float) -> Array:
    """Return (H, W) float32: the share of `mask` in `valid` in a square of `side_m` around each block."""
    fraction = _fraction(_block_counts(mask, gsd_m), _block_counts(valid, gsd_m), side_m)
    return _on_pixels(fraction, mask.shape, gsd_m)


def _block_counts(mask: Array, gsd_m: float) -> Array:
    """Return (h, w) int64: true pixels of each block."""
    size = block_px(gsd_m)
    counts = np.zeros((-(-mask.shape[0] // size), -(-mask.shape[1] // size)), np.int64)
    _count_blocks(mask, size, counts)
    return counts


@numba.njit(cache=True, nogil=True)
def _count_blocks(mask: Array, size: int, counts: Array) -> None:
    height, width = mask.shape
    for y in range(height):
        for j in range(counts.shape[1]):
            count = 0
            for x in range(j * size, min((j + 1) * size, width)):
                count += mask[y, x]
            counts[y // size, j] += count


def _fraction(count: Array, total: Array, side_m: float) -> Array:
    from scipy import ndimage

    reach = round(side_m / BLOCK_M) // 2
    sums = [count, total]
    for axis in (0, 1):
        sums = [ndimage.correlate1d(each, np.ones(2 * reach + 1), axis, mode="constant") for each in sums]
    return (sums[0] / np.maximum(sums[1], 1)).astype(np.float32)


def _on_pixels(blocks: Array, shape: tuple[int, ...], gsd_m: float) -> Array:
    size = block_px(gsd_m)
    return blocks.repeat(size, 0)[: shape[0]].repeat(size, 1)[:, : shape[1]]


# --- clear scores --------------------------------------------------------------------------


def clear_score(kinds: Array, bright: Array | None, settings: MaskSettings, *, gsd_m: float, reach_m: float) -> Array:
    """Return the (H, W) uint8 clear scores of one date.

    Args:
        kinds: (H, W) uint8 kinds of the date.
        bright: (H, W) uint8 of `bright_targets`, or None.
        settings: Buffers around clouds and shadows.
        gsd_m: Pixel size in metres.
        reach_m: Distance in metres up to which distances to clouds are exact.
    """
    cloud = kinds == CLOUD
    if bright is not None and bright.any():
        # Around a roof on a truly cloudy day the ground is cloudy too; then the roof stays masked.
        target, side_m = bright > 0, (2 * NEAR_BLOCKS + 1) * BLOCK_M
        around = neighbourhood_fraction(cloud & ~target, (kinds != NO_DATA) & ~target, gsd_m, side_m)
        roof = cloud & target & (around < CALM)
        cloud, kinds = cloud & ~roof, np.where(roof, CLEAR, kinds)
        # Where it may be a cloud, it and its surroundings are used only if nothing better exists.
        near = measure_distance(roof & (bright == PERHAPS_BRIGHT), int(settings.cloud_buffer_m // gsd_m) + 1)
        kinds = np.where((kinds == CLEAR) & (near <= int(settings.cloud_buffer_m / gsd_m)), np.uint8(DIM), kinds)
    reach, shadow_reach = _reaches(settings, gsd_m, reach_m)
    away = measure_distance(cloud, reach)
    # Distances are whole numbers, rounded up: comparing them with the whole pixels of a buffer is exact.
    usable = ((kinds == CLEAR) | (kinds == DIM)) & (away > int(settings.cloud_buffer_m / gsd_m))
    usable &= measure_distance(kinds == SHADOW, shadow_reach) > int(settings.shadow_buffer_m / gsd_m)
    score: Array = (away | (kinds == DIM) * np.uint8(DOUBTFUL)) * usable
    return score


def margin_px(settings: MaskSettings, gsd_m: float, reach_m: float) -> int:
    """Return how many rows beyond a strip of whole blocks its clear scores depend on, in whole blocks."""
    size = block_px(gsd_m)
    return (-(-max(_reaches(settings, gsd_m, reach_m)) // size) + NEAR_BLOCKS) * size


def _reaches(settings: MaskSettings, gsd_m: float, reach_m: float) -> tuple[int, int]:
    """Return the distances in pixels up to which clouds and shadows are searched."""
    clouds = int(max(reach_m, settings.cloud_buffer_m) // gsd_m) + 1
    return min(clouds, MAX_DISTANCE - 1), int(settings.shadow_buffer_m // gsd_m) + 1


def select_clear(clear_scores: Array) -> Array:
    """Return (T, H, W) bool: the clear dates of each pixel, and its doubtful ones where they are far more numerous.

    A pixel that is dark on nearly every date is dark ground, such as forest; a single 'clear' date of it is suspect.
    """
    usable = np.empty(clear_scores.shape, np.bool_)
    _best_clear(clear_scores, usable)
    return usable


@numba.njit(cache=True, nogil=True)
def _best_clear(clear_scores: Array, usable: Array) -> None:
    dates, height, width = clear_scores.shape
    balance = np.empty(width, np.int32)
    for y in range(height):
        balance[:] = 0
        for t in range(dates):
            for x in range(width):
                score = clear_scores[t, y, x]
                balance[x] += np.int32(1) if score >= DOUBTFUL else np.int32(-DARK_GROUND if score else 0)
        for t in range(dates):
            for x in range(width):
                score = clear_scores[t, y, x]
                usable[t, y, x] = balance[x] > 0 if score >= DOUBTFUL else score > 0


def measure_distance(mask: Array, reach: int) -> Array:
    """Return (H, W) uint8: distance in pixels, rounded up, to the nearest pixel of `mask`; at most `reach` + 1."""
    out = np.full(mask.shape, reach + 1, np.uint8)
    if mask.any():
        _distance(np.ascontiguousarray(mask), reach, out)
    return out


@numba.njit(cache=True, nogil=True)
def _distance(mask: Array, reach: int, out: Array) -> None:
    """Compute exact Euclidean distances, separably (Felzenszwalb & Huttenlocher 2012): columns first, then rows."""
    height, width = mask.shape
    # Narrow types and plain slices vectorise: eight times as fast as int64.
    far, one = np.int16(reach + 1), np.int16(1)
    column = np.empty((height, width), np.int16)
    for y in range(height):
        for x in range(width):
            above = min(np.int16(column[y - 1, x] + one), far) if y else far
            column[y, x] = np.int16(0) if mask[y, x] else above
    for y in range(height - 2, -1, -1):
        for x in range(width):
            column[y, x] = min(column[y, x], np.int16(column[y + 1, x] + one))
    # Pieces of a row have greatest distances of their own, beyond which nothing can be nearer.
    wide = np.full(width + 2 * far, np.int32(far) * np.int32(far), np.int32)
    squares, nearest = wide[far : far + width], np.empty(width, np.int32)
    for y in range(height):
        line = column[y]
        if line.min() == far:
            out[y] = far
            continue
        for x in range(width):
            squares[x] = np.int32(line[x]) * np.int32(line[x])
        nearest[:] = squares
        for start in range(0, width, PIECE_PX):
            here = nearest[start : start + PIECE_PX]
            greatest = here.max()
            dx = 1
            while dx < far and dx * dx < greatest:
                aside, at = np.int32(dx * dx), far + start
                left, right = wide[at - dx : at - dx + len(here)], wide[at + dx : at + dx + len(here)]
                for x in range(len(here)):
                    here[x] = min(here[x], np.int32(min(left[x], right[x]) + aside))
                if dx % 4 == 0:
                    greatest = here.max()
                dx += 1
        for x in range(width):
            out[y, x] = min(np.ceil(np.sqrt(np.float32(nearest[x]))), np.float32(far))
