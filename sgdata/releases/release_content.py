"""The data of a release that its card, Croissant and STAC documents share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdata.datasets.types import DatasetCard
from sgdata.errors import SettingError
from sgdata.types import Bounds, Contract

if TYPE_CHECKING:
    from sgdata.audits.findings import AuditReport
    from sgdata.releases.difference import OutputDifference
    from sgdata.scenes.lock import Lock

RELEASED_BY_OTHERS = "released"
ODBL = "https://opendatacommons.org/licenses/odbl/1-0/"
SIMULATED = "Simulated by sgdata: no satellite and no mapper has seen this place. "
CC_BY = "https://creativecommons.org/licenses/by/4.0/"


@dataclass(frozen=True, kw_only=True)
class ReleaseRequest:
    """Data to release and where to write them.

    Attributes:
        name: Name of the dataset.
        version: Version of the release.
        source: Folder of shards or build.
        out: Output folder.
        build: Build that the shards were packed from.
        builds: Builds by place, of shards of several places.
        private: Whether data that must not be passed on are allowed.
        licence: Licence of the user's own data, as their owner states it.
        published: ISO date for the metadata.
        register: Folder of `releases/`; None for no entry.
        archive: Whether to write a tar file too.
        previous: The release before, against which changes are stated; None for a first one.
        cite: How to cite data of one's own; "" for a default.
        home: Address of their page; "" for none.
    """

    name: str
    version: str
    source: Path
    out: Path
    build: Path | None = None
    builds: Mapping[str, Path] = field(default_factory=dict)
    private: bool = False
    licence: str = ""
    published: str = ""
    register: Path | None = None
    archive: bool = False
    previous: Path | None = None
    cite: str = ""
    home: str = ""

    @property
    def title(self) -> str:
        """`NAME-VERSION`, the name in files and citations."""
        return f"{self.name}-{self.version}"


@dataclass(frozen=True, kw_only=True)
class ReleaseContent:
    """Content of a release.

    Attributes:
        order: The order.
        contract: Contract of the shards.
        card: Card of the dataset.
        rows: Rows of the index (key, split, shard, bounds, crs, date, labels).
        report: Audit.
        shards: SHA-256 and size by tar.
        index_sha256: SHA-256 of the index.
        lock: Lock of the build; None for a dataset of other authors.
        usage: Shares of the build, as in its `usage.json`.
        changes: What changed since the release before.
    """

    order: ReleaseRequest
    contract: Contract
    card: DatasetCard
    rows: Sequence[Mapping[str, Any]]
    report: AuditReport
    shards: Mapping[str, tuple[str, int]]
    index_sha256: str
    lock: Lock | None
    usage: Mapping[str, Any] = field(default_factory=dict)
    changes: OutputDifference | None = None

    @property
    def shares(self) -> list[tuple[str, str]]:
        """Shares of the build in per cent that its users must know, with what they are of."""
        texts = {"nodata_share": "hold no data", "never_clear_share": "are roofs that every date classifies as cloud"}
        shares = [(self.usage.get(name), text) for name, text in texts.items()]
        return [(f"{share:.3%}", text) for share, text in shares if isinstance(share, int | float)]

    @property
    def is_own(self) -> bool:
        """Whether the first citation is that of the release, not text of this package."""
        return self.lock is not None or bool(self.order.cite)

    @property
    def simulated(self) -> bool:
        """Whether the scenes are simulated; notices must then not credit Copernicus or OpenStreetMap."""
        return self.lock is not None and self.lock.simulated

    @property
    def summary(self) -> str:
        """Description in a sentence: that of the dataset card, or of the build."""
        if self.lock is None or not self.bounds:
            return self.card.summary
        west, south, east, north = self.bounds
        return (SIMULATED if self.simulated else "") + (
            f"A best-pixel composite of Sentinel-2 {self.contract.level} between {south:.2f} and {north:.2f} N, "
            f"{west:.2f} and {east:.2f} E, with {len(self.contract.label_space.ids)} classes from OpenStreetMap."
        )

    @cached_property
    def days(self) -> tuple[str, str] | None:
        """First and last ISO date of the images, or None if they are unknown."""
        # From the scenes if there is a lock, since samples of composites have no date.
        days = [item.scene.time[:10] for item in self.lock.items] if self.lock else []
        days = days or [row["date"] for row in self.rows if row["date"]]
        return (min(days), max(days)) if days else None

    @cached_property
    def bounds(self) -> Bounds | None:
        """Bounds of all samples in degrees; None unless each has coordinates."""
        return bounds(self.rows)

    @property
    def crs(self) -> str:
        """CRS of all samples if they share one, else that of the index."""
        codes = {row["crs"] for row in self.rows}
        return codes.pop() if len(codes) == 1 and None not in codes else "EPSG:4326"

    @property
    def notice(self) -> str:
        """Notice that the Copernicus Sentinel data terms require, with the years of the data."""
        if self.simulated:
            return SIMULATED.strip()
        years = f" {self.days[0][:4]}" if self.days else " (years as the makers of the dataset took them)"
        if self.days and self.days[1][:4] != self.days[0][:4]:
            years += f"-{self.days[1][:4]}"
        return f"Contains modified Copernicus Sentinel data{years}."

    @property
    def terms(self) -> dict[str, tuple[str, str]]:
        """Licence and notice for `pixels` and for `labels`."""
        if self.lock is None:
            if self.order.licence:
                return {"pixels": (self.order.licence, self.notice), "labels": (self.order.licence, "")}
            licence = self.card.licence
            cited = f"{'; '.join(self.card.citation)}. {licence.note}".strip()
            return {"pixels": (licence.pixels, self.notice), "labels": (licence.labels, cited)}
        if self.simulated:
            return dict.fromkeys(("pixels", "labels"), (f"CC-BY-4.0, {CC_BY}", self.notice))
        osm = (
            f"© OpenStreetMap contributors, https://www.openstreetmap.org/copyright, as of {self.lock.osm_date}. "
            f"Derived by painting its features with the tag table {self.lock.tag_table_sha256[:16]} of sgdata."
        )
        return {"pixels": (f"CC-BY-4.0, {CC_BY}", self.notice), "labels": (f"ODbL-1.0, {ODBL}", osm)}


def bounds(rows: Sequence[Mapping[str, Any]]) -> Bounds | None:
    """Return west, south, east, north of index rows; None unless every row has coordinates."""
    # Bounds of some samples would be mistaken for those of all.
    if any(row["west"] is None for row in rows):
        return None
    west, south = (min(row[side] for row in rows) for side in ("west", "south"))
    east, north = (max(row[side] for row in rows) for side in ("east", "north"))
    return (west, south, east, north)


def own_card(card: DatasetCard, order: ReleaseRequest, locked: Lock | None, *, software: str) -> DatasetCard:
    """Return the card of data that a user made: with the name, citation and page of the release.

    Args:
        card: Card of the dataset that they follow.
        order: The order.
        locked: Lock of the build; None for images and pairs, whose owner states the citation.
        software: Version of this package.
    """
    if locked is None and not order.cite:
        return replace(card, home=order.home or card.home)
    cite = " ".join(order.cite.split())
    if not cite and locked is not None:
        days = sorted(item.scene.time[:10] for item in locked.items)
        scenes = "simulated scenes" if locked.simulated else "Sentinel-2 scenes"
        year = f" ({order.published[:4]})" if order.published else ""
        cite = (
            f"{order.name}, version {order.version}{year}: composite of {scenes} from {days[0]} to {days[-1]} with "
            f"labels as of {locked.osm_date}, made with sgdata {software}"
        )
    # The defects are those of the files that its authors published.
    method = [f"Made after {card.title}: {text}" for text in card.citation] if locked else []
    return replace(
        card, name=order.name, title=order.title, citation=(cite, *method), home=order.home or "CARD.md", defects=()
    )


def require_permission(card: DatasetCard, order: ReleaseRequest, *, ours: bool) -> None:
    """Raise SettingError if the licence of a dataset does not allow passing it on."""
    allowed, private = card.licence.redistribution, order.private
    if (order.cite or order.home) and allowed != "owner" and not ours:
        raise SettingError(f"--cite and --home: {card.name} has its own citation and page; leave them out")
    if order.licence and allowed != "owner":
        terms = f"{card.licence.labels}; {card.licence.pixels}"
        raise SettingError(f"--licence {order.licence!r:.60}: {card.name} has its own ({terms}); leave --licence out")
    if allowed == "owner":
        if not order.licence and not private:
            raise SettingError(
                f"{card.name}: data of your own, without a licence; state one, such as --licence CC-BY-4.0, or give "
                "--private for a copy that you do not pass on"
            )
        return
    if allowed != "yes" and not ours and not private:
        raise SettingError(
            f"{card.name}: redistribution is '{allowed}' ({card.licence.labels}; {card.licence.pixels}); "
            "give --private for a copy that you do not pass on"
        )
