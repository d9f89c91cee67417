"""The countryside of the context ground: a mosaic of small cells, each with one use and its own arrangement. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely
from shapely.geometry import Polygon

from sgdata.simulation import countryside, noise, shapes, town

if TYPE_CHECKING:
    from sgdata.simulation.sketch import Rng, Sketch

CELL_M = 390
# Share of all cells; the rest is arable. Small cells, many of each use: blocks for training and for test have them all.
QUOTAS = {
    "wetland": 0.06, "sand": 0.055, "quarry": 0.055, "green": 0.055, "orchard": 0.08, "works": 0.05, "housing": 0.05,
    "scrub": 0.08, "forest": 0.16, "pasture": 0.12,
}  # fmt: skip
GREEN = ("golf", "golf", "park", "park", "allotments", "cemetery", "sports")


def draw_countryside(sketch: Sketch, extent: Polygon, occupied: shapely.STRtree, water: list[Polygon]) -> None:
    """Cut land into cells, deal them to the uses, and draw each use."""
    rng = sketch.rng(5)
    cells = [(cell, shapes.subtract(cell, occupied)) for cell in countryside.voronoi(extent, CELL_M, rng)]
    cells = [(cell, land) for cell, land in cells if land]
    uses = _assign_uses(sketch, [cell for cell, _ in cells], water)
    same_use = {
        name: shapely.STRtree(
            [piece for (_, land), cell_use in zip(cells, uses, strict=True) if cell_use == name for piece in land]
        )
        for name in countryside.NATURAL
    }
    for (cell, land), name in zip(cells, uses, strict=True):
        if name in countryside.NATURAL:
            countryside.draw_natural(sketch, name, land, same_use[name], cell, rng)
        else:
            for piece in land:
                _draw_use(sketch, name, piece, rng)


def _assign_uses(sketch: Sketch, cells: list[Polygon], water: list[Polygon]) -> list[str]:
    """Deal the cells to the uses: wetland and gravel near water, woods together, the others anywhere."""
    x, y = shapely.get_coordinates(shapely.centroid(cells)).T
    shore = shapely.distance(shapely.points(x, y), shapely.union_all(water)) / 250
    in_area = shapely.contains_xy(shapely.box(*sketch.scenario.area.bounds), x, y)
    use = np.full(len(cells), "arable", "<U8")
    for number, (name, quota) in enumerate(QUOTAS.items()):
        score = noise.at(sketch.scenario.seed * 7919 + 40 + number, x, y, 1500 if name == "forest" else 150)
        if name in ("wetland", "sand"):
            score = score - np.minimum(shore, 4)
        # Stable: equal scores keep the order of the cells on every platform.
        order = np.argsort(-np.where(use == "arable", score, -np.inf), kind="stable")
        use[order[: int(np.searchsorted(np.cumsum(in_area[order]), quota * in_area.sum())) + 1]] = name
    return [str(name) for name in use]


def _draw_use(sketch: Sketch, use: str, land: Polygon, rng: Rng) -> None:
    """Draw the land of one cell."""
    if use == "arable":
        _draw_fields(sketch, land, rng)
    elif use == "pasture":
        _draw_pastures(sketch, land, rng)
    elif use == "quarry":
        for piece in shapes.subdivide(land, 70_000, rng)[0]:
            _draw_pits(sketch, piece, rng)
    elif use == "works":
        town.draw_works(sketch, land, rng)
    elif use == "housing":
        countryside.draw_housing(sketch, land, rng)
    elif use == "orchard":
        sketch.add("orchard", shapes.subdivide(land, 16_000, rng)[0], rng, hidden=0.05)
    else:
        for piece in shapes.subdivide(land, 60_000, rng)[0]:
            sketch.add(str(rng.choice(GREEN)), [piece], rng, hidden=0.05)


def _draw_fields(sketch: Sketch, land: Polygon, rng: Rng) -> None:
    """Draw fields as strips side by side, mapped as one farmland, with a track between them."""
    sketch.add("arable", [land], rng, hidden=0.05)
    blocks, cuts = shapes.subdivide(land, 60_000, rng)
    for _, line in cuts[:1]:
        sketch.draw("track", line, rng, hidden=0.05)
    width = rng.choice([35, 50, 70])
    for block in blocks:
        sketch.add("crop", shapes.strips(block, width, rng), rng)


def _draw_pastures(sketch: Sketch, land: Polygon, rng: Rng) -> None:
    """Draw wide pastures, most of them with hedges on their bounds."""
    for piece in shapes.subdivide(land, 30_000, rng, jitter=0.25)[0]:
        sketch.add("pasture", [piece], rng, hidden=0.05)
        if rng.random() < 0.6:
            sketch.add("hedge", shapes.polygons(piece.difference(piece.buffer(-9))), rng)


def _draw_pits(sketch: Sketch, land: Polygon, rng: Rng) -> None:
    """Draw a pit with benches and walls that follow its outline, and water at the bottom."""
    # Two pixels each: narrower benches would be one colour in the picture.
    for pit in shapes.polygons(land.buffer(-25).buffer(15), 2000):
        sketch.add("quarry", [pit], rng, hidden=0.05)
        for inset, kind in ((24, "wall"), (48, "bench"), (72, "wall"), (96, "pit_pond")):
            sketch.add(kind, shapes.polygons(pit.buffer(-inset)), rng)


def draw_streams(sketch: Sketch, extent: Polygon, avoid: list[Polygon]) -> list[Polygon]:
    """Draw narrow streams across the land, in pieces, and return them."""
    rng = sketch.rng(9)
    west, south, east, north = extent.bounds
    avoided, streams = shapely.union_all(avoid), []
    for _ in range(max(3, round(sketch.scenario.size_km * 0.8))):
        start, end = (rng.uniform(west, east), south), (rng.uniform(west, east), north)
        if rng.random() < 0.5:
            start, end = (west, rng.uniform(south, north)), (east, rng.uniform(south, north))
        bed = shapes.winding_line(start, end, rng, sway=260).buffer(rng.uniform(7, 11)).difference(avoided)
        streams += [piece for part in shapes.polygons(bed) for piece in shapes.subdivide(part, 12_000, rng)[0]]
    sketch.add("stream", streams, rng, hidden=0.05)
    return streams
