"""Read the offset of DN from the metadata of an EOPF product, as that of other products is read from their XML."""

from __future__ import annotations

from typing import Any

from sgdata import documents, urls
from sgdata.errors import SourceError
from sgdata.scenes import eopf_items


def parsed(content: bytes, name: str) -> int:
    """Return the one offset in DN of the reflectance in a `.zmetadata` or `zarr.json`.

    Raises:
        SourceError: It has no reflectance, another scale than the sensor's, or several offsets: of two bands, or in the
            two places where a band states it.
    """
    shown = urls.without_secrets(name)
    document = documents.parse_bounded_json(content, shown)
    document = document.get("consolidated_metadata", document) if isinstance(document, dict) else None
    nodes = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(nodes, dict):
        raise SourceError(f"{shown}: is no metadata of a Zarr product; leave the scene out")
    offsets: dict[int, str] = {}
    for path in eopf_items.array_paths().values():
        attributes = _attributes(nodes, path)
        if not path.startswith(eopf_items.REFLECTANCE) or attributes is None:
            continue
        own = attributes.get("_eopf_attrs")
        for place in (attributes, *([own] if isinstance(own, dict) else [])):
            if {"scale_factor", "add_offset"} & place.keys():
                scale, added = place.get("scale_factor"), place.get("add_offset")
                offsets.setdefault(eopf_items.offset_in_dn(scale, added, f"{shown}: {path}"), path)
    if len(offsets) > 1:
        found = ", ".join(f"{value} of {path}" for value, path in sorted(offsets.items()))
        raise SourceError(f"{shown}: offsets {found}, expected one for all bands; leave the scene out")
    if not offsets:
        raise SourceError(f"{shown}: no band states scale and offset; leave the scene out")
    return next(iter(offsets))


def _attributes(nodes: dict[str, Any], path: str) -> dict[str, Any] | None:
    """Return the attributes of an array in consolidated metadata of format 2 or 3; None if it is not there."""
    found = nodes.get(f"{path}/.zattrs")
    if found is None and isinstance(nodes.get(path), dict):
        found = nodes[path].get("attributes")
    return found if isinstance(found, dict) else None
