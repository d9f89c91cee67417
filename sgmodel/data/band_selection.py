"""Which bands of the data a model sees, in which order, and what stands in the places of those that are missing.

A recipe names one of these policies:

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
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from sgdata import sentinel2
from sgdata.errors import SettingError
from sgdata.types import Band, Contract

if TYPE_CHECKING:
    from sgmodel.models.encoder import EncoderConfig

Policy = Literal["refuse", "mean", "nearest", "drop-group"]

MEAN = -1
"""As an index it is the last channel, where `taken` puts the mean."""

R = TypeVar("R")


def resolve(recipe: R, contract: Contract) -> R:
    """`recipe` for data of `contract`: where its policy is "drop-group", without the spectral groups of which the data
    have nothing, as if it had been written so. Recipes have `bands`, `normalise`, and an encoder under `model`."""
    own: Any = recipe
    config: EncoderConfig | None = getattr(own.model, "encoder", own.model)
    # Once groups are dropped the recipe names the bands of the others only: the one that lies in a run's folder.
    if own.normalise.missing != "drop-group" or config is None or config.dropped:
        return recipe
    known, size = {band.name for band in contract.bands}, config.group_bands
    groups = range(len(own.bands) // size)
    empty = tuple(group for group in groups if known.isdisjoint(own.bands[group * size : (group + 1) * size]))
    left = replace(config, dropped=empty)
    names = tuple(name for number, name in enumerate(own.bands) if number // size not in empty)
    resolved: R = replace(own, bands=names, model=left if config is own.model else replace(own.model, encoder=left))
    return resolved


def narrowed(contract: Contract, names: Sequence[str], policy: Policy = "refuse") -> Contract:
    """The contract of the bands `names` alone, in this order: what the model sees. Those that the data do not have
    stand there without statistics. Raises SettingError."""
    present, _ = _split(contract.bands, names, policy)
    known = {band.name: band for band in present}
    return replace(
        contract,
        bands=tuple(known.get(name) or sentinel2.BAND[name] for name in names),
        statistics={name: contract.statistics[name] for name in names if name in known},
        shape=contract.shape and (len(names), *contract.shape[1:]),
    )


def indices(contract: Contract, names: Sequence[str], policy: Policy = "refuse") -> list[int] | None:
    """Where the bands `names`, or what stands in their places, lie in samples of `contract`, as `taken` has it; None
    where they are all, in order. Raises SettingError."""
    known = [band.name for band in contract.bands]
    present, absent = _split(contract.bands, names, policy)
    if list(names) == known:
        return None
    others = {name: MEAN if policy == "mean" else known.index(_nearest(name, present).name) for name in absent}
    return [others[name] if name in others else known.index(name) for name in names]


def taken(images: Tensor, band_indices: Sequence[int]) -> Tensor:
    """Select bands of images (N, C, H, W) float; MEAN stands for the mean of the others selected."""
    if MEAN in band_indices:
        # Of the bands that the model looks at: shards may hold others, such as B10, that it never sees.
        stored = sorted(set(band_indices) - {MEAN})
        images = torch.cat([images, images[:, stored].mean(dim=1, keepdim=True)], dim=1)
    # One by one: a list as an index would make the host wait for the device.
    return torch.stack([images[:, pick] for pick in band_indices], dim=1)


def stand_ins(name: str, present: Sequence[Band], policy: Policy) -> Sequence[Band]:
    """The stored bands whose mean stands in the place of the missing band `name`."""
    return present if policy == "mean" else [_nearest(name, present)]


def _nearest(name: str, present: Sequence[Band]) -> Band:
    return min(present, key=lambda band: abs(band.wavelength_nm - sentinel2.BAND[name].wavelength_nm))


def _split(stored: Sequence[Band], names: Sequence[str], policy: Policy) -> tuple[list[Band], list[str]]:
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


def check_bands(config: EncoderConfig, contract: Contract) -> None:
    """Raises SettingError where the model takes another number of bands than `contract` has."""
    bands = [band.name for band in contract.bands]
    if len(bands) != config.image_bands:
        raise SettingError(
            f"the model takes {config.image_bands} bands, the recipe names {len(bands)}: {' '.join(bands)}"
        )


def check_size(px: int, contract: Contract, *, cropped: bool) -> None:
    """Raises SettingError where samples are neither of the model's size nor, `cropped`, a whole multiple of it."""
    fits = contract.shape is not None and contract.shape[1] == contract.shape[2]
    if not fits or contract.shape is None or (contract.shape[1] % px if cropped else contract.shape[1] != px):
        shape = "of many sizes" if contract.shape is None else f"{contract.shape[1]} x {contract.shape[2]} px"
        raise SettingError(f"image_px is {px}, the samples are {shape}: change image_px, or set augment.crop_area")
