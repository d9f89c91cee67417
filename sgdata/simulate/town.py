"""Towns and villages: quarters between the main roads, blocks between the streets. Pure."""

from __future__ import annotations

import math

import shapely
from shapely.geometry import LineString, Polygon

from sgdata.simulate import shapes
from sgdata.simulate.sketch import Rng, Settlement, Sketch


def _faces(outline: Polygon, roads: list[LineString]) -> list[Polygon]:
    """The parts into which the roads cut an outline."""
    inside = [part for road in roads if road.intersects(outline) for part in shapes.lines(road.intersection(outline))]
    network = shapely.node(shapely.union_all([LineString(outline.exterior.coords), *inside]))
    return [p for p in shapely.get_parts(shapely.polygonize([network])) if outline.contains(p.representative_point())]


def town(sketch: Sketch, city: Settlement, roads: list[LineString], wet: shapely.STRtree) -> None:
    """Quarters between the main roads, each with a use; blocks between streets inside them."""
    rng = sketch.rng(4)
    for face in _faces(city.outline, roads):
        for part in shapes.minus(face, wet):
            middle = part.centroid
            axis = math.atan2(middle.y - city.y, middle.x - city.x)
            quarters, cuts = shapes.subdivide(part, 90_000, rng, axis=axis)
            for _, line in cuts:
                sketch.draw("residential" if rng.random() < 0.6 else "unclassified", line, rng, hidden=0.02)
            for quarter in quarters:
                _quarter(sketch, city, quarter, rng)


def _quarter(sketch: Sketch, city: Settlement, quarter: Polygon, rng: Rng) -> None:
    middle = quarter.centroid
    depth = math.dist((middle.x, middle.y), (city.x, city.y)) / city.radius
    bearing = math.atan2(middle.x - city.x, middle.y - city.y)
    axis = math.atan2(middle.y - city.y, middle.x - city.x)
    if rng.random() < (depth - 0.6) * 1.1:
        _fringe(sketch, quarter, rng)
        return
    if depth > 0.38 and math.cos(bearing - 2.2) > 0.8:
        _works(sketch, quarter, rng, axis=axis)
        return
    use = rng.random()
    if use < 0.09 and depth > 0.2:
        sketch.add(str(rng.choice(["park", "park", "cemetery", "sports", "allotments"])), [quarter], rng, hidden=0.05)
        return
    if use < 0.15:
        sketch.add(str(rng.choice(["campus", "retail", "hospital"])), [quarter], rng, hidden=0.05)
    else:
        sketch.add("residential", [quarter], rng, hidden=0.08)
    look = "core" if depth < 0.36 else str(rng.choice(["suburb", "suburb", "villas", "slabs"]))
    target = 6000 if look == "core" else rng.uniform(7500, 12500)
    blocks, cuts = shapes.subdivide(quarter, target, rng, axis=axis)
    for level, line in cuts:
        kind = "living_street" if rng.random() < 0.12 else "service" if level > 3 else "residential"
        sketch.draw("pedestrian" if look == "core" and rng.random() < 0.1 else kind, line, rng, hidden=0.04)
    for block in blocks:
        _block(sketch, block, look, rng)


def _fringe(sketch: Sketch, quarter: Polygon, rng: Rng) -> None:
    """A quarter that the town has not reached yet, or has left alone."""
    use = str(
        rng.choice(
            ["arable", "arable", "pasture", "scrub", "forest", "building_site"], p=[0.3, 0.2, 0.25, 0.1, 0.12, 0.03]
        )
    )
    sketch.add(use, shapes.subdivide(quarter, 25_000, rng)[0], rng, hidden=0.1)


def _block(sketch: Sketch, block: Polygon, look: str, rng: Rng) -> None:
    chance = rng.random()
    if chance < 0.05:
        sketch.add(str(rng.choice(["garden", "playground", "pitch"])), [block], rng, hidden=0.1)
    elif chance < 0.08:
        sketch.add(str(rng.choice(["school", "parking", "church"])), [block], rng, hidden=0.1)
    elif look == "core":
        ring = block.buffer(-7).difference(block.buffer(-24))
        sketch.add("court", [block], rng)
        sketch.add("perimeter", shapes.polygons(ring), rng)
    else:
        sketch.add(look, [block], rng)


def _works(sketch: Sketch, quarter: Polygon, rng: Rng, *, axis: float) -> None:
    """An industrial quarter: yards, service roads, halls of which every third is white."""
    sketch.add(str(rng.choice(["industrial", "industrial", "commercial"])), [quarter], rng, hidden=0.06)
    blocks, cuts = shapes.subdivide(quarter, 26_000, rng, axis=axis)
    for _, line in cuts:
        sketch.draw("service", line, rng, hidden=0.04)
    for block in blocks:
        for plot in shapes.subdivide(block, 9000, rng, axis=axis)[0]:
            hall = plot.buffer(-16, join_style="mitre")
            if rng.random() < 0.75:
                sketch.add("hall", shapes.polygons(hall, 600), rng, hidden=0.3)


def village_streets(sketch: Sketch, village: Settlement, roads: list[LineString], wet: shapely.STRtree) -> None:
    rng = sketch.rng(100_000 + int(village.x) % 1000 * 1000 + int(village.y) % 1000)
    for face in _faces(village.outline, roads):
        for part in shapes.minus(face, wet):
            sketch.add("residential", [part], rng, hidden=0.1)
            blocks, cuts = shapes.subdivide(part, 8000, rng)
            for _, line in cuts:
                sketch.draw("residential", line, rng, hidden=0.05)
            for block in blocks:
                if rng.random() < 0.16:
                    sketch.add(str(rng.choice(["farmyard", "farmyard", "church", "pitch"])), [block], rng, hidden=0.08)
                else:
                    sketch.add(str(rng.choice(["suburb", "suburb", "villas"])), [block], rng)
