"""Decide whether a scene's DN still include the +1000 of processing baselines from 04.00 on. Pure.

Some catalogues correct the pixels, others do not, and their flags are often wrong: metadata say which offset to
expect, the pixels are tested, and a contradiction is never resolved silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sgdata.errors import SourceError
from sgdata.sentinel2 import MSI
from sgdata.types import Array, Level

OffsetSource = Literal["neither", "pixels", "metadata"]

ENOUGH_PIXELS = 1000
SHARE_PRESENT, SHARE_ABSENT = 0.05, 0.5
"""Pixels include the offset if at most the first share of their values is dark, and not if at least the second is."""


@dataclass(frozen=True, kw_only=True)
class OffsetSettings:
    """How offsets are decided where metadata and pixels do not agree.

    Attributes:
        untestable: stop at, or leave out, a scene whose metadata are undecided and that has too few clear pixels.
        source: the source to follow where metadata and pixels contradict each other. With `metadata`, the offset that
            an item declares is used where neither can tell.
    """

    untestable: Literal["stop", "leave-out"]
    source: OffsetSource = "neither"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The pixel test of one scene.

    Attributes:
        eligible: clear vegetation and water pixels of the scene classification.
        dark_share: share of their values below the sensor's `dark_dn`, over all test bands.
        product: offset in the product's own XML, where it could be read.
    """

    eligible: int
    dark_share: float
    product: int | None = None


def expected_offset(
    provider: str, collection: str, baseline: str, *, level: Level = "L2A", product: int | None = None
) -> int | None:
    """Return the offset in DN (0 or -1000) to expect by metadata; None if only the pixels can decide.

    The offset `product` of the product's XML takes precedence over the baseline; but where a provider rewrites pixels,
    it still describes those that ESA delivered.

    Args:
        provider: provider of the scenes, such as "earth-search".
        collection: collection of the catalogue.
        baseline: processing baseline, such as "05.00".
        level: product level.
        product: offset in the product's own XML; None where it could not be read.

    Raises:
        SourceError: the baseline is needed and is not two numbers.
    """
    if product is not None:
        carried = product
    else:
        carried = MSI.offset.value if states_offset(baseline) else 0
    rewritten = provider == "earth-search" and level == "L2A" and "c1" not in collection.split("-")
    return None if carried and rewritten else carried


def states_offset(baseline: str) -> bool:
    """Return whether products of a baseline state their offset, as they do from the first with an offset on."""
    return _number(baseline) >= MSI.offset.first_baseline


def _number(baseline: str) -> tuple[int, int]:
    try:
        major, minor = baseline.split(".")
        return int(major), int(minor)
    except ValueError:
        raise SourceError(f"processing baseline {baseline!r}: expected two numbers such as '05.00'") from None


def count(scene_classes: Array, bands: Array) -> tuple[int, int]:
    """Count the eligible pixels, and the dark values in their C bands.

    Args:
        scene_classes: (H, W) scene classification.
        bands: (C, H, W) DN of the test bands.
    """
    clear = np.isin(scene_classes, MSI.classes.offset_test)
    clear &= (bands > 0).all(axis=0)
    return int(clear.sum()), int(((bands < MSI.offset.dark_dn) & clear).sum())


def decide(
    scene: str,
    expected: int | None,
    evidence: Evidence,
    *,
    declared: int | None = None,
    offset_source: OffsetSource = "neither",
) -> int:
    """Return the offset to add to the DN of a scene.

    Args:
        scene: id, for messages.
        expected: offset by metadata, as `expected_offset` returns it.
        evidence: the pixel test.
        declared: offset that the item declares.
        offset_source: which to follow where metadata and pixels contradict each other.

    Raises:
        SourceError: metadata and pixels contradict each other, or neither can decide.
    """
    pixels = measured(evidence)
    measurement = f"{evidence.dark_share:.3f} of {evidence.eligible} clear pixels below DN {MSI.offset.dark_dn}"
    if expected is None and pixels is None:
        if offset_source == "metadata" and declared is not None:
            return declared
        raise SourceError(
            f"scene {scene}: metadata and pixels leave the offset undecided ({measurement}, expected at most "
            f"{SHARE_PRESENT} or at least {SHARE_ABSENT} of {ENOUGH_PIXELS}); "
            "leave the scene out or give --offset-source metadata"
        )
    if expected is not None and pixels is not None and expected != pixels and offset_source == "neither":
        raise SourceError(
            f"scene {scene}: metadata promise offset {expected}, the pixels show {pixels} ({measurement}); "
            "leave the scene out or give --offset-source pixels|metadata"
        )
    # They agree, or only one of them can decide, or the user has chosen.
    first, second = (expected, pixels) if offset_source == "metadata" else (pixels, expected)
    return second if first is None else first  # type: ignore[return-value]


def untestable(expected: int | None, evidence: Evidence) -> bool:
    """Return whether neither metadata nor pixels can decide, for lack of clear pixels."""
    return expected is None and evidence.eligible < ENOUGH_PIXELS


def measured(evidence: Evidence) -> int | None:
    """Return the offset by the pixels; None if too few are eligible or the share is in between."""
    # Between the two shares pixels may be mixed: no answer is better than an error of 0.1 in reflectance.
    if evidence.eligible < ENOUGH_PIXELS or SHARE_PRESENT < evidence.dark_share < SHARE_ABSENT:
        return None
    return MSI.offset.value if evidence.dark_share <= SHARE_PRESENT else 0


def corrected(stored: Array, offset: int) -> Array:
    """Return stored DN with `offset` added: 0 stays no data, and valid pixels stay valid (at least 1).

    Args:
        stored: unsigned integers of any shape, 0 where there are no data.
        offset: offset in DN, as `decide` returns it.
    """
    if not offset:
        return stored
    # Limited first: unsigned integers must not wrap around below zero.
    shifted = np.maximum(stored, 1 - offset) + np.array(offset).astype(stored.dtype)
    return np.where(stored > 0, shifted, 0).astype(stored.dtype)
