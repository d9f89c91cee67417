"""Draw splits by ground, anywhere on Earth: whole blocks, a gap between parts, nested label budgets. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgdata import earth
from sgdata.errors import SettingError
from sgdata.splits import block_split, ground_distance
from sgdata.splits.block_split import LEFT_OUT, SPLITS
from sgdata.splits.ground_distance import SampleGround
from sgdata.types import Array


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """Settings of the drawing of splits.

    Attributes:
        block_m: Side of a block in metres; blocks go to a part as a whole.
        gap_m: Least distance between footprints of different parts in metres.
        val_share: Share of val, 0 to 1.
        test_share: Share of test, 0 to 1; the rest is train.
        draws: Number of splits.
        seed: Seed of the first; each further draw adds 1.
        budgets: Label budgets of train, the smallest first: "20" is a number per class, "10%" a share of each class.
    """

    block_m: float = 50_000.0
    gap_m: float = 2_000.0
    val_share: float = 0.2
    test_share: float = 0.2
    draws: int = 5
    seed: int = 0
    budgets: tuple[str, ...] = ("5", "20", "100", "10%", "100%")

    def __post_init__(self) -> None:
        """Raise SettingError for a budget that is neither a number nor a percentage."""
        for budget in self.budgets:
            number = budget.removesuffix("%")
            if not (number.isascii() and number.isdigit() and 0 < int(number) <= (100 if "%" in budget else 10**9)):
                raise SettingError(f"budget {budget!r:.40}: expected a number per class such as 20, or a share: 10%")


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One split of N samples.

    Attributes:
        parts: (N,) names of the parts, `blocks.LEFT_OUT` for samples in the gap.
        budgets: (N,) of train, number of the smallest budget that has the sample, -1 for one in none; else -1.
        blocks: Number of blocks with samples.
    """

    parts: Array
    budgets: Array
    blocks: int


def block_indices(ground: SampleGround, block_m: float) -> Array:
    """Return (N, 2) row and column of the block that holds the centre of each sample.

    Rows are bands of latitude of `block_m`; each is cut into columns of that width at its middle, from Greenwich on.
    """
    row = np.floor(ground.latitude * earth.DEGREE_M / block_m)
    middle = np.radians(np.clip((row + 0.5) * block_m / earth.DEGREE_M, -89.9, 89.9))
    column = np.floor(ground.longitude * earth.DEGREE_M * np.cos(middle) / block_m)
    return np.stack([row, column], axis=1).astype(np.int64)


def draw(ground: SampleGround, keys: Sequence[str], labels: Array, settings: DrawSettings, number: int) -> Draw:
    """Draw one split: blocks dealt whole, then samples within the gap of a greater part left out, then budgets.

    Args:
        ground: Ground of N samples.
        keys: Keys of the samples, which order the budgets.
        labels: (N,) class of each sample for shares and budgets.
        settings: Sizes, shares and budgets.
        number: Number of the draw, from 0.

    Raises:
        SettingError: Shares out of range, or a part would be empty.
    """
    shares = (1 - settings.val_share - settings.test_share, settings.val_share, settings.test_share)
    if min(shares) < 0 or settings.block_m <= 0 or settings.gap_m < 0 or settings.draws < 1:
        raise SettingError(
            f"shares {shares}, block {settings.block_m:g} m, gap {settings.gap_m:g} m, {settings.draws} draws; "
            "expected shares that leave something to train, a block above 0 and at least one draw"
        )
    places, block = np.unique(block_indices(ground, settings.block_m), axis=0, return_inverse=True)
    classes = np.eye(labels.max(initial=0) + 1)[labels]
    assigned = block_split.deal(block.ravel(), places, classes, shares, settings.seed + number)[block.ravel()]
    assigned = _keep_gap(ground, assigned, settings.gap_m)
    empty = [name for at, name in enumerate(SPLITS) if shares[at] > 0 and not (assigned == at).any()]
    if empty:
        raise SettingError(
            f"{len(places)} blocks of {settings.block_m:g} m leave {', '.join(empty)} empty; choose smaller blocks or "
            "a smaller gap"
        )
    budgets = np.full(len(keys), -1)
    for label in np.unique(labels[assigned == 0]):
        members = np.flatnonzero((assigned == 0) & (labels == label))
        digests = [order_digest(settings.seed + number, keys[at]) for at in members.tolist()]
        budgets[members[np.argsort(digests, kind="stable")]] = _budget(len(members), settings.budgets)
    return Draw(parts=np.array([*SPLITS, LEFT_OUT])[assigned], budgets=budgets, blocks=len(places))


def _keep_gap(ground: SampleGround, assigned: Array, gap_m: float) -> Array:
    """Return the parts, -1 for samples nearer than the gap to a greater part: train gives way to val, val to test."""
    kept = assigned.copy()
    for lesser in (1, 0):
        own, greater = np.flatnonzero(assigned == lesser), np.flatnonzero(kept > lesser)
        if len(own) and len(greater):
            metres, _ = ground_distance.nearest(ground[own], ground[greater])
            kept[own[metres < gap_m]] = -1
    return kept


def order_digest(seed: int, key: str) -> bytes:
    """Return the digest by which samples are chosen, lowest first, as `training.fraction` and `shots` do."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def _budget(count: int, budgets: Sequence[str]) -> Array:
    """Return for each of the `count` samples of a class, in their order, the number of the first budget that has it."""
    first, reached = np.full(count, -1), 0
    for number, text in enumerate(budgets):
        size = int(text.removesuffix("%"))
        size = max(1, (count * size + 50) // 100) if text.endswith("%") else min(size, count)
        # A budget has what smaller ones have, also where 10 % of a rare class are fewer than 100.
        first[reached:size] = number
        reached = max(reached, size)
    return first
