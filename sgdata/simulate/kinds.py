"""What areas and lines there are: land cover class, OpenStreetMap tags and looks of each kind. Facts only.

Classes are the ids of the label space `segmunich-osm`; tags are those of the tag table.
"""

from __future__ import annotations

from dataclasses import dataclass

Tags = dict[str, str]
STREET, WATER, BUILT = 0, 5, 12


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Label (None: a detail that keeps the class below it), tag sets to draw from, covers to draw from."""

    label: int | None
    tags: tuple[Tags, ...]
    covers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Road:
    """A kind of line: tags, real width, lanes, label (None: too thin or soft to count), cover, rank on top."""

    tags: Tags
    width_m: float
    lanes: int
    label: int | None
    cover: str
    rank: int
    bridges: bool = True


def _kind(label: int | None, tags: str, covers: str) -> Kind:
    """`tags` are `key=value` joined by `&`, alternatives by `|`; covers are separated by spaces."""
    sets = tuple(dict(pair.split("=") for pair in one.split("&")) for one in tags.split("|")) if tags else ()
    return Kind(label=label, tags=sets, covers=tuple(covers.split()))


KINDS: dict[str, Kind] = {
    "arable": _kind(1, "landuse=farmland", "wheat wheat barley rape maize maize beet catch_crop fallow"),
    "crop": _kind(None, "", "wheat wheat barley rape maize maize beet catch_crop fallow"),
    "farmyard": _kind(1, "landuse=farmyard", "farmyard"),
    "orchard": _kind(2, "landuse=orchard|landuse=orchard|landuse=vineyard", "orchard orchard vineyard"),
    "pasture": _kind(3, "landuse=meadow", "meadow meadow meadow wet_meadow"),
    "forest": _kind(4, "landuse=forest|landuse=forest|natural=wood", "mixed"),
    "copse": _kind(4, "natural=wood|landuse=forest", "broadleaf mixed"),
    "stand": _kind(None, "", "needle needle mixed broadleaf broadleaf plantation"),
    "river": _kind(5, "natural=water&water=river", "river"),
    "lake": _kind(5, "natural=water&water=lake|natural=water|landuse=reservoir", "deep_water"),
    "scrub": _kind(6, "natural=scrub|natural=heath|natural=grassland|landuse=grass", "scrub scrub heath"),
    "verge": _kind(6, "", "verge"),
    "shingle": _kind(7, "natural=shingle", "shingle"),
    "sand": _kind(7, "natural=sand|natural=bare_rock|natural=scree", "rough_ground shingle"),
    "wetland": _kind(8, "natural=wetland&wetland=marsh|natural=wetland&wetland=bog|natural=wetland", "reed bog"),
    "quarry": _kind(9, "landuse=quarry", "pit"),
    "building_site": _kind(9, "landuse=construction|landuse=landfill|landuse=brownfield", "building_site landfill"),
    "park": _kind(10, "leisure=park", "park"),
    "garden": _kind(10, "leisure=garden|landuse=village_green", "park gardens"),
    "playground": _kind(10, "leisure=playground", "park"),
    "pitch": _kind(10, "leisure=pitch", "pitch"),
    "sports": _kind(10, "leisure=sports_centre|landuse=recreation_ground", "pitch park"),
    "cemetery": _kind(10, "landuse=cemetery", "cemetery"),
    "allotments": _kind(10, "landuse=allotments", "allotments"),
    "golf": _kind(10, "leisure=golf_course", "park pitch"),
    "residential": _kind(11, "landuse=residential", "houses"),
    "court": _kind(None, "", "court"),
    "perimeter": _kind(None, "", "old_town blocks"),
    "suburb": _kind(None, "", "houses houses gardens"),
    "villas": _kind(None, "", "villas gardens"),
    "slabs": _kind(None, "", "slabs"),
    "industrial": _kind(12, "landuse=industrial", "yard"),
    "commercial": _kind(12, "landuse=commercial|landuse=retail", "yard"),
    "retail": _kind(12, "landuse=retail|landuse=commercial", "yard"),
    "railway": _kind(12, "landuse=railway", "rail"),
    "campus": _kind(12, "amenity=university|amenity=college", "campus"),
    "hospital": _kind(12, "amenity=hospital", "campus"),
    "school": _kind(12, "amenity=school|amenity=kindergarten", "campus"),
    "parking": _kind(12, "amenity=parking", "yard"),
    "church": _kind(12, "amenity=place_of_worship", "campus"),
    "hall": _kind(None, "building=industrial|building=warehouse", "white_hall metal_hall dark_hall"),
    "new_houses": _kind(11, "", "slabs houses"),
    "new_works": _kind(12, "", "white_hall yard"),
    "clearcut": _kind(6, "", "clearcut"),
    "new_quarry": _kind(9, "", "pit"),
}

CHANGES = {"new_houses": 1, "new_works": 1, "clearcut": 2, "new_quarry": 3}
"""Values of `truth/change.tif`: 1 new buildings, 2 cleared forest, 3 dug quarry; 0 elsewhere."""


def _road(value: str, width_m: float, lanes: int, rank: int, cover: str = "street") -> Road:
    return Road(tags={"highway": value}, width_m=width_m, lanes=lanes, label=STREET, cover=cover, rank=rank)


ROADS: dict[str, Road] = {
    "stream": Road(tags={"waterway": "stream"}, width_m=0, lanes=0, label=None, cover="river", rank=0, bridges=False),
    "track": Road(tags={"highway": "track"}, width_m=0, lanes=0, label=None, cover="track", rank=1),
    "rail": Road(tags={"railway": "rail"}, width_m=0, lanes=0, label=BUILT, cover="rail", rank=2),
    "pedestrian": _road("pedestrian", 6, 0, 3),
    "service": _road("service", 6, 0, 4),
    "living_street": _road("living_street", 7, 1, 5),
    "residential": _road("residential", 8, 2, 6),
    "unclassified": _road("unclassified", 7, 2, 7),
    "tertiary": _road("tertiary", 8, 2, 8, "road"),
    "secondary": _road("secondary", 11, 3, 9, "road"),
    "primary": _road("primary", 13, 4, 10, "road"),
    "motorway_link": _road("motorway_link", 8, 1, 11, "road"),
    "trunk": _road("trunk", 16, 4, 12, "road"),
    "motorway": _road("motorway", 16, 3, 13, "road"),
}
LEAST_HALF_WIDTH_M = 5.0
