"""Summarise a plan: size and coverage of its area, passes and scenes per month, processing baselines."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

from sgdata.builds import build_cost
from sgdata.rasters import grids
from sgdata.scenes import aoi, coverage, search
from sgdata.scenes.types import TWIN, Scene
from sgdata.sentinel2 import MSI

if TYPE_CHECKING:
    from sgdata.scenes.lock import Lock

SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class MonthSummary:
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
    covered = shapely.union_all([coverage.footprint(scene, grid.crs) for scene in different.values()])
    return AreaSummary(
        longitude=round((west + east) / 2, 4),
        latitude=round((south + north) / 2, 4),
        km2=round(area.area / grids.scale_factor(grid) ** 2 / 1e6, 2),
        pixels=(grid.shape[1], grid.shape[0]),
        crs=grid.crs,
        covered=round(covered.intersection(area).area / area.area, 4),
    )


def count_months(planned: Lock) -> tuple[MonthSummary, ...]:
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
        MonthSummary(
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


def describe_sparse_months(rows: Iterable[MonthSummary]) -> str:
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
