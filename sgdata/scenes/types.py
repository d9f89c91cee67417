"""Types of scenes: one file of a scene, one granule, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass

from sgdata.types import Bounds


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file of a scene, with the metadata of its item (None if absent).

    `href` is relative to the catalogue if that is a folder, so that a lock does not depend on the machine.
    """

    href: str
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    shape: tuple[int, int] | None = None
    dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One granule of one acquisition; `time` is UTC to the second, `assets` are by band name, `SCL`, `cloud`."""

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
    """Href of the product metadata (XML), if the item has them."""
    declared_offset: int | None = None
    """Offset to add to DN by the item: often wrong, so it is compared and not simply followed."""

    @property
    def acquisition(self) -> tuple[str, str, str, int, str]:
        """Equal for twins: the same ground in the same pass, processed twice."""
        return (self.platform, self.time, self.tile, self.orbit, self.datatake)

    @property
    def overpass(self) -> str:
        """Equal for all granules of one pass of one satellite."""
        return f"{self.platform} {self.time[:10]} R{self.orbit:03d}"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A scene that was found and left out, and why."""

    id: str
    reason: str
