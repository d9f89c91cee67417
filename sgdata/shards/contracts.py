"""The contract between data and whoever consumes it: read, write, compare by purpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from sgdata import files
from sgdata.errors import SettingError
from sgdata.types import Contract

FORMAT = 1

Purpose = Literal["resume", "fine-tune", "predict"]

# What the weights of a model have seen; splits, statistics and labels may differ when it is fine-tuned.
_PIXELS = ("bands", "level", "scale", "offset")
COMPARED: dict[Purpose, tuple[str, ...]] = {
    "resume": tuple(field.name for field in dataclasses.fields(Contract)),
    "fine-tune": _PIXELS,
    "predict": (*_PIXELS, "label_space"),
}
"""What must agree. The normalisation, which only a checkpoint has, is compared by the program that owns it."""


def read(folder: Path) -> Contract:
    """The contract of a build or of a folder of shards. Raises SettingError."""
    contract = files.read(Contract, folder / files.CONTRACT)
    if contract.format != FORMAT:
        raise SettingError(
            f"{folder / files.CONTRACT}: format {contract.format}, this sgdata reads {FORMAT}; update sgdata"
        )
    return contract


def write(folder: Path, contract: Contract) -> None:
    """Write `folder/contract.json`, indented, the same bytes for the same contract."""
    files.write(folder / files.CONTRACT, files.pretty_json(contract))


def differences(ours: Contract, theirs: Contract, purpose: Purpose) -> list[str]:
    """Names of the fields that `purpose` compares and that differ, in the contract's own order."""
    return [name for name in COMPARED[purpose] if getattr(ours, name) != getattr(theirs, name)]


def require(ours: Contract, theirs: Contract, purpose: Purpose, accept: Iterable[str] = ()) -> None:
    """Raise SettingError naming each difference (ours against theirs) that `accept` does not waive."""
    accepted = set(accept)
    # A misspelt waiver must not pass for one that was not needed.
    unknown = sorted(accepted - set(COMPARED["resume"]))
    if unknown:
        raise SettingError(f"accept = {unknown}: not parts of a contract; known: {', '.join(COMPARED['resume'])}")
    left = [name for name in differences(ours, theirs, purpose) if name not in accepted]
    if left:
        told = "; ".join(f"{name} is {_short(ours, name)}, expected {_short(theirs, name)}" for name in left)
        raise SettingError(f"cannot {purpose} on '{ours.dataset}': {told}; accept = {left} in the recipe waives this")


def _short(contract: Contract, name: str) -> str:
    """One field for a message: names in place of whole bands and label spaces."""
    # A whole label space or band table in a message would hide the one thing that differs.
    value = getattr(contract, name)
    if name == "bands":
        return " ".join(band.name for band in value)
    if name == "label_space":
        return f"'{value.name}' ({len(value.ids)} classes)"
    return f"{value!r:.80}"
