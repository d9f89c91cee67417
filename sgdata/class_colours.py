"""Choose colours for the classes of a label space that has none of its own."""

from __future__ import annotations

import colorsys

CHANGE_COLOURS = ("#303030", "#f5d442")
"""Unchanged and changed."""


def default_colours(count: int, *, change: bool = False) -> tuple[str, ...]:
    """Return `count` different colours (#rrggbb).

    Args:
        count: Number of classes; the first colours do not depend on it.
        change: Whether two classes are unchanged and changed.
    """
    if change and count == 2:
        return CHANGE_COLOURS
    colours = []
    for number in range(count):
        # By the golden ratio, neighbours get hues far apart; three levels of brightness separate hues that come close.
        red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.6, (0.9, 0.7, 0.5)[number % 3])
        colours.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return tuple(colours)
