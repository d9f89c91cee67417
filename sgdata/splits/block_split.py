"""Divide patches into train, val and test parts that share no ground: spatial blocks with a gap between them.

Patches cut at a stride overlap, and neighbours look alike: a random split leaks. Here the area is cut into blocks,
each block belongs to one part, and a patch is used only if all of its blocks belong to one part and it keeps the gap
to every other part. Works for any boxes on a plane: pixels of one raster, or metres of one CRS. Pure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Literal

import numpy as np

from sgdata.errors import SettingError
from sgdata.types import Array

LEFT_OUT = ""
SPLITS = ("train", "val", "test")
# A class missing from a part outweighs any unevenness (the squares of one class sum to 2 at most); losing 20 % of the
# boxes weighs like two parts 4.5 % off their share (0.02 x 0.2 = 2 x 0.045^2).
MISSING_WEIGHT, LOSS_WEIGHT = 4.0, 0.02
# A sweep that improves nothing ends the search; this limit bounds the time on large areas.
MAX_SWEEPS = 20
# With this many blocks, chance has already spread the classes and one sweep is enough.
MAX_BLOCK_VISITS = 100_000
# Smaller gains are rounding: a tie must not be decided differently on another machine.
LEAST_GAIN = 1e-9


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Table `split` of a recipe.

    Attributes:
        method: `blocks`, rectangles of about `block_px` with at least `gap_px` between patches of different parts;
            or `random`, patch by patch as in the SegMunich paper, which leaks wherever patches overlap.
        block_px: Side of a block in pixels.
        gap_px: Least distance between patches of different parts in pixels.
        val_share: Share of val, 0 to 1.
        test_share: Share of test, 0 to 1; the rest is train.
        seed: Seed of the first assignment.
    """

    method: Literal["blocks", "random"] = "blocks"
    block_px: int = 512
    gap_px: int = 128
    val_share: float = 0.2
    test_share: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """Properties of a finished split.

    Attributes:
        boxes: Number of boxes per part.
        left_out: Number of boxes in no part.
        lacking: Per part, the classes (column numbers) that it lacks although another part has them.
        leakage: Share of the val and test boxes that overlap a train box.
    """

    boxes: dict[str, int]
    left_out: int
    lacking: dict[str, tuple[int, ...]]
    leakage: float

    @property
    def empty(self) -> tuple[str, ...]:
        """Requested parts without a box: the blocks or the gap are too large for the area."""
        return tuple(part for part, number in self.boxes.items() if not number)


def split(boxes: Array, counts: Array, settings: SplitSettings) -> tuple[tuple[str, ...], SplitReport]:
    """Assign each box to a part.

    The result does not depend on the order of the boxes.

    Args:
        boxes: (N, 4) west, north, east, south (or col, row, ...) with west < east and north < south.
        counts: (N, K) amount of each class in each box.
        settings: Method, sizes and shares.

    Returns:
        The part of each box (`LEFT_OUT` for none) and a report.

    Raises:
        SettingError: Shares or sizes out of range, or a block smaller than a box.
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
    # Sorted, since sums of floats depend on the order of the boxes.
    order = np.lexsort([*counts.T, *boxes.T])
    boxes, counts = boxes[order], counts[order]
    if settings.method == "random" or not len(boxes):
        parts = _assign_at_random(boxes, shares, settings.seed)
    else:
        layout = _lay_out(boxes, settings.block_px, settings.gap_px)
        # The boxes count as one more class, so that their shares matter like those of a class.
        goal = _Goal(layout=layout, mass=np.column_stack([counts, np.ones(len(boxes))]), shares=shares)
        parts = _parts(layout, _assign_blocks(goal, settings.seed), np.arange(len(boxes)))
    # -1 indexes the last name, LEFT_OUT.
    names = np.array([*SPLITS, LEFT_OUT])[parts[np.argsort(order)]]
    return tuple(names.tolist()), _report(boxes, counts, parts, shares)


def deal(blocks: Array, places: Array, counts: Array, shares: tuple[float, ...], seed: int) -> Array:
    """Assign whole blocks to parts, without a gap at their borders.

    Args:
        blocks: (N,) number of the block that holds each sample.
        places: (B, 2) row and column of each block, which seed the first assignment.
        counts: (N, K) amount of each class in each sample.
        shares: Wanted share of train, val and test.
        seed: Seed of the first assignment.

    Returns:
        (B,) number of the part of each block.
    """
    order = np.argsort(blocks, kind="stable")
    inside = np.split(order, np.searchsorted(blocks[order], range(1, len(places))))
    layout = _Layout(places=places, inside=blocks[:, None], near=blocks[:, None], boxes_near=tuple(inside))
    goal = _Goal(layout=layout, mass=np.column_stack([counts, np.ones(len(blocks))]), shares=shares)
    return _assign_blocks(goal, seed)


def _hash(seed: int, *place: float) -> str:
    return hashlib.sha256(repr((seed, [float(value) for value in place])).encode()).hexdigest()


def _assign_at_random(boxes: Array, shares: tuple[float, ...], seed: int) -> Array:
    """Return the part of each box by the order of seeded hashes of the boxes' places."""
    # Hashes of places, not a shuffled list: most patches keep their part when others are added or removed.
    order = np.array(sorted(range(len(boxes)), key=lambda i: _hash(seed, *boxes[i])), np.int64)
    test, val = round(shares[2] * len(boxes)), round(shares[1] * len(boxes))
    parts = np.zeros(len(boxes), np.int8)
    parts[order[:test]] = 2
    parts[order[test : test + val]] = 1
    return parts


