"""Known errors of catalogues, planted on purpose and listed in `truth/traps.json`. Pure.

Nothing here changes a pixel that a build may use, so that fidelity is measured on the same ground truth.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import shapely
from pyproj import Transformer

from sgdata.rasters.grids import snap_outward
from sgdata.simulation.plan import OLDEST, Scene, named
from sgdata.types import Grid

NEIGHBOUR, NEIGHBOUR_CRS = "33UTP", "EPSG:32633"
FEWEST = 6
"""Archives of fewer dates are too small to lose any of them to a trap."""


def planted(scenes: list[Scene], layout: str) -> dict[str, list[str]]:
    """Return the names of the traps in the metadata of each item, by id."""
    tricks: dict[str, list[str]] = {one.id: [] for one in scenes}
    first = [one for one in scenes if one.epoch == 1]
    if len(first) < FEWEST:
        return tricks
    # Fixed places, not drawn ones: another draw here would change every sky after it.
    tricks[first[3].id].append("no-projection")
    if layout == "earth-search":
        for one in scenes:
            if one.index % 2 and not tricks[one.id]:
                tricks[one.id].append("old-projection")
        # In the clearest scene, since only clear pixels contradict a wrong flag.
        shifted = [one for one in first if one.baseline >= "04.00"]
        tricks[min(shifted, key=lambda one: one.weather.cloud + one.weather.cirrus).id].append("wrong-offset-flag")
    return tricks


def altered(document: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Apply traps to an item."""
    # Assets share dicts with their template.
    document = deepcopy(document)
    properties, assets = document["properties"], document["assets"].values()
    if "old-projection" in names:
        properties["proj:epsg"] = int(properties.pop("proj:code").removeprefix("EPSG:"))
    if "no-projection" in names:
        for holder in (properties, *assets):
            for key in [key for key in holder if key.startswith("proj:")]:
                del holder[key]
    if "wrong-offset-flag" in names:
        properties["earthsearch:boa_offset_applied"] = not properties["earthsearch:boa_offset_applied"]
        for asset in assets:
            for band in asset["raster:bands"]:
                if "offset" in band:
                    band["offset"] = 0 if properties["earthsearch:boa_offset_applied"] else -0.1
    return document


def clear_scene(scenes: list[Scene]) -> Scene:
    """Return the clearest scene of the first epoch without an offset in its pixels, to be duplicated."""
    return min(scenes, key=lambda one: (one.epoch, one.offset_in_pixels, one.weather.cloud + one.weather.cirrus))


def twin(scene: Scene, layout: str) -> Scene:
    """Return the same acquisition, processed earlier but with a greater sequence digit."""
    # Processed earlier but with a greater sequence digit, so choosing by digit is wrong.
    older = replace(scene, baseline="04.00" if scene.baseline > "04.00" else OLDEST)
    return replace(older, id=named(older, layout, sequence=2))


def beside(document: dict[str, Any], original: str) -> dict[str, Any]:
    """Point the assets of an item to the files of another item."""
    assets = {
        key: asset | {"href": f"../{original}/{asset['href'].removeprefix('./')}"}
        for key, asset in document["assets"].items()
    }
    return document | {"assets": assets}


def next_zone(granule: Grid) -> Grid:
    """Return the grid of the same ground in the UTM zone to the east, snapped to 60 m."""
    outline = shapely.segmentize(shapely.box(*granule.bounds), 5000)
    move = Transformer.from_crs(granule.crs, NEIGHBOUR_CRS, always_xy=True)
    # Straight edges of one zone are bent in the next.
    x, y = move.transform(*shapely.get_coordinates(outline).T)
    return snap_outward((x.min(), y.min(), x.max(), y.max()), NEIGHBOUR_CRS, gsd_m=10, snap_m=60)


def in_next_zone(document: dict[str, Any], scene: Scene) -> dict[str, Any]:
    """Create the item of the tile in the next zone."""
    properties = document["properties"] | {"proj:code": NEIGHBOUR_CRS, "grid:code": f"MGRS-{NEIGHBOUR}"}
    properties |= {"mgrs:utm_zone": 33, "mgrs:grid_square": NEIGHBOUR[3:]}
    properties["s2:product_uri"] = properties["s2:product_uri"].replace("T32UPU", f"T{NEIGHBOUR}")
    return document | {"id": scene.id, "properties": properties}
