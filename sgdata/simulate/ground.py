"""The simulated place as vectors: a river city, its villages and their countryside. Pure.

One list of areas and one of lines is everything: the true land cover is painted from it, and the same list, less
some omissions, is what OpenStreetMap knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from shapely.geometry import LineString, Point, Polygon, box

from sgdata.simulate import noise, shapes
from sgdata.simulate.kinds import KINDS, ROADS
from sgdata.simulate.plan import Plan

Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Area:
    """A polygon of ground. `variant` draws its look; `epoch` 2 means that it came after the first epoch."""

    geometry: Polygon
    kind: str
    variant: int
    exported: bool = True
    epoch: int = 1


@dataclass(frozen=True, kw_only=True)
class Line:
    """A street, railway or watercourse. Tunnels are exported but not seen."""

    geometry: LineString
    kind: str
    tags: dict[str, str]
    variant: int
    exported: bool = True
    seen: bool = True


@dataclass(frozen=True, kw_only=True)
class Settlement:
    """A town or village: middle, radius and outline."""

    x: float
    y: float
    radius: float
    outline: Polygon


@dataclass(frozen=True, kw_only=True)
class Place:
    """The whole of it, in EPSG:32632 metres."""

    areas: tuple[Area, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A piece of countryside before its use is known; `cell` is the group it was cut from."""

    geometry: Polygon
    cell: int
    bounds: Polygon


