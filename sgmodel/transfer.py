"""What passes between runs: a model's card, and weights into a fresh model if the data of both agree."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sgdata import contracts, files
from sgdata.errors import SettingError
from sgdata.types import Contract, LabelSpace
from sgmodel import checkpoint, encoder
from sgmodel.normalise import Normalisation

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


def narrowed(contract: Contract, names: Sequence[str]) -> Contract:
    """The contract of the bands `names` alone, in this order: what the model sees. Raises SettingError."""
    known = {band.name: band for band in contract.bands}
    missing = [name for name in names if name not in known]
    if missing:
        raise SettingError(f"bands: {' '.join(missing)} not in the shards, which have {' '.join(known)}")
    return dataclasses.replace(
        contract,
        bands=tuple(known[name] for name in names),
        statistics={name: contract.statistics[name] for name in names},
        shape=contract.shape and (len(names), *contract.shape[1:]),
    )


def indices(contract: Contract, names: Sequence[str]) -> list[int] | None:
    """Where the bands `names` lie in samples of `contract`; None where they are all, in order."""
    known = [band.name for band in contract.bands]
    return None if list(names) == known else [known.index(name) for name in names]


def check_bands(config: encoder.EncoderConfig, contract: Contract) -> None:
    """Raises SettingError where the model takes another number of bands than `contract` has."""
    bands = [band.name for band in contract.bands]
    if len(bands) != config.bands:
        raise SettingError(f"the model takes {config.bands} bands, the recipe names {len(bands)}: {' '.join(bands)}")


def check_size(px: int, contract: Contract, *, cropped: bool) -> None:
    """Raises SettingError where samples are neither of the model's size nor, `cropped`, a whole multiple of it."""
    fits = contract.shape is not None and contract.shape[1] == contract.shape[2]
    if not fits or contract.shape is None or (contract.shape[1] % px if cropped else contract.shape[1] != px):
        shape = "of many sizes" if contract.shape is None else f"{contract.shape[1]} x {contract.shape[2]} px"
        raise SettingError(f"image_px is {px}, the samples are {shape}: change image_px, or set augment.crop_area")


def fill(
    model: nn.Module, weights: Path, contract: Contract, how: Normalisation, *, accept: Sequence[str]
) -> checkpoint.Report:
    """Fill `model` from `weights`. Raises SettingError naming each difference that `accept` does not waive.

    Published `.pth` files hold no contract, so nothing can be compared with them; that is logged.
    """
    if weights.is_dir():
        card = checkpoint.read_card(weights)
        compare(card, contract, how, accept=accept)
        # Weights of the same kind bring their head, whose outputs mean classes.
        if card.contract is not None and card.model.kind == checkpoint.describe(model).kind:
            _compare_classes(contract.label_space, card.contract.label_space, accept)
    else:
        log.warning("%s: holds no contract; bands, level and normalisation are taken on trust", weights)
    report = checkpoint.fit(model, checkpoint.read_weights(weights), where=str(weights))
    log.info(
        "%s: %d weights taken, %d resized, %d new",
        weights.name,
        len(report.matched),
        len(report.resized),
        len(report.missing),
    )
    return report


def compare(card: checkpoint.Card, contract: Contract, how: Normalisation, *, accept: Sequence[str]) -> None:
    """Refuse data or a normalisation other than the weights were trained with. Raises SettingError."""
    if card.contract is not None:
        # Contracts know nothing of the normalisation, which only a checkpoint has.
        known = [name for name in accept if name != "normalisation"]
        contracts.require(contract, card.contract, "fine-tune", known)
    if card.normalisation is None or card.normalisation == how or "normalisation" in accept:
        return
    fields = ("scheme", "eps", "mean", "std", "before_crop")
    differ = [name for name in fields if getattr(card.normalisation, name) != getattr(how, name)]
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
