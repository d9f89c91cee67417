"""Decide whether too many OpenStreetMap features were lost. Pure."""

from __future__ import annotations

from collections.abc import Mapping

MANY_LOST = 0.05
"""Share of lost features above which the labels of a build need a look; extracts lose 0 to 2 % at their borders."""
LOSSES = "label_losses.json"
"""Name of the list of lost and mended objects in a build folder."""


def describe_many_lost(losses: Mapping[str, str], read: int) -> str:
    """Return a message if more than MANY_LOST of all features are lost; "" if not.

    Args:
        losses: Reason by name, as `Features.losses`.
        read: Number of features that were read.
    """
    lost = [f"{name}: {fate.removeprefix('lost: ')}" for name, fate in losses.items() if fate.startswith("lost")]
    if len(lost) <= MANY_LOST * (len(lost) + read):
        return ""
    return (
        f"{len(lost)} of {len(lost) + read} OpenStreetMap features are lost ({'; '.join(lost[:2])}; all in {LOSSES}); "
        "mend the data or fetch them again"
    )
