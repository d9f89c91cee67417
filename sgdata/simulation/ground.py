"""The simulated ground as vectors: a river city, its villages and their countryside. Pure.

The same lists of areas and lines define true land cover and, less some omissions, OpenStreetMap.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import shapely
from shapely.geometry import LineString, Point, Polygon, box

from sgdata.simulation import context_countryside, countryside, noise, shapes, town
from sgdata.simulation.scenarios import Scenario
from sgdata.simulation.sketch import GroundArea, GroundLine, Landscape, Rng, Settlement, Sketch
from sgdata.types import Array


def build(scenario: Scenario) -> Landscape:
    """Generate the ground of a scenario; equal scenarios give equal ground."""
    sketch = Sketch(scenario)
    west, south, east, north = scenario.granule.bounds
    # Wider than the granule: nothing may end at the edge of a picture, and the warp moves corners by some 80 m.
    extent = box(west - 300, south - 300, east + 300, north + 300)
    city, villages = _place_settlements(sketch, extent)
    water = _draw_waters(sketch, extent, city, villages)
    if scenario.ground == "context":
        water += context_countryside.draw_streams(
            sketch, extent, [*water, city.outline, *(v.outline for v in villages)]
        )
    roads = _draw_main_roads(sketch, extent, city, villages)
    wet = shapely.STRtree(water)
    # Order matters: streets come before the land between them, and each stage leaves out what is taken.
    town.draw_city(sketch, city, roads, wet)
    for village in villages:
        town.draw_village_streets(sketch, village, roads, wet)
    occupied = shapely.STRtree([*water, city.outline, *(v.outline for v in villages)])
    if scenario.ground == "context":
        context_countryside.draw_countryside(sketch, extent, occupied, water)
    else:
        parcels = countryside.cut_parcels(sketch, extent, occupied)
        countryside.draw_countryside(sketch, parcels, city, villages, water)
    countryside.draw_copses(sketch, extent, occupied)
    # Painted first, being the largest: what no parcel covers is a verge, so no pixel is without ground.
    sketch.areas.append(GroundArea(geometry=extent, kind="verge", variant=1, exported=False))
    countryside.draw_changes(sketch)
    landscape = _warp(sketch.areas, _crossings(sketch, water, city), scenario.seed * 7919 + 500)
    return replace(landscape, ground=scenario.ground)


# (reach, cell) in metres: nothing that people or rivers drew is quite straight. Reach stays a small part of its cell,
# or the field would fold the plane and turn polygons inside out.
WARPS_M = ((45, 800), (26, 190), (6, 50))


def _warp(areas: list[GroundArea], lines: list[GroundLine], seed: int) -> Landscape:
    """Move every vertex of the landscape by one smooth field, so that shapes that touched still touch."""

    def moved(points: Array) -> Array:
        shift = np.zeros_like(points)
        for number, (reach, cell) in enumerate(WARPS_M):
            for axis in (0, 1):
                field = noise.at(seed + 2 * number + axis, points[:, 0], points[:, 1], cell)
                shift[:, axis] += reach * 0.5 * field
        return np.asarray(points + shift)

    ground = np.array([a.geometry for a in areas] + [line.geometry for line in lines], object)
    # A corner every 60 m, or a long straight edge would stay straight between its ends.
    bent = shapely.transform(shapely.segmentize(ground, 60), moved)
    # Only invalid polygons are repaired: buffer(0) also reorders the corners of valid ones, and shared nodes matter.
    bent = np.where(shapely.is_valid(bent), bent, shapely.buffer(bent, 0))
    warped_areas = [
        replace(a, geometry=p) for a, shape in zip(areas, bent, strict=False) for p in shapes.polygons(shape, 60)
    ]
    paths = [replace(line, geometry=path) for line, path in zip(lines, bent[len(areas) :], strict=True)]
    return Landscape(areas=tuple(warped_areas), lines=tuple(paths))


def _place_settlements(sketch: Sketch, extent: Polygon) -> tuple[Settlement, list[Settlement]]:
    rng = sketch.rng(1)
    size = sketch.scenario.size_km * 1000
    west, south, east, north = sketch.scenario.area.bounds
    x = (west + east) / 2 + rng.uniform(-0.06, 0.06) * size
    y = (south + north) / 2 + rng.uniform(-0.06, 0.06) * size
    # pi x 0.2^2: an eighth of the area is city at every size, so that class shares do not depend on --size.
    radius = 0.2 * size
    city = Settlement(x=x, y=y, radius=radius, outline=shapes.blob(x, y, radius, rng, rough=0.22, stretch=1.15))
    # Villages some 3 km apart; two at least, for roads lead from one to another.
    count = max(2, round(sketch.scenario.size_km**2 / 9))
    villages = []
    for point in shapes.scatter(count, extent.buffer(-500), 1500, rng, [city.outline.buffer(600)]):
        r = rng.uniform(170, 380)
        outline = shapes.blob(point.x, point.y, r, rng, rough=0.3, stretch=rng.uniform(1, 2.2))
        villages.append(Settlement(x=point.x, y=point.y, radius=r, outline=outline))
    return city, villages


def _draw_waters(sketch: Sketch, extent: Polygon, city: Settlement, villages: list[Settlement]) -> list[Polygon]:
    """Place a river with gravel islands, lakes with islands and ponds, and take their area out of the land."""
    rng = sketch.rng(2)
    size = sketch.scenario.size_km
    south, north = extent.bounds[1], extent.bounds[3]
    x = city.x + 0.35 * city.radius
    # Through the city but beside its middle, in two halves that meet there.
    bend = (x, city.y)
    upper = shapes.winding_line((x - 0.12 * size * 1000, south - 200), bend, rng, sway=220)
    lower = shapes.winding_line(bend, (x + 0.15 * size * 1000, north + 200), rng, sway=220)
    course = LineString([*upper.coords, *lower.coords[1:]])
    # Half the width: five pixels of water in the default city, so that a river has a middle and two banks.
    width = 22 + 0.5 * size
    river = course.buffer(width)
    # Pools: a buffered line alone has parallel banks.
    for distance in np.arange(300, course.length, 420):
        spot = course.interpolate(distance + rng.uniform(-100, 100))
        river = river.union(shapes.blob(spot.x, spot.y, width * rng.uniform(0.9, 1.7), rng, stretch=1.6))
    bars = []
    for distance in np.arange(200, course.length, 260):
        spot = course.interpolate(distance + rng.uniform(-130, 130))
        offset_m = rng.choice([-1, 1]) * width * 0.9
        # Some reaches have gravel and others have none.
        if noise.at(sketch.scenario.seed + 77, np.array([spot.x]), np.array([spot.y]), 900)[0] > -0.2:
            bars.append(shapes.blob(spot.x + offset_m, spot.y, rng.uniform(12, 52), rng, stretch=2.5))
    river = river.difference(shapely.union_all(bars)).intersection(extent)
    sketch.add("shingle", [p for bar in bars for p in shapes.polygons(bar.intersection(extent))], rng)
    # In pieces, as mapped rivers are: one polygon of the length of the map would be in every tile.
    pieces = [p for part in shapes.polygons(river) for p in shapes.subdivide(part, 90_000, rng, axis=0.0)[0]]
    sketch.add("river", pieces, rng)
    occupied = [v.outline for v in villages] + [city.outline, *pieces]
    lakes = []
    for point in shapes.scatter(max(4, round(size**2 / 9)), extent, 500, rng, occupied):
        radius = rng.uniform(60, 150) * (1 + size / 20)
        lake = shapes.blob(point.x, point.y, radius, rng, rough=0.3, stretch=1.7)
        if radius > 130:
            lake = lake.difference(shapes.blob(point.x, point.y, radius * 0.18, rng))
        lakes += shapes.subtract(lake, shapely.STRtree(occupied))
    sketch.add("lake", lakes, rng)
    # Without holes: an island stays as it is and is not parcelled into fields.
    filled_lakes = [Polygon(lake.exterior) for lake in lakes]
    return [*pieces, *(p for bar in bars for p in shapes.polygons(bar)), *filled_lakes]


def _draw_main_roads(sketch: Sketch, extent: Polygon, city: Settlement, villages: list[Settlement]) -> list[LineString]:
    """Lay radials, rings, village roads, a motorway with links and a railway; return the streets that cut towns."""
    rng = sketch.rng(3)
    far = math.dist(extent.bounds[:2], extent.bounds[2:])
    # Fewer radials in a small city, or no quarter between them would hold a block.
    count = 7 if sketch.scenario.size_km >= 4 else 5
    turn = rng.uniform(0, 2 * math.pi)
    roads = []
    for k in range(count):
        bearing = turn + 2 * math.pi * (k + rng.uniform(-0.18, 0.18)) / count
        end = shapes.point_toward(city.x, city.y, bearing, far)
        path = shapes.winding_line((city.x, city.y), end, rng, sway=130)
        for piece in shapes.lines(path.intersection(extent)):
            sketch.draw("trunk" if k == 0 else "primary" if k < 4 else "secondary", piece, rng)
            roads.append(piece)
    # Rings after the outline of the city, as walls became boulevards.
    for kind, share in (("tertiary", 0.28), ("secondary", 0.55), ("primary", 0.83)):
        ring = shapely.affinity.scale(city.outline, share, share, origin=(city.x, city.y)).exterior
        path = LineString(ring.coords)
        sketch.draw(kind, path, rng)
        roads.append(path)
    settlements = [city, *villages]
    for number, village in enumerate(villages):
        # The nearest is the village itself.
        near = sorted(settlements, key=lambda p: math.dist((p.x, p.y), (village.x, village.y)))[1:3]
        for neighbour in near[: 1 + number % 2]:
            path = shapes.winding_line((village.x, village.y), (neighbour.x, neighbour.y), rng, sway=90)
            sketch.draw("tertiary", path, rng)
            roads.append(path)
    _draw_motorway(sketch, extent, city, rng)
    _draw_railway(sketch, extent, city, rng)
    return roads


def _draw_motorway(sketch: Sketch, extent: Polygon, city: Settlement, rng: Rng) -> None:
    path, _ = _passing(extent, city, rng, bearing=rng.uniform(0.9, 1.5), aside=1.32, sway=160)
    for part in shapes.lines(path.intersection(extent.buffer(200))):
        # OpenStreetMap draws the two carriageways of a motorway as two one-way lines.
        for offset in (-14, 14):
            for piece in shapes.lines(part.offset_curve(offset).intersection(extent)):
                sketch.draw("motorway", piece, rng, oneway="yes")
        for line in [road for road in sketch.lines if road.kind in ("trunk", "primary", "secondary")]:
            for point in shapely.get_parts(line.geometry.intersection(part)):
                # Where two lines share a stretch, the overlay gives a line: no junction there.
                if point.geom_type == "Point":
                    _draw_links(sketch, part, point, rng)


def _passing(
    extent: Polygon, city: Settlement, rng: Rng, *, bearing: float, aside: float, sway: float
) -> tuple[LineString, Point]:
    """Return a line across the area that passes the city `aside` radii from its centre, and the nearest point."""
    far = math.dist(extent.bounds[:2], extent.bounds[2:])
    near = shapes.point_toward(city.x, city.y, bearing + math.pi / 2, aside * city.radius)
    start, end = (shapes.point_toward(*near, bearing + side, far) for side in (0, math.pi))
    return shapes.winding_line(start, end, rng, sway=sway), Point(*near)


def _draw_links(sketch: Sketch, motorway: LineString, point: Point, rng: Rng) -> None:
    """Draw four ramps about a crossing."""
    distance = motorway.project(point)
    for step in (-260, 260):
        for side in (-1, 1):
            a = motorway.interpolate(distance + step)
            b = motorway.interpolate(distance + step * 0.3)
            dx, dy = b.x - a.x, b.y - a.y
            # Two identical points have no direction; 1 keeps the division finite.
            size = math.hypot(dx, dy) or 1.0
            out = (b.x - side * dy / size * 70, b.y + side * dx / size * 70)
            ramp = LineString([(a.x, a.y), out, (point.x + out[0] - b.x, point.y + out[1] - b.y)])
            sketch.draw("motorway_link", ramp, rng, oneway="yes")


def _draw_railway(sketch: Sketch, extent: Polygon, city: Settlement, rng: Rng) -> None:
    # Less sway than a road: trains need wide curves.
    path, near = _passing(extent, city, rng, bearing=rng.uniform(1.9, 2.5), aside=0.42, sway=70)
    for part in shapes.lines(path.intersection(extent)):
        for offset in (-2.5, 2.5):
            sketch.draw("rail", part.offset_curve(offset), rng)
        sketch.add("railway", shapes.polygons(part.intersection(near.buffer(0.7 * city.radius)).buffer(38)), rng)


def _crossings(sketch: Sketch, water: list[Polygon], city: Settlement) -> list[GroundLine]:
    """Cut the lines at water (bridges), and put a part of one ring road under ground (tunnel)."""
    # 12 m of land on either bank belong to a bridge.
    rivers = shapely.union_all(water).buffer(12)
    shapely.prepare(rivers)
    tunnel = Point(*shapes.point_toward(city.x, city.y, 4.0, 0.8 * city.radius)).buffer(max(150, city.radius * 0.15))
    finished: list[GroundLine] = []
    for line in sketch.lines:
        ring = line.kind == "primary" and line.geometry.is_ring
        for under, path in shapes.crossing(line.geometry, tunnel) if ring else [(False, line.geometry)]:
            if under:
                # Tagged but invisible from above, to test that labels ignore tunnels.
                tags = line.tags | {"tunnel": "yes", "layer": "-1"}
                finished.append(replace(line, geometry=path, tags=tags, visible=False))
            elif rivers.intersects(path):
                for bridge, piece in shapes.crossing(path, rivers):
                    tags = line.tags | ({"bridge": "yes", "layer": "1"} if bridge else {})
                    finished.append(replace(line, geometry=piece, tags=tags))
            else:
                finished.append(replace(line, geometry=path))
    return finished
