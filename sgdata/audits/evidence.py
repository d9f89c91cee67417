"""Evidence of an audit: facts about every sample, sums over all of them, and the days of images and labels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from sgdata.audits.findings import Kind
from sgdata.splits.shared_ground import Footprint
from sgdata.types import Array, Contract

# The first band of each triple correlates more with the third than the second does: B8A has the resolution of B07, B04
# is next to B05. Share of samples that agree, in tiles of eight real scenes: 0.94 to 1 (one 0.73), and 0.56 to 1 (a
# hazy coast 0.16).
NEARER = (("B8A", "B08", "B07"), ("B04", "B02", "B05"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Facts about one sample.

    Attributes:
        key: key of the sample.
        split: name of the split.
        pixels: hash of the pixels.
        turned: hash of the pixels that is the same for all rotations and mirror images.
        thumbnail: small image for the comparison with others; empty for an image without structure.
        footprint: ground of the sample.
        date: ISO date of the image.
        classes: pixels per class (or 1 per label), ignored ones included.
        dark: largest share, over bands, of values under reflectance 0.1.
        dead: bands of one value.
        window_hashes: `duplicates.hash_windows` of the sample.
        nearer: votes on the triples of NEARER (None: undecided).
        place: place of the sample, "" if it has none.
        brightness: mean of the valid values.
    """

    key: str
    split: str
    pixels: str
    turned: str
    thumbnail: bytes
    footprint: Footprint | None
    date: str | None
    classes: dict[int, int]
    dark: float
    dead: tuple[str, ...]
    window_hashes: bytes
    nearer: tuple[bool | None, ...]
    place: str = ""
    brightness: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over all samples, (B,) int64 each.

    Attributes:
        count: number of valid values.
        total: their sum.
        ones: how many of them are 1.
        saturated: how many of them are saturated.
        equal: how many of `pairs` are equal.
        pairs: number of horizontal neighbours.
        leaves: (2,) vegetated pixels by near infrared, and those of them that are greener than red.
        low: smallest values.
        high: largest values.
    """

    count: Array
    total: Array
    ones: Array
    saturated: Array
    equal: Array
    pairs: Array
    leaves: Array
    low: Array
    high: Array

    def __add__(self, other: Totals) -> Totals:
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Totals(**sums | {"low": np.minimum(self.low, other.low), "high": np.maximum(self.high, other.high)})


@dataclass(frozen=True, kw_only=True)
class FootprintGroup:
    """Samples with one footprint and one date.

    Attributes:
        footprint: their ground.
        date: ISO date of their images.
        keys: their keys.
    """

    footprint: Footprint
    date: str | None
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Days:
    """Days of images and labels, ISO.

    Attributes:
        first: day of the first image.
        last: day of the last image.
        labels: day of the labels.
    """

    first: str
    last: str
    labels: str


@dataclass(frozen=True, kw_only=True)
class AuditEvidence:
    """Input of the checks.

    Attributes:
        kind: what is audited.
        contract: contract of the dataset.
        facts: facts of each sample that could be read.
        totals: sums over all samples.
        unread: key or file, and reason, of each sample that could not be read.
        days: days of images and labels; None without a lock.
    """

    kind: Kind
    contract: Contract
    facts: tuple[Facts, ...]
    totals: Totals
    unread: tuple[tuple[str, str], ...] = ()
    days: Days | None = None

    @property
    def splits(self) -> dict[str, list[Facts]]:
        """Samples by split, train first."""
        splits: dict[str, list[Facts]] = defaultdict(list)
        for each in self.facts:
            splits[each.split].append(each)
        return dict(sorted(splits.items(), key=lambda part: (part[0] != "train", part[0])))
