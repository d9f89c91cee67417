"""Compute the coverage of an area by scenes: tiles, passes per month, holes, and drift of the catalogue."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from sgdata.rasters import grids
from sgdata.scenes import aoi, build_cost, search
from sgdata.scenes.types import TWIN, UNUSABLE, Dropped, Scene, Unusable
from sgdata.sentinel2 import MSI
from sgdata.types import Grid

if TYPE_CHECKING:
    from sgdata.scenes.lock import Lock

SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Month:
    """One row of the plan.

    Attributes:
        month: Year and month.
        passes: Overpasses found.
        expected: Overpasses of the orbits, times the share of them that the catalogue has in a typical month (the
            median of the months with any).
        scenes: Number of scenes.
        bytes: Raw bytes of their windows.
    """

    month: str
    passes: int
    expected: float
    scenes: int
    bytes: int

    @property
    def hole(self) -> bool:
        """Whether there are fewer than half of the expected passes."""
        return self.passes < self.expected / 2


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


@dataclass(frozen=True, kw_only=True)
class AreaSummary:
    """The area of a plan.

    Attributes:
        longitude: Of its centre, in degrees.
        latitude: Of its centre, in degrees.
        km2: Its size inside the outline, on the ground.
        pixels: Width and height of its grid.
        crs: CRS of the grid.
        covered: Share that some scene of the plan covers.
    """

    longitude: float
    latitude: float
    km2: float
    pixels: tuple[int, int]
    crs: str
    covered: float


def summarise_area(planned: Lock) -> AreaSummary:
    """Return where the area of a plan is, how large, and how much of it is covered."""
    import shapely

    grid = planned.grid
    area = aoi.area_polygon(grid, planned.outline)
    west, south, east, north = aoi.in_degrees(grid)
    # One footprint a pass would be as exact but slow: scenes of one tile and bbox cover the same ground.
    different = {(scene.tile, scene.bbox): scene for scene in (item.scene for item in planned.items)}
    covered = shapely.union_all([_footprint(scene, grid.crs) for scene in different.values()])
    return AreaSummary(
        longitude=round((west + east) / 2, 4),
        latitude=round((south + north) / 2, 4),
        km2=round(area.area / grids.scale_factor(grid) ** 2 / 1e6, 2),
        pixels=(grid.shape[1], grid.shape[0]),
        crs=grid.crs,
        covered=round(covered.intersection(area).area / area.area, 4),
    )


def _footprint(scene: Scene, crs: str) -> Any:
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


# --- months --------------------------------------------------------------------------------


def count_months(planned: Lock) -> tuple[Month, ...]:
    """Return passes, scenes and raw bytes of each calendar month of the lock, including months without any."""
    first, last = search.parse_dates(planned.dates)
    names = [
        f"{n // 12:04d}-{n % 12 + 1:02d}" for n in range(first.year * 12 + first.month - 1, last.year * 12 + last.month)
    ]
    scenes = [item.scene for item in planned.items]
    count = Counter(scene.time[:7] for scene in scenes)
    counted = Counter(name for name, _ in {(scene.time[:7], scene.overpass) for scene in scenes})
    possible = _possible(scenes, first, last)
    # An archive may hold only a sample of all passes: holes are measured against its own typical month.
    usual = statistics.median([counted[m] / possible[m] for m in names if counted[m] and possible[m]] or [1.0])
    size = build_cost.window_bytes(planned)
    return tuple(
        Month(
            month=m, passes=counted[m], expected=round(possible[m] * usual, 1), scenes=count[m], bytes=count[m] * size
        )
        for m in names
    )


def describe_baselines(planned: Lock) -> str:
    """Return the processing baselines of the scenes with their numbers, and by which rule twins were chosen."""
    count = Counter(item.scene.baseline for item in planned.items)
    counted = ", ".join(f"{name} ({number} scenes)" for name, number in sorted(count.items()))
    twins = sum(dropped.reason.startswith(TWIN) for dropped in planned.dropped)
    rule = (
        "in the order of source.baselines"
        if planned.baselines
        else "the newest first; source.baselines pins or orders them"
    )
    return f"baselines: {counted}" + (f"; {twins} twins left out, {rule}" if twins else "")


def mixes_twins(planned: Lock) -> bool:
    """Return whether twins were left out of a series that has several baselines, which differ in their geometry."""
    has_twins = any(dropped.reason.startswith(TWIN) for dropped in planned.dropped)
    return has_twins and len({item.scene.baseline for item in planned.items}) > 1


def describe_sparse_months(rows: Iterable[Month]) -> str:
    """Return a message that lists the months with holes; empty if there are none."""
    thin = [f"{m.month} ({m.passes} of {m.expected:g})" for m in rows if m.hole]
    more = f" and {len(thin) - SHOWN} more" if len(thin) > SHOWN else ""
    return f"months with fewer than half of the expected passes: {', '.join(thin[:SHOWN])}{more}" if thin else ""


def _possible(scenes: Iterable[Scene], first: date, last: date) -> Counter[str]:
    """Count the passes per month between two days of the satellites and orbits in the catalogue."""
    # Any pass of a track can be the anchor, since they repeat to the day.
    tracks = {(scene.platform, scene.orbit): date.fromisoformat(scene.time[:10]) for scene in scenes}
    passes: Counter[str] = Counter()
    repeat = timedelta(days=MSI.repeat_days)
    for (platform, _), anchor in tracks.items():
        start = max(first, MSI.in_service.get(platform, first))
        day = start + (anchor - start) % repeat
        while day <= last:
            passes[f"{day:%Y-%m}"] += 1
            day += repeat
    return passes


# --- drift ---------------------------------------------------------------------------------


def drift(planned: Lock, address: str, *, allow_private_hosts: bool = False) -> list[str]:
    """Compare the scenes of a catalogue with those of a lock.

    Args:
        planned: The lock.
        address: URL or path of the catalogue.
        allow_private_hosts: Follow links of a remote catalogue to hosts of the local network.

    Returns:
        One line per scene that vanished, changed or is new; empty if there are no differences.

    Raises:
        ServiceError: The catalogue cannot be reached after several retries.
        SourceError: No item has what is needed, or two different items have one id.
        SettingError: No scene matches, or an item to leave out does not exist.
    """
    query = search.Query(
        collection=planned.collection,
        bounds=aoi.in_degrees(planned.grid),
        dates=planned.dates,
        bands=tuple(planned.items[0].scene.assets),
        leave_out=tuple(dropped.id for dropped in planned.dropped if dropped.reason == search.LEFT_OUT),
        baselines=planned.baselines,
    )
    counted, others = search.search(address, query, allow_private_hosts=allow_private_hosts)
    # Select as the plan did, so that neighbours that it left out are not reported as new.
    unusable = [one for one in others if isinstance(one, Unusable)]
    usable, elsewhere = select_tiles(counted, planned.grid, unusable, outline=planned.outline)
    today = {scene.id: scene for scene in usable}
    known = {item.scene.id: item.scene for item in planned.items}
    left_out = {dropped.id for dropped in planned.dropped}
    lines = []
    for name, scene in known.items():
        if name not in today:
            reason = next((d.reason for d in (*elsewhere, *others) if d.id == name), "not in the catalogue any more")
            lines.append(f"vanished: {name}: {reason}")
        elif today[name] != scene:
            fields = [key for key, value in vars(scene).items() if getattr(today[name], key) != value]
            lines.append(f"changed: {name}: {', '.join(fields)}")
    return lines + [f"new: {name}" for name in today if name not in known and name not in left_out]