class Sketch:
    """The growing lists while a place is drawn, with one random stream per stage."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.areas: list[Area] = []
        self.lines: list[Line] = []

    def rng(self, stage: int) -> Rng:
        return np.random.Generator(np.random.Philox(key=[self.plan.seed, stage]))

    def add(self, kind: str, pieces: Sequence[Polygon], rng: Rng, *, hidden: float = 0.0, epoch: int = 1) -> None:
        """Areas of a kind; a share `hidden` of them is unknown to OpenStreetMap."""
        for piece in pieces:
            exported = bool(KINDS[kind].tags) and epoch == 1 and rng.random() >= hidden
            variant = int(rng.integers(2**31))
            self.areas.append(Area(geometry=piece, kind=kind, variant=variant, exported=exported, epoch=epoch))

    def draw(self, kind: str, path: LineString, rng: Rng, *, hidden: float = 0.0, **tags: str) -> None:
        """A line of a kind."""
        variant = int(rng.integers(2**31))
        road = ROADS[kind]
        if road.width_m and rng.random() < 0.35:
            tags["width"] = f"{road.width_m:g}"
        elif road.lanes and rng.random() < 0.5:
            tags["lanes"] = str(road.lanes)
        known = rng.random() >= hidden
        self.lines.append(Line(geometry=path, kind=kind, tags=tags, variant=variant, exported=known))


def build(plan: Plan) -> Place:
    """The place of a plan: same plan, same place."""
    sketch = Sketch(plan)
    west, south, east, north = plan.granule.bounds
    extent = box(west - 300, south - 300, east + 300, north + 300)
    city, villages = _settlements(sketch, extent)
    water = _waters(sketch, extent, city, villages)
    roads = _main_roads(sketch, extent, city, villages)
    wet = shapely.STRtree(water)
    _town(sketch, city, roads, wet)
    for village in villages:
        _village(sketch, village, roads, wet)
    settled = shapely.STRtree([*water, city.outline, *(v.outline for v in villages)])
    parcels = _parcels(sketch, extent, settled)
    _countryside(sketch, parcels, city, villages, water)
    _copses(sketch, extent, settled)
    sketch.areas.append(Area(geometry=extent, kind="verge", variant=1, exported=False))
    _changes(sketch)
    return _warped(sketch.areas, _crossings(sketch, water, city), plan.seed * 7919 + 500)


WARPS_M = ((45, 800), (26, 190), (6, 50))
"""(reach, cell): nothing that people or rivers drew is quite straight."""


def _warped(areas: list[Area], lines: list[Line], seed: int) -> Place:
    """The place with every corner moved by one smooth field, so that what touched still touches."""

    def moved(points: np.ndarray) -> np.ndarray:
        shift = np.zeros_like(points)
        for number, (reach, cell) in enumerate(WARPS_M):
            for axis in (0, 1):
                field = noise.at(seed + 2 * number + axis, points[:, 0], points[:, 1], cell)
                shift[:, axis] += reach * 0.5 * field
        return points + shift

    ground = np.array([a.geometry for a in areas] + [one.geometry for one in lines], object)
    bent = shapely.transform(shapely.segmentize(ground, 60), moved)
    whole = shapely.is_valid(bent)
    bent = np.where(whole, bent, shapely.buffer(bent, 0))
    kept = [replace(a, geometry=p) for a, shape in zip(areas, bent, strict=False) for p in shapes.polygons(shape, 60)]
    paths = [replace(one, geometry=path) for one, path in zip(lines, bent[len(areas) :], strict=True)]
    return Place(areas=tuple(kept), lines=tuple(paths))


# --- skeleton ------------------------------------------------------------------------------


def _settlements(sketch: Sketch, extent: Polygon) -> tuple[Settlement, list[Settlement]]:
    rng = sketch.rng(1)
    size = sketch.plan.size_km * 1000
    middle = sketch.plan.area.bounds
    x = (middle[0] + middle[2]) / 2 + rng.uniform(-0.06, 0.06) * size
    y = (middle[1] + middle[3]) / 2 + rng.uniform(-0.06, 0.06) * size
    radius = 0.2 * size
    city = Settlement(x=x, y=y, radius=radius, outline=shapes.blob(x, y, radius, rng, rough=0.22, stretch=1.15))
    count = max(2, round(sketch.plan.size_km**2 / 9))
    points = shapes.scattered(count, extent.buffer(-500), 1500, rng, [city.outline.buffer(600)])
    villages = []
    for point in points:
        r = rng.uniform(170, 380)
        outline = shapes.blob(point.x, point.y, r, rng, rough=0.3, stretch=rng.uniform(1, 2.2))
        villages.append(Settlement(x=point.x, y=point.y, radius=r, outline=outline))
    return city, villages


def _waters(sketch: Sketch, extent: Polygon, city: Settlement, villages: list[Settlement]) -> list[Polygon]:
    """River with gravel islands, lakes with islands, ponds; what they cover is taken out of the land."""
    rng = sketch.rng(2)
    size = sketch.plan.size_km
    west, south, east, north = extent.bounds
    x = city.x + 0.35 * city.radius
    start, bend = (x - 0.12 * size * 1000, south - 200), (x, city.y)
    end = (x + 0.15 * size * 1000, north + 200)
    upper = shapes.wander(start, bend, rng, sway=220)
    lower = shapes.wander(bend, end, rng, sway=220)
    course = LineString([*upper.coords, *list(lower.coords)[1:]])
    width = 22 + 0.5 * size
    river = course.buffer(width)
    for at in np.arange(300, course.length, 420):
        spot = course.interpolate(at + rng.uniform(-100, 100))
        river = river.union(shapes.blob(spot.x, spot.y, width * rng.uniform(0.9, 1.7), rng, stretch=1.6))
    bars = []
    for at in np.arange(200, course.length, 260):
        spot = course.interpolate(at + rng.uniform(-130, 130))
        aside = rng.choice([-1, 1]) * width * 0.9
        if noise.at(sketch.plan.seed + 77, np.array([spot.x]), np.array([spot.y]), 900)[0] > -0.2:
            bars.append(shapes.blob(spot.x + aside, spot.y, rng.uniform(12, 52), rng, stretch=2.5))
    river = river.difference(shapely.union_all(bars)).intersection(extent)
    sketch.add("shingle", [p for bar in bars for p in shapes.polygons(bar.intersection(extent))], rng)
    pieces = [p for part in shapes.polygons(river) for p in shapes.subdivide(part, 90_000, rng, axis=0.0)[0]]
    sketch.add("river", pieces, rng)
    closed = [v.outline for v in villages] + [city.outline, *pieces]
    lakes = []
    for point in shapes.scattered(max(2, round(size**2 / 14)), extent, 500, rng, closed):
        radius = rng.uniform(60, 150) * (1 + size / 20)
        lake = shapes.blob(point.x, point.y, radius, rng, rough=0.3, stretch=1.7)
        if radius > 130:
            lake = lake.difference(shapes.blob(point.x, point.y, radius * 0.18, rng))
        lakes += shapes.minus(lake, shapely.STRtree(closed))
    sketch.add("lake", lakes, rng)
    whole = [Polygon(lake.exterior) for lake in lakes]
    return [*pieces, *(p for bar in bars for p in shapes.polygons(bar)), *whole]


def _main_roads(sketch: Sketch, extent: Polygon, city: Settlement, villages: list[Settlement]) -> list[LineString]:
    """Radials, rings, village roads, a motorway with links, a railway; returns the streets that cut towns."""
    rng = sketch.rng(3)
    far = math.dist(extent.bounds[:2], extent.bounds[2:])
    count = 7 if sketch.plan.size_km >= 4 else 5
    turn = rng.uniform(0, 2 * math.pi)
    roads = []
    for k in range(count):
        bearing = turn + 2 * math.pi * (k + rng.uniform(-0.18, 0.18)) / count
        end = shapes.toward(city.x, city.y, bearing, far)
        path = shapes.wander((city.x, city.y), end, rng, sway=130)
        for part in shapes.lines(path.intersection(extent)):
            sketch.draw("trunk" if k == 0 else "primary" if k < 4 else "secondary", part, rng)
            roads.append(part)
    for kind, share in (("tertiary", 0.28), ("secondary", 0.55), ("primary", 0.83)):
        ring = shapely.affinity.scale(city.outline, share, share, origin=(city.x, city.y)).exterior
        path = LineString(ring.coords)
        sketch.draw(kind, path, rng)
        roads.append(path)
    places = [city, *villages]
    for number, village in enumerate(villages):
        near = sorted(places, key=lambda p: math.dist((p.x, p.y), (village.x, village.y)))[1:3]
        for other in near[: 1 + number % 2]:
            path = shapes.wander((village.x, village.y), (other.x, other.y), rng, sway=90)
            sketch.draw("tertiary", path, rng)
            roads.append(path)
    _motorway(sketch, extent, city, rng)
    _railway(sketch, extent, city, rng)
    return roads


def _motorway(sketch: Sketch, extent: Polygon, city: Settlement, rng: Rng) -> None:
    far = math.dist(extent.bounds[:2], extent.bounds[2:])
    bearing = rng.uniform(0.9, 1.5)
    near = shapes.toward(city.x, city.y, bearing + math.pi / 2, 1.32 * city.radius)
    ends = [shapes.toward(*near, bearing + side, far) for side in (0, math.pi)]
    path = shapes.wander(ends[0], ends[1], rng, sway=160).intersection(extent.buffer(200))
    for part in shapes.lines(path):
        for offset in (-14, 14):
            lane = part.offset_curve(offset)
            for piece in shapes.lines(lane.intersection(extent)):
                sketch.draw("motorway", piece, rng, oneway="yes")
        for line in [one for one in sketch.lines if one.kind in ("trunk", "primary", "secondary")]:
            for point in shapely.get_parts(line.geometry.intersection(part)):
                if point.geom_type == "Point":
                    _links(sketch, part, point, rng)


def _links(sketch: Sketch, motorway: LineString, point: Point, rng: Rng) -> None:
    """Four ramps about a crossing."""
    at = motorway.project(point)
    for along in (-260, 260):
        for side in (-1, 1):
            a = motorway.interpolate(at + along)
            b = motorway.interpolate(at + along * 0.3)
            dx, dy = b.x - a.x, b.y - a.y
            size = math.hypot(dx, dy) or 1.0
            out = (b.x - side * dy / size * 70, b.y + side * dx / size * 70)
            ramp = LineString([(a.x, a.y), out, (point.x + out[0] - b.x, point.y + out[1] - b.y)])
            sketch.draw("motorway_link", ramp, rng, oneway="yes")


def _railway(sketch: Sketch, extent: Polygon, city: Settlement, rng: Rng) -> None:
    far = math.dist(extent.bounds[:2], extent.bounds[2:])
    bearing = rng.uniform(1.9, 2.5)
    near = shapes.toward(city.x, city.y, bearing + math.pi / 2, 0.42 * city.radius)
    ends = [shapes.toward(*near, bearing + side, far) for side in (0, math.pi)]
    path = shapes.wander(ends[0], ends[1], rng, sway=70)
    for part in shapes.lines(path.intersection(extent)):
        for offset in (-2.5, 2.5):
            sketch.draw("rail", part.offset_curve(offset), rng)
        yard = part.intersection(Point(*near).buffer(0.7 * city.radius)).buffer(38)
        sketch.add("railway", shapes.polygons(yard), rng)


def _crossings(sketch: Sketch, water: list[Polygon], city: Settlement) -> list[Line]:
    """The lines cut at water (bridges) and one ring road put under ground for a way (tunnel)."""
    rivers = shapely.union_all(water).buffer(12)
    shapely.prepare(rivers)
    tunnel = Point(*shapes.toward(city.x, city.y, 4.0, 0.8 * city.radius)).buffer(max(150, city.radius * 0.15))
    finished: list[Line] = []
    for line in sketch.lines:
        if line.kind == "primary" and line.geometry.is_ring:
            parts = [
                (False, p, {"tunnel": "yes", "layer": "-1"} if t else {})
                for t, p in shapes.crossing(line.geometry, tunnel)
            ]
        else:
            parts = [(False, line.geometry, {})]
        for _, path, tags in parts:
            if ROADS[line.kind].bridges and not tags and rivers.intersects(path):
                for bridge, piece in shapes.crossing(path, rivers):
                    more = {"bridge": "yes", "layer": "1"} if bridge else {}
                    finished.append(replace(line, geometry=piece, tags=line.tags | more))
            else:
                finished.append(replace(line, geometry=path, tags=line.tags | tags, seen=not tags))
    return finished


# --- towns ---------------------------------------------------------------------------------


def _faces(outline: Polygon, roads: list[LineString]) -> list[Polygon]:
    """The parts into which the roads cut an outline."""
    inside = [part for road in roads if road.intersects(outline) for part in shapes.lines(road.intersection(outline))]
    network = shapely.node(shapely.union_all([LineString(outline.exterior.coords), *inside]))
    return [p for p in shapely.get_parts(shapely.polygonize([network])) if outline.contains(p.representative_point())]


def _town(sketch: Sketch, city: Settlement, roads: list[LineString], wet: shapely.STRtree) -> None:
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


def _village(sketch: Sketch, village: Settlement, roads: list[LineString], wet: shapely.STRtree) -> None:
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


# --- countryside ---------------------------------------------------------------------------


def _parcels(sketch: Sketch, extent: Polygon, settled: shapely.STRtree) -> list[Parcel]:
    """Land cut into cells by country lanes and each cell into parcels with a grain of its own."""
    rng = sketch.rng(5)
    west, south, east, north = extent.bounds
    step = 850
    grid = np.mgrid[west : east + step : step, south : north + step : step].reshape(2, -1).T
    points = grid + rng.uniform(-0.42, 0.42, grid.shape) * step
    parcels = []
    for number, cell in enumerate(shapes.cells(points, extent)):
        target = rng.choice([14_000, 24_000, 36_000, 55_000])
        for land in shapes.minus(cell, settled):
            pieces, cuts = shapes.subdivide(land, target, rng, jitter=0.2)
            parcels += [Parcel(geometry=piece, cell=number, bounds=cell) for piece in pieces]
            for depth, line in cuts:
                if depth < 2 or rng.random() < 0.06:
                    sketch.draw(
                        "unclassified" if depth == 0 and rng.random() < 0.6 else "track", line, rng, hidden=0.05
                    )
    return parcels


def _affinities(
    sketch: Sketch, middles: np.ndarray, city: Settlement, villages: list[Settlement], water: list[Polygon]
) -> dict[str, np.ndarray]:
    """How much each parcel invites each use: (N,) scores, to be compared within a use only."""
    x, y = middles.T
    points = shapely.points(middles)
    shore = shapely.distance(points, shapely.union_all(water)) / 250
    town = np.hypot(x - city.x, y - city.y) / city.radius
    homes = np.array([(v.x, v.y) for v in villages])
    village = np.min(np.hypot(x[:, None] - homes[:, 0], y[:, None] - homes[:, 1]), axis=1) / 400
    seed = sketch.plan.seed * 7919

    def wave(number: int, cell_m: float) -> np.ndarray:
        return noise.at(seed + number, x, y, cell_m)

    return {
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


QUOTAS = {
    "wetland": 0.016, "golf": 0.012, "sand": 0.008, "orchard": 0.022, "quarry": 0.009, "works_site": 0.005,
    "housing": 0.035, "scrub": 0.035, "forest": 0.24, "pasture": 0.13,
}  # fmt: skip
"""Share of the whole area that each use takes, in this order; the rest of the countryside is arable."""


def _countryside(
    sketch: Sketch, parcels: list[Parcel], city: Settlement, villages: list[Settlement], water: list[Polygon]
) -> None:
    """Give every parcel a use by its affinities until the quota is filled, and draw the uses."""
    rng = sketch.rng(6)
    geometries = np.array([parcel.geometry for parcel in parcels], object)
    cell = np.array([parcel.cell for parcel in parcels])
    middles = shapely.get_coordinates(shapely.centroid(geometries))
    west, south, east, north = sketch.plan.area.bounds
    x, y = middles.T
    inside = (x > west) & (x < east) & (y > south) & (y < north)
    areas = shapely.area(geometries) * inside
    whole = (east - west) * (north - south)
    use = np.full(len(parcels), "arable", dtype="<U12")
    for name, score in _affinities(sketch, middles, city, villages, water).items():
        order = np.argsort(-np.where(use == "arable", score, -np.inf), kind="stable")
        filled = np.cumsum(areas[order])
        use[order[: int(np.searchsorted(filled, QUOTAS[name] * whole)) + 1]] = name
    bounds = {parcel.cell: parcel.bounds for parcel in parcels}
    alike = {name: shapely.STRtree(geometries[use == name]) for name in NATURAL}
    for number in np.unique(cell):
        for name in np.unique(use[cell == number]):
            pieces = list(geometries[(cell == number) & (use == name)])
            if name in NATURAL:
                _natural(sketch, str(name), pieces, alike[str(name)], bounds[int(number)], rng)
            else:
                _use(sketch, str(name), pieces, rng)


NATURAL = ("forest", "wetland", "scrub", "sand")


def _natural(sketch: Sketch, use: str, pieces: list[Polygon], alike: shapely.STRtree, cell: Polygon, rng: Rng) -> None:
    """One cell's share of a natural cover: what grows together has soft corners, across cells too."""
    near = np.unique(alike.query(pieces, "dwithin", 60)[1])
    together = shapely.union_all(alike.geometries[near])
    kept = [part for whole in shapes.rounded(together, 30) for part in shapes.polygons(whole.intersection(cell))]
    sketch.add(use, kept, rng, hidden=0.08)
    if use == "forest":
        sketch.add("stand", pieces, rng)


