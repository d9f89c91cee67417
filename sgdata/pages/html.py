"""Write a static page from blocks: tables, bars, charts, pictures, a map, samples; opens from disk, fetches nothing.

`page.html` is its template, `page.css` its look, `page.js` its behaviour; charts are drawn by Bokeh's own script, laid
next to the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files
from sgdata.errors import escape_hidden
from sgdata.types import Array

SCRIPT = "bokeh.min.js"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image file next to the page.

    Attributes:
        file: Path of the file, relative to the page.
        title: Heading.
        caption: Text below.
        alt: Description in words.
    """

    file: str
    title: str
    caption: str = ""
    alt: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure of `pages.charts`.

    Attributes:
        title: Heading.
        figure: Figure as JSON.
        label: Description in words.
        keys: Colour and name of each line.
        caption: Text below.
    """

    title: str
    figure: str
    label: str
    keys: tuple[tuple[str, str], ...] = ()
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Shares between 0 and 1 as bars.

    Attributes:
        title: Heading.
        columns: Heads of the columns.
        bars: Name, colour, and a share per column, None where there is no figure.
        caption: Text below.
    """

    title: str
    columns: tuple[str, ...]
    bars: tuple[tuple[str, str, tuple[float | None, ...]], ...]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A confusion matrix.

    Attributes:
        title: Heading.
        names: Names of the classes.
        counts: A row per true class, a column per predicted one.
        caption: Text below.
    """

    title: str
    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts.

    Attributes:
        title: Heading.
        columns: Heads of the columns.
        rows: A text per column.
        caption: Text below.
        wide: Whether it takes the whole width, as tables of five or more columns do.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Map:
    """Map layers with the values of every pixel.

    Attributes:
        title: Heading.
        figure: Chart of the map.
        spectrum: Chart of the values of a pixel.
        spectrum_keys: Colour and name of each line of the spectrum.
        spec: Layers and tiles, read by `page.js`.
        presets: Three bands by name of the preset.
        keys: Colour and name of each value, by layer.
        caption: Text below.
    """

    title: str
    figure: str
    spectrum: str
    spectrum_keys: tuple[tuple[str, str], ...]
    spec: dict[str, Any]
    presets: dict[str, tuple[str, str, str]]
    keys: dict[str, tuple[tuple[str, str], ...]]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class SampleEntry:
    """One sample.

    Attributes:
        title: Heading.
        pictures: File and description of each picture.
        values: Values by name of the filter.
    """

    title: str
    pictures: tuple[tuple[str, str], ...]
    values: dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Cards that can be filtered by their values.

    Attributes:
        title: Heading.
        cards: Cards.
        filters: Names of the filters.
        caption: Text below.
        keys: Colour and name of each class.
    """

    title: str
    cards: tuple[SampleEntry, ...]
    filters: tuple[str, ...]
    caption: str = ""
    keys: tuple[tuple[str, str], ...] = field(default=())


Block = Picture | Chart | Bars | Matrix | Table | Map | Gallery


def write(path: Path, *, title: str, intro: str, blocks: Sequence[Block]) -> Path:
    """Write the page at `path` and return it. Pictures are named relative to its folder."""
    import jinja2

    shown = [(type(block).__name__, block) for block in blocks if not isinstance(block, Gallery) or block.cards]
    kinds = {kind for kind, _ in shown}
    drawn = bool(kinds & {"Chart", "Map"})
    if drawn:
        from sgdata.pages import charts

        files.write(path.with_name(SCRIPT), charts.script())
    here = Path(__file__).parent
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    engine.filters["zip"] = zip
    engine.filters["colour"] = _colour
    # Style and script are part of the page; only Bokeh's megabyte is a separate file.
    style, own = (here.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    text = engine.get_template("page.html").render(
        title=title, intro=intro, blocks=shown, style=style,
        charts=SCRIPT if drawn else "", own=own if drawn or "Gallery" in kinds else "",
    )  # fmt: skip
    files.write(path, escape_hidden(text).encode())
    return path


def _colour(text: str) -> str:
    """Return a colour for a style, grey for anything else: a style may load files and cover the page."""
    return text if re.fullmatch(r"#[0-9a-fA-F]{6}|var\(--[a-z-]+\)", text) else "#808080"


def write_png(path: Path, rgb: Array) -> None:
    """Write a uint8 (3, H, W) or (H, W, 3) array as PNG."""
    from PIL import Image

    # Ambiguous for an image three pixels wide; then the last axis is the channel, as in PIL.
    pixels = np.moveaxis(rgb, 0, -1) if rgb.shape[0] == 3 and rgb.shape[-1] != 3 else rgb
    with files.replacing(path, durable=False) as temporary:
        # Fixed level and no metadata, so that equal pixels give equal bytes.
        Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).save(temporary, format="PNG", compress_level=9)
