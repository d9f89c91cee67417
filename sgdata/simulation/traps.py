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
from sgdata.simulation.scenarios import OLDEST, SimulatedScene, item_id
from sgdata.types import Grid

NEIGHBOUR, NEIGHBOUR_CRS = "33UTP", "EPSG:32633"
FEWEST = 6
"""Archives of fewer dates are too small to lose any of them to a trap."""


def assign_traps(scenes: list[SimulatedScene], layout: str) -> dict[str, list[str]]:
    """Return the names of the traps in the metadata of each item, by id."""
    traps_of: dict[str, list[str]] = {scene.id: [] for scene in scenes}
    first = [scene for scene in scenes if scene.epoch == 1]
    if len(first) < FEWEST:
        return traps_of
    # Fixed places, not drawn ones: another draw here would change every sky after it.
    traps_of[first[3].id].append("no-projection")
    if layout == "earth-search":
        for scene in scenes:
            if scene.index % 2 and not traps_of[scene.id]:
                traps_of[scene.id].append("old-projection")
        # In the clearest scene, since only clear pixels contradict a wrong flag.
        shifted = [scene for scene in first if scene.baseline >= "04.00"]
        traps_of[min(shifted, key=lambda scene: scene.weather.cloud + scene.weather.cirrus).id].append(
            "wrong-offset-flag"
        )
    return traps_of


def apply_traps(document: dict[str, Any], names: list[str]) -> dict[str, Any]:
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


def clear_scene(scenes: list[SimulatedScene]) -> SimulatedScene:
    """Return the clearest scene of the first epoch without an offset in its pixels, to be duplicated."""
    return min(
        scenes, key=lambda scene: (scene.epoch, scene.offset_in_pixels, scene.weather.cloud + scene.weather.cirrus)
    )


def twin(scene: SimulatedScene, layout: str) -> SimulatedScene:
    """Return the same acquisition, processed earlier but with a greater sequence digit."""
    # Processed earlier but with a greater sequence digit, so choosing by digit is wrong.
    older = replace(scene, baseline="04.00" if scene.baseline > "04.00" else OLDEST)
    return replace(older, id=item_id(older, layout, sequence=2))


def share_files(document: dict[str, Any], original: str) -> dict[str, Any]:
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


def move_to_next_zone(document: dict[str, Any], scene: SimulatedScene) -> dict[str, Any]:
    """Create the item of the tile in the next zone."""
    properties = document["properties"] | {"proj:code": NEIGHBOUR_CRS, "grid:code": f"MGRS-{NEIGHBOUR}"}
    properties |= {"mgrs:utm_zone": 33, "mgrs:grid_square": NEIGHBOUR[3:]}
    properties["s2:product_uri"] = properties["s2:product_uri"].replace("T32UPU", f"T{NEIGHBOUR}")
    return document | {"id": scene.id, "properties": properties}
