"""Which pixels of a scene may be looked at: its mask layer, and those of all dates -> one byte a pixel. Pure.

Sen2Cor's scene classes (or another layer) are sorted into kinds; clouds over bright roofs are unmasked by a guard
that looks at all dates; clouds and shadows are widened by a buffer. What is left is the pixel's *sight*: 0 may not
be looked at, 1-127 clear (the distance to the next cloud in pixels of the layer), and DOUBTFUL more where the
class is dark or unclassified, which counts only where nothing better is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np

from sgdata.sentinel2 import SceneClass
from sgdata.types import Array

# Kinds: no data; clear; kept but doubtful; cloud or cirrus; cloud shadow; dropped for another reason (snow).
NOTHING, CLEAR, DIM, CLOUD, SHADOW, OTHER = range(6)

# Method, and layer, of masks that the user brings.
EXTERNAL = "external"

# Stands in mask layers where they end or have no data. Not 255, which many a user's mask has for cloud.
BEYOND = 254

# Bit of a doubtful sight; the largest distance that a sight can tell.
DOUBTFUL = 128
FARTHEST = 127
# Doubtful looks count where they are this many times as many as clear ones.
DARK_GROUND = 3

# Cloud shares of the neighbourhood are taken on squares of BLOCK_M: they are smooth at that scale.
BLOCK_M, NEIGHBOURHOOD_M = 500, 10_000
# Blocks on each side that say whether the ground round a roof is cloudy.
NEAR_BLOCKS = 1
# Cloudier than the neighbourhood by EXCESS on days when that is below CALM: a roof, not a cloud (SEPAL's rule).
EXCESS, CALM = 0.4, 0.3
# Looks that the two halves of the guard need: with fewer, 'mostly' and 'never' say nothing.
CALM_DAYS, LOOKS = 3, 8


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How clouds are told from ground.

    `scl` drops the Sen2Cor classes in `drop`; `probability` drops where the asset `cloud` (0-100) reaches
    `threshold`; `external` drops where a raster of the user's is not 0; `none` keeps everything. Buffers reach from
    pixel centre to pixel centre; `guard` keeps bright roofs that look like clouds.
    """

    method: Literal["scl", "probability", "external", "none"]
    drop: tuple[int, ...]
    threshold: int
    cloud_buffer_m: float
    shadow_buffer_m: float
    guard: bool

    @property
    def asset(self) -> str | None:
        """The layer that the method looks at."""
        return {"scl": "SCL", "probability": "cloud", "external": EXTERNAL, "none": None}[self.method]


def kinds(layer: Array, settings: MaskSettings) -> Array:
    """(H, W) uint8 of the method's layer -> (H, W) uint8 kinds."""
    table = np.full(256, CLEAR, np.uint8)
    if settings.method == "probability":
        table[settings.threshold :] = CLOUD
        table[101:] = NOTHING  # no per cent
    elif settings.method == "external":
        table[1:] = CLOUD
    else:
        table[len(SceneClass) :] = NOTHING
        table[[SceneClass.DARK, SceneClass.UNCLASSIFIED]] = DIM
        table[list(settings.drop)] = OTHER
        clouds = (SceneClass.CLOUD_MEDIUM, SceneClass.CLOUD_HIGH, SceneClass.CIRRUS)
        table[[value for value in clouds if value in settings.drop]] = CLOUD
        if SceneClass.CLOUD_SHADOW in settings.drop:
            table[SceneClass.CLOUD_SHADOW] = SHADOW
        table[SceneClass.NO_DATA] = NOTHING  # even where a recipe keeps it: there is nothing to see
    # Where a layer ends it says neither clear nor cloud.
    table[BEYOND] = NOTHING
    return table[np.minimum(layer, 255)]


# --- the guard -----------------------------------------------------------------------------


