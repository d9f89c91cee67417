"""What areas and lines there are: land cover class, OpenStreetMap tags and looks of each kind, from the fact tables.

Classes are the ids of the label space `segmunich-osm`; tags are those of the tag table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

Tags = dict[str, str]
# Half a pixel: a narrower strip would miss the middle of most pixels on its way, and break up when it is burnt in.
LEAST_HALF_WIDTH_M = 5.0


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Label (None: a detail that keeps the class below it), tag sets and covers to draw from.

    `change` is the value in `truth/change.tif`: 1 new buildings, 2 cleared forest, 3 dug quarry, 0 was there before.
    """

    label: int | None
    tags: tuple[Tags, ...]
    covers: tuple[str, ...]
    change: int


@dataclass(frozen=True, kw_only=True)
class Road:
    """A kind of line: tags, real width, lanes, label (None: too soft to count), cover, rank on top."""

    tags: Tags
    width_m: float
    lanes: int
    label: int | None
    cover: str
    rank: int


def _tags(text: str) -> tuple[Tags, ...]:
    """`key=value` joined by `&`, alternatives by `|`."""
    # Alternatives repeated in the table are weights: two of three orchards are orchards, one is a vineyard.
    return tuple(dict(pair.split("=") for pair in one.split("&")) for one in text.split("|")) if text else ()


# The table, not this file, is what a mapper would check: one line per kind, in the words of the OpenStreetMap wiki.
@cache
def kinds() -> dict[str, Kind]:
    """Kinds of area by name."""
    # Imported here: the shapes of a place need no catalogue, and a cached table is read once per process anyway.
    from sgdata import catalog

    return {
        row["kind"]: Kind(
            label=int(row["label"]) if row["label"] else None, tags=_tags(row["tags"]),
            covers=tuple(row["covers"].split()), change=int(row["change"] or 0),
        )
        for row in catalog.table("simulated_kinds")
    }  # fmt: skip


@cache
def roads() -> dict[str, Road]:
    """Kinds of line by name."""
    from sgdata import catalog

    return {
        row["kind"]: Road(
            tags=_tags(row["tags"])[0], label=int(row["label"]) if row["label"] else None, cover=row["cover"],
            width_m=float(row["width_m"]), lanes=int(row["lanes"]), rank=int(row["rank"]),
        )
        for row in catalog.table("simulated_roads")
    }  # fmt: skip
