"""Scores by distance to the training samples as rows of text, for pages and model cards."""

from __future__ import annotations

from typing import Any

from sgdata.errors import SourceError

# Footprints that touch; as far as neighbouring fields; a valley; a region.
METRES = (
    (0, "under 100 m"),
    (100, "100 m to 2 km"),
    (2_000, "2 to 5 km"),
    (5_000, "5 to 20 km"),
    (20_000, "20 km and more"),
)
LIKENESS = ((0.9, "likeness 0.9 and more"), (0.7, "0.7 to 0.9"), (0.5, "0.5 to 0.7"), (-1.0, "under 0.5"))
KEY = "by_distance"
"""Key of the bands in `results.json`."""
TITLE = "Score by distance to the nearest training sample"


def columns(results: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the columns of `rows`."""
    return ("distance", "samples", figure(results[KEY]), "95 % interval")


def rows(results: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return a row for each band of distance in the results of a run, none for runs without.

    Raises:
        SourceError: The bands are not as a run writes them.
    """
    bands = results.get(KEY) or []
    try:
        return tuple(
            (
                str(each["band"]),
                f"{each['samples']:,}",
                text(each[figure(bands)]),
                text(each[f"{figure(bands)}_interval"] or ""),
            )
            for each in bands
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise SourceError(
            f"'by_distance' of the results is {bands!r:.80}, expected a list of bands; run the training again"
        ) from None


def figure(bands: list[dict[str, Any]]) -> str:
    """Return the name of the figure that bands hold beside name, number of samples and interval."""
    (name,) = (key for key in bands[0] if key not in ("band", "samples") and not key.endswith("_interval"))
    return name


def text(value: Any) -> str:
    """Format a figure, an interval or a word; '' for values that have a block of their own."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return " to ".join(text(end) for end in value)
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if isinstance(value, dict | list) else str(value)
