"""`stac/` of a release: a self-contained STAC collection and, if places and dates are known, one item per split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sgdata.releases.release_content import ReleaseContent, bounds
from sgdata.safe_names import file_name
from sgdata.scenes import output_items

if TYPE_CHECKING:
    import pystac

# Launch of Sentinel-2A: start of the interval if no dates are known.
FIRST_DAY = "2015-06-23"
WORLD = (-180.0, -90.0, 180.0, 90.0)
# pystac makes links relative to the paths of the documents, which need not exist.
_HOME = "/stac"


def documents(content: ReleaseContent, software: str) -> dict[str, dict[str, Any]]:
    """Return the STAC documents of a release by file name: `collection.json` and one `<split>.json` per split.

    Links are relative, so that the folder can be moved.
    """
    items = {}
    if content.bounds and content.days:
        for split in content.contract.splits:
            items[f"{file_name(split, reserved=('collection',))}.json"] = _item(content, split, software)
    collection = _collection(content, software)
    for name, item in items.items():
        item.set_self_href(f"{_HOME}/{name}")
        collection.add_item(item)
    # After the items, whose paths it would replace by its own layout.
    collection.set_self_href(f"{_HOME}/collection.json")
    objects = {"collection.json": collection, **items}
    return {name: stac_object.to_dict(include_self_link=False) for name, stac_object in objects.items()}


def _collection(content: ReleaseContent, software: str) -> pystac.Collection:
    import pystac

    first, last = output_items.interval(content.days or (FIRST_DAY, FIRST_DAY))
    extent = pystac.Extent(
        # STAC requires a bounding box: the whole Earth if the places of the samples are unknown.
        spatial=pystac.SpatialExtent([list(content.bounds or WORLD)]),
        temporal=pystac.TemporalExtent([[first, last if content.days else None]]),
    )
    provider = pystac.Provider(
        "sgdata", roles=[pystac.ProviderRole.PROCESSOR], extra_fields={"processing:software": {"sgdata": software}}
    )
    index = pystac.Asset("../index.parquet", media_type=pystac.MediaType.PARQUET, roles=["index"])
    collection = pystac.Collection(
        id=content.order.title,
        title=content.order.title,
        description=content.summary,
        extent=extent,
        license="other",
        keywords=["sentinel-2", content.card.task],
        providers=[provider],
        summaries=pystac.Summaries({"bands": _bands(content)}),
        stac_extensions=[output_items.EXTENSIONS[key] for key in ("file", "processing", "eo", "scientific")],
        extra_fields={"sci:citation": "; ".join(content.card.citation)},
        assets={"index": index},
        catalog_type=pystac.CatalogType.SELF_CONTAINED,
    )
    licences = pystac.Link(pystac.RelType.LICENSE, "../LICENSES/files.tsv", media_type="text/tab-separated-values")
    collection.add_link(licences)
    return collection


def _item(content: ReleaseContent, split: str, software: str) -> pystac.Item:
    rows = [row for row in content.rows if row["split"] == split]
    box = bounds(rows)
    assert box
    assert content.days
    contract = content.contract
    properties: dict[str, Any] = {
        "gsd": contract.pixel_m,
        "proj:code": content.crs,
        "processing:level": contract.level,
        "processing:software": {"sgdata": software},
        "processing:lineage": f"{len(rows)} samples; {contract.resampling} onto one grid of {contract.pixel_m:g} m",
    }
    if content.lock and not content.order.builds:
        # The row and column of a sample count from the corner of this grid.
        grid = content.lock.grid
        properties |= {"proj:transform": list(grid.transform), "proj:shape": list(grid.shape)}
    extensions = ("file", "projection", "processing", "classification", "eo")
    item = output_items.create_item(f"{content.order.title}-{split}", box, content.days, properties, extensions)
    shards = {row["shard"] for row in rows}
    for name, (sha256, size) in content.shards.items():
        if name in shards:
            item.add_asset(name.removesuffix(".tar"), _asset(content, name, sha256, size))
    item.add_links(list(_sources(content)))
    return item


def _asset(content: ReleaseContent, name: str, sha256: str, size: int) -> pystac.Asset:
    import pystac

    fields = output_items.file_fields(size, sha256) | {"bands": _bands(content)} | _classes(content)
    return pystac.Asset(f"../{name}", media_type="application/x-tar", roles=["data"], extra_fields=fields)


def _sources(content: ReleaseContent) -> Iterator[pystac.Link]:
    """Yield a link to every scene; for a catalogue on disk its path inside the catalogue."""
    import pystac

    scenes = [item.scene for item in content.lock.items] if content.lock else []
    for scene in scenes:
        href = next(iter(scene.assets.values())).href
        yield pystac.Link(pystac.RelType.DERIVED_FROM, href, title=scene.id)


def _bands(content: ReleaseContent) -> list[dict[str, Any]]:
    return [output_items.band_fields(band.name) for band in content.contract.bands]


def _classes(content: ReleaseContent) -> dict[str, Any]:
    space = content.contract.label_space
    classes = []
    for number, name, colour in zip(space.ids, space.names, space.palette.values(), strict=True):
        # The extension allows identifiers only as names; the title is for people.
        hint = colour[1:].upper()
        classes.append({"value": number, "name": f"class-{number}", "title": name, "color_hint": hint})
    return {"classification:classes": classes} if classes else {}