class Guard:
    """Counts over all dates which pixels are called cloud more often than their surroundings are.

    Spec 2.3, with one change: frequencies are taken over the days when the neighbourhood is below CALM, not on
    average, since a place where most days are overcast would never qualify.
    """

    def __init__(self, shape: tuple[int, int], gsd_m: float) -> None:
        self.gsd_m = gsd_m
        self.calm, self.clouded = np.zeros(shape, np.uint16), np.zeros(shape, np.uint16)
        self.seen, self.clear = np.zeros(shape, np.uint16), np.zeros(shape, np.uint16)
        self.expected = np.zeros(shape, np.float32)

    def add(self, found: Array, share: Array) -> None:
        """Count one date's (H, W) kinds, by the `cloudiness` of the blocks they lie in."""
        cloud, seen = found == CLOUD, found != NOTHING
        calm = seen & _spread(share < CALM, found.shape, self.gsd_m)
        self.calm += calm
        self.clouded += calm & cloud
        self.expected += np.where(calm, _spread(share, found.shape, self.gsd_m), np.float32(0))
        # Half two of the rule: a place that is never clear tells nothing of clouds either.
        self.seen += seen
        self.clear += (found == CLEAR) | (found == DIM)

    def bright(self) -> Array:
        """(H, W) bool: cloud classes say nothing here."""
        often = (self.calm >= CALM_DAYS) & (self.clouded - self.expected > EXCESS * self.calm)
        never: Array = (self.seen >= LOOKS) & (self.clear == 0)
        return often | never


def block_px(gsd_m: float) -> int:
    """The side of a block in pixels: parts that begin at multiples of it count the same blocks as the whole."""
    return max(round(BLOCK_M / gsd_m), 1)


def cloudiness(strips: Iterable[Array], gsd_m: float) -> Array:
    """(h, w) float32 of one date: the share of cloud in what is seen, in the neighbourhood of each block.

    `strips`: its kinds from top to bottom, each (but the last) a whole number of blocks high.
    """
    counted = [(_counted(part == CLOUD, gsd_m), _counted(part != NOTHING, gsd_m)) for part in strips]
    cloud, seen = (np.concatenate(column) for column in zip(*counted, strict=True))
    return _share(cloud, seen, NEIGHBOURHOOD_M)


def surroundings(what: Array, among: Array, gsd_m: float, side_m: float) -> Array:
    """(H, W) float32: the share of `what` in `among` within a square of `side_m` round each block of BLOCK_M."""
    return _spread(_share(_counted(what, gsd_m), _counted(among, gsd_m), side_m), what.shape, gsd_m)


