"""Export the simulated place as OSM XML 0.6 and as an Overpass response. Pure.

Shared corners are shared nodes; polygons with holes are multipolygon relations whose outer ring is two ways.
Some shapes are drawn one to three metres off, as hand-drawn ones are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import shapely
from pyproj import Transformer

from sgdata.simulation.scenarios import CRS
from sgdata.simulation.sketch import GroundArea, Landscape, Tags, area_kinds, line_kinds
from sgdata.types import Array

# The last second of the first epoch: later labels would show changes that are not in its images.
TIMESTAMP = "2020-03-31T23:59:59Z"
# Far apart and of realistic size, so that tests detect readers that confuse ids of nodes, ways and relations.
FIRST_NODE, FIRST_WAY, FIRST_RELATION = 1_000_000_000, 100_000_000, 1_000_000


@dataclass
class OsmElements:
    """Nodes, ways and relations in order of their ids."""

    nodes: dict[tuple[int, int], int] = field(default_factory=dict)
    ways: list[tuple[list[int], Tags]] = field(default_factory=list)
    relations: list[tuple[list[tuple[int, str]], Tags]] = field(default_factory=list)

    def way(self, lonlat: Array, tags: Tags) -> int:
        """Add a way through points (N, 2) in degrees and return its id."""
        # OpenStreetMap stores 1e-7 degrees: integers make neighbours share a corner exactly, which floats would not.
        keys = [(x, y) for x, y in np.round(lonlat * 1e7).astype(np.int64).tolist()]
        refs = [self.nodes.setdefault(key, FIRST_NODE + len(self.nodes)) for key in keys]
        # Rounding may let two corners fall together; a way must not name a node twice in a row.
        refs = [ref for i, ref in enumerate(refs) if i == 0 or ref != refs[i - 1]]
        self.ways.append((refs, tags))
        return FIRST_WAY + len(self.ways) - 1


def elements(place: Landscape) -> OsmElements:
    """Return everything of the place that is in OpenStreetMap."""
    to_degrees = Transformer.from_crs(CRS, "EPSG:4326", always_xy=True)
    out = OsmElements()

    def degrees(points: Array) -> Array:
        return np.column_stack(to_degrees.transform(points[:, 0], points[:, 1]))

    for area in place.areas:
        if area.exported:
            _area(out, area, degrees)
    for line in place.lines:
        if line.exported:
            points = shapely.get_coordinates(line.geometry)
            out.way(degrees(points), line_kinds()[line.kind].tags | line.tags)
    return out


def _area(out: OsmElements, area: GroundArea, degrees: Any) -> None:
    shape, choices = area.geometry, area_kinds()[area.kind].tags
    # A third of the shapes lie one to three metres off. By the variant, not by a draw: the jitter of one must not
    # depend on how many were exported before it.
    if area.variant % 3 == 0:
        turn, reach = math.radians(area.variant // 3 % 360), 1 + area.variant // 1080 % 200 / 100
        shape = shapely.affinity.translate(shape, reach * math.sin(turn), reach * math.cos(turn))
    # Divided by 7, so that the choice of tags is independent of that of covers, which takes the same number modulo.
    tags = choices[area.variant // 7 % len(choices)]
    rings = [shapely.get_coordinates(ring) for ring in (shape.exterior, *shape.interiors)]
    if len(rings) == 1:
        out.way(degrees(rings[0]), tags)
        return
    # In two ways, for a reader that takes a ring from a single way misses most large real forests and lakes.
    outer, half = rings[0], len(rings[0]) // 2
    members = [(out.way(degrees(part), {}), "outer") for part in (outer[: half + 1], outer[half:])]
    members += [(out.way(degrees(ring), {}), "inner") for ring in rings[1:]]
    out.relations.append((members, {"type": "multipolygon"} | tags))


def overpass(osm: OsmElements) -> bytes:
    """Return the response of an Overpass server to a query for everything, `out body`."""
    # Overpass may answer in any order; nodes first, as its `out body` and the XML both do.
    entries: list[dict[str, Any]] = [
        {"type": "node", "id": number, "lat": y / 1e7, "lon": x / 1e7} for (x, y), number in osm.nodes.items()
    ]
    for number, (refs, tags) in enumerate(osm.ways, FIRST_WAY):
        entries.append({"type": "way", "id": number, "nodes": refs} | ({"tags": tags} if tags else {}))
    for number, (members, tags) in enumerate(osm.relations, FIRST_RELATION):
        listed = [{"type": "way", "ref": ref, "role": role} for ref, role in members]
        entries.append({"type": "relation", "id": number, "members": listed, "tags": tags})
    answer = {
        "version": 0.6,
        "generator": "sgdata simulate",
        "osm3s": {"timestamp_osm_base": TIMESTAMP, "copyright": "Simulated: no part comes from OpenStreetMap."},
        "elements": entries,
    }
    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def xml(osm: OsmElements) -> bytes:
    """Return the elements as OSM XML 0.6."""
    return "".join(_xml_lines(osm)).encode()


def _xml_lines(osm: OsmElements) -> Iterator[str]:
    stamp = f'version="1" timestamp="{TIMESTAMP}" visible="true"'
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<osm version="0.6" generator="sgdata simulate">\n'
    x, y = np.array(list(osm.nodes)).T / 1e7
    yield f' <bounds minlat="{y.min():.7f}" minlon="{x.min():.7f}" maxlat="{y.max():.7f}" maxlon="{x.max():.7f}"/>\n'
    for (east, north), number in osm.nodes.items():
        yield f' <node id="{number}" {stamp} lat="{north / 1e7:.7f}" lon="{east / 1e7:.7f}"/>\n'
    for number, (refs, tags) in enumerate(osm.ways, FIRST_WAY):
        yield f' <way id="{number}" {stamp}>\n'
        yield from (f'  <nd ref="{ref}"/>\n' for ref in refs)
        yield from _tags(tags)
        yield " </way>\n"
    for number, (members, tags) in enumerate(osm.relations, FIRST_RELATION):
        yield f' <relation id="{number}" {stamp}>\n'
        yield from (f'  <member type="way" ref="{ref}" role="{role}"/>\n' for ref, role in members)
        yield from _tags(tags)
        yield " </relation>\n"
    yield "</osm>\n"


def _tags(tags: Tags) -> Iterator[str]:
    for key, value in tags.items():
        yield f"  <tag k={quoteattr(key)} v={quoteattr(value)}/>\n"
