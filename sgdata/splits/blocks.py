"""Training, validation and test parts that do not share ground: blocks with a gap between them. Pure.

Patches cut at a stride overlap, and neighbours look alike: a random split leaks. Here space is cut into
blocks, each block goes to one part, and a patch is used only if it lies wholly in its part and far enough from
every other. Works for any boxes on a plane: pixels of one raster, or metres of one CRS.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import numpy as np

from sgdata.errors import SettingError
from sgdata.types import Array

LEFT_OUT = ""
PARTS = ("train", "val", "test")
# A class that a part lacks outweighs any unevenness (the squares of one class sum to 2 at most); losing 20 % of the
# boxes weighs like two parts 4.5 % off their share (0.02 x 0.2 = 2 x 0.045^2).
MISSING, LOSS = 4.0, 0.02
# Each sweep betters the split or ends the search; the number bounds the time on large areas.
SWEEPS = 20
# Where blocks are this many, chance has already spread the classes: one sweep mends the rest.
VISITS = 100_000


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How patches are divided (`split` in a recipe).

    `blocks`: rectangles of about `block_px`, at least `gap_px` between patches of different parts. `random`: patch by
    patch, as the SegMunich paper did; it leaks wherever patches overlap.
    """

    method: Literal["blocks", "random"] = "blocks"
    block_px: int = 512
    gap_px: int = 128
    val_share: float = 0.2
    test_share: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What a split came to: boxes per part and left out, classes (column numbers) that a part lacks although
    another has them, and the share of val and test boxes that overlap a train box."""

    boxes: dict[str, int]
    left_out: int
    lacking: dict[str, tuple[int, ...]]
    leakage: float

    @property
    def empty(self) -> tuple[str, ...]:
        """Parts that were wanted and hold no box: the blocks or the gap are too large for the area."""
        return tuple(part for part, number in self.boxes.items() if not number)


def split(boxes: Array, counts: Array, settings: SplitSettings) -> tuple[tuple[str, ...], SplitReport]:
    """The part of each box (`LEFT_OUT` where none) and a report.

    `boxes` is (N, 4) west, north, east, south (or col, row, ...) with west < east, north < south; `counts` is
    (N, K), how much of each class a box holds. The result does not depend on the order of the boxes. Raises
    SettingError.
    """
    shares = (1 - settings.val_share - settings.test_share, settings.val_share, settings.test_share)
    if min(shares) < 0 or settings.block_px < 1 or settings.gap_px < 0:
        raise SettingError(
            f"split: shares {shares}, block_px {settings.block_px}, gap_px {settings.gap_px}; expected shares of "
            "0 to 1 that leave something to train, a block of 1 px or more and a gap of 0 or more"
        )
    boxes, counts = np.asarray(boxes), np.asarray(counts, np.float64)
    side = (boxes[:, 2:4] - boxes[:, 0:2]).max(initial=0)
    if settings.method == "blocks" and settings.block_px < side:
        raise SettingError(f"split.block_px is {settings.block_px}; expected at least {side}, the side of a patch")
    # One order for the same boxes however they come: sums of floats depend on it.
    order = np.lexsort([*counts.T, *boxes.T])
    boxes, counts = boxes[order], counts[order]
    if settings.method == "random" or not len(boxes):
        parts = _drawn(boxes, shares, settings.seed)
    else:
        layout = _laid_out(boxes, settings.block_px, settings.gap_px)
        # The boxes themselves are one more class: their shares count like those of a class.
        mass = np.column_stack([counts, np.ones(len(boxes))])
        parts = _parts(layout, _assigned(layout, mass, shares, settings.seed), np.arange(len(boxes)))
    # -1 indexes the last name: left out.
    names = np.array([*PARTS, LEFT_OUT])[parts[np.argsort(order)]]
    return tuple(names.tolist()), _report(boxes, counts, parts, shares)


def _hash(seed: int, *place: float) -> str:
    return hashlib.sha256(repr((seed, [float(value) for value in place])).encode()).hexdigest()


def _drawn(boxes: Array, shares: tuple[float, ...], seed: int) -> Array:
    """Each box for itself, by the order of seeded hashes of its place."""
    # Hashes of places, not a shuffled list: most patches keep their part when others come or go.
    order = np.array(sorted(range(len(boxes)), key=lambda i: _hash(seed, *boxes[i])), np.int64)
    test, val = round(shares[2] * len(boxes)), round(shares[1] * len(boxes))
    parts = np.zeros(len(boxes), np.int8)
    parts[order[:test]] = 2
    parts[order[test : test + val]] = 1
    return parts


# --- blocks --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Which blocks each box lies in (`inside`) and comes near to (`near`): (N, M) block numbers, the last block
    number + 1 where there are fewer; `boxes_near` says for each block which boxes it decides upon."""

    places: Array
    inside: Array
    near: Array
    boxes_near: tuple[Array, ...]


