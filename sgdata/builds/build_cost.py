"""Estimate the cost of a build from its lock: bytes to read, bytes of scratch and output, minutes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgdata import urls
from sgdata.sentinel2 import MSI

if TYPE_CHECKING:
    from sgdata.scenes.lock import Lock

WEB, DISK = 12e6, 150e6
"""Assumed bytes per second of a 100 Mbit/s line and of a local disk."""
COMPRESSED = 1 / 1.5  # deflate on reflectance
BLOCK_PX, BLOCK_S = 1024, 0.008
"""Side of a provider's block, and seconds in which a worker inflates, hashes and stores one: 7 to 10 ms measured."""
REDUCED = 120e6
"""Raw bytes a second that one worker masks, reduces and writes: measured for a medoid of 12 bands, 90 to 300 MB."""


@dataclass(frozen=True, kw_only=True)
class BuildCost:
    """Estimated cost of a build.

    Attributes:
        read_bytes: Bytes to read.
        scratch_bytes: Bytes of scratch.
        minutes: Duration.
    """

    read_bytes: int
    scratch_bytes: int
    minutes: int


def window_bytes(planned: Lock) -> int:
    """Return the raw bytes of one scene: the area in each band at its own resolution, and the mask layer."""
    height, width = planned.grid.shape
    total = 0.0
    for name in planned.items[0].scene.assets:
        coarser = MSI.gsd_m(name) / MSI.finest_gsd_m
        total += height * width / coarser**2 * (2 if name in MSI.by_name else 1)
    return round(total)


def estimate_cost(planned: Lock, address: str, *, workers: int) -> BuildCost:
    """Estimate the cost of a build of this lock that reads the catalogue `address`."""
    raw = window_bytes(planned) * len(planned.items)
    read = round(raw * COMPRESSED)
    work = _blocks(planned) * BLOCK_S + raw / REDUCED
    seconds = read / (WEB if urls.is_http(address) else DISK) + work / workers
    return BuildCost(
        read_bytes=read, scratch_bytes=scratch_bytes(planned, len(planned.items)), minutes=round(seconds / 60) + 1
    )


def add_up(costs: Sequence[BuildCost]) -> BuildCost:
    """Return the cost of several builds, one after the other."""
    return BuildCost(
        read_bytes=sum(cost.read_bytes for cost in costs),
        scratch_bytes=sum(cost.scratch_bytes for cost in costs),
        minutes=sum(cost.minutes for cost in costs),
    )


def scratch_bytes(planned: Lock, scenes: int) -> int:
    """Return the bytes of staged windows of so many scenes, and of finished tiles."""
    height, width = planned.grid.shape
    # Finished tiles keep the image and five planes of provenance until the COGs are written.
    tiles = 2 * height * width * (len(planned.items[0].scene.assets) + 5)
    return window_bytes(planned) * scenes + tiles


def output_bytes(planned: Lock) -> int:
    """Return the bytes that an image takes while it is written: once plain with overviews, once compressed."""
    height, width = planned.grid.shape
    return round(2 * height * width * len(planned.items[0].scene.assets) * (4 / 3 + COMPRESSED))


def _blocks(planned: Lock) -> int:
    """Count the blocks of all files that overlap the area, since blocks are inflated as a whole."""
    total = 0.0
    for item in planned.items:
        for name, asset in item.scene.assets.items():
            sides = [side * planned.grid.gsd_m / MSI.gsd_m(name) / BLOCK_PX + 1 for side in planned.grid.shape]
            # On average a window overlaps one more block than it fills, but not more than the file has.
            present = [-(-side // BLOCK_PX) for side in asset.shape or (math.inf, math.inf)]
            total += min(sides[0], present[0]) * min(sides[1], present[1])
    return round(total)