# --- blocks --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Blocks and the boxes in and near them.

    `places` is (B, 2), column and row of each block. `inside` and `near` are (N, M), the numbers of the blocks that a
    box overlaps, and of those that it overlaps when grown by the gap, padded with B. `boxes_near` lists for each
    block the boxes whose part depends on it.
    """

    places: Array
    inside: Array
    near: Array
    boxes_near: tuple[Array, ...]


def _lay_out(boxes: Array, size: int, gap: int) -> _Layout:
    """Divide the area of the boxes evenly into blocks of about `size`, without slivers at its edge."""
    low, high = boxes[:, 0:2].min(axis=0), boxes[:, 2:4].max(axis=0)
    # Rounded, so that an area of one and a half blocks is still divided.
    number = np.rint((high - low) / size)
    # A block smaller than a box would hold none.
    largest = (boxes[:, 2:4] - boxes[:, 0:2]).max()
    number = np.maximum(np.minimum(number, (high - low) // largest), 1).astype(np.int64)
    inside = _blocks_met(boxes, 0, low, high, number)
    near = _blocks_met(boxes, gap, low, high, number)
    places = sorted({place for box in near for place in box})
    numbers = {place: i for i, place in enumerate(places)}
    near_table = _padded(near, numbers)
    # Sorted once: searching all boxes for every block would take hours for a continent.
    block, box = near_table.T.ravel(), np.tile(np.arange(len(boxes)), near_table.shape[1])
    order = np.lexsort([box, block])
    boxes_near = tuple(np.split(box[order], np.searchsorted(block[order], range(1, len(places) + 1)))[:-1])
    return _Layout(
        places=np.array(places, np.int64), inside=_padded(inside, numbers), near=near_table, boxes_near=boxes_near
    )


def _blocks_met(boxes: Array, margin: int, low: Array, high: Array, number: Array) -> list[list[tuple[int, int]]]:
    """Return the blocks (x, y) that each box overlaps when grown by `margin`; `number` blocks span low to high."""
    # Multiplied before divided: exact in pixels, so that an edge on the border of a block belongs to one side only.
    first = np.floor_divide((boxes[:, 0:2] - margin - low) * number, high - low).astype(np.int64)
    last = (-np.floor_divide(-(boxes[:, 2:4] + margin - low) * number, high - low) - 1).astype(np.int64)
    first, last = np.maximum(first, 0), np.minimum(last, number - 1)
    return [
        [(x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1)]
        for (x0, y0), (x1, y1) in zip(first.tolist(), last.tolist(), strict=True)
    ]


def _padded(rows: list[list[tuple[int, int]]], numbers: dict[tuple[int, int], int]) -> Array:
    """Return (N, M) block numbers of ragged rows, padded with the number of blocks, so that look-ups are arrays."""
    columns = zip_longest(*([numbers[place] for place in row] for row in rows), fillvalue=len(numbers))
    return np.array(list(columns), np.int64).T


def _parts(layout: _Layout, assigned: Array, which: Array) -> Array:
    """Return the part of the boxes `which`, -1 for none: one part inside, and no greater part near.

    So the gap is taken from the greater part: train keeps clear of val, and val of test.
    """
    inside, near = layout.inside[which], layout.near[which]
    # The value of the padding must never win the minimum or the maximum.
    low = np.append(assigned, len(SPLITS))[inside].min(axis=1)
    padded = np.append(assigned, -1)
    highest = np.maximum(padded[near].max(axis=1), padded[inside].max(axis=1))
    return np.where(highest == low, low, -1)


@dataclass(frozen=True, kw_only=True)
class _Goal:
    """Data of the search: blocks, the (N, K) amount of each class in each box, and the wanted share of each part."""

    layout: _Layout
    mass: Array
    shares: tuple[float, ...]

    @cached_property
    def used(self) -> tuple[int, ...]:
        """Numbers of the parts with a share above 0."""
        return tuple(part for part in range(len(SPLITS)) if self.shares[part] > 0)

    @cached_property
    def exists(self) -> Array:
        """(K,) whether any box has the class."""
        return np.asarray(self.mass.sum(axis=0) > 0)

    def totals(self, assigned: Array, which: Array) -> Array:
        """Return (parts in use, K): the amount of each class in each part, of the boxes `which` alone."""
        parts, mass = _parts(self.layout, assigned, which), self.mass[which]
        return np.array([mass[parts == part].sum(axis=0) for part in self.used])


@dataclass(frozen=True, kw_only=True)
class _Score:
    """Assignment of blocks to parts (B,), the resulting `totals` (parts in use, K), and how bad they are."""

    goal: _Goal
    assigned: Array
    totals: Array

    @cached_property
    def badness(self) -> float:
        """Weighted sum of missing classes, deviations from the wanted shares, and the share of boxes left out."""
        totals = self.totals[:, self.goal.exists]
        of_class = totals.sum(axis=0)
        missing = ((totals == 0) & (of_class > 0)).sum()
        wanted = np.array(self.goal.shares)[list(self.goal.used), None]
        uneven = ((totals / np.maximum(of_class, 1e-12) - wanted) ** 2).sum() / max(len(of_class), 1)
        lost = 1 - of_class[-1] / len(self.goal.mass)
        return float(MISSING_WEIGHT * missing + uneven + LOSS_WEIGHT * lost)

    def after(self, block: int, part: int) -> _Score:
        """Return the score with `block` assigned to `part`."""
        assigned = self.assigned.copy()
        assigned[block] = part
        # Only boxes near the block can change their part.
        boxes = self.goal.layout.boxes_near[block]
        others = self.totals - self.goal.totals(self.assigned, boxes)
        return replace(self, assigned=assigned, totals=others + self.goal.totals(assigned, boxes))


def _assign_blocks(goal: _Goal, seed: int) -> Array:
    """Return the part of each block: assigned by seeded hash, then changed block by block while the score improves.

    A split is better if fewer classes are missing from a part although several blocks have them; then if the share of
    each class in each part is nearer to the wanted one (rare and common classes count alike) and fewer boxes are
    left out.
    """
    blocks = len(goal.layout.places)
    order = sorted(range(blocks), key=lambda i: _hash(seed, *goal.layout.places[i]))
    assigned = np.zeros(blocks, np.int8)
    # Test and val are drawn first; what remains is train.
    test, val = round(goal.shares[2] * blocks), round(goal.shares[1] * blocks)
    assigned[order[:test]] = 2
    assigned[order[test : test + val]] = 1
    score = _Score(goal=goal, assigned=assigned, totals=goal.totals(assigned, np.arange(len(goal.mass))))
    for _ in range(max(1, min(MAX_SWEEPS, MAX_BLOCK_VISITS // blocks))):
        before = score
        for block in order:
            for part in goal.used:
                if part == score.assigned[block]:
                    continue
                candidate = score.after(block, part)
                if candidate.badness < score.badness - LEAST_GAIN:
                    score = candidate
        if score is before:
            break
    return score.assigned


def _report(boxes: Array, counts: Array, parts: Array, shares: tuple[float, ...]) -> SplitReport:
    used = [part for part in range(len(SPLITS)) if shares[part] > 0]
    present = {SPLITS[part]: counts[parts == part].sum(axis=0) > 0 for part in used}
    anywhere = np.any(list(present.values()), axis=0)
    return SplitReport(
        boxes={SPLITS[part]: int((parts == part).sum()) for part in used},
        left_out=int((parts < 0).sum()),
        lacking={name: tuple(np.flatnonzero(anywhere & ~classes).tolist()) for name, classes in present.items()},
        leakage=leakage(boxes[parts > 0], boxes[parts == 0]),
    )


def leakage(held_out: Array, train: Array) -> float:
    """Return the share of the `held_out` boxes (N, 4) that overlap a `train` box (M, 4).

    Args:
        held_out: (N, 4) west, north, east, south (or col, row, ...) with west < east and north < south.
        train: (M, 4), likewise. Boxes that only touch do not overlap.
    """
    import shapely

    if not len(held_out) or not len(train):
        return 0.0
    tree = shapely.STRtree(shapely.box(*train.astype(float).T))
    # Boxes that only touch do not overlap: shrink by less than any pixel.
    inner = held_out.astype(float) + np.array([1e-6, 1e-6, -1e-6, -1e-6])
    return len(np.unique(tree.query(shapely.box(*inner.T), predicate="intersects")[0])) / len(held_out)