def _copses(sketch: Sketch, extent: Polygon, settled: shapely.STRtree) -> None:
    """Groves, thickets and ponds strewn over the fields; OpenStreetMap lacks a third of them."""
    rng = sketch.rng(8)
    west, south, east, north = extent.bounds
    for _ in range(round(extent.area / 1e6 * 7)):
        x, y, r = rng.uniform(west, east), rng.uniform(south, north), 14 + rng.exponential(16)
        kind = str(rng.choice(["copse", "copse", "scrub", "lake"], p=[0.4, 0.3, 0.25, 0.05]))
        shape = shapes.blob(x, y, r, rng, rough=0.3, stretch=rng.uniform(1, 4))
        if not len(settled.query(shape, "intersects")):
            sketch.add(kind, [shape], rng, hidden=0.35)


def _use(sketch: Sketch, use: str, pieces: list[Polygon], rng: Rng) -> None:
    """Draw the parcels of one cell that share a use."""
    if use == "golf":
        for part in shapes.polygons(shapely.union_all(pieces)):
            sketch.add("golf", [part], rng)
    elif use == "housing":
        for piece in pieces:
            sketch.add("residential", [piece], rng, hidden=0.1)
            blocks, cuts = shapes.subdivide(piece, 8000, rng)
            sketch.add(str(rng.choice(["suburb", "villas", "slabs"], p=[0.6, 0.2, 0.2])), blocks, rng)
            for _, line in cuts:
                sketch.draw("residential", line, rng, hidden=0.05)
    elif use == "arable" and rng.random() < 0.5:
        sketch.add("arable", shapes.polygons(shapely.union_all(pieces)), rng, hidden=0.1)
        sketch.add("crop", pieces, rng)
    else:
        sketch.add({"works_site": "building_site"}.get(use, use), pieces, rng, hidden=0.1)


# --- the second epoch ----------------------------------------------------------------------


def _changes(sketch: Sketch) -> None:
    """New buildings on fields near towns, felled forest, a dug quarry: areas that come with epoch 2."""
    rng = sketch.rng(7)
    whole = sketch.plan.area.shape[0] ** 2 * 100
    built = shapely.STRtree([a.geometry for a in sketch.areas if a.kind == "residential"])
    for old, new, share in (
        ("crop", "new_houses", 0.006),
        ("arable", "new_works", 0.004),
        ("stand", "clearcut", 0.008),
        ("crop", "new_quarry", 0.004),
    ):
        found: list[Any] = [a for a in sketch.areas if a.kind == old and 4000 < a.geometry.area < 90_000]
        rng.shuffle(found)
        if new in ("new_houses", "new_works"):
            found = [a for a in found if len(built.query(a.geometry, "dwithin", 150))]
        budget = share * whole
        for area in found:
            if budget <= 0:
                break
            sketch.add(new, [area.geometry], rng, epoch=2)
            budget -= area.geometry.area
