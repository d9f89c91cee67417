"""Which bands of the data a model sees, in which order, and whether the two fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sgdata import sentinel2
from sgdata.errors import SettingError
from sgdata.types import Contract
from sgmodel import encoder, missing

R = TypeVar("R")


def settled(recipe: R, contract: Contract) -> R:
    """`recipe` for data of `contract`: where its policy is "drop-group", without the spectral groups of which the data
    have nothing, as if it had been written so. Recipes have `bands`, `normalise`, and an encoder under `model`."""
    own: Any = recipe
    config = own.model if isinstance(own.model, encoder.EncoderConfig) else own.model.encoder
    # Once groups are dropped the recipe names the bands of the others only: the one that lies in a run's folder.
    if own.normalise.missing != "drop-group" or config is None or config.dropped:
        return recipe
    empty = missing.empty_groups(contract.bands, own.bands, config.group_bands)
    left = replace(config, dropped=empty)
    names = tuple(name for number, name in enumerate(own.bands) if number // config.group_bands not in empty)
    settled: R = replace(own, bands=names, model=left if config is own.model else replace(own.model, encoder=left))
    return settled


def narrowed(contract: Contract, names: Sequence[str], policy: missing.Policy = "refuse") -> Contract:
    """The contract of the bands `names` alone, in this order: what the model sees. Those that the data do not have
    stand there without statistics. Raises SettingError."""
    present, _ = missing.split(contract.bands, names, policy)
    known = {band.name: band for band in present}
    return replace(
        contract,
        bands=tuple(known.get(name) or sentinel2.BAND[name] for name in names),
        statistics={name: contract.statistics[name] for name in names if name in known},
        shape=contract.shape and (len(names), *contract.shape[1:]),
    )


def indices(contract: Contract, names: Sequence[str], policy: missing.Policy = "refuse") -> list[int] | None:
    """Where the bands `names`, or what stands in their places, lie in samples of `contract`, as `missing.taken` has it;
    None where they are all, in order. Raises SettingError."""
    known = [band.name for band in contract.bands]
    present, absent = missing.split(contract.bands, names, policy)
    if list(names) == known:
        return None
    others = {
        name: missing.MEAN if policy == "mean" else known.index(missing.nearest(name, present).name) for name in absent
    }
    return [others[name] if name in others else known.index(name) for name in names]


def check_bands(config: encoder.EncoderConfig, contract: Contract) -> None:
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
