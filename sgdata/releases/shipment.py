"""What is being released, as every paper of the release needs it: samples, contract, terms, days, ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdata.datasets.types import DatasetCard
from sgdata.errors import SettingError
from sgdata.types import Bounds, Contract

if TYPE_CHECKING:
    from sgdata.audits.findings import Report
    from sgdata.scenes.lock import Lock

RELEASED_BY_OTHERS = "released"
ODBL = "https://opendatacommons.org/licenses/odbl/1-0/"
SIMULATED = "Simulated by sgdata: no satellite and no mapper has seen this place. "
CC_BY = "https://creativecommons.org/licenses/by/4.0/"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to release and where; `build` is where the shards were cut from, `published` an ISO day for the papers,
    `register` the folder of `releases/`, or None where there is none; `archive` asks for one tar of it, too.
    """

    name: str
    version: str
    source: Path
    out: Path
    build: Path | None = None
    private: bool = False
    published: str = ""
    register: Path | None = None
    archive: bool = False

    @property
    def title(self) -> str:
        """`NAME-VERSION`, which files and citations bear."""
        return f"{self.name}-{self.version}"


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """`rows` are those of the index (key, split, shard, bounds, crs, date, labels); `lock` is that of a build of ours,
    None for what was taken from the dataset's makers; `shards` the SHA-256 and size of each tar.
    """

    order: Order
    contract: Contract
    card: DatasetCard
    rows: Sequence[Mapping[str, Any]]
    report: Report
    shards: Mapping[str, tuple[str, int]]
    index_sha256: str
    lock: Lock | None

    @property
    def simulated(self) -> bool:
        """Whether the scenes are those of `sgdata simulate`: no notice may then name a satellite or a mapper."""
        return self.lock is not None and self.lock.simulated

    @property
    def summary(self) -> str:
        """What it is, in a sentence: the makers' own, or of what was built."""
        if self.lock is None or not self.bounds:
            return self.card.summary
        west, south, east, north = self.bounds
        return SIMULATED * self.simulated + (
            f"A best-pixel composite of Sentinel-2 {self.contract.level} between {south:.2f} and {north:.2f} N, "
            f"{west:.2f} and {east:.2f} E, with {len(self.contract.label_space.ids)} classes from OpenStreetMap."
        )

    @cached_property
    def days(self) -> tuple[str, str] | None:
        """First and last ISO day of the images, where they are known."""
        # Of the scenes where there is a lock: a composite's rows have no day of their own.
        days = [item.scene.time[:10] for item in self.lock.items] if self.lock else []
        days = days or [row["date"] for row in self.rows if row["date"]]
        return (min(days), max(days)) if days else None

    @cached_property
    def bounds(self) -> Bounds | None:
        """Over all samples, in degrees; None unless each has coordinates."""
        return bounds(self.rows)

    @property
    def crs(self) -> str:
        """The one CRS of all samples, or that of the index."""
        # Samples of several zones have only degrees in common, which is what the index tells.
        codes = {row["crs"] for row in self.rows}
        return codes.pop() if len(codes) == 1 and None not in codes else "EPSG:4326"

    @property
    def notice(self) -> str:
        """The words that Copernicus asks for (Sentinel data legal notice: years for what was modified)."""
        if self.simulated:
            return SIMULATED.strip()
        years = f" {self.days[0][:4]}" if self.days else " (years as the makers of the dataset took them)"
        if self.days and self.days[1][:4] != self.days[0][:4]:
            years += f"-{self.days[1][:4]}"
        return f"Contains modified Copernicus Sentinel data{years}."

    @property
    def terms(self) -> dict[str, tuple[str, str]]:
        """Licence and notice of `pixels` and of `labels`."""
        if self.lock is None:
            held = self.card.licence
            cited = f"{'; '.join(self.card.citation)}. {held.note}".strip()
            return {"pixels": (held.pixels, self.notice), "labels": (held.labels, cited)}
        if self.simulated:
            return dict.fromkeys(("pixels", "labels"), (f"CC-BY-4.0, {CC_BY}", self.notice))
        osm = (
            f"© OpenStreetMap contributors, https://www.openstreetmap.org/copyright, as of {self.lock.osm_date}. "
            f"Derived by painting its features with the tag table {self.lock.tag_table_sha256[:16]} of sgdata."
        )
        return {"pixels": (f"CC-BY-4.0, {CC_BY}", self.notice), "labels": (f"ODbL-1.0, {ODBL}", osm)}


def bounds(rows: Sequence[Mapping[str, Any]]) -> Bounds | None:
    """West, south, east, north of index rows; None unless each has them."""
    # A box of some of the samples would pass for that of all.
    if any(row["west"] is None for row in rows):
        return None
    west, south = (min(row[side] for row in rows) for side in ("west", "south"))
    east, north = (max(row[side] for row in rows) for side in ("east", "north"))
    return (west, south, east, north)


def permitted(card: DatasetCard, *, ours: bool, private: bool) -> None:
    """Raise SettingError where the card does not let us pass on the pixels or the labels."""
    allowed = card.licence.redistribution
    if allowed != "yes" and not ours and not private:
        raise SettingError(
            f"{card.name}: redistribution is '{allowed}' ({card.licence.labels}; {card.licence.pixels}); "
            "give --private for a copy that stays with you"
        )
