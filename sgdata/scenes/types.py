"""Types of scenes: one file of a scene, one granule, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sgdata.types import Bounds


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file of a scene, with the metadata of its item (None if absent).

    Attributes:
        href: Address, relative to the catalogue if that is a folder, so that a lock does not depend on the machine.
        crs: Coordinate reference system.
        transform: Affine coefficients a, b, c, d, e, f.
        shape: Rows and columns.
        dtype: Type of the values.
        band: Number of the band in a file of several, by the names in its item; None if the item names none.
    """

    href: str
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    shape: tuple[int, int] | None = None
    dtype: str | None = None
    band: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One granule of one acquisition.

    Attributes:
        id: Id of the item.
        collection: Id of the collection.
        provider: Provider whose names of assets the item has; empty where only the footprint could be read.
        time: Start of the acquisition, UTC to the second.
        platform: Satellite.
        tile: MGRS tile.
        orbit: Relative orbit.
        datatake: Id of the datatake.
        baseline: Processing baseline.
        generated: Time of processing.
        crs: CRS of the files; None if the item does not say.
        bbox: West, south, east, north in degrees.
        cloud_cover: Per cent by the item; None if it does not say.
        assets: Files by band name, `SCL` and `cloud`.
        product: Address of the product metadata (XML); None if the item has none.
        declared_offset: Offset to add to DN by the first band of the item: often wrong, so it is compared and not
            simply followed.
        offset_applied: Whether the item says that the provider has added the offset to the pixels; None if it does not
            say.
    """

    id: str
    collection: str
    provider: str
    time: str
    platform: str
    tile: str
    orbit: int
    datatake: str
    baseline: str
    generated: str
    crs: str | None
    bbox: Bounds
    cloud_cover: float | None
    assets: dict[str, Asset]
    product: str | None = None
    declared_offset: int | None = None
    offset_applied: bool | None = None

    @property
    def acquisition(self) -> tuple[str, str, int, str]:
        """Equal for twins, the same ground in the same pass processed twice, and for passes of other days."""
        return (self.platform, self.tile, self.orbit, self.datatake)

    @property
    def overpass(self) -> str:
        """Equal for all granules of one pass of one satellite."""
        return f"{self.platform} {self.time[:10]} R{self.orbit:03d}"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Scene that was found and left out.

    Attributes:
        id: Id of the item.
        reason: Why it was left out.
    """

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Unusable(Dropped):
    """An item that cannot be used; `scene` has what could be read of it, None if not even its tile is known."""

    scene: Scene | None


MASK_NODATA = 254
"""Value of mask layers where they end or have no data. Not 255, which many users' masks have for cloud."""
TWIN = "twin of "
"""Prefix of the reason of a twin."""
UNUSABLE, UNREADABLE = "unusable: ", "unreadable: "
"""Prefixes of reasons: an item lacks what is needed (found by the plan), a file cannot be read (by a build)."""


def lost(dropped: Iterable[Dropped]) -> list[Dropped]:
    """Return those that were left out because of a fault, not by choice."""
    return [one for one in dropped if one.reason.startswith((UNUSABLE, UNREADABLE))]


def reasons(dropped: Iterable[Dropped]) -> str:
    """Return the reasons of all in one line, those of equal wording together with the ids."""
    ids: dict[str, list[str]] = {}
    for one in dropped:
        shown = one.reason.removeprefix(UNUSABLE).removeprefix(UNREADABLE)
        ids.setdefault(shown.replace(f"item {one.id}: ", ""), []).append(one.id)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in ids.items())
