"""Bands that a model takes and the data do not have: what stands in their places, by a policy that a recipe names.

| policy | in the place of a missing band |
| --- | --- |
| `refuse` | nothing: the recipe does not fit the data |
| `mean` | the mean of all bands that are there, pixel by pixel, as in the released SegMunich reader (spec section 5) |
| `nearest` | the band that is nearest in wavelength |
| `drop-group` | of a spectral group without data no token is made; within a group that has some, the nearest band |

All of it happens on stored integers, before the normalisation, for the released mean channels are normalised like any
other (`normalise.apply`). Bands picked from a sample are indices; MEAN stands for the mean of the others picked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sgdata import sentinel2
from sgdata.errors import SettingError
from sgdata.types import Band

Policy = Literal["refuse", "mean", "nearest", "drop-group"]

MEAN = -1
"""As an index it is the last channel, where `taken` puts the mean."""


def split(stored: Sequence[Band], names: Sequence[str], policy: Policy) -> tuple[list[Band], list[str]]:
    """Of the bands `names`: those that are stored, and the names of the others. Raises SettingError."""
    known = {band.name: band for band in stored}
    absent = [name for name in names if name not in known]
    # No wavelength is known of such a band, so nothing can stand for it.
    strange = [name for name in absent if name not in sentinel2.BAND]
    if strange or len(absent) == len(names) or (absent and policy == "refuse"):
        cure = "" if strange else "; normalise.missing = 'mean', 'nearest' or 'drop-group' says what to do without them"
        raise SettingError(
            f"bands: {' '.join(strange or absent)} not in the shards, which have {' '.join(known)}{cure}"
        )
    return [known[name] for name in names if name in known], absent


def nearest(name: str, present: Sequence[Band]) -> Band:
    """The band of `present` that is nearest to `name` in wavelength."""
    return min(present, key=lambda band: abs(band.wavelength_nm - sentinel2.BAND[name].wavelength_nm))


def stand_ins(name: str, present: Sequence[Band], policy: Policy) -> Sequence[Band]:
    """The stored bands whose mean stands in the place of the missing band `name`."""
    return present if policy == "mean" else [nearest(name, present)]


def empty_groups(stored: Sequence[Band], names: Sequence[str], group_bands: int) -> tuple[int, ...]:
    """Numbers of the groups of `names` of which not one band is stored."""
    known = {band.name for band in stored}
    groups = range(len(names) // group_bands)
    return tuple(g for g in groups if known.isdisjoint(names[g * group_bands : (g + 1) * group_bands]))


def taken(images: Tensor, picks: Sequence[int]) -> Tensor:
    """(N, C, H, W) float -> (N, len(picks), H, W): the bands of these indices, or the mean of all that are picked."""
    if MEAN in picks:
        # Of the bands that the model looks at: shards may hold others, such as B10, that it never sees.
        stored = sorted(set(picks) - {MEAN})
        images = torch.cat([images, images[:, stored].mean(dim=1, keepdim=True)], dim=1)
    # One by one: a list as an index would make the host wait for the device.
    return torch.stack([images[:, pick] for pick in picks], dim=1)
