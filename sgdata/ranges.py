"""Ranges of the numbers in recipes, by the name of the setting: checked when a recipe is read, before any work.

One word has one meaning in all recipes, so that the last part of a setting's name decides. Numbers that are not finite
are refused for every setting.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

_SHARE = (0, 1)
_COUNT = (1, 10**6)
_COUNT_OR_NONE = (0, 10**6)
_SEED = (0, 2**63 - 1)

RANGES: dict[str, tuple[float, float]] = {
    # Builds. Buffers are distances: 10 km is the neighbourhood of the bright target filter.
    "max_obs": _COUNT_OR_NONE, "threshold": (0, 100), "cloud_buffer_m": (0, 10_000), "shadow_buffer_m": (0, 10_000),
    "drop": (0, 255), "day_of_year": (1, 366), "sigma_days": (0.1, 10_000), "year": (1970, 2200),
    "year_factor": (0, 1000), "cloud_m": (0.1, 100_000), "haze_dn": (0.1, 65_535), "weights": (0, 10**6),
    # The sides of patches and blocks are pixels; a raster of 2**31 pixels a side exists nowhere.
    "size": (1, 65_536), "stride": (1, 65_536), "block_px": (0, 2**31), "gap_px": (0, 2**31),
    "val_share": _SHARE, "test_share": _SHARE, "max_unusable_share": _SHARE,
    "supersample": (1, 32), "gsd_m": (1e-6, 100_000),
    # The cap of a shard is 1 TB.
    "shard_mb": (1, 2**20),
    # Training.
    "seed": _SEED, "fraction_seed": _SEED, "epochs": (0, 10**6), "batch": _COUNT, "accumulate": _COUNT,
    "log_every": _COUNT, "evaluate_every": _COUNT_OR_NONE, "picture_every": (0, 10**9), "lr": (0, 1e38),
    "warmup_epochs": (0, 10**6), "weight_decay": (0, 10**6), "clip_norm": (0, 10**9), "unchanged_factor": (0, 10**9),
    "weight_token": (0, 10**9), "weight_spectral": (0, 10**9), "flops_per_s": (1, 10**21), "start_s": (0, 10**9),
}  # fmt: skip


def violation(value: Any) -> str:
    """Return a sentence about the first number of a settings dataclass outside its range, "" if there is none."""
    for key, number in _numbers(value, ""):
        name = key.rpartition(".")[2]
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if not math.isfinite(number):
            return f"'{key}' is {number}: expected a finite number"
        if not low <= number <= high:
            return f"'{key}' is {number:g}: expected {low:g} to {high:g}"
    return ""


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    """Yield every number of a dataclass with its dotted name, also those in nested dataclasses, tuples and tables."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield key, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _numbers(getattr(value, field.name), f"{key}.{field.name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each, key)
    elif isinstance(value, dict):
        for name, each in value.items():
            # A key of a table is data, such as the name of a class, and no setting.
            yield from _numbers(each, f"{key}[{name!r}]")
