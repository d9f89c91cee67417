"""Paint labels and their sources over an area from OpenStreetMap."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgdata import files
from sgdata.errors import SourceError
from sgdata.labels import class_tables, osm_features, rasterize
from sgdata.rasters import geotiff, grid
from sgdata.scenes import aoi
from sgdata.types import Array, Grid, Window

log = logging.getLogger("sgdata")


TILE_PX = 512


MANY_UNMAPPED = 0.4
"""Above this share of unmapped ground, classes follow the habits of mappers more than the land."""


@dataclass(frozen=True, kw_only=True)
class OsmSource:
    """OpenStreetMap data as `osm_features.read` takes them: from where, as of which date, kept in which folder.

    `gap`: a raster of CORINE level 2 codes (OSMlanduse's, say) for ground that nobody has mapped.
    """

    where: str
    date: str
    store: Path
    offline: bool = False
    gap: Path | None = None


def chosen(settings: rasterize.LabelSettings) -> class_tables.ClassTable:
    """The classes that the labels have, with their rules. Raises SettingError."""
    return class_tables.read(settings.classes, tiers=settings.tiers, groups=settings.street_groups)


def label(
    lattice: Grid, source: OsmSource, settings: rasterize.LabelSettings
) -> tuple[tuple[Array, Array], dict[str, str]]:
    """Paint (H, W) uint8 labels and their sources from OpenStreetMap; the hash of each answer used, by name.

    Raises SourceError (no such file, damaged), ServiceError (no whole answer), SettingError.
    """
    table = chosen(settings)
    features = osm_features.read(
        source.where, _ground(lattice), rules=table.rules, date=source.date, store=source.store, offline=source.offline
    )
    answers, read = dict(features.sha256), dict(features.counts)
    drawing = rasterize.prepare(features.table, table.rules, lattice, settings)
    del features  # as large as the drawing
    # Labels of a whole area are small; it is the supersampled painting that must go by tiles.
    painted = np.empty(lattice.shape, np.uint8), np.empty(lattice.shape, np.uint8)
    for window in grid.tiles(lattice.shape, TILE_PX):
        for whole, part in zip(painted, rasterize.paint(drawing, window), strict=True):
            whole[window.slices] = part
    if source.gap:
        painted = rasterize.filled_gaps(*painted, _filling(source.gap, lattice, table.codes))
        answers[source.gap.name] = files.sha256_file(source.gap)
    unmapped = float((painted[0] == rasterize.UNMAPPED).mean())
    log.info("labels: %s; read: %s; unmapped: %.1f %%", dict(drawing.counts), read, 100 * unmapped)
    if unmapped > MANY_UNMAPPED:
        log.warning("labels: %.0f %% of the ground is unmapped in %s", 100 * unmapped, source.where)
    return painted, answers


def _filling(path: Path, lattice: Grid, codes: Mapping[int, int]) -> Array:
    """(H, W) uint8 classes from a raster of codes in any CRS, by nearest neighbour. Raises SourceError."""
    from rasterio.transform import Affine
    from rasterio.vrt import WarpedVRT

    height, width = lattice.shape
    place = {"crs": lattice.crs, "transform": Affine(*lattice.transform), "width": width, "height": height}
    with geotiff.opened(str(path)) as dataset, WarpedVRT(dataset, **place) as warped:
        found = warped.read(1)
    if found.dtype.kind != "u":
        raise SourceError(f"{path}: pixels are {found.dtype}, expected uint8 or uint16 codes of the classes")
    strange = sorted(set(np.unique(found).tolist()) - set(codes) - {0, dataset.nodata, rasterize.UNMAPPED})
    if strange:
        raise SourceError(f"{path}: holds codes {strange[:6]}; expected the classes' codes {sorted(codes)}")
    table = np.full(int(found.max()) + 1, rasterize.UNMAPPED, np.uint8)
    for code in codes.keys() & set(range(len(table))):
        table[code] = codes[code]
    return np.asarray(table[found])


def _ground(lattice: Grid) -> object:
    """The area in degrees, with room for what begins outside and reaches in."""
    import shapely

    # A motorway outside the box still covers ground inside it.
    margin = rasterize.MARGIN_PX
    shape = (lattice.shape[0] + 2 * margin, lattice.shape[1] + 2 * margin)
    wider = grid.windowed(lattice, Window(row=-margin, col=-margin, height=shape[0], width=shape[1]))
    return shapely.box(*aoi.in_degrees(wider))
