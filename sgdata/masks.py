"""Which pixels of a scene may be looked at: scene classes or cloud probability -> keep or drop. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sgdata.types import Array


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How clouds are told from ground.

    `scl` drops the Sen2Cor classes in `drop`; `probability` drops where the asset `cloud` (0-100) reaches
    `threshold`; `none` keeps everything.
    """

    method: Literal["scl", "probability", "none"]
    drop: tuple[int, ...]
    threshold: int

    @property
    def asset(self) -> str | None:
        """The asset that the method looks at."""
        return {"scl": "SCL", "probability": "cloud", "none": None}[self.method]


def keep(layer: Array, settings: MaskSettings) -> Array:
    """(H, W) uint8 of the method's asset -> (H, W) bool."""
    if settings.method == "probability":
        return layer < settings.threshold
    kept = np.ones(256, bool)
    kept[list(settings.drop)] = False
    return kept[layer]
