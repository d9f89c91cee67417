"""Keep one of several scenes of one acquisition, which differ in their processing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sgdata.scenes.types import TWIN, Dropped, Scene

TWIN_SECONDS = 2
"""Twins may differ in time by less, through rounding."""
STRIP_OVERLAP = 0.1
"""Scenes of one acquisition that share less than this part of the smaller one are two strips, not twins."""


def drop_twins(
    scenes: Iterable[Scene], outlines: Mapping[str, Any] | None = None, baselines: Sequence[str] = ()
) -> tuple[tuple[Scene, ...], tuple[Dropped, ...]]:
    """Keep one scene per acquisition: the first or newest baseline, then the newest generation time, then greatest id.

    Args:
        scenes: In any order.
        outlines: GeoJSON geometry of the data of a scene, by id; strips that hardly overlap are both kept.
        baselines: Order of preference, of all baselines; empty for the newest first.

    Returns:
        The scenes in order of (time, id), and the twins dropped.
    """
    scenes = tuple(scenes)
    # From the last choice to the first.
    order = list(reversed(baselines)) or sorted({scene.baseline for scene in scenes})
    # Sorted before grouped, so that the first of a group is the one to keep.
    ranked = sorted(scenes, key=lambda s: (order.index(s.baseline), s.generated, s.id), reverse=True)
    kept: dict[tuple[str, str, int, str], list[Scene]] = {}
    dropped = []
    for scene in ranked:
        others = kept.setdefault(scene.acquisition, [])
        winner = next((other for other in others if _are_twins(scene, other, outlines or {})), None)
        if winner is None:
            others.append(scene)
        else:
            compared = f"baseline {scene.baseline} after {winner.baseline}"
            dropped.append(Dropped(id=scene.id, reason=f"{TWIN}{winner.id} ({compared})"))
    chosen = sorted((scene for winners in kept.values() for scene in winners), key=lambda s: (s.time, s.id))
    return tuple(chosen), tuple(sorted(dropped, key=lambda d: d.id))


def _are_twins(one: Scene, other: Scene, outlines: Mapping[str, Any]) -> bool:
    apart = datetime.fromisoformat(one.time) - datetime.fromisoformat(other.time)
    return abs(apart.total_seconds()) < TWIN_SECONDS and not _are_strips(one.id, other.id, outlines)


def _are_strips(one: str, other: str, outlines: Mapping[str, Any]) -> bool:
    """Return whether two scenes of one acquisition cover different ground."""
    import shapely.geometry

    if not (outlines.get(one) and outlines.get(other)):
        return False
    # Footprints often cross themselves at swath edges.
    shapes = [shapely.make_valid(shapely.geometry.shape(outlines[name])) for name in (one, other)]
    return bool(shapes[0].intersection(shapes[1]).area < STRIP_OVERLAP * min(shape.area for shape in shapes))
