"""What passes between runs: a model's card, and weights into a fresh model if the data of both agree."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sgdata import contracts, files
from sgdata.errors import SettingError
from sgdata.types import Contract, LabelSpace
from sgmodel import cards, checkpoint, fitting
from sgmodel.normalise import Normalisation

log = logging.getLogger("sgdata.model")


def card(model: nn.Module, contract: Contract, how: Normalisation, recipe: Any) -> cards.Card:
    """What a checkpoint of this run says of itself."""
    return cards.Card(
        model=cards.describe(model),
        contract=contract,
        normalisation=how,
        recipe=files.plain(recipe),
        commit=checkpoint.commit(),
    )


def fill(
    model: nn.Module,
    weights: Path,
    contract: Contract,
    how: Normalisation,
    *,
    accept: Sequence[str],
    tables: fitting.Tables = "interpolate",
) -> fitting.Report:
    """Fill `model` from `weights`. Raises SettingError naming each difference that `accept` does not waive.

    Published `.pth` files hold no contract, so nothing can be compared with them; that is logged.
    """
    if fitting.has_card(weights):
        card = cards.read(weights)
        compare(card, contract, how, accept=accept)
        # Weights of the same kind bring their head, whose outputs mean classes.
        if card.contract is not None and card.model.kind == cards.describe(model).kind:
            _compare_classes(contract.label_space, card.contract.label_space, accept)
    else:
        log.warning("%s: holds no contract; bands, level and normalisation are taken on trust", weights)
    wavelengths = [band.wavelength_nm for band in contract.bands]
    report = fitting.fit(
        model, fitting.read_weights(weights), wavelengths=wavelengths, tables=tables, where=str(weights)
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


def compare(card: cards.Card, contract: Contract, how: Normalisation, *, accept: Sequence[str]) -> None:
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
