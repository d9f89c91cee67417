"""The countryside: parcels, what they are used for, and what becomes of them in the second epoch. Pure."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from shapely.geometry import Polygon

from sgdata.simulation import noise, shapes
from sgdata.types import Array

if TYPE_CHECKING:
    from sgdata.simulation.sketch import Rng, Settlement, Sketch

Cell = tuple[Polygon, list[Polygon]]


def voronoi(extent: Polygon, step: int, rng: Rng) -> list[Polygon]:
    """Cut an area into cells of about `step` metres."""
    west, south, east, north = extent.bounds
    # Jittered by less than half a step: Voronoi cells of such points are never slivers.
    grid = np.mgrid[west : east + step : step, south : north + step : step].reshape(2, -1).T
    points = grid + rng.uniform(-0.42, 0.42, grid.shape) * step
    cells = shapely.get_parts(shapely.voronoi_polygons(shapely.MultiPoint(points), extend_to=extent))
    return [part for cell in cells for part in shapes.polygons(cell.intersection(extent))]


def cut_parcels(sketch: Sketch, extent: Polygon, occupied: shapely.STRtree) -> list[Cell]:
    """Cut land into cells by country lanes, and each cell in a direction of its own into parcels: (cell, parcels)."""
    rng = sketch.rng(5)
    cells = []
    # One lane junction per 850 m.
    for cell in voronoi(extent, 850, rng):
        # Farms of one valley have fields of a size: the grain changes from cell to cell, not from field to field.
        target = rng.choice([14_000, 24_000, 36_000, 55_000])
        parcels = []
        for land in shapes.subtract(cell, occupied):
            new_parcels, cuts = shapes.subdivide(land, target, rng, jitter=0.2)
            parcels += new_parcels
            for depth, line in cuts:
                if depth < 2 or rng.random() < 0.06:
                    kind = "unclassified" if depth == 0 and rng.random() < 0.6 else "track"
                    sketch.draw(kind, line, rng, hidden=0.05)
        cells.append((cell, parcels))
    return cells


def _affinities(
    sketch: Sketch, middles: Array, city: Settlement, villages: list[Settlement], water: list[Polygon]
) -> dict[str, Array]:
    """Score the parcels for each use: (N,) scores, comparable within a use only."""
    x, y = middles.T
    points = shapely.points(middles)
    # Distance scales: 250 m to water, the city radius, 400 m to a village.
    shore = shapely.distance(points, shapely.union_all(water)) / 250
    town = np.hypot(x - city.x, y - city.y) / city.radius
    homes = np.array([(v.x, v.y) for v in villages])
    village = np.min(np.hypot(x[:, None] - homes[:, 0], y[:, None] - homes[:, 1]), axis=1) / 400
    seed = sketch.scenario.seed * 7919

    def wave(number: int, cell_m: float) -> Array:
        return noise.at(seed + number, x, y, cell_m)

    return {
        # Rare and choosy uses come first: `countryside` fills quotas in this order from what is left.
        "wetland": 1.0 * wave(1, 700) - np.minimum(shore, 6),
        "golf": wave(2, 1500) - np.abs(town - 1.6) * 2,
        "sand": wave(3, 350) - 0.5 * np.minimum(shore, 6) + 0.5 * wave(33, 1500),
        "orchard": wave(4, 500) - village,
        "quarry": wave(5, 600) - 0.3 * np.minimum(shore, 4),
        "works_site": wave(6, 400) - np.abs(town - 1.15) * 3,
        "housing": 0.9 * wave(12, 260) - np.minimum(4 * np.abs(town - 1.0), 1.1 * np.maximum(village - 0.6, 0) + 0.3),
        "scrub": 1.0 * wave(7, 300) + 0.5 * wave(9, 1500),
        "forest": 0.9 * wave(8, 1900) + 0.7 * wave(9, 620) + 0.35 * wave(13, 180) + 0.3 * np.minimum(village, 3),
        "pasture": 0.8 * wave(10, 800) + 0.5 * wave(14, 230) - 0.35 * np.minimum(shore, 4),
    }


# Share of the whole area that each use takes, in this order; the rest of the countryside is arable. No statistic of
# a real place: every class must occur often enough in one small city to be learnt and tested.
QUOTAS = {
    "wetland": 0.016, "golf": 0.012, "sand": 0.008, "orchard": 0.022, "quarry": 0.009, "works_site": 0.005,
    "housing": 0.035, "scrub": 0.035, "forest": 0.24, "pasture": 0.13,
}  # fmt: skip
NATURAL = ("forest", "wetland", "scrub", "sand")


def draw_countryside(
    sketch: Sketch, cells: list[Cell], city: Settlement, villages: list[Settlement], water: list[Polygon]
) -> None:
    """Give every parcel a use by its affinities until the quota is filled, and draw the uses."""
    rng = sketch.rng(6)
    geometries = np.array([parcel for _, parcels in cells for parcel in parcels], object)
    cell = np.repeat(np.arange(len(cells)), [len(parcels) for _, parcels in cells])
    middles = shapely.get_coordinates(shapely.centroid(geometries))
    # Quotas count the area alone, not its margin.
    area_box = shapely.box(*sketch.scenario.area.bounds)
    areas = shapely.area(geometries) * shapely.contains_xy(area_box, middles)
    area_m2 = area_box.area
    use = np.full(len(geometries), "arable", dtype="<U12")
    for name, score in _affinities(sketch, middles, city, villages, water).items():
        # Stable: equal scores keep the order of the parcels on every platform.
        order = np.argsort(-np.where(use == "arable", score, -np.inf), kind="stable")
        filled = np.cumsum(areas[order])
        use[order[: int(np.searchsorted(filled, QUOTAS[name] * area_m2)) + 1]] = name
    same_use = {name: shapely.STRtree(geometries[use == name]) for name in NATURAL}
    for number in np.unique(cell):
        for name in np.unique(use[cell == number]):
            use_parcels = list(geometries[(cell == number) & (use == name)])
            # Woods and wetlands grow across field boundaries; what people lay out ends at them.
            if name in NATURAL:
                draw_natural(sketch, str(name), use_parcels, same_use[str(name)], cells[number][0], rng)
            else:
                _draw_use(sketch, str(name), use_parcels, rng)


def draw_natural(
    sketch: Sketch, use: str, parcels: list[Polygon], same_use: shapely.STRtree, cell: Polygon, rng: Rng
) -> None:
    """Draw a natural cover in one cell, with rounded corners that continue across cells."""
    near = np.unique(same_use.query(parcels, "dwithin", 60)[1])
    nearby = shapely.union_all(same_use.geometries[near])
    # A closing, then an opening: gaps of 60 m fill before thin necks and slits go, and every corner is round.
    smooth = nearby.buffer(30).buffer(-60).buffer(30).simplify(2)
    clipped = [
        piece for polygon in shapes.polygons(smooth, 1000) for piece in shapes.polygons(polygon.intersection(cell))
    ]
    sketch.add(use, clipped, rng, hidden=0.08)
    if use == "forest":
        sketch.add("stand", parcels, rng)


def draw_copses(sketch: Sketch, extent: Polygon, occupied: shapely.STRtree) -> None:
    """Scatter groves, thickets and ponds over the fields; OpenStreetMap lacks a third of them."""
    rng = sketch.rng(8)
    west, south, east, north = extent.bounds
    # Seven in a km2, most below a tenth of a hectare: the small things in which labels and pixels disagree.
    for _ in range(round(extent.area / 1e6 * 7)):
        x, y, r = rng.uniform(west, east), rng.uniform(south, north), 14 + rng.exponential(16)
        kind = str(rng.choice(["copse", "copse", "scrub", "lake"], p=[0.4, 0.3, 0.25, 0.05]))
        shape = shapes.blob(x, y, r, rng, rough=0.3, stretch=rng.uniform(1, 4))
        if not len(occupied.query(shape, "intersects")):
            sketch.add(kind, [shape], rng, hidden=0.35)


def _draw_use(sketch: Sketch, use: str, parcels: list[Polygon], rng: Rng) -> None:
    """Draw the parcels of one cell that share a use."""
    if use == "golf":
        sketch.add("golf", shapes.polygons(shapely.union_all(parcels)), rng)
    elif use == "housing":
        for parcel in parcels:
            draw_housing(sketch, parcel, rng)
    # Half of the fields are mapped as one farmland over several crops, as they mostly are.
    elif use == "arable" and rng.random() < 0.5:
        sketch.add("arable", shapes.polygons(shapely.union_all(parcels)), rng, hidden=0.1)
        sketch.add("crop", parcels, rng)
    else:
        sketch.add({"works_site": "building_site"}.get(use, use), parcels, rng, hidden=0.1)


def draw_housing(sketch: Sketch, parcel: Polygon, rng: Rng) -> None:
    """Draw a housing estate: blocks of one look between streets."""
    sketch.add("residential", [parcel], rng, hidden=0.1)
    blocks, cuts = shapes.subdivide(parcel, 8000, rng)
    sketch.add(str(rng.choice(["suburb", "villas", "slabs"], p=[0.6, 0.2, 0.2])), blocks, rng)
    for _, line in cuts:
        sketch.draw("residential", line, rng, hidden=0.05)


# (before, after, share of the area): more than happens anywhere in two years, or a small city would have none
# to find.
CHANGES = (
    ("crop", "new_houses", 0.006), ("arable", "new_works", 0.004),
    ("stand", "clearcut", 0.008), ("crop", "new_quarry", 0.004),
)  # fmt: skip


def draw_changes(sketch: Sketch) -> None:
    """Add the areas of epoch 2: new buildings on fields near towns, felled forest, a quarry."""
    rng = sketch.rng(7)
    area = shapely.box(*sketch.scenario.area.bounds)
    # Whole changes only: one that the edge cuts off would be scored by a part of it.
    inside = area.buffer(-150)
    shapely.prepare(inside)
    built = shapely.STRtree([a.geometry for a in sketch.areas if a.kind == "residential"])
    for old, new, share in CHANGES:
        outlines: list[Any] = [a.geometry for a in sketch.areas if a.kind == old and 4000 < a.geometry.area < 90_000]
        outlines = [geometry for geometry in outlines if inside.contains(geometry)]
        rng.shuffle(outlines)
        if new in ("new_houses", "new_works"):
            outlines = [geometry for geometry in outlines if len(built.query(geometry, "dwithin", 150))]
        before = np.cumsum([0.0, *(geometry.area for geometry in outlines)])[:-1]
        sketch.add(new, list(compress(outlines, before < share * area.area)), rng, epoch=2)
