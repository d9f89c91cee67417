"""Choose a part of the samples by their keys, the same part for any order of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sgdata.errors import SettingError
from sgdata.shards import shard_index


def subset(keys: Sequence[str], fraction: float, *, seed: int) -> list[int]:
    """Return the indices of a fraction of the samples: those whose SHA-256 of "<seed>:<key>" is lowest.

    The selection can be recomputed in any language, a smaller fraction is a subset of every larger one, and it does not
    depend on the order of the files. The number of samples is rounded half up and at least 1.

    Args:
        keys: Key of each sample.
        fraction: Share of the samples to select, above 0 and at most 1.
        seed: Seed that selects this share.

    Raises:
        SettingError: `fraction` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise SettingError(f"training.fraction is {fraction}: expected a share of the samples, above 0 and at most 1")
    count = max(1, int(fraction * len(keys) + 0.5))
    return sorted(in_order(keys, seed=seed)[:count])


def in_order(keys: Sequence[str], *, seed: int) -> list[int]:
    """Return the indices of samples in the order of the SHA-256 of "<seed>:<key>".

    Args:
        keys: Key of each sample.
        seed: Seed of the order.
    """
    digests = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
    return sorted(range(len(keys)), key=digests.__getitem__)


def within_budget(folder: Path, split: str, budget: str) -> list[str]:
    """Return the keys of the samples that a label budget of a split table has.

    Args:
        folder: Folder of shards.
        split: Name of the split.
        budget: Name of the budget, such as "20" or "10%".

    Raises:
        SettingError: No sample of the split is in such a budget.
        SourceError: The index is missing or damaged.
    """
    index = shard_index.read_index(folder)
    columns = [index[name].to_pylist() if name in index.column_names else [] for name in ("key", "split", "budgets")]
    rows = [(key, budgets or ()) for key, of, budgets in zip(*columns, strict=False) if of == split]
    keys = [key for key, budgets in rows if budget in budgets]
    if not keys:
        names = ", ".join(sorted({name for _, budgets in rows for name in budgets})) or "none"
        raise SettingError(
            f"training.budget is {budget!r:.40}: split '{split}' of {folder} has no samples of it, only of {names}; "
            "pack the data with a split table, such as --split ground-0"
        )
    return keys
