"""Select the dates that a composite considers by their clear scores, before their bands are read."""

from __future__ import annotations

import numpy as np

from sgdata.composite.rules import CompositeSettings
from sgdata.staging.scene_staging import CLEAR_SCORE, StagedScene
from sgdata.types import Array

THINNING = 8
"""Coverage of a scene is counted on every eighth pixel of its clear mask, down and across."""


def examined_dates(scenes: tuple[StagedScene, ...], settings: CompositeSettings) -> list[int]:
    """Return the positions of all scenes, or of at most `max_obs`, the clearest together."""
    masks = [scene.files[CLEAR_SCORE] for scene in scenes if CLEAR_SCORE in scene.files]
    if not masks:
        return list(range(len(scenes)))[: settings.max_obs or None]
    if not settings.max_obs or settings.max_obs >= len(scenes):
        return list(range(len(scenes)))
    clear = [mask.pixels[::THINNING, ::THINNING] > 0 for mask in masks]
    return sorted(spread_scenes(clear, settings.max_obs))


def spread_scenes(clear: list[Array], count: int) -> list[int]:
    """Choose `count` of the (H, W) bool masks greedily, each time the one that adds most where least is covered yet.

    The second clear date of a pixel counts half of the first one, the third a third, and so on; ties go to the lowest
    position.
    """
    masks = np.stack(clear).reshape(len(clear), -1)
    dates = np.zeros(masks.shape[1], np.int64)
    chosen: list[int] = []
    for _ in range(min(count, len(clear))):
        # 720720 divides by 1 to 16: with integers the order of summing cannot decide between equals.
        gain = np.array([-1 if n in chosen else (720_720 // (1 + dates[mask])).sum() for n, mask in enumerate(masks)])
        best = int(gain.argmax())
        chosen.append(best)
        dates += masks[best]
    return chosen
