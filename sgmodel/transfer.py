"""Weights of another run into a fresh model, if the data of both agree."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from sgdata import contracts
from sgdata.errors import SettingError
from sgdata.types import Contract
from sgmodel import checkpoint
from sgmodel.normalise import Normalisation

log = logging.getLogger("sgdata.model")


def fill(
    model: nn.Module, weights: Path, contract: Contract, how: Normalisation, *, accept: Sequence[str]
) -> checkpoint.Report:
    """Fill `model` from `weights`. Raises SettingError naming each difference that `accept` does not waive.

    Published `.pth` files hold no contract, so nothing can be compared with them; that is logged.
    """
    if weights.is_dir():
        compare(checkpoint.read_card(weights), contract, how, accept=accept)
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
