"""Count how much of each scene a composite shows, and signs of residual clouds and seams. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sgdata.composite.cloud_masks import BRIGHT, NEVER_CLEAR
from sgdata.composite.kernels import NO_VALUE
from sgdata.types import Array, Window

BRIGHT_DN = 2500
"""DN in blue that few surfaces but clouds, snow and white roofs exceed."""


class UsageCounter:
    """Counts over a raster of `width` columns, added as windows row by row from the upper left.

    `scene_pixels`: pixels by item index. `steps`: pairs of neighbouring pixels and the sum of their differences in red
    (DN), within a scene and across two scenes. The result does not depend on the size of the windows.
    """

    def __init__(self, width: int) -> None:
        self.scene_pixels = np.zeros(NO_VALUE + 1, np.int64)
        self.valid = self.bright = self.targets = self.never_clear = self.total = 0
        self.steps = {"same": np.zeros(2, np.int64), "other": np.zeros(2, np.int64)}
        # Red and index of the last row of the windows above and of the last column of the window to the left. Zeros, as
        # at the start, mean no data and make no pair.
        self._above, self._left = np.zeros((2, 1, width), np.uint16), np.zeros((2, 0, 0), np.uint16)

    def add(self, window: Window, *, red: Array, blue: Array, index: Array, target: Array) -> None:
        """Count one window of (h, w) DN in red and blue, of item indices and of kinds of bright targets."""
        self.total += blue.size
        self.valid += int((blue > 0).sum())
        self.bright += int((blue >= BRIGHT_DN).sum())
        self.scene_pixels += np.bincount(index.ravel(), minlength=len(self.scene_pixels))
        self.never_clear += int((target == NEVER_CLEAR).sum())
        self.targets += int(((target == NEVER_CLEAR) | (target == BRIGHT)).sum())
        block, columns = np.stack([red, index]), window.slices[1]
        left = self._left if window.col else np.zeros_like(block[:, :, :1])
        self._count_steps(np.concatenate([left, block], axis=2))
        self._count_steps(np.concatenate([self._above[:, :, columns], block], axis=1).swapaxes(1, 2))
        self._left = block[:, :, -1:].copy()
        self._above[:, :, columns] = block[:, -1:]

    def _count_steps(self, block: Array) -> None:
        """Count the steps of (2, h, w) red and index between neighbouring columns."""
        red, index = block
        higher, lower = np.maximum(red[:, :-1], red[:, 1:]), np.minimum(red[:, :-1], red[:, 1:])
        across = index[:, :-1] != index[:, 1:]
        for kind, pairs in (("same", ~across), ("other", across)):
            pairs = pairs & (lower > 0)
            self.steps[kind] += int(pairs.sum()), int((higher - lower).sum(where=pairs, dtype=np.int64))

    def summary(self, scenes: Sequence[tuple[str, float | None]]) -> dict[str, Any]:
        """Return the content of `usage.json`, given the id and clear share of each scene."""
        # Rules that mix dates choose no scene: nothing to count, and no seams.
        mixed = self.scene_pixels[:NO_VALUE].sum() == 0
        rows = []
        for (name, clear_share), pixels in zip(scenes, self.scene_pixels[: len(scenes)], strict=True):
            shown_share = None if mixed else _share(pixels, self.valid, 6)
            rows.append({"id": name, "clear_share": clear_share, "shown_share": shown_share})
        means = {kind: _share(total, pairs, 3) if pairs else None for kind, (pairs, total) in self.steps.items()}
        return {
            "scenes": rows,
            "nodata_pixels": self.total - self.valid,
            "nodata_share": round(1 - self.valid / self.total, 6),
            "bright_share": _share(self.bright, self.valid, 6),
            "bright_target_share": _share(self.targets, self.valid, 6),
            "never_clear_share": _share(self.never_clear, self.valid, 6),
            "seam": {
                "pairs": int(self.steps["other"][0]), "step_dn": means["other"], "step_dn_elsewhere": means["same"],
            },
        }  # fmt: skip


def _share(count: int | np.int64, total: int | np.int64, digits: int) -> float:
    return round(int(count) / max(int(total), 1), digits)
