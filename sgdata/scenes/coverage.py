"""Choose the tiles that an area needs, by the ground that the files of their scenes cover."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sgdata.scenes import aoi
from sgdata.scenes.types import UNUSABLE, Dropped, Scene, Unusable
from sgdata.types import Grid


def select_tiles(
    scenes: Iterable[Scene], grid: Grid, unusable: Iterable[Unusable] = (), *, outline: str | None = None
) -> tuple[tuple[Scene, ...], tuple[Dropped, ...]]:
    """Choose the tiles that the area needs, then judge their items.

    Args:
        scenes: Usable scenes.
        grid: The grid of the build.
        outline: Outline of the area inside the grid, as WKT in its CRS; None for all of it.
        unusable: Items that cannot be used; their tiles are chosen only for ground that no usable scene has.

    Returns:
        The scenes of the needed tiles, those of the area's own CRS first; and the others with the reason, which begins
        with UNUSABLE for the unusable items of needed tiles and of no known tile.
    """
    area = aoi.area_polygon(grid, outline)
    kept, dropped = [], []
    outlines = [(scene, _outline(scene, grid.crs)) for scene in scenes]
    located = {scene.tile for scene, outline in outlines if outline is not None}
    for scene, outline in outlines:
        if outline is None and scene.tile not in located and _in_other_crs(scene, grid.crs):
            dropped.append(Dropped(id=scene.id, reason=f"is in {scene.crs}, the area in {grid.crs}"))
        elif outline is not None and outline.intersection(area).area <= 0:
            dropped.append(Dropped(id=scene.id, reason="its files end before the area"))
        else:
            kept.append(scene)
    unusable = tuple(unusable)
    needed = find_needed_tiles(kept, grid, area=area, unusable=[one.scene for one in unusable if one.scene is not None])
    for scene in kept:
        if scene.tile not in needed:
            away = f"is in {scene.crs}, the area in {grid.crs}: " if _in_other_crs(scene, grid.crs) else ""
            reason = f"{away}the area is fully covered by {', '.join(sorted(needed))}"
            dropped.append(Dropped(id=scene.id, reason=reason))
    for one in unusable:
        if one.scene is None or one.scene.tile in needed:
            dropped.append(Dropped(id=one.id, reason=f"{UNUSABLE}{one.reason}"))
        else:
            dropped.append(Dropped(id=one.id, reason=f"the area is fully covered by {', '.join(sorted(needed))}"))
    # Where granules of one pass overlap the first is used, so scenes that need no warping come first.
    kept.sort(key=lambda scene: _in_other_crs(scene, grid.crs))
    return tuple(s for s in kept if s.tile in needed), tuple(dropped)


def find_needed_tiles(
    scenes: Iterable[Scene], grid: Grid, unusable: Iterable[Scene] = (), *, area: Any = None
) -> set[str]:
    """Return the tile that covers most of the area, then the one that covers most of the rest, until none adds to it.

    Neighbours share a strip of 9.84 km with the same pixels, which need not be read twice. Tiles of unknown extent are
    kept; those of another zone, which must be warped, are taken only for ground that no tile of the own zone covers,
    and those of which only `unusable` scenes are known, for ground that no other tile covers.
    """
    boxes: dict[str, Any] = {}
    own: dict[str, bool] = {}
    for scene in scenes:
        outline = _outline(scene, grid.crs)
        # One item with an extent is enough: all items of a tile share a grid.
        if outline is not None or scene.tile not in boxes:
            boxes[scene.tile] = outline
            own[scene.tile] = not _in_other_crs(scene, grid.crs)
    needed = {tile for tile, box in boxes.items() if box is None}
    usable = set(boxes)
    for scene in unusable:
        outline = _outline(scene, grid.crs)
        if outline is not None and scene.tile not in usable:
            boxes[scene.tile] = outline
            own[scene.tile] = not _in_other_crs(scene, grid.crs)
    # The greedy choice is not minimal in general, but it is for tiles in rows and columns.
    rest = aoi.area_polygon(grid) if area is None else area
    while known := {tile: rest.intersection(box).area for tile, box in boxes.items() if tile not in needed and box}:
        # Sorted first: the choice between equal tiles must not depend on the order of the catalogue.
        best = max(sorted(known), key=lambda t: (t in usable and known[t] > 0, own[t] and known[t] > 0, known[t]))
        if known[best] <= 0:
            break
        needed.add(best)
        rest = rest.difference(boxes[best])
    return needed


def _outline(scene: Scene, crs: str) -> Any | None:
    """Return the polygon of the scene's files in `crs`; None if its item does not give it."""
    import shapely
    from pyproj import Transformer

    for asset in scene.assets.values():
        if asset.transform and asset.shape:
            gsd, _, left, _, _, top = asset.transform
            box = shapely.box(left, top - gsd * asset.shape[0], left + gsd * asset.shape[1], top)
            if not _in_other_crs(scene, crs):
                return box
            move = Transformer.from_crs(scene.crs, crs, always_xy=True)
            # A point every 10 km: between two of them the edge deviates by metres.
            return shapely.transform(shapely.segmentize(box, 10_000), move.transform, interleaved=False)
    return None


def footprint(scene: Scene, crs: str) -> Any:
    """Return the polygon of a scene's files inside the bbox of its data."""
    import shapely
    from pyproj import Transformer

    move = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    west, south, east, north = scene.bbox
    box = shapely.segmentize(shapely.box(west, south, east if east > west else east + 360, north), 0.1)
    data = shapely.transform(box, move.transform, interleaved=False)
    outline = _outline(scene, crs)
    return data if outline is None else data.intersection(outline)


def _in_other_crs(scene: Scene, crs: str) -> bool:
    return scene.crs is not None and scene.crs != crs
