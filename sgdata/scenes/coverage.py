"""What a plan shows of the scenes it found: which tiles serve an area, passes per month, holes, costs, drift."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from sgdata.scenes import aoi, search
from sgdata.scenes.types import Dropped, Scene
from sgdata.sentinel2 import MSI
from sgdata.types import Grid

if TYPE_CHECKING:
    from sgdata.scenes.lock import Lock

SHOWN = 6
WEB, DISK = 12e6, 150e6
"""Bytes a second that a plan reckons with: a 100 Mbit/s line, a local disk."""
COMPRESSED = 1 / 1.5  # deflate on reflectance
BLOCK_PX, BLOCK_S = 1024, 0.008
"""Side of a provider's block, and what one worker takes to inflate, hash and store one: measured, 7 to 10 ms."""
REDUCED = 120e6
"""Raw bytes a second that one worker masks, reduces and writes: measured for a medoid of 12 bands, 90 to 300 MB."""


@dataclass(frozen=True, kw_only=True)
class Month:
    """One row of the plan: passes found and expected, scenes, and the raw bytes of their windows.

    Expected is what the orbits make, times the share of it that the catalogue holds in a usual month (the median
    of the months that it has any in).
    """

    month: str
    passes: int
    expected: float
    scenes: int
    bytes: int

    @property
    def hole(self) -> bool:
        """Fewer than half of the passes that one may expect."""
        return self.passes < self.expected / 2


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Bytes to read over the line or from disk, bytes of scratch, and minutes with these workers; estimates."""

    read_bytes: int
    scratch_bytes: int
    minutes: int


def select_scenes(scenes: Iterable[Scene], lattice: Grid) -> tuple[tuple[Scene, ...], tuple[Dropped, ...]]:
    """Scenes of the tiles that the area needs, those of its own CRS first, and the others with the reason."""
    import shapely

    area = shapely.box(*lattice.bounds)
    kept, dropped = [], []
    for scene in scenes:
        outline = _outline(scene, lattice.crs)
        if outline is None and _foreign(scene, lattice.crs):
            dropped.append(Dropped(id=scene.id, reason=f"lies in {scene.crs}, the area in {lattice.crs}"))
        elif outline is not None and outline.intersection(area).area <= 0:
            dropped.append(Dropped(id=scene.id, reason="its files end before the area"))
        else:
            kept.append(scene)
    needed = needed_tiles(kept, lattice)
    for scene in kept:
        if scene.tile not in needed:
            away = f"lies in {scene.crs}, the area in {lattice.crs}: " if _foreign(scene, lattice.crs) else ""
            reason = f"{away}the area lies whole in {', '.join(sorted(needed))}"
            dropped.append(Dropped(id=scene.id, reason=reason))
    # Where granules of one pass overlap the first counts: own pixels rather than warped ones.
    kept.sort(key=lambda scene: _foreign(scene, lattice.crs))
    return tuple(s for s in kept if s.tile in needed), tuple(dropped)


def needed_tiles(scenes: Iterable[Scene], lattice: Grid) -> set[str]:
    """The tile that holds most of the area, then the one that holds most of the rest, until none adds to it.

    Neighbours repeat 9.84 km of the same pixels: reading both would only cost. A tile of unknown extent is kept; one
    of the next zone, which must be warped, only has what no tile of the area's own zone holds.
    """
    import shapely

    boxes: dict[str, Any] = {}
    own: dict[str, bool] = {}
    for scene in scenes:
        outline = _outline(scene, lattice.crs)
        # One item of the tile that tells its extent is enough: all of them share a lattice.
        if outline is not None or scene.tile not in boxes:
            boxes[scene.tile] = outline
            own[scene.tile] = not _foreign(scene, lattice.crs)
    needed = {tile for tile, box in boxes.items() if box is None}
    # Greedy is not minimal in general, but tiles lie in rows and columns, where it is.
    rest = shapely.box(*lattice.bounds)
    while known := {tile: rest.intersection(box).area for tile, box in boxes.items() if tile not in needed and box}:
        # Sorted first: of two tiles that serve as well, the choice must not depend on the catalogue's order.
        best = max(sorted(known), key=lambda tile: (own[tile] and known[tile] > 0, known[tile]))
        if known[best] <= 0:
            break
        needed.add(best)
        rest = rest.difference(boxes[best])
    return needed


def _outline(scene: Scene, crs: str) -> Any | None:
    """The polygon of the scene's files in `crs`, where its item tells it."""
    import shapely
    from pyproj import Transformer

    for asset in scene.assets.values():
        if asset.transform and asset.shape:
            gsd, _, left, _, _, top = asset.transform
            box = shapely.box(left, top - gsd * asset.shape[0], left + gsd * asset.shape[1], top)
            if not _foreign(scene, crs):
                return box
            move = Transformer.from_crs(scene.crs, crs, always_xy=True)
            # A point each 10 km: between two of them the edge's bend is metres.
            return shapely.transform(shapely.segmentize(box, 10_000), move.transform, interleaved=False)
    return None


