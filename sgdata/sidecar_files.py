"""Files that other programs leave in an output: what they are, and whether they change how its rasters are read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from sgdata import documents, output_names
from sgdata.errors import SourceError, escape_hidden
from sgdata.limits import SIDE_FILE_BYTES

PAM = output_names.PAM
_HARMLESS = frozenset(
    (
        *("PAMDataset", "PAMRasterBand", "Description", "Metadata", "MDI", "Histograms", "HistItem", "HistMin"),
        *("HistMax", "BucketCount", "IncludeOutOfRange", "Approximate", "HistCounts", "Minimum", "Maximum"),
    )
)
"""Elements of statistics. All others, such as SRS, GeoTransform and NoDataValue, change what GDAL reads."""


def describe(path: Path, name: str) -> str:
    """Describe a file that SHA256SUMS does not list and that changes nothing in an output; "" for any other file.

    Args:
        path: The file.
        name: Its path in the output.
    """
    if path.is_symlink() or not path.is_file():
        return ""
    if program := output_names.program_of(name):
        return f"{name}: of {program}, not a part of this output"
    return (
        f"{name}: statistics of GDAL, not a part of this output"
        if name.endswith(PAM) and describe_changes(path) == ""
        else ""
    )


def describe_changes(path: Path) -> str | None:
    """Return the part of a PAM file that changes how GDAL reads its raster, as text; None if it cannot be parsed.

    Statistics change nothing and give "". Category names change the names of classes and count.
    """
    root = _parsed(path)
    if root is None or root.tag != "PAMDataset":
        return None
    foreign = [node.tag for node in root.iter() if node.tag not in _HARMLESS or not _is_statistic(node)]
    return ", ".join(sorted(set(foreign)))[:120]


def has_document(path: Path, sha256: str) -> bool:
    """Return whether a PAM file is one of `categories`, of this hash, to which a program has added statistics only."""
    from hashlib import sha256 as hashed

    root = _parsed(path)
    if root is None or root.tag != "PAMDataset":
        return False
    bands = [band for band in root if band.find("CategoryNames") is not None]
    if len(bands) != 1 or bands[0].get("band") != "1":
        return False
    named = bands[0].find("CategoryNames")
    assert named is not None
    ours = categories({value: node.text or "" for value, node in enumerate(named)})
    bands[0].remove(named)
    rest = all(node.tag in _HARMLESS and _is_statistic(node) for node in root.iter())
    return rest and hashed(ours).hexdigest() == sha256


def _is_statistic(node: ET.Element) -> bool:
    """Return whether an element has no metadata but statistics; the domains of GDAL may say anything."""
    if node.tag == "Metadata":
        return node.get("domain", "") == ""
    return node.tag != "MDI" or bool(re.fullmatch(r"STATISTICS_[A-Z_]+", node.get("key", "")))


def _parsed(path: Path) -> ET.Element | None:
    """Return the root of an XML file; None if it is too large, is damaged or declares a document type."""
    try:
        return documents.parse_xml(documents.read_bytes(path, SIDE_FILE_BYTES))
    except (OSError, SourceError, ET.ParseError, ValueError, LookupError):
        return None


def categories(names: Mapping[int, str]) -> bytes:
    """Return GDAL's PAM document with names of classes by value, which TIFF cannot store."""
    root = ET.Element("PAMDataset")
    parent = ET.SubElement(ET.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    # GDAL reads names by position; a value such as 65535 for no data would need that many.
    for value in range(max((value for value in names if value < 4096), default=-1) + 1):
        ET.SubElement(parent, "Category").text = escape_hidden(names.get(value, ""))
    ET.indent(root)
    return ET.tostring(root) + b"\n"
