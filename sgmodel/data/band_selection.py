"""Select the bands of a model, in its order, and substitute bands that the data lack.

A recipe names one of these policies:

| policy | substitute for a missing band |
| --- | --- |
| `refuse` | none: the recipe does not fit the data |
| `mean` | the mean of all selected bands that exist, pixel by pixel, as in the released SegMunich reader |
| `nearest` | the band that is nearest in wavelength |
| `drop-group` | no tokens for a spectral group without data; the nearest band within a group that has some |

Substitution precedes normalisation, since the released code normalises mean channels like any other
(`normalise.apply`). Selected bands are indices into a sample; MEAN is the index of the mean of the others.
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
"""Index of the last channel, where `select` appends the mean."""

R = TypeVar("R")


def resolve(recipe: R, contract: Contract) -> R:
    """Drop the spectral groups without data from a recipe whose policy is "drop-group"; return others unchanged.

    Args:
        recipe: Has `bands`, `normalise`, and an encoder configuration as `model` or `model.encoder`.
        contract: Contract of the data.
    """
    own: Any = recipe
    config: EncoderConfig | None = getattr(own.model, "encoder", own.model)
    # A recipe with dropped groups is already resolved: it is read back from the folder of a run.
    if own.normalise.missing != "drop-group" or config is None or config.dropped_groups:
        return recipe
    available, size = {band.name for band in contract.bands}, config.group_bands
    groups = range(len(own.bands) // size)
    empty = tuple(group for group in groups if available.isdisjoint(own.bands[group * size : (group + 1) * size]))
    left = replace(config, dropped_groups=empty)
    names = tuple(name for number, name in enumerate(own.bands) if number // size not in empty)
    resolved: R = replace(own, bands=names, model=left if config is own.model else replace(own.model, encoder=left))
    return resolved


def narrow(contract: Contract, names: Sequence[str], policy: Policy = "refuse") -> Contract:
    """Return the contract of the bands `names` in this order; bands that the data lack have no statistics.

    Raises:
        SettingError: Bands are missing that `policy` does not substitute.
    """
    present, _ = _split(contract.bands, names, policy)
    by_name = {band.name: band for band in present}
    return replace(
        contract,
        bands=tuple(by_name.get(name) or sentinel2.BAND[name] for name in names),
        statistics={name: contract.statistics[name] for name in names if name in by_name},
        shape=contract.shape and (len(names), *contract.shape[1:]),
    )


def find_indices(contract: Contract, names: Sequence[str], policy: Policy = "refuse") -> list[int] | None:
    """Return the indices of the bands `names`, or of their substitutes, for `select`; None selects all in order.

    Raises:
        SettingError: Bands are missing that `policy` does not substitute.
    """
    available = [band.name for band in contract.bands]
    present, absent = _split(contract.bands, names, policy)
    if list(names) == available:
        return None
    selected = []
    for name in names:
        if name not in absent:
            selected.append(available.index(name))
        else:
            selected.append(MEAN if policy == "mean" else available.index(_nearest(name, present).name))
    return selected


def select(images: Tensor, band_indices: Sequence[int]) -> Tensor:
    """Select bands of images (N, C, H, W) float; the index MEAN gives the mean of the others selected."""
    if MEAN in band_indices:
        # Of the selected bands only: shards may hold others, such as B10, that are no input of the model.
        stored = sorted(set(band_indices) - {MEAN})
        images = torch.cat([images, images[:, stored].nanmean(dim=1, keepdim=True)], dim=1)
    # One by one: indexing by a list would make the host wait for the device.
    return torch.stack([images[:, index] for index in band_indices], dim=1)


def substitutes(name: str, present: Sequence[Band], policy: Policy) -> Sequence[Band]:
    """Return the stored bands whose mean substitutes the missing band `name`."""
    return present if policy == "mean" else [_nearest(name, present)]


def _nearest(name: str, present: Sequence[Band]) -> Band:
    return min(present, key=lambda band: abs(band.wavelength_nm - sentinel2.BAND[name].wavelength_nm))


def _split(stored: Sequence[Band], names: Sequence[str], policy: Policy) -> tuple[list[Band], list[str]]:
    """Split the bands `names` into those that are stored and the names of the others. Raises SettingError."""
    by_name = {band.name: band for band in stored}
    absent = [name for name in names if name not in by_name]
    # The wavelength of such a band is unknown, so that it has no nearest band.
    unknown = [name for name in absent if name not in sentinel2.BAND]
    if unknown or len(absent) == len(names) or (absent and policy == "refuse"):
        remedy = "" if unknown else "; set normalise.missing to 'mean', 'nearest' or 'drop-group' to substitute them"
        raise SettingError(
            f"bands: {' '.join(unknown or absent)} not in the shards, which have {' '.join(by_name)}{remedy}"
        )
    return [by_name[name] for name in names if name in by_name], absent


def check_bands(config: EncoderConfig, contract: Contract) -> None:
    """Refuse a contract whose number of bands is not that of the model. Raises SettingError."""
    bands = [band.name for band in contract.bands]
    if len(bands) != config.image_bands:
        raise SettingError(
            f"the model takes {config.image_bands} bands, the recipe names {len(bands)}: {' '.join(bands)}; mend one"
        )
