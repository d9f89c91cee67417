"""Bokeh figures as JSON with fixed ids. Their colours are CSS variables (`page.css`), so they follow light and dark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sgdata.types import BandStatistics, Bounds

# Different in lightness as well as hue: distinguishable in grey and with colour blindness, on white and on black.
SERIES = ("#2f7fc1", "#d9622b", "#3d9a4a", "#9a6bc9", "#b8860b", "#c94f7c", "#1b9e9e", "#8c7a5f")
SPLITS = {"train": "#2f7fc1", "val": "#d9622b", "test": "#3d9a4a"}
SPECTRUM = ((SERIES[1], "this pixel"), (SERIES[0], "median, and percentiles 2 to 98"))
# Points per line: a screen has no more columns.
POINTS = 1500


def colour(split: str) -> str:
    """Return the colour of a split; unknown splits share the last one."""
    return SPLITS.get(split, SERIES[-1])


def script() -> bytes:
    """Return Bokeh's JavaScript from its package."""
    import bokeh

    return (Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js").read_bytes()


def embedded(model: Any) -> str:
    """Return the figure as JSON for `Bokeh.embed.embed_item`; equal figures give equal JSON."""
    from bokeh.embed import json_item

    # Bokeh numbers its models over the life of the process; number them by appearance instead.
    numbers: dict[str, str] = {}

    def renumbered(match: re.Match[str]) -> str:
        return f'{match[1]}{numbers.setdefault(match[2], f"p{len(numbers)}")}"'

    return re.sub(r'("(?:root_)?id": ")(p\d+)"', renumbered, json.dumps(json_item(model)))


def _figure(*, tools: str, **options: Any) -> Any:
    from bokeh import plotting

    make: Any = plotting.figure  # its stubs declare neither `tools` nor arrays of whole numbers
    made = make(sizing_mode="stretch_width", tools=tools, **options)
    made.toolbar.autohide = True
    made.toolbar.logo = None
    return made


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str) -> str:
    """Draw a line chart of named (x, y) series, with the colours of SERIES in order."""
    made = _figure(
        tools="hover,box_zoom,reset,save", height=300, x_axis_label=x_label, tooltips=[("", "$name $x{0} : $y{0.0000}")]
    )
    for (name, points), shade in zip(series.items(), SERIES, strict=False):
        step = -(-len(points) // POINTS)
        shown = [*points[:-1:step], points[-1]]
        x, y = (list(values) for values in zip(*shown, strict=True))
        made.line(x, y, name=name, color=shade, line_width=2)
    return embedded(made)


def layered(
    shape: tuple[int, int], layers: Sequence[str], patches: Mapping[str, Sequence[tuple[int, int, int, int]]]
) -> str:
    """Draw a map in pixels (x to the right, y down) with empty image layers that `page.js` fills.

    `patches` are (row, column, height, width) by split.
    """
    from bokeh.models import Range1d

    height, width = shape
    made = _figure(
        tools="pan,wheel_zoom", aspect_ratio=width / height, toolbar_location=None, min_border=0,
        x_range=Range1d(start=0, end=width), y_range=Range1d(start=height, end=0),
    )  # fmt: skip
    # page.js enables scrolling while the map has the focus; otherwise users could not scroll past it.
    made.toolbar.active_scroll = None
    made.axis.visible = made.grid.visible = False
    for name in layers:
        # An initial image of one transparent pixel, which defines the type of those to come.
        clear = np.zeros((1, 1), np.uint32)
        made.image_rgba(image=[clear], x=[0], y=[0], dw=[width], dh=[height], name=name)
    for split, boxes in patches.items():
        row, col, high, wide = np.array(boxes).T
        made.quad(
            left=col.tolist(), right=(col + wide).tolist(), top=row.tolist(), bottom=(row + high).tolist(),
            line_color=colour(split), line_width=1, fill_alpha=0.04,
            fill_color=colour(split), name="patches", visible=False,
        )  # fmt: skip
    for shade, size in (("#000000", 17), ("#ffffff", 15)):
        made.scatter(
            x=[width / 2], y=[height / 2], marker="square", size=size, fill_alpha=0, line_color=shade, line_width=1.5,
            name="cursor",
        )  # fmt: skip
    return embedded(made)


def spectrum(
    wavelengths: Mapping[str, float], statistics: Mapping[str, BandStatistics], *, scale: float, offset: float
) -> str:
    """Draw reflectance over wavelength: the range of percentiles 2 to 98, the median and the chosen pixel."""
    made = _figure(
        tools="", height=230, toolbar_location=None, x_axis_label="wavelength, nm", y_axis_label="reflectance"
    )
    names = [name for name in wavelengths if name in statistics]
    if names:
        x = [wavelengths[name] for name in names]
        low, middle, high = (
            [(getattr(statistics[name], key) + offset) * scale for name in names] for key in ("p2", "p50", "p98")
        )
        made.varea(x=x, y1=low, y2=high, fill_color=SERIES[0], fill_alpha=0.18)
        made.line(x, middle, color=SERIES[0], line_dash="dashed")
    from bokeh.models import ColumnDataSource

    source = ColumnDataSource({"x": [], "y": []}, name="spectrum")
    for draw in (made.line, made.scatter):
        draw("x", "y", source=source, color=SERIES[1], line_width=2)
    return embedded(made)


def extents(bounds: Mapping[str, Sequence[Bounds]]) -> str:
    """Draw boxes in degrees by split, to scale, each with a dot in case it is too small to see."""
    places = np.array([box for boxes in bounds.values() for box in boxes])
    middle = np.radians((places[:, 1].min() + places[:, 3].max()) / 2)
    made = _figure(
        tools="pan,wheel_zoom,box_zoom,reset", height=420, match_aspect=True, active_scroll=None,
        # A degree of longitude is shorter than one of latitude; the plate carree of the middle parallel.
        aspect_scale=float(np.cos(middle)), x_axis_label="longitude", y_axis_label="latitude",
    )  # fmt: skip
    for split, boxes in bounds.items():
        west, south, east, north = np.array(boxes).T
        shade = colour(split)
        made.scatter(((west + east) / 2).tolist(), ((south + north) / 2).tolist(), size=3, color=shade)
        made.quad(
            left=west.tolist(), right=east.tolist(), bottom=south.tolist(), top=north.tolist(), line_color=shade,
            fill_color=shade, fill_alpha=0.2,
        )  # fmt: skip
    return embedded(made)


def spans(rows: Sequence[tuple[str, float, Sequence[float] | None, float | None]]) -> str:
    """Draw a line per (name, figure, interval, published figure): a dot, a bar, a diamond."""
    names = [row[0] for row in rows]
    made = _figure(
        tools="hover,save", height=60 + 24 * len(rows), y_range=names[::-1], tooltips=[("", "@y: @x{0.0000}")]
    )
    for name, middle, ends, published in rows:
        if ends is not None:
            made.line(list(ends), [name, name], color=SERIES[0], line_width=2)
        made.scatter([middle], [name], size=8, color=SERIES[0])
        if published is not None:
            made.scatter([published], [name], size=10, marker="diamond", fill_alpha=0, line_color=SERIES[1])
    return embedded(made)
