"""Styles of QGIS (QML), which it applies to a raster `NAME.tif` from a file `NAME.qml` beside it. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from sgdata.errors import escape_hidden

_DOCTYPE = b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def classes(named: Mapping[int, tuple[str, str]]) -> bytes:
    """Return a style that shows these values only.

    Without it QGIS lists all 256 entries of the palette of a TIFF.

    Args:
        named: Name and #rrggbb colour by value.
    """
    renderer = ET.Element("rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor="")
    palette = ET.SubElement(renderer, "colorPalette")
    for value, (name, colour) in sorted(named.items()):
        ET.SubElement(
            palette, "paletteEntry", value=str(value), label=escape_hidden(name), color=colour, alpha="255"
        )  # fmt: skip
    return _document(renderer)


def true_colour(bands: Sequence[int], limits: Sequence[tuple[float, float]]) -> bytes:
    """Return a style of three bands as red, green and blue, each stretched between two limits.

    Args:
        bands: Numbers of the bands, from 1.
        limits: Darkest and brightest value of each, in the unit of the header, after scale and offset.
    """
    renderer = ET.Element("rasterrenderer", type="multibandcolor", opacity="1", alphaBand="-1", nodataColor="")
    for colour, band, (low, high) in zip(("red", "green", "blue"), bands, limits, strict=True):
        renderer.set(f"{colour}Band", str(band))
        stretch = ET.SubElement(renderer, f"{colour}ContrastEnhancement")
        ET.SubElement(stretch, "minValue").text = f"{low:.6g}"
        ET.SubElement(stretch, "maxValue").text = f"{high:.6g}"
        ET.SubElement(stretch, "algorithm").text = "StretchToMinimumMaximum"
    return _document(renderer)


def _document(renderer: ET.Element) -> bytes:
    # The version is that of the format, which later ones read.
    root = ET.Element("qgis", version="3.16.0", styleCategories="Symbology")
    ET.SubElement(root, "pipe").append(renderer)
    ET.SubElement(root, "blendMode").text = "0"
    ET.indent(root)
    return _DOCTYPE + ET.tostring(root) + b"\n"
