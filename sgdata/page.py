"""One static page from blocks: tables, bars, charts, pictures, a map, samples; opens from disk, fetches nothing.

`page.css` is its look, `page.js` its behaviour; charts are drawn by Bokeh's own script, laid beside the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files
from sgdata.types import Array

SCRIPT = "bokeh.min.js"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image file beside the page, what it shows (`alt`, in words), and optional (colour, name) keys."""

    file: str
    title: str
    caption: str = ""
    alt: str = ""
    keys: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure as `show.charts` gives it; `label` says in words what it shows."""

    title: str
    figure: str
    label: str
    keys: tuple[tuple[str, str], ...] = ()
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Shares between 0 and 1 as bars: a line is (name, colour, one value per column), None where there is no figure."""

    title: str
    columns: tuple[str, ...]
    bars: tuple[tuple[str, str, tuple[float | None, ...]], ...]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A confusion matrix: counts with a row per true class and a column per predicted one."""

    title: str
    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: column heads and rows of texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Map:
    """Layers over one another, and every value under a pixel. `spec` is what `page.js` reads; `figure`, `spectrum`
    are charts; `presets` name three bands each; `keys` are (colour, name) pairs by layer."""

    title: str
    figure: str
    spectrum: str
    spectrum_keys: tuple[tuple[str, str], ...]
    spec: dict[str, Any]
    presets: dict[str, tuple[str, str, str]]
    keys: dict[str, tuple[tuple[str, str], ...]]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One sample: pictures as (file, alt), and its values by filter."""

    title: str
    pictures: tuple[tuple[str, str], ...]
    values: dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Cards that can be filtered by their values."""

    title: str
    cards: tuple[Card, ...]
    filters: tuple[str, ...]
    caption: str = ""
    keys: tuple[tuple[str, str], ...] = field(default=())


Block = Picture | Chart | Bars | Matrix | Table | Map | Gallery


def write(path: Path, *, title: str, intro: str, blocks: Sequence[Block]) -> Path:
    """Write the page at `path` and return it. Pictures are named relative to its folder."""
    shown = [block for block in blocks if not isinstance(block, Gallery) or block.cards]
    body = "\n".join(_section(number, block) for number, block in enumerate(shown))
    links = " ".join(f'<a href="#b{number}">{escape(block.title)}</a>' for number, block in enumerate(shown))
    script = ""
    # Written into the page, not linked, but for Bokeh's megabyte: less that a browser might not find.
    style, own = (Path(__file__).with_name(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    if any(isinstance(block, Chart | Map) for block in shown):
        from sgdata.show import charts

        files.write(path.with_name(SCRIPT), charts.script())
        script = f'<script src="{SCRIPT}"></script>\n'
    if script or any(isinstance(block, Gallery) for block in shown):
        script += f"<script>\n{own}</script>\n"
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{style}</style>\n{script}</head>\n"
        f"<body><header><h1>{escape(title)}</h1>\n<p>{escape(intro)}</p>\n"
        f'<nav aria-label="Contents">{links}</nav></header>\n<main>\n{body}\n</main></body></html>\n'
    )
    files.write(path, text.encode())
    return path


def write_png(path: Path, rgb: Array) -> None:
    """Write a uint8 (3, H, W) or (H, W, 3) array as PNG."""
    from PIL import Image

    # A picture three pixels wide could be either; then the last axis is the channel, as in PIL.
    pixels = np.moveaxis(rgb, 0, -1) if rgb.shape[0] == 3 and rgb.shape[-1] != 3 else rgb
    with files.replacing(path, durable=False) as temporary:
        # Level 9 and no metadata: the same bytes from the same pixels.
        Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).save(temporary, format="PNG", compress_level=9)


def stretch(bands: Array, *, low: float = 2, high: float = 98) -> Array:
    """(3, H, W) of any number type -> uint8, from percentile `low` to `high` of its positive pixels per band."""
    out = np.zeros(bands.shape, np.uint8)
    for index, band in enumerate(bands):
        valid = band[band > 0]
        # Percentiles, for a single bright roof or cloud would leave the rest black; 0 is nodata, not dark ground.
        if valid.size:
            bottom, top = np.percentile(valid, (low, high))
            out[index] = np.clip((band - bottom) / max(top - bottom, 1e-9) * 255, 0, 255)
    return out


def paint(classes: Array, colours: Mapping[int, str]) -> Array:
    """(H, W) class ids -> uint8 (H, W, 3); ids without a colour are mid-grey."""
    # Grey is what "not mapped" looks like next to every colour of a legend.
    table = np.full((256, 3), 128, np.uint8)
    for value, colour in colours.items():
        table[value] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return table[classes]


# --- blocks as HTML ------------------------------------------------------------------------


def _section(number: int, block: Block) -> str:
    # A figure of many columns gets the whole width.
    wide = isinstance(block, Map | Gallery | Matrix) or (isinstance(block, Table) and len(block.columns) > 4)
    caption = f"<p>{escape(block.caption)}</p>" if block.caption else ""
    match block:
        case Picture():
            inner = _image(block.file, block.alt or block.title) + _legend(block.keys)
        case Chart():
            inner = _legend(block.keys) + _chart(f"c{number}", block.figure, block.label)
        case Bars():
            inner = _bars(block)
        case Matrix():
            inner = _matrix(block)
        case Table():
            inner = _table(block.columns, block.rows)
        case Map():
            inner = _map(f"c{number}", block)
        case Gallery():
            inner = _gallery(block)
    kind = ' class="wide"' if wide else ""
    return f'<section id="b{number}"{kind}><h2>{escape(block.title)}</h2>{caption}{inner}</section>'


def _image(file: str, alt: str) -> str:
    return f'<img loading="lazy" src="{escape(file)}" alt="{escape(alt)}">'


def _legend(keys: Sequence[tuple[str, str]]) -> str:
    shown = "".join(f'<li><i style="background:{escape(c)}"></i>{escape(n)}</li>' for c, n in keys)
    return f'<ul class="keys">{shown}</ul>' if shown else ""


def _data(name: str, text: str) -> str:
    # A class called "</script>" must not end the element.
    return f'<script type="application/json" {name}>{text.replace("<", chr(92) + "u003c")}</script>'


def _chart(name: str, figure: str, label: str, kind: str = "chart", more: str = 'role="img"') -> str:
    box = f'<div class="{kind}" id="{name}" {more} aria-label="{escape(label)}"></div>'
    return box + _data(f'id="{name}-data"', figure)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return _framed(_head(columns), body)


def _head(columns: Sequence[str]) -> str:
    return "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in columns)


def _framed(head: str, body: str, kind: str = "") -> str:
    """A table that scrolls in its own frame; the frame takes the focus, so that arrow keys scroll it."""
    inner = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{inner}</div>'


def _bars(block: Bars) -> str:
    def cell(colour: str, value: float | None) -> str:
        # No figure is not 0: a class that no validation patch holds has no IoU.
        if value is None:
            return "<td>none</td>"
        return f'<td><i class="bar" style="width:{4 * value:.3f}rem;background:{escape(colour)}"></i> {value:.3f}</td>'

    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(cell(colour, value) for value in values)}</tr>'
        for name, colour, values in block.bars
    )
    return _framed(_head(("", *block.columns)), rows)


def _matrix(block: Matrix) -> str:
    # Of the row: what a class was taken for, whether it is rare or not.
    def cell(count: int, total: int) -> str:
        share = count / total if total else 0
        return f'<td style="--share:{100 * share:.0f}%" title="{count:,}">{100 * share:.0f}</td>'

    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(cell(count, sum(counts)) for count in counts)}</tr>'
        for name, counts in zip(block.names, block.counts, strict=True)
    )
    return _framed("<td></td>" + _head(block.names), rows, ' class="matrix"')


def _map(name: str, block: Map) -> str:
    layers = [(layer["name"], layer["title"]) for layer in block.spec["layers"]] + [("patches", "Patches by split")]
    bands = [band["name"] for band in block.spec["bands"]]
    first = next(iter(block.presets.values()))
    presets = {" ".join(chosen): text for text, chosen in block.presets.items()} | {"": "own choice"}
    choices = _select("preset", presets, " ".join(first), "Colours") + "".join(
        _select(f"band-{k}", dict(zip(bands, bands, strict=True)), first[k], colour)
        for k, colour in enumerate(("red", "green", "blue"))
    )
    # The colours belong to the image: they stand under it, as keys stand under the others.
    rows = "".join(_layer(*layer, block.keys.get(layer[0], ()), choices) for layer in layers)
    help_text = "Map. Arrow keys move the pixel, with Shift by 32; plus and minus zoom, 0 shows all."
    view = _chart(f"{name}m", block.figure, help_text, "view", 'role="application" tabindex="0"')
    spectrum = _chart(
        f"{name}s", block.spectrum, "Spectrum of the chosen pixel; its figures stand below", "spectrum", 'role="img"'
    )
    buttons = "".join(
        f'<button type="button" data-zoom="{factor}" aria-label="{text}">{sign}</button>'
        for factor, text, sign in (("0.5", "zoom in", "+"), ("2", "zoom out", "−"), ("0", "whole area", "all"))
    )
    values = _framed(_head(("band", "DN", "reflectance")), "", ' class="values"')
    spec = _data('class="spec"', json.dumps(block.spec))
    return (
        f'<div class="map">{spec}'
        f'<div class="left">{view}<div class="zoom">{buttons}<p>{help_text}</p></div></div>'
        f'<div class="right"><fieldset><legend>Layers</legend>{rows}</fieldset>'
        f'<h3>The chosen pixel</h3><dl class="told" role="status"></dl>{_legend(block.spectrum_keys)}{spectrum}'
        f"<details><summary>Values</summary>{values}</details></div></div>"
    )


def _layer(name: str, title: str, keys: Sequence[tuple[str, str]], choices: str) -> str:
    image = name == "image"
    shown = f'<label><input type="checkbox" name="show-{name}"{" checked" if image else ""}> {escape(title)}</label>'
    start, label = 100 if image else 70, escape(f"opacity of {title}")
    slider = f'<input type="range" name="opacity-{name}" value="{start}" aria-label="{label}">'
    inner = choices if image else _legend(keys)
    # Patches are outlines: there is nothing to see through.
    more = f"<details><summary>{'bands' if image else 'key'}</summary>{inner}</details>" if inner else ""
    return f'<div class="layer">{shown}{"" if name == "patches" else slider}{more}</div>'


def _select(name: str, options: Mapping[str, str], chosen: str, label: str) -> str:
    inner = "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
        for value, text in options.items()
    )
    return f'<label>{escape(label)} <select name="{escape(name)}">{inner}</select></label> '


def _gallery(block: Gallery) -> str:
    filters = "".join(
        _select(name, {"": "all"} | {v: v for v in sorted({v for c in block.cards for v in c.values[name]})}, "", name)
        for name in block.filters
    )
    cards = []
    for card in block.cards:
        values = " ".join(f'data-{name}="{escape("|".join(values))}"' for name, values in card.values.items())
        shown = "".join(_image(file, alt) for file, alt in card.pictures)
        cards.append(
            f'<figure class="card" {values}><div>{shown}</div><figcaption>{escape(card.title)}</figcaption></figure>'
        )
    return (
        f'<div class="gallery"><div class="filters">{filters}<span role="status"></span></div>'
        f'{_legend(block.keys)}<div class="cards" tabindex="0">{"".join(cards)}</div></div>'
    )