def _laid_out(boxes: Array, size: int, gap: int) -> _Layout:
    """The area divided evenly into blocks of about `size`, without slivers at its end."""
    low, high = boxes[:, 0:2].min(axis=0), boxes[:, 2:4].max(axis=0)
    # Rounded, so that an area of one and a half blocks is still divided.
    number = np.rint((high - low) / size)
    # Never into blocks smaller than a box, which would hold none.
    number = np.maximum(np.minimum(number, (high - low) // (boxes[:, 2:4] - boxes[:, 0:2]).max()), 1).astype(np.int64)

    def met(grown: int) -> list[list[tuple[int, int]]]:
        """The blocks (x, y) that each box meets when grown by less than `grown`."""
        # Multiplied before it is divided: exact in pixels, so that an edge on the border of a block has one side only.
        first = np.floor_divide((boxes[:, 0:2] - grown - low) * number, high - low).astype(np.int64)
        last = (-np.floor_divide(-(boxes[:, 2:4] + grown - low) * number, high - low) - 1).astype(np.int64)
        first, last = np.maximum(first, 0), np.minimum(last, number - 1)
        return [
            [(x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1)]
            for (x0, y0), (x1, y1) in zip(first.tolist(), last.tolist(), strict=True)
        ]

    inside, near = met(0), met(gap)
    places = sorted({place for box in near for place in box})
    at = {place: i for i, place in enumerate(places)}

    def numbers(rows: list[list[tuple[int, int]]]) -> Array:
        # Rectangular, so that the parts of all boxes are one look-up: the search asks for them at every step.
        columns = zip_longest(*([at[place] for place in box] for box in rows), fillvalue=len(places))
        return np.array(list(columns), np.int64).T

    near_numbers = numbers(near)
    # Sorted once: looking through all boxes for every block would take hours for a continent.
    at_block, box = near_numbers.T.ravel(), np.tile(np.arange(len(boxes)), near_numbers.shape[1])
    order = np.lexsort([box, at_block])
    boxes_near = tuple(np.split(box[order], np.searchsorted(at_block[order], range(1, len(places) + 1)))[:-1])
    where = np.array(places, np.int64)
    return _Layout(places=where, inside=numbers(inside), near=near_numbers, boxes_near=boxes_near)


def _parts(layout: _Layout, chosen: Array, which: Array) -> Array:
    """The part of these boxes, -1 if left out: in blocks of one part, and clear of every greater part.

    So the gap is taken from the greater part: train keeps off val, val keeps off test.
    """
    inside, near = layout.inside[which], layout.near[which]
    # The stand-in for "no further block" must never win the minimum or the maximum.
    low = np.append(chosen, len(PARTS))[inside].min(axis=1)
    high = np.append(chosen, -1)[near].max(axis=1)
    return np.where(np.maximum(high, np.append(chosen, -1)[inside].max(axis=1)) == low, low, -1)


def _assigned(layout: _Layout, mass: Array, shares: tuple[float, ...], seed: int) -> Array:
    """The part of each block: drawn by seeded hash, then block by block changed while that betters the split.

    Better means first: fewer classes missing from a part although several blocks hold them; then the share of
    each class in each part nearer to the wanted one (a rare class counting as much as a common one) and fewer
    boxes left out.
    """
    blocks = len(layout.places)
    order = sorted(range(blocks), key=lambda i: _hash(seed, *layout.places[i]))
    chosen = np.zeros(blocks, np.int64)
    # Test and val are dealt first and small; what remains is train.
    test, val = round(shares[2] * blocks), round(shares[1] * blocks)
    chosen[order[:test]], chosen[order[test : test + val]] = 2, 1
    used = [part for part in range(len(PARTS)) if shares[part] > 0]
    wanted = np.array(shares)[used, None]
    exists = mass.sum(axis=0) > 0

    def held_by(parts: Array, which: Array) -> Array:
        return np.array([mass[which][parts == part].sum(axis=0) for part in used])

    def badness(held: Array) -> float:
        held, total = held[:, exists], held.sum(axis=0)[exists]
        missing = ((held == 0) & (total > 0)).sum()
        uneven = ((held / np.maximum(total, 1e-12) - wanted) ** 2).sum() / max(len(total), 1)
        return float(MISSING * missing + uneven + LOSS * (1 - total[-1] / len(mass)))

    everyone = np.arange(len(mass))
    held = held_by(_parts(layout, chosen, everyone), everyone)
    now = badness(held)
    for _ in range(max(1, min(SWEEPS, VISITS // blocks))):
        before = now
        for block in order:
            # Only boxes near this block can change their part.
            which = layout.boxes_near[block]
            here = held_by(_parts(layout, chosen, which), which)
            for part in used:
                old, chosen[block] = chosen[block], part
                held_then = held - here + (here_then := held_by(_parts(layout, chosen, which), which))
                then = badness(held_then)
                # By more than rounding: a tie would be taken on one machine and not on another.
                if then < now - 1e-9:
                    held, here, now = held_then, here_then, then
                else:
                    chosen[block] = old
        if now == before:
            break
    return chosen


def _report(boxes: Array, counts: Array, parts: Array, shares: tuple[float, ...]) -> SplitReport:
    used = [part for part in range(3) if shares[part] > 0]
    held = {PARTS[part]: counts[parts == part].sum(axis=0) > 0 for part in used}
    anywhere = np.any(list(held.values()), axis=0)
    return SplitReport(
        boxes={PARTS[part]: int((parts == part).sum()) for part in used},
        left_out=int((parts < 0).sum()),
        lacking={name: tuple(np.flatnonzero(anywhere & ~has).tolist()) for name, has in held.items()},
        leakage=leakage(boxes[parts > 0], boxes[parts == 0]),
    )


def leakage(held_out: Array, train: Array) -> float:
    """The share of `held_out` boxes (N, 4) that have ground in common with a `train` box."""
    import shapely

    if not len(held_out) or not len(train):
        return 0.0
    tree = shapely.STRtree(shapely.box(*train.astype(float).T))
    # Boxes that only touch share no ground: shrink by less than any pixel.
    inner = held_out.astype(float) + np.array([1e-6, 1e-6, -1e-6, -1e-6])
    return len(np.unique(tree.query(shapely.box(*inner.T), predicate="intersects")[0])) / len(held_out)
