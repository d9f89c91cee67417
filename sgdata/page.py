"""One static page from pictures, charts and tables: opens from disk, no script, no outside request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from sgdata import files
from sgdata.types import Array


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image file beside the page, with what it shows and optional (colour, name) keys."""

    file: str
    title: str
    caption: str = ""
    keys: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Lines:
    """A line chart: named series of (x, y), e.g. a loss over steps."""

    title: str
    x_label: str
    series: dict[str, tuple[tuple[float, float], ...]]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A bar chart of shares between 0 and 1: (name, colour, value), None where there is no figure."""

    title: str
    bars: tuple[tuple[str, str, float | None], ...]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: column heads and rows of texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


Block = Picture | Lines | Bars | Table
# Apart in lightness as well as hue: readable in grey and by the colour-blind, on a white page and on a black one.
SERIES = ("#1f6fb2", "#c8501e", "#3d8f3d", "#8757b0")


def write(path: Path, *, title: str, intro: str, blocks: Sequence[Block]) -> Path:
    """Write the page at `path` and return it. Pictures are named relative to its folder."""
    body = "\n".join(f"<section>{_render(block)}</section>" for block in blocks)
    # Written into the page, not linked: one file to send by mail, and nothing that a browser might not find.
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>\n{style}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n<p>{escape(intro)}</p>\n<main>\n{body}\n</main></body></html>\n"
    )
    files.write(path, text.encode())
    return path


def write_png(path: Path, rgb: Array) -> None:
    """Write a uint8 (3, H, W) or (H, W, 3) array as PNG."""
    from PIL import Image

    # A picture three pixels wide could be either; then the last axis is the channel, as in PIL.
    pixels = np.moveaxis(rgb, 0, -1) if rgb.shape[0] == 3 and rgb.shape[-1] != 3 else rgb
    with files.replacing(path) as temporary:
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


def paint(classes: Array, colours: dict[int, str]) -> Array:
    """(H, W) class ids -> uint8 (H, W, 3); ids without a colour are mid-grey."""
    # Grey is what "not mapped" looks like next to every colour of a legend.
    table = np.full((256, 3), 128, np.uint8)
    for value, colour in colours.items():
        table[value] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return table[classes]


def _render(block: Block) -> str:
    caption = f"<p>{escape(block.caption)}</p>" if block.caption else ""
    match block:
        case Picture():
            inner = _picture(block)
        case Lines():
            inner = _lines(block)
        case Bars():
            inner = _bars(block)
        case Table():
            inner = _table(block)
    return f"<h2>{escape(block.title)}</h2>{inner}{caption}"


def _picture(block: Picture) -> str:
    keys = "".join(f'<span class="key"><i style="background:{escape(c)}"></i>{escape(n)}</span>' for c, n in block.keys)
    shown = f'<img src="{escape(block.file)}" alt="{escape(block.title)}">'
    return f"<figure>{shown}<figcaption>{keys}</figcaption></figure>"


def _table(block: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in block.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in block.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _lines(block: Lines) -> str:
    width, height, left, bottom = 640, 300, 56, 36
    points = [point for line in block.series.values() for point in line]
    if not points:
        return "<p>no figures</p>"
    (x0, y0), (x1, y1) = np.min(points, axis=0), np.max(points, axis=0)
    # A series of one point or of equal values spans nothing.
    spans = (max(x1 - x0, 1e-12), max(y1 - y0, 1e-12))

    def at(x: float, y: float) -> str:
        px = left + (x - x0) / spans[0] * (width - left - 12)
        py = 12 + (1 - (y - y0) / spans[1]) * (height - bottom - 12)  # SVG counts downwards
        return f"{px:.1f},{py:.1f}"

    drawn = "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{" ".join(at(*p) for p in line)}"/>'
        for colour, line in zip(SERIES, block.series.values(), strict=False)
    )
    labels = "".join(
        f'<text x="{left + 140 * i}" y="{height - 2}" style="fill:{colour}">{escape(name)}</text>'
        for i, (colour, name) in enumerate(zip(SERIES, block.series, strict=False))
    )
    axes = (
        f'<line class="axis" x1="{left}" y1="12" x2="{left}" y2="{height - bottom}"/>'
        f'<line class="axis" x1="{left}" y1="{height - bottom}" x2="{width - 12}" y2="{height - bottom}"/>'
        f'<text x="2" y="20">{y1:.4g}</text><text x="2" y="{height - bottom}">{y0:.4g}</text>'
        f'<text x="{left}" y="{height - bottom + 15}">{x0:.4g}</text>'
        f'<text x="{width - 12}" y="{height - bottom + 15}" text-anchor="end">{x1:.4g} {escape(block.x_label)}</text>'
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img">{axes}{drawn}{labels}</svg>'


def _bars(block: Bars) -> str:
    row, left, width = 22, 250, 640
    drawn = []
    for index, (name, colour, value) in enumerate(block.bars):
        y = index * row
        # No figure is not 0: a class that no validation patch holds has no IoU.
        size = 0 if value is None else value * (width - left - 60)
        figure = "none" if value is None else f"{value:.3f}"
        drawn.append(
            # The outline keeps a white class visible on a white page.
            f'<text x="0" y="{y + 15}">{escape(name)}</text>'
            f'<rect x="{left}" y="{y + 3}" width="{size:.1f}" height="{row - 6}" fill="{colour}" stroke="#8888"/>'
            f'<text x="{left + size + 6:.1f}" y="{y + 15}">{figure}</text>'
        )
    return f'<svg viewBox="0 0 {width} {len(block.bars) * row}" role="img">{"".join(drawn)}</svg>'
