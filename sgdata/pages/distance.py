"""Scores by distance to the training samples as rows of text, for pages and model cards."""

from __future__ import annotations

from typing import Any

from sgdata.errors import SourceError

TITLE = "Score by distance to the nearest training sample"


def columns(results: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the columns of `rows`."""
    return ("distance", "samples", _figure(results["by_distance"]), "95 % interval")


def rows(results: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return a row for each band of distance in the results of a run, none for runs without.

    Raises:
        SourceError: The bands are not as a run writes them.
    """
    bands = results.get("by_distance") or []
    try:
        return tuple(
            (
                str(each["band"]),
                f"{each['samples']:,}",
                text(each[_figure(bands)]),
                text(each[f"{_figure(bands)}_interval"] or ""),
            )
            for each in bands
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise SourceError(f"'by_distance' of the results is {bands!r:.80}, expected a list of bands") from None


def _figure(bands: list[dict[str, Any]]) -> str:
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
