"""`stac/`: a STAC 1.1 collection of the release and, where ground and days are known, one item per split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sgdata import catalog
from sgdata.releases.shipment import Shipment, bounds
from sgdata.sentinel2 import BAND

# Sentinel-2A was launched on this day: what is not dated is not older.
FIRST_DAY = "2015-06-23"


def documents(shipment: Shipment, software: str) -> dict[str, dict[str, Any]]:
    """File name to document: `collection.json` and an item `<split>.json` each."""
    items = {}
    if shipment.bounds and shipment.days:
        items = {f"{split}.json": _item(shipment, split, software) for split in shipment.contract.splits}
    first, last = shipment.days or (FIRST_DAY, None)
    interval = [f"{first}T00:00:00Z", f"{last}T23:59:59Z" if last else None]
    fixed = catalog.document("release_stac")["collection"]
    links = [{"rel": "item", "href": f"./{name}", "type": "application/geo+json"} for name in items]
    collection = fixed | {
        "id": shipment.order.title,
        "title": shipment.order.title,
        "description": shipment.summary,
        "keywords": ["sentinel-2", shipment.card.task],
        "providers": [{"name": "sgdata", "roles": ["processor"], "processing:software": {"sgdata": software}}],
        "extent": {
            # Where samples lie nowhere known: the whole Earth, as STAC asks for a box.
            "spatial": {"bbox": [list(shipment.bounds or (-180, -90, 180, 90))]},
            "temporal": {"interval": [interval]},
        },
        "summaries": {"bands": _bands(shipment)},
        "sci:citation": "; ".join(shipment.card.citation),
        "links": fixed["links"] + links,
    }
    return {"collection.json": collection, **items}


def _item(shipment: Shipment, split: str, software: str) -> dict[str, Any]:
    assert shipment.days
    held = [row for row in shipment.rows if row["split"] == split]
    box = bounds(held)
    assert box
    west, south, east, north = box
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    first, last = shipment.days
    grid: dict[str, Any] = {}
    if shipment.lock:
        lattice = shipment.lock.grid
        # Windows of the samples count from this lattice's corner.
        grid = {"proj:transform": list(lattice.transform), "proj:shape": list(lattice.shape)}
    level = {"processing:level": shipment.contract.level, "processing:software": {"sgdata": software}}
    fixed = catalog.document("release_stac")["item"]
    document: dict[str, Any] = fixed | {
        "id": f"{shipment.order.title}-{split}",
        "collection": shipment.order.title,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": list(box),
        "properties": {
            "datetime": None,
            "start_datetime": f"{first}T00:00:00Z",
            "end_datetime": f"{last}T23:59:59Z",
            "gsd": min(band.gsd_m for band in shipment.contract.bands),
            "proj:code": shipment.crs,
            **grid,
            **level,
            "processing:lineage": f"{len(held)} samples; {shipment.contract.resampling} onto one grid of 10 m",
        },
        "links": [*fixed["links"], *_sources(shipment)],
        "assets": {
            name.removesuffix(".tar"): {
                "href": f"../{name}",
                "type": "application/x-tar",
                "roles": ["data"],
                "file:size": size,
                # multihash: 0x12 = sha2-256, 0x20 = 32 bytes
                "file:checksum": f"1220{sha256}",
                "bands": _bands(shipment),
                **_classes(shipment),
            }
            for name, (sha256, size) in shipment.shards.items()
            if any(row["shard"] == name for row in held)
        },
    }
    return document


def _sources(shipment: Shipment) -> Sequence[dict[str, str]]:
    """A link to every scene; of a catalogue on disk the way inside it."""
    scenes = shipment.lock.items if shipment.lock else ()
    return [
        {"rel": "derived_from", "href": next(iter(item.scene.assets.values())).href, "title": item.scene.id}
        for item in scenes
    ]


def _bands(shipment: Shipment) -> list[dict[str, Any]]:
    return [
        {"name": band.name, "eo:center_wavelength": round(BAND[band.name].wavelength_nm / 1000, 4)}
        for band in shipment.contract.bands
    ]


def _classes(shipment: Shipment) -> dict[str, Any]:
    space = shipment.contract.label_space
    colours = space.colours or ("",) * len(space.ids)
    classes = [
        # Names are identifiers there; what people read is the title.
        {"value": number, "name": f"class-{number}", "title": name} | ({"color_hint": c[1:].upper()} if c else {})
        for number, name, c in zip(space.ids, space.names, colours, strict=True)
    ]
    return {"classification:classes": classes} if classes else {}
