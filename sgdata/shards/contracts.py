"""Read, write and compare contracts, which describe the data of a build or of shards to their consumers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from sgdata import files, output_names
from sgdata.errors import SettingError
from sgdata.types import CONTRACT_FORMAT, DISPLAY, Contract

Purpose = Literal["resume", "fine-tune", "predict"]

# Fields that the weights of a model depend on; splits, statistics and labels may differ in fine-tuning.
_PIXELS = ("bands", "level", "scale", "offset")
COMPARED: dict[Purpose, tuple[str, ...]] = {
    "resume": tuple(field.name for field in dataclasses.fields(Contract)),
    "fine-tune": _PIXELS,
    "predict": (*_PIXELS, "label_space"),
}
"""Fields that must agree, by purpose. The normalisation of a checkpoint is compared by `sgmodel`."""


def read(folder: Path) -> Contract:
    """Read the contract of a build or of shards.

    Args:
        folder: Folder with a `contract.json`.

    Returns:
        The contract.

    Raises:
        SourceError: The contract is missing.
        SettingError: The contract is malformed or of another format.
    """
    path = files.require_file(
        folder / output_names.CONTRACT, "the contract of a build or of a folder that 'sgdata shard' wrote"
    )
    contract = files.read(Contract, path)
    if contract.format != CONTRACT_FORMAT:
        raise SettingError(
            f"{folder / output_names.CONTRACT}: format {contract.format}, "
            f"this sgdata reads {CONTRACT_FORMAT}; update sgdata"
        )
    return contract


def write(folder: Path, contract: Contract) -> None:
    """Write `folder/contract.json`, the same bytes for the same contract.

    Args:
        folder: Folder of the build or the shards.
        contract: The contract.

    Raises:
        OutputError: The file cannot be written.
    """
    files.write(folder / output_names.CONTRACT, files.pretty_json(contract))


def find_differences(ours: Contract, theirs: Contract, purpose: Purpose) -> list[str]:
    """Return the names of the fields that differ.

    Args:
        ours: Contract of the data.
        theirs: Contract of a checkpoint or of earlier data.
        purpose: Purpose, which determines the compared fields (`COMPARED`).
    """
    return [name for name in COMPARED[purpose] if getattr(ours, name) != getattr(theirs, name)]


def require(ours: Contract, theirs: Contract, purpose: Purpose, accept: Iterable[str] = ()) -> None:
    """Raise SettingError if contracts differ in fields that matter.

    Args:
        ours: Contract of the data.
        theirs: Contract of a checkpoint or of earlier data.
        purpose: Purpose, which determines the compared fields (`COMPARED`).
        accept: Fields that may differ, from the recipe.

    Raises:
        SettingError: A field differs, or a name in `accept` is no field of a contract.
    """
    accepted = set(accept)
    # A misspelt name must not pass silently.
    unknown = sorted(accepted - set(COMPARED["resume"]))
    if unknown:
        raise SettingError(f"accept = {unknown}: not parts of a contract; known: {', '.join(COMPARED['resume'])}")
    if ours.level != theirs.level and DISPLAY in (ours.level, theirs.level):
        raise SettingError(
            f"cannot {purpose} on '{ours.dataset}': level is {ours.level}, expected {theirs.level}; 8-bit images for "
            "display are no reflectance at any scale, so no setting waives this; use data of the level of the model"
        )
    differing = [name for name in find_differences(ours, theirs, purpose) if name not in accepted]
    if differing:
        different = "; ".join(
            f"{name} is {describe_field(ours, name)}, expected {describe_field(theirs, name)}" for name in differing
        )
        raise SettingError(
            f"cannot {purpose} on '{ours.dataset}': {different}; accept = {differing} in the recipe waives this"
        )


def describe_field(contract: Contract, name: str) -> str:
    """Return a field as text for a message, with names in place of whole bands and label spaces."""
    value = getattr(contract, name)
    if name == "bands":
        return " ".join(band.name for band in value)
    if name == "label_space":
        return f"'{value.name}' ({len(value.ids)} classes)"
    return f"{value!r:.80}"
