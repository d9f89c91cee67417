"""Towns and villages: quarters between the main roads, blocks between the streets. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import shapely
from shapely.geometry import LineString, Polygon

from sgdata.simulation import shapes

if TYPE_CHECKING:
    from sgdata.simulation.sketch import Rng, Settlement, Sketch


def _faces(outline: Polygon, roads: list[LineString]) -> list[Polygon]:
    """Return the parts of an outline between the roads."""
    inside = [part for road in roads if road.intersects(outline) for part in shapes.lines(road.intersection(outline))]
    # Noded first: polygonize joins lines only where they share an end.
    network = shapely.node(shapely.union_all([LineString(outline.exterior.coords), *inside]))
    return [p for p in shapely.get_parts(shapely.polygonize([network])) if outline.contains(p.representative_point())]


def draw_city(sketch: Sketch, city: Settlement, roads: list[LineString], wet: shapely.STRtree) -> None:
    """Build quarters between the main roads, each with a use, and blocks between streets inside them."""
    rng = sketch.rng(4)
    for face in _faces(city.outline, roads):
        # Water is taken out before the quarters are cut, or a street would run along the river bed.
        for piece in shapes.subtract(face, wet):
            middle = piece.centroid
            axis = math.atan2(middle.y - city.y, middle.x - city.x)
            quarters, cuts = shapes.subdivide(piece, 90_000, rng, axis=axis)
            for _, line in cuts:
                sketch.draw("residential" if rng.random() < 0.6 else "unclassified", line, rng, hidden=0.02)
            for quarter in quarters:
                _draw_quarter(sketch, city, quarter, rng)


def _draw_quarter(sketch: Sketch, city: Settlement, quarter: Polygon, rng: Rng) -> None:
    east, north = quarter.centroid.x - city.x, quarter.centroid.y - city.y
    depth = math.hypot(east, north) / city.radius
    # Streets run toward the middle or around it, as old towns grow.
    axis = math.atan2(north, east)
    # The edge of a town is ragged: beyond 0.6 radii more and more quarters are still, or again, land.
    if rng.random() < (depth - 0.6) * 1.1:
        _draw_fringe(sketch, quarter, rng)
        return
    # Industry is together, in the south-east: down the prevailing west wind.
    if depth > 0.38 and math.cos(math.atan2(east, north) - 2.2) > 0.8:
        draw_works(sketch, quarter, rng, axis=axis)
        return
    use = rng.random()
    if use < 0.09 and depth > 0.2:
        sketch.add(str(rng.choice(["park", "park", "cemetery", "sports", "allotments"])), [quarter], rng, hidden=0.05)
        return
    if use < 0.15:
        sketch.add(str(rng.choice(["campus", "retail", "hospital"])), [quarter], rng, hidden=0.05)
    else:
        sketch.add("residential", [quarter], rng, hidden=0.08)
    style = "core" if depth < 0.36 else str(rng.choice(["suburb", "suburb", "villas", "slabs"]))
    target = 6000 if style == "core" else rng.uniform(7500, 12500)
    blocks, cuts = shapes.subdivide(quarter, target, rng, axis=axis)
    for level, line in cuts:
        # The first cuts of a halving are the long ones: through streets; the deep ones serve single plots.
        kind = "living_street" if rng.random() < 0.12 else "service" if level > 3 else "residential"
        sketch.draw("pedestrian" if style == "core" and rng.random() < 0.1 else kind, line, rng, hidden=0.04)
    for block in blocks:
        _draw_block(sketch, block, style, rng)


def _draw_fringe(sketch: Sketch, quarter: Polygon, rng: Rng) -> None:
    """Draw a quarter that is not built up: fields, scrub, forest or a building site."""
    uses = ["arable", "arable", "pasture", "scrub", "forest", "building_site"]
    use = str(rng.choice(uses, p=[0.3, 0.2, 0.25, 0.1, 0.12, 0.03]))
    sketch.add(use, shapes.subdivide(quarter, 25_000, rng)[0], rng, hidden=0.1)


def _draw_block(sketch: Sketch, block: Polygon, style: str, rng: Rng) -> None:
    chance = rng.random()
    if chance < 0.05:
        sketch.add(str(rng.choice(["garden", "playground", "pitch"])), [block], rng, hidden=0.1)
    elif chance < 0.08:
        sketch.add(str(rng.choice(["school", "parking", "church"])), [block], rng, hidden=0.1)
    elif style == "core":
        sketch.add("court", [block], rng)
        # Perimeter blocks: 7 m of pavement, houses 17 m deep, a court inside; polygons with a hole, which
        # OpenStreetMap can only hold as multipolygons.
        sketch.add("perimeter", shapes.polygons(block.buffer(-7).difference(block.buffer(-24))), rng)
    else:
        sketch.add(style, [block], rng)


def draw_works(sketch: Sketch, quarter: Polygon, rng: Rng, *, axis: float | None = None) -> None:
    """Draw an industrial quarter: yards, service roads, and halls of which every third is white."""
    sketch.add(str(rng.choice(["industrial", "industrial", "commercial"])), [quarter], rng, hidden=0.06)
    blocks, cuts = shapes.subdivide(quarter, 26_000, rng, axis=axis)
    for _, line in cuts:
        sketch.draw("service", line, rng, hidden=0.04)
    for block in blocks:
        for plot in shapes.subdivide(block, 9000, rng, axis=axis)[0]:
            hall = plot.buffer(-16, join_style="mitre")
            if rng.random() < 0.75:
                sketch.add("hall", shapes.polygons(hall, 600), rng, hidden=0.3)


def draw_village_streets(sketch: Sketch, village: Settlement, roads: list[LineString], wet: shapely.STRtree) -> None:
    """Draw the streets and buildings of a village."""
    # A random stream per village, seeded by its position, so that an added village does not change the others.
    rng = sketch.rng(100_000 + int(village.x) % 1000 * 1000 + int(village.y) % 1000)
    for face in _faces(village.outline, roads):
        for part in shapes.subtract(face, wet):
            sketch.add("residential", [part], rng, hidden=0.1)
            blocks, cuts = shapes.subdivide(part, 8000, rng)
            for _, line in cuts:
                sketch.draw("residential", line, rng, hidden=0.05)
            for block in blocks:
                special = rng.random() < 0.16
                looks = ["farmyard", "farmyard", "church", "pitch"] if special else ["suburb", "suburb", "villas"]
                sketch.add(str(rng.choice(looks)), [block], rng, hidden=0.08)
