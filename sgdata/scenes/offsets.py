"""Whether a scene's DN still carry the +1000 of processing baselines from 04.00 on. Pure.

Catalogues shift the pixels or not, and their flags are wrong often enough: a table says what to expect,
the pixels themselves are tested, and a contradiction is never settled silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sgdata.errors import SourceError
from sgdata.sentinel2 import BASELINE_OFFSET, SceneClass
from sgdata.types import Array, Level

Believe = Literal["neither", "pixels", "metadata"]

TEST_BANDS = ("B02", "B04", "B12")
DARK_DN = 1000
"""Vegetation and water reflect less than 0.1 in the test bands: below 1000 unless the offset is still in."""
ENOUGH_PIXELS = 1000
SHARE_PRESENT, SHARE_ABSENT = 0.05, 0.5
"""At most this share below DARK_DN: the offset is in the pixels; at least that share: it is not."""


@dataclass(frozen=True, kw_only=True)
class OffsetSettings:
    """What becomes of a scene that metadata leave open and that shows too little clear ground to be tested.

    `believe`: whom, where the two contradict each other; the item's own flag settles only what nothing else does.
    """

    untestable: Literal["stop", "leave-out"]
    believe: Believe = "neither"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The pixel test of one scene: how many test pixels were eligible, the share of them that is dark.

    `eligible` counts pixels of the scene classification, `dark_share` runs over them in all test bands.
    """

    eligible: int
    dark_share: float
    product: int | None = None
    """What the product's own XML says, where it could be read."""


def expected(
    provider: str, collection: str, baseline: str, *, level: Level = "L2A", product: int | None = None
) -> int | None:
    """The offset in DN (0 or -1000) that metadata promise, None where only the pixels can tell.

    `product`, what the product's XML says, rules over the baseline; but where a provider rewrites pixels, it still
    tells of those that ESA delivered.
    """
    carried = product if product is not None else BASELINE_OFFSET if told_by_product(baseline) else 0
    rewritten = provider == "earth-search" and level == "L2A" and "c1" not in collection.split("-")
    return None if carried and rewritten else carried


def told_by_product(baseline: str) -> bool:
    """Whether products of a baseline say what offset they carry: those before 04.00 know of none."""
    return _number(baseline) >= (4, 0)


def _number(baseline: str) -> tuple[int, int]:
    try:
        major, minor = baseline.split(".")
        return int(major), int(minor)
    except ValueError:
        raise SourceError(f"processing baseline {baseline!r}: expected two numbers such as '05.00'") from None


def count(scene_classes: Array, bands: Array) -> tuple[int, int]:
    """(H, W) classes and (C, H, W) DN of the test bands -> eligible pixels, dark values among their C bands."""
    clear = (scene_classes == SceneClass.VEGETATION) | (scene_classes == SceneClass.WATER)
    clear &= (bands > 0).all(axis=0)
    return int(clear.sum()), int(((bands < DARK_DN) & clear).sum())


def decide(
    scene: str, table: int | None, evidence: Evidence, *, declared: int | None = None, believe: Believe = "neither"
) -> int:
    """The offset to add to the DN of `scene`; `declared` is what its item says of itself.

    Raises SourceError where table and pixels contradict each other, or where neither can tell, unless `believe`
    names one of them.
    """
    pixels = measured(evidence)
    what = f"{evidence.dark_share:.3f} of {evidence.eligible} clear pixels below DN {DARK_DN}"
    if table is None and pixels is None:
        if believe == "metadata" and declared is not None:
            return declared
        raise SourceError(
            f"scene {scene}: offset undecided, and the pixels cannot tell ({what}, expected at most {SHARE_PRESENT} "
            f"or at least {SHARE_ABSENT} of {ENOUGH_PIXELS}); leave the scene out or give --believe metadata"
        )
    if table is not None and pixels is not None and table != pixels and believe == "neither":
        raise SourceError(
            f"scene {scene}: metadata promise offset {table}, the pixels say {pixels} ({what}); "
            "leave the scene out or give --believe pixels|metadata"
        )
    # Here they agree, or only one of them can tell, or the user has chosen.
    first, second = (table, pixels) if believe == "metadata" else (pixels, table)
    return second if first is None else first  # type: ignore[return-value]


def untestable(table: int | None, evidence: Evidence) -> bool:
    """Whether neither metadata nor pixels can tell, because there is next to no clear pixel."""
    return table is None and evidence.eligible < ENOUGH_PIXELS


def measured(evidence: Evidence) -> int | None:
    """The offset that the pixels tell, None where too few are eligible or the share is in between."""
    # Between the two shares lies a mixture: better no answer than a wrong tenth of reflectance.
    if evidence.eligible < ENOUGH_PIXELS or SHARE_PRESENT < evidence.dark_share < SHARE_ABSENT:
        return None
    return BASELINE_OFFSET if evidence.dark_share <= SHARE_PRESENT else 0


def corrected(stored: Array, offset: int) -> Array:
    """Stored DN with `offset` added: 0 stays no data, and what was valid stays valid (at least 1)."""
    if not offset:
        return stored
    # Compare first: unsigned numbers must not run below zero.
    shifted = np.maximum(stored, 1 - offset) + np.array(offset).astype(stored.dtype)
    return np.where(stored > 0, shifted, 0).astype(stored.dtype)
