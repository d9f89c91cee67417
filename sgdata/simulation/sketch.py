"""Types of the simulated ground and the lists that collect them.

Classes are the ids of the label space `segmunich-osm`; tags are those of the tag table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from shapely.geometry import LineString, Polygon

from sgdata import package_data

if TYPE_CHECKING:
    from sgdata.simulation.scenarios import Scenario

Rng = np.random.Generator
Tags = dict[str, str]
# Half a pixel: a narrower strip would miss the middle of most pixels on its way, and break up when it is burnt in.
LEAST_HALF_WIDTH_M = 5.0


@dataclass(frozen=True, kw_only=True)
class AreaKind:
    """Label (None: a detail that keeps the class below it), tag sets and covers to draw from.

    `covers` are those of the plain ground, `arrangements` those of the context ground. `change` is the value in
    `truth/change.tif`: 1 new buildings, 2 cleared forest, 3 dug quarry, 0 was there before.
    """

    label: int | None
    tags: tuple[Tags, ...]
    covers: tuple[str, ...]
    arrangements: tuple[str, ...]
    change: int


@dataclass(frozen=True, kw_only=True)
class LineKind:
    """A kind of line: tags, real width, lanes, label (None: too soft to count), cover, rank on top."""

    tags: Tags
    width_m: float
    lanes: int
    label: int | None
    cover: str
    rank: int


def _tags(text: str) -> tuple[Tags, ...]:
    """Parse tags: `key=value` joined by `&`, alternatives by `|`."""
    # Alternatives repeated in the table are weights: two of three orchards are orchards, one is a vineyard.
    return (
        tuple(dict(pair.split("=") for pair in alternative.split("&")) for alternative in text.split("|"))
        if text
        else ()
    )


# The table, not this file, is what a mapper would check: one line per kind, in the words of the OpenStreetMap wiki.
@cache
def area_kinds() -> dict[str, AreaKind]:
    """Return the kinds of area by name."""
    return {
        row["kind"]: AreaKind(
            label=int(row["label"]) if row["label"] else None, tags=_tags(row["tags"]),
            covers=tuple(row["covers"].split()), arrangements=tuple(row["arrangements"].split()),
            change=int(row["change"] or 0),
        )
        for row in package_data.table("simulated_kinds")
    }  # fmt: skip


@cache
def line_kinds() -> dict[str, LineKind]:
    """Return the kinds of line by name."""
    return {
        row["kind"]: LineKind(
            tags=_tags(row["tags"])[0], label=int(row["label"]) if row["label"] else None, cover=row["cover"],
            width_m=float(row["width_m"]), lanes=int(row["lanes"]), rank=int(row["rank"]),
        )
        for row in package_data.table("simulated_roads")
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GroundArea:
    """A polygon of ground. `variant` draws its look; `epoch` 2 means that it came after the first epoch."""

    geometry: Polygon
    kind: str
    variant: int
    exported: bool = True
    epoch: int = 1


@dataclass(frozen=True, kw_only=True)
class GroundLine:
    """A street, railway or watercourse. Tunnels are exported but not visible."""

    geometry: LineString
    kind: str
    tags: dict[str, str]
    variant: int
    exported: bool = True
    visible: bool = True


@dataclass(frozen=True, kw_only=True)
class Settlement:
    """A town or village: middle, radius and outline."""

    x: float
    y: float
    radius: float
    outline: Polygon


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """Areas and lines of the simulated ground, in EPSG:32632 metres."""

    areas: tuple[GroundArea, ...]
    lines: tuple[GroundLine, ...]
    ground: str = "plain"


class Sketch:
    """Areas and lines while a landscape is drawn, with one random stream per stage."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.areas: list[GroundArea] = []
        self.lines: list[GroundLine] = []

    # One stream per stage: more draws in one stage leave every later stage as it was. Philox is counter-based, so that
    # the pair (seed, stage) is a key and needs no warm-up.
    def rng(self, stage: int) -> Rng:
        """Return the random generator of a stage."""
        return np.random.Generator(np.random.Philox(key=[self.scenario.seed, stage]))

    def add(self, kind: str, polygons: Sequence[Polygon], rng: Rng, *, hidden: float = 0.0, epoch: int = 1) -> None:
        """Add areas of a kind; a share `hidden` of them is not in OpenStreetMap."""
        for polygon in polygons:
            # The order of draws is part of the format: `and` spares the draw where a kind has no tags.
            exported = bool(area_kinds()[kind].tags) and epoch == 1 and rng.random() >= hidden
            variant = int(rng.integers(2**31))
            self.areas.append(GroundArea(geometry=polygon, kind=kind, variant=variant, exported=exported, epoch=epoch))

    def draw(self, kind: str, path: LineString, rng: Rng, *, hidden: float = 0.0, **tags: str) -> None:
        """Add a line of a kind."""
        variant = int(rng.integers(2**31))
        road = line_kinds()[kind]
        # Mappers write a width or a lane count on some streets only; the painter must cope with either and with none.
        if road.width_m and rng.random() < 0.35:
            tags["width"] = f"{road.width_m:g}"
        elif road.lanes and rng.random() < 0.5:
            tags["lanes"] = str(road.lanes)
        # Last, so that `hidden` alone never changes how a line looks.
        exported = rng.random() >= hidden
        self.lines.append(GroundLine(geometry=path, kind=kind, tags=tags, variant=variant, exported=exported))