def _counted(mask: Array, gsd_m: float) -> Array:
    """(h, w) int64: true pixels of each block."""
    size = block_px(gsd_m)
    padded = np.pad(mask, ((0, -mask.shape[0] % size), (0, -mask.shape[1] % size)))
    blocks = padded.reshape(padded.shape[0] // size, size, padded.shape[1] // size, size)
    return np.asarray(blocks.sum(axis=(1, 3), dtype=np.int64))


def _share(what: Array, among: Array, side_m: float) -> Array:
    from scipy import ndimage

    reach = round(side_m / BLOCK_M) // 2
    sums = [what, among]
    for axis in (0, 1):
        sums = [ndimage.correlate1d(total, np.ones(2 * reach + 1), axis, mode="constant") for total in sums]
    return (sums[0] / np.maximum(sums[1], 1)).astype(np.float32)


def _spread(blocks: Array, shape: tuple[int, ...], gsd_m: float) -> Array:
    size = block_px(gsd_m)
    return blocks.repeat(size, 0)[: shape[0]].repeat(size, 1)[:, : shape[1]]


# --- sight ---------------------------------------------------------------------------------


def sight(found: Array, bright: Array | None, settings: MaskSettings, *, gsd_m: float, reach_m: float) -> Array:
    """(H, W) kinds of one date and the guard's mask -> (H, W) uint8 sight; distances are told up to `reach_m`."""
    cloud = found == CLOUD
    if bright is not None and bright.any():
        # On a truly cloudy day the ground round the roof is cloudy too, and the roof's class is believed.
        near = surroundings(cloud & ~bright, (found != NOTHING) & ~bright, gsd_m, (2 * NEAR_BLOCKS + 1) * BLOCK_M)
        roof = cloud & bright & (near < CALM)
        cloud, found = cloud & ~roof, np.where(roof, CLEAR, found)
    reach, shadow_reach = _reaches(settings, gsd_m, reach_m)
    away = distance(cloud, reach)
    # Distances are rounded up, so comparing them with a whole number of pixels is exact.
    usable = ((found == CLEAR) | (found == DIM)) & (away > settings.cloud_buffer_m / gsd_m)
    usable &= distance(found == SHADOW, shadow_reach) > settings.shadow_buffer_m / gsd_m
    return np.where(usable, away | ((found == DIM) * np.uint8(DOUBTFUL)), np.uint8(0))


def halo_px(settings: MaskSettings, gsd_m: float, reach_m: float) -> int:
    """How many rows beyond a part of whole blocks its `sight` depends on, in whole blocks."""
    size = block_px(gsd_m)
    return (-(-max(_reaches(settings, gsd_m, reach_m)) // size) + NEAR_BLOCKS) * size


def _reaches(settings: MaskSettings, gsd_m: float, reach_m: float) -> tuple[int, int]:
    """How many pixels away clouds and shadows are looked for."""
    clouds = int(max(reach_m, settings.cloud_buffer_m) // gsd_m) + 1
    return min(clouds, FARTHEST - 1), int(settings.shadow_buffer_m // gsd_m) + 1


def best_sights(sights: Array) -> Array:
    """(T, H, W) bool: the clear dates of each pixel; its doubtful ones too, where they are DARK_GROUND times as many.

    What is dark on nearly every date is dark ground, such as forest; its one 'clear' date is then the suspicious one.
    """
    usable = np.empty(sights.shape, np.bool_)
    _best_sights(sights, usable)
    return usable


@numba.njit(cache=True, nogil=True)
def _best_sights(sights: Array, usable: Array) -> None:
    dates, height, width = sights.shape
    balance = np.empty(width, np.int32)
    for y in range(height):
        balance[:] = 0
        for t in range(dates):
            for x in range(width):
                sight = sights[t, y, x]
                balance[x] += np.int32(1) if sight >= DOUBTFUL else np.int32(-DARK_GROUND if sight else 0)
        for t in range(dates):
            for x in range(width):
                sight = sights[t, y, x]
                usable[t, y, x] = balance[x] > 0 if sight >= DOUBTFUL else sight > 0


def distance(mask: Array, reach: int) -> Array:
    """(H, W) uint8: pixels, rounded up, from each centre to the nearest of `mask`; `reach` + 1 from there on."""
    out = np.full(mask.shape, reach + 1, np.uint8)
    if mask.any():
        _distance(np.ascontiguousarray(mask), reach, out)
    return out


@numba.njit(cache=True, nogil=True)
def _distance(mask: Array, reach: int, out: Array) -> None:
    """Exact Euclidean, separable (Felzenszwalb & Huttenlocher 2012): down the columns, then along the rows."""
    height, width = mask.shape
    # Narrow types and plain slices fill vector registers: eight times as fast as int64. float32 holds these squares.
    far, one = np.int16(reach + 1), np.int16(1)
    column = np.empty((height, width), np.int16)
    for y in range(height):
        for x in range(width):
            above = min(np.int16(column[y - 1, x] + one), far) if y else far
            column[y, x] = np.int16(0) if mask[y, x] else above
    for y in range(height - 2, -1, -1):
        for x in range(width):
            column[y, x] = min(column[y, x], np.int16(column[y + 1, x] + one))
    squares, nearest = np.empty(width, np.float32), np.empty(width, np.float32)
    for y in range(height):
        line = column[y]
        if line.min() == far:
            out[y] = far
            continue
        for x in range(width):
            squares[x] = np.float32(line[x]) * np.float32(line[x])
        nearest[:] = squares
        for dx in range(1, min(far, width)):
            # Columns further off than the farthest pixel's distance can no longer be nearer; looked up now and then.
            if dx % 8 == 0 and dx * dx >= nearest.max():
                break
            aside = np.float32(dx * dx)
            right, here = squares[dx:], nearest[: width - dx]
            for x in range(width - dx):
                here[x] = min(here[x], right[x] + aside)
            left, here = squares[: width - dx], nearest[dx:]
            for x in range(width - dx):
                here[x] = min(here[x], left[x] + aside)
        for x in range(width):
            out[y, x] = min(np.ceil(np.sqrt(nearest[x])), far)
