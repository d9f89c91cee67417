"""Published figures with their sources, and how the data and settings of a run differ from what they were measured on.

A protocol is what a set of figures was measured on: dataset, edition, split list and counts, share of the labels, and
what was trained. The facts are the tables `published_protocols` and `published_figures` of the catalogue.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from sgdata import files, output_names, package_data
from sgdata.errors import SettingError
from sgdata.packing import split_lists
from sgdata.shards import shard_index
from sgdata.types import Contract

Difference = Literal[
    "other data", "other edition", "other split", "unknown split", "other protocol", "fewer labels", "more labels"
]
"""Ways to differ from a protocol. "unknown split": the source does not say on which split its figures were measured."""


@dataclass(frozen=True, kw_only=True)
class PublishedProtocol:
    """Data, splits and training mode that published figures were measured on.

    Attributes:
        name: Name, to which tables of a ledger refer.
        dataset: Name of the dataset.
        edition: Edition on the dataset's card; empty if the source does not say.
        splits: Split set on the card; empty if the source does not say.
        counts: Samples by split; empty if the source does not say.
        labels: Share of the training samples.
        mode: Which weights were trained, as `mode` of a recipe.
        about: Table or text with the figures.
    """

    name: str
    dataset: str
    edition: str
    splits: str
    counts: dict[str, int]
    labels: float
    mode: str
    about: str

    @property
    def subject(self) -> str:
        """Return dataset, edition, split list, counts, labels and mode in words."""
        counts = ", ".join(f"{split} {count:,}" for split, count in self.counts.items())
        split = f"split {self.splits}" if self.splits else "split not said"
        labels = "" if self.labels == 1 else f", {self.labels:.0%} of the labels"
        data = f"{self.dataset} {self.edition or '(edition not said)'}, {split}"
        return f"{data}{f' ({counts})' if counts else ''}{labels}, {self.mode}"


@dataclass(frozen=True, kw_only=True)
class PublishedFigure:
    """One published figure: its value, 0-1, and its source."""

    value: float
    source: str


@cache
def protocol(name: str) -> PublishedProtocol:
    """Return a protocol. Raises SettingError if the catalogue has none of this name."""
    rows = package_data.table("published_protocols")
    for row in rows:
        if row["name"] == name:
            counts = {split: int(count) for split, count in re.findall(r"(\w+) (\d+)", row["counts"])}
            plain = {key: row[key] for key in ("name", "dataset", "edition", "splits", "mode", "about")}
            return PublishedProtocol(**plain, counts=counts, labels=float(row["labels"]))
    known = ", ".join(row["name"] for row in rows)
    raise SettingError(f"protocol '{name}' is not in the table published_protocols; known: {known}")


@cache
def figures(name: str) -> dict[str, dict[str, PublishedFigure]]:
    """Return the figures of a protocol by model and metric, in the order of the table. Raises SettingError."""
    protocol(name)
    found: dict[str, dict[str, PublishedFigure]] = {}
    for row in package_data.table("published_figures"):
        if row["protocol"] == name:
            figure = PublishedFigure(value=round(float(row["percent"]) / 100, 6), source=row["source"])
            found.setdefault(row["model"], {})[row["metric"]] = figure
    return found


def of_model(name: str, model: str) -> dict[str, PublishedFigure]:
    """Return the figures of a model under a protocol, by metric. Raises SettingError if there is none."""
    known = figures(name)
    if model not in known:
        raise SettingError(f"no figure of '{model}' under the protocol '{name}'; known: {', '.join(known)}")
    return known[model]


def differences(
    of: PublishedProtocol, contract: Contract, folder: Path, *, labels: float, mode: str
) -> list[Difference]:
    """Return how shards and settings differ from a protocol.

    Args:
        of: The protocol.
        contract: Contract of the shards.
        folder: Folder of the shards.
        labels: Share of the training samples that is used.
        mode: `mode` of the recipe.
    """
    found: list[Difference] = []
    if contract.dataset != of.dataset:
        found.append("other data")
    elif of.edition and contract.version != of.edition:
        found.append("other edition")
    elif not of.splits:
        found.append("unknown split")
    elif _is_other_split(of, contract, folder):
        found.append("other split")
    if mode != of.mode:
        found.append("other protocol")
    if labels != of.labels:
        found.append("fewer labels" if labels < of.labels else "more labels")
    return found


def _is_other_split(of: PublishedProtocol, contract: Contract, folder: Path) -> bool:
    """Return whether the samples of a split are not those of the published list, as far as it is known."""
    if any(contract.splits.get(split) != count for split, count in of.counts.items()):
        return True
    table = split_lists.find_table(of.dataset, None)
    lists = [each for each in table.header.published if each.name == of.splits] if table else []
    if not lists:
        # Nothing is known of the lists themselves: what the recipe of the shards asked for must do.
        recipe = files.read_plain(folder / output_names.RECIPE) if (folder / output_names.RECIPE).is_file() else {}
        return bool(recipe.get("splits", of.splits) != of.splits)
    index = shard_index.read_index(folder).select(["key", "split"]).to_pylist()
    return not all(each.matches(row["key"] for row in index if row["split"] == each.split) for each in lists)
