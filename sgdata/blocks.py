"""Training, validation and test parts that do not share ground: blocks with a gap between them. Pure.

Patches cut at a stride overlap, and neighbours look alike: a random split leaks. Here space is cut into square
blocks, each block goes to one part, and a patch is used only if it lies wholly in its part and far enough from
every other. Works for any boxes on a plane: pixels of one raster, or metres of one CRS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sgdata.errors import SettingError
from sgdata.types import Array, Window

LEFT_OUT = ""
PARTS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How patches are divided (`split` in a recipe).

    `blocks`: squares of `block_px`, at least `gap_px` between patches of different parts. `random`: patch by
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
    if settings.method == "random":
        parts = _drawn(boxes, shares, settings.seed)
    else:
        parts = _by_blocks(boxes, counts, shares, settings)
    names = tuple(PARTS[part] if part >= 0 else LEFT_OUT for part in parts)
    return names, _report(boxes, counts, parts, shares)


def _hash(seed: int, *place: float) -> str:
    return hashlib.sha256(repr((seed, [float(value) for value in place])).encode()).hexdigest()


def _drawn(boxes: Array, shares: tuple[float, ...], seed: int) -> Array:
    """Each box for itself, by the order of seeded hashes of its place."""
    order = np.array(sorted(range(len(boxes)), key=lambda i: _hash(seed, *boxes[i])), np.int64)
    test, val = round(shares[2] * len(boxes)), round(shares[1] * len(boxes))
    parts = np.zeros(len(boxes), np.int8)
    parts[order[:test]] = 2
    parts[order[test : test + val]] = 1
    return parts


# --- blocks --------------------------------------------------------------------------------


def _by_blocks(boxes: Array, counts: Array, shares: tuple[float, ...], settings: SplitSettings) -> Array:
    size, gap = settings.block_px, settings.gap_px
    centres = np.floor_divide(boxes[:, 0:2] + boxes[:, 2:4], 2 * size).astype(np.int64)
    places, block_of = np.unique(centres, axis=0, return_inverse=True)
    # What a block surely brings: the boxes that lie wholly inside it.
    first, last = _blocks_met(boxes, size, 0)
    whole = (first == last).all(axis=1)
    mass = np.zeros((len(places), counts.shape[1] + 1))
    np.add.at(mass, block_of.ravel()[whole], np.column_stack([counts, np.ones(len(boxes))])[whole])
    chosen = _assigned(places, mass, shares, settings.seed)
    part_at = {(int(x), int(y)): int(part) for (x, y), part in zip(places, chosen, strict=True)}

    parts = np.full(len(boxes), -1, np.int8)
    near_first, near_last = _blocks_met(boxes, size, gap)
    for i in range(len(boxes)):
        inside = {part_at.get(place, -1) for place in _places(first[i], last[i])}
        if len(inside) == 1 and (part := inside.pop()) >= 0:
            # The gap is taken from the greater part: train keeps off val, val keeps off test.
            near = {part_at.get(place, -1) for place in _places(near_first[i], near_last[i])}
            parts[i] = part if max(near) <= part else -1
    return parts


def _blocks_met(boxes: Array, size: int, gap: int) -> tuple[Array, Array]:
    """First and last block (x, y) that each box meets when grown by less than `gap`."""
    first = np.floor_divide(boxes[:, 0:2] - gap, size).astype(np.int64)
    last = (-np.floor_divide(-(boxes[:, 2:4] + gap), size) - 1).astype(np.int64)
    return first, last


def _places(first: Array, last: Array) -> list[tuple[int, int]]:
    return [(x, y) for x in range(first[0], last[0] + 1) for y in range(first[1], last[1] + 1)]


def _assigned(places: Array, mass: Array, shares: tuple[float, ...], seed: int) -> Array:
    """The part of each block: drawn by seeded hash, then single blocks are moved while that betters the balance.

    Better means first: fewer classes missing from a part although enough blocks hold them; then: the share of
    each class in each part nearer to the wanted share, a rare class counting as much as a common one.
    """
    blocks = len(places)
    order = sorted(range(blocks), key=lambda i: _hash(seed, *places[i]))
    chosen = np.zeros(blocks, np.int64)
    test, val = round(shares[2] * blocks), round(shares[1] * blocks)
    chosen[order[:test]], chosen[order[test : test + val]] = 2, 1

    used = [part for part in range(3) if shares[part] > 0]
    relative = mass / np.maximum(mass.sum(axis=0), 1e-12)
    wanted = np.array(shares)[:, None]
    spread = (mass > 0).sum(axis=0) >= len(used)  # classes that can stand in every part
    held = np.zeros((3, mass.shape[1]))
    np.add.at(held, chosen, relative)

    def badness(held: Array) -> Array:
        """(..., 3, K) shares held -> (...): missing classes, then imbalance below 1."""
        missing = ((held[..., used, :] < 1e-9) & spread).sum(axis=(-2, -1))
        worse: Array = missing + ((held - wanted) ** 2).mean(axis=(-2, -1)) / 2
        return worse

    now = badness(held)
    for _ in range(4 * blocks):
        moved = []
        for part in used:
            after = np.broadcast_to(held, (blocks, *held.shape)).copy()
            after[np.arange(blocks), chosen] -= relative
            after[:, part] += relative
            moved.append(badness(after))
        best = np.round(np.array(moved), 12).T[order]  # in the order of the hashes: ties are the seed's
        place, part = divmod(int(best.argmin()), len(used))
        if best[place, part] >= now - 1e-9:
            break
        block = order[place]
        held[chosen[block]] -= relative[block]
        held[used[part]] += relative[block]
        chosen[block], now = used[part], best[place, part]
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


# --- windows and class counts --------------------------------------------------------------


def window_boxes(windows: Sequence[Window]) -> Array:
    """(N, 4) int64 col, row, col + width, row + height."""
    rows = [(w.col, w.row, w.col + w.width, w.row + w.height) for w in windows]
    return np.array(rows, np.int64).reshape(-1, 4)


def class_counts(labels: Array, cell_px: int, ids: Sequence[int]) -> Array:
    """(rows, cols, len(ids)) int64: pixels of each id in square cells of `labels` (H, W), cut at the far edges.

    Called per tile (whose size is a multiple of `cell_px`), the tiles' results lie side by side.
    """
    height, width = labels.shape
    rows, cols = -(-height // cell_px), -(-width // cell_px)
    counts = np.zeros((rows, cols, len(ids)), np.int64)
    starts = np.arange(rows) * cell_px, np.arange(cols) * cell_px
    for k, number in enumerate(ids):
        hits = np.add.reduceat((labels == number).astype(np.int64), starts[0], axis=0)
        counts[:, :, k] = np.add.reduceat(hits, starts[1], axis=1)
    return counts


def patch_counts(cells: Array, cell_px: int, windows: Sequence[Window]) -> Array:
    """(N, K) int64: pixels of each class in each window, from the counts of its cells. Raises SettingError."""
    sums = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1, cells.shape[2]), np.int64)
    sums[1:, 1:] = cells.cumsum(axis=0).cumsum(axis=1)
    edges = window_boxes(windows)
    if (edges % cell_px).any():
        raise SettingError(f"patches at {windows[0]} do not fall on cells of {cell_px} px; use a divisor of both")
    west, north, east, south = (edges // cell_px).T
    total: Array = sums[south, east] - sums[north, east] - sums[south, west] + sums[north, west]
    return total


def patch_key(name: str, window: Window) -> str:
    """`<name>-r00064-c00128`: the patch's upper left pixel."""
    return f"{name}-r{window.row:05d}-c{window.col:05d}"