def _foreign(scene: Scene, crs: str) -> bool:
    return scene.crs is not None and scene.crs != crs


# --- months --------------------------------------------------------------------------------


def months(planned: Lock) -> tuple[Month, ...]:
    """Passes, scenes and raw bytes per calendar month of the lock, months without any included."""
    first, last = search.days(planned.dates)
    names = [
        f"{n // 12:04d}-{n % 12 + 1:02d}" for n in range(first.year * 12 + first.month - 1, last.year * 12 + last.month)
    ]
    scenes = [item.scene for item in planned.items]
    count = Counter(scene.time[:7] for scene in scenes)
    found = Counter(name for name, _ in {(scene.time[:7], scene.overpass) for scene in scenes})
    possible = _possible(scenes, first, last)
    # Of all that fly over, an archive may hold but a sample: its own usual month is the measure of its holes.
    usual = statistics.median([found[m] / possible[m] for m in names if found[m] and possible[m]] or [1.0])
    size = window_bytes(planned)
    return tuple(
        Month(month=m, passes=found[m], expected=round(possible[m] * usual, 1), scenes=count[m], bytes=count[m] * size)
        for m in names
    )


def holes(rows: Iterable[Month]) -> str:
    """The months that are holes, in words; empty where none is."""
    thin = [f"{m.month} ({m.passes} of {m.expected:g})" for m in rows if m.hole]
    more = f" and {len(thin) - SHOWN} more" if len(thin) > SHOWN else ""
    return f"months with fewer than half of the expected passes: {', '.join(thin[:SHOWN])}{more}" if thin else ""


def _possible(scenes: Iterable[Scene], first: date, last: date) -> Counter[str]:
    """Passes per month that the satellites and orbits seen in the catalogue make between two days."""
    # Any pass of a track will do as anchor: they repeat to the day.
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


def window_bytes(planned: Lock) -> int:
    """Raw bytes that one scene brings: the area in each band at its own resolution, and the mask layer."""
    height, width = planned.grid.shape
    total = 0.0
    for name in planned.items[0].scene.assets:
        coarser = MSI.gsd_m(name) / MSI.finest_gsd_m
        total += height * width / coarser**2 * (2 if name in MSI.by_name else 1)
    return round(total)


def cost(planned: Lock, where: str, *, workers: int) -> Cost:
    """What a build of this lock will take; `where` is the catalogue that it reads."""
    raw = window_bytes(planned) * len(planned.items)
    read = round(raw * COMPRESSED)
    work = _blocks(planned) * BLOCK_S + raw / REDUCED
    seconds = read / (WEB if search.is_url(where) else DISK) + work / workers
    height, width = planned.grid.shape
    # Finished tiles keep the image and four planes of provenance until the COGs are written.
    tiles = 2 * height * width * (len(planned.items[0].scene.assets) + 4)
    return Cost(read_bytes=read, scratch_bytes=raw + tiles, minutes=round(seconds / 60) + 1)


def _blocks(planned: Lock) -> int:
    """Blocks of all files that the area meets: whole ones are inflated, however little of them is wanted."""
    total = 0.0
    for item in planned.items:
        for name, asset in item.scene.assets.items():
            sides = [side * planned.grid.gsd_m / MSI.gsd_m(name) / BLOCK_PX + 1 for side in planned.grid.shape]
            # On average a window meets one more than it fills, but no more than the file has.
            there = [-(-side // BLOCK_PX) for side in asset.shape or (math.inf, math.inf)]
            total += min(sides[0], there[0]) * min(sides[1], there[1])
    return round(total)


# --- drift ---------------------------------------------------------------------------------


def drift(planned: Lock, where: str) -> list[str]:
    """What the catalogue says today against the lock: one line per scene that vanished, changed or is new."""
    query = search.Query(
        collection=planned.collection,
        bounds=aoi.in_degrees(planned.grid),
        dates=planned.dates,
        bands=tuple(planned.items[0].scene.assets),
        leave_out=tuple(dropped.id for dropped in planned.dropped if dropped.reason == search.LEFT_OUT),
    )
    found, twins = search.search(where, query)
    # The same choice as the plan made: a neighbour that it left out is no news.
    usable, elsewhere = select_scenes(found, planned.grid)
    today = {scene.id: scene for scene in usable}
    known = {item.scene.id: item.scene for item in planned.items}
    left_out = {dropped.id for dropped in planned.dropped}
    lines = []
    for name, scene in known.items():
        if name not in today:
            reason = next((d.reason for d in (*twins, *elsewhere) if d.id == name), "not in the catalogue any more")
            lines.append(f"vanished: {name}: {reason}")
        elif today[name] != scene:
            told = [key for key, value in vars(scene).items() if getattr(today[name], key) != value]
            lines.append(f"changed: {name}: {', '.join(told)}")
    return lines + [f"new: {name}" for name in today if name not in known and name not in left_out]
