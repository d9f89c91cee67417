"""What passes between runs: a model's card, and weights into a fresh model if the data of both agree."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from sgdata import contracts, files, sentinel2
from sgdata.errors import SettingError
from sgdata.types import Contract, LabelSpace
from sgmodel import checkpoint, encoder, missing
from sgmodel.normalise import Normalisation

R = TypeVar("R")
log = logging.getLogger("sgdata.model")


def card(model: nn.Module, contract: Contract, how: Normalisation, recipe: Any) -> checkpoint.Card:
    """What a checkpoint of this run says of itself."""
    return checkpoint.Card(
        model=checkpoint.describe(model),
        contract=contract,
        normalisation=how,
        recipe=files.plain(recipe),
        commit=checkpoint.commit(),
    )


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


def fill(
    model: nn.Module,
    weights: Path,
    contract: Contract,
    how: Normalisation,
    *,
    accept: Sequence[str],
    tables: checkpoint.Tables = "interpolate",
) -> checkpoint.Report:
    """Fill `model` from `weights`. Raises SettingError naming each difference that `accept` does not waive.

    Published `.pth` files hold no contract, so nothing can be compared with them; that is logged.
    """
    if checkpoint.has_card(weights):
        card = checkpoint.read_card(weights)
        compare(card, contract, how, accept=accept)
        # Weights of the same kind bring their head, whose outputs mean classes.
        if card.contract is not None and card.model.kind == checkpoint.describe(model).kind:
            _compare_classes(contract.label_space, card.contract.label_space, accept)
    else:
        log.warning("%s: holds no contract; bands, level and normalisation are taken on trust", weights)
    wavelengths = [band.wavelength_nm for band in contract.bands]
    report = checkpoint.fit(
        model, checkpoint.read_weights(weights), wavelengths=wavelengths, tables=tables, where=str(weights)
    )
    log.info(
        "%s: %d weights taken, %d resized, %d new",
        weights.name,
        len(report.matched),
        len(report.resized),
        len(report.missing),
    )
    if report.resized:
        log.info("%s: made to fit: %s", weights.name, ", ".join(report.resized))
    return report


def compare(card: checkpoint.Card, contract: Contract, how: Normalisation, *, accept: Sequence[str]) -> None:
    """Refuse data or a normalisation other than the weights were trained with. Raises SettingError.

    Weights that saw every band go to data that lack some: what stands in their places is the recipe's to say. Those
    that saw a stand-in go to data with the same one.
    """
    if card.contract is not None:
        # Contracts know nothing of the normalisation, which only a checkpoint has.
        known = [name for name in accept if name != "normalisation"]
        # Without its empty groups a model looks at fewer bands than the weights did, and at each as they did.
        names = {band.name for band in (contract if how.missing == "drop-group" else card.contract).bands}
        theirs = replace(card.contract, bands=tuple(band for band in card.contract.bands if band.name in names))
        contracts.require(contract, theirs, "fine-tune", known)
    if card.normalisation is None or "normalisation" in accept:
        return
    filled = ("missing", "absent") if card.normalisation.absent else ()
    fields = ("scheme", "eps", "mean", "std", "before_crop", *filled)
    differ = [name for name in fields if getattr(card.normalisation, name) != getattr(how, name)]
    if not differ:
        return
    told = "; ".join(
        f"{name} is {getattr(how, name)!r:.60}, was {getattr(card.normalisation, name)!r:.60}" for name in differ
    )
    raise SettingError(f"normalisation differs from the weights': {told}; accept = ['normalisation'] waives this")


def _compare_classes(ours: LabelSpace, theirs: LabelSpace, accept: Sequence[str]) -> None:
    if (ours.ids, ours.names) != (theirs.ids, theirs.names) and "label_space" not in accept:
        raise SettingError(
            f"label_space is '{ours.name}' ({len(ours.ids)} classes), the weights were trained for '{theirs.name}' "
            f"({len(theirs.ids)} classes); accept = ['label_space'] takes all but a head of another size"
        )
