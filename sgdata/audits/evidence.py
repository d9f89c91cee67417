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
class SampleFacts:
    """Facts about one sample.

    Attributes:
        key: Key of the sample.
        split: Name of the split.
        pixels: Hash of the pixels.
        turned: Hash of the pixels that is the same for all rotations and mirror images.
        thumbnail: Small image for the comparison with others; empty for an image without structure.
        footprint: Ground of the sample.
        date: ISO date of the image.
        classes: Pixels per class (or 1 per label), ignored ones included.
        dark: Largest share, over bands, of values under reflectance 0.1.
        dead: Bands of one value.
        window_hashes: `duplicates.hash_windows` of the sample.
        nearer: Votes on the triples of NEARER (None: undecided).
        place: Place of the sample, "" if it has none.
        brightness: Mean of the valid values.
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
class BandTotals:
    """Sums over all samples, (B,) int64 each.

    Attributes:
        count: Number of valid values.
        total: Their sum.
        ones: How many of them are 1.
        saturated: How many of them are saturated.
        equal: How many of `pairs` are equal.
        pairs: Number of horizontal neighbours.
        leaves: (2,) vegetated pixels by near infrared, and those of them that are greener than red.
        low: Smallest values.
        high: Largest values.
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

    def __add__(self, other: BandTotals) -> BandTotals:
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return BandTotals(**sums | {"low": np.minimum(self.low, other.low), "high": np.maximum(self.high, other.high)})


@dataclass(frozen=True, kw_only=True)
class FootprintGroup:
    """Samples with one footprint and one date.

    Attributes:
        footprint: Their ground.
        date: ISO date of their images.
        keys: Their keys.
    """

    footprint: Footprint
    date: str | None
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Days:
    """Days of images and labels, ISO.

    Attributes:
        first: Day of the first image.
        last: Day of the last image.
        labels: Day of the labels.
    """

    first: str
    last: str
    labels: str


@dataclass(frozen=True, kw_only=True)
class AuditEvidence:
    """Input of the checks.

    Attributes:
        kind: What is audited.
        contract: Contract of the dataset.
        facts: Facts of each sample that could be read.
        totals: Sums over all samples.
        unread: Key or file, and reason, of each sample that could not be read.
        days: Days of images and labels; None without a lock.
    """

    kind: Kind
    contract: Contract
    facts: tuple[SampleFacts, ...]
    totals: BandTotals
    unread: tuple[tuple[str, str], ...] = ()
    days: Days | None = None

    @property
    def splits(self) -> dict[str, list[SampleFacts]]:
        """Samples by split, train first."""
        splits: dict[str, list[SampleFacts]] = defaultdict(list)
        for each in self.facts:
            splits[each.split].append(each)
        return dict(sorted(splits.items(), key=lambda part: (part[0] != "train", part[0])))
