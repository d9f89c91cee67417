"""Paint labels and their sources over an area from OpenStreetMap."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files
from sgdata.labels import class_tables, land_cover, lost_features, osm_features, rasterize, tag_rules
from sgdata.rasters import grids
from sgdata.scenes import aoi
from sgdata.types import Array, Grid, Window

log = logging.getLogger("sgdata")

TILE_PX = 512
MANY_UNMAPPED = 0.4
"""Share of unmapped ground above which a warning is logged: labels then depend more on mapping than on the land."""


@dataclass(frozen=True, kw_only=True)
class OsmSource:
    """Source of OpenStreetMap data, with the arguments of `osm_features.read`.

    Attributes:
        address: File, folder, `overpass`, URL or GeoDataFrame.
        date: Date of the data.
        store: Folder for answers.
        offline: Use stored answers only.
        gap_fill: Raster of class codes (such as CORINE level 2 of OSMlanduse) for unmapped ground.
        sea: Vector file with the polygons of the sea; None to build them from the coastlines.
        raster: Raster of codes of all classes but streets, where the settings take labels from one.
    """

    address: Any
    date: str
    store: Path
    offline: bool = False
    gap_fill: Path | None = None
    sea: Path | None = None
    raster: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PaintedLabels:
    """Painted labels.

    Attributes:
        painted: Labels and their sources, (H, W) uint8 each.
        answers: Hash of each answer or file that was used, by name.
        losses: Reason for each object that was mended or lost, by name.
        features: Number of features that were read.
        agreement: Pixels of each class by a raster and by the tag rules; empty for labels without a raster.
    """

    painted: tuple[Array, Array]
    answers: Mapping[str, str]
    losses: Mapping[str, str]
    features: int
    agreement: Mapping[str, Any] = field(default_factory=dict)


def read_classes(settings: rasterize.LabelSettings) -> class_tables.ClassTable:
    """Return the class table of the settings. Raises SettingError."""
    return class_tables.read(settings.classes, tiers=settings.tiers, groups=settings.street_groups)


def label(grid: Grid, source: OsmSource, settings: rasterize.LabelSettings) -> PaintedLabels:
    """Paint labels from OpenStreetMap.

    Args:
        grid: Grid of the labels.
        source: OpenStreetMap data.
        settings: Settings of labels.

    Returns:
        The labels, what they were made of, and what was lost.

    Raises:
        SettingError: A setting, the date or the class table is wrong.
        SourceError: A file is missing or damaged.
        ServiceError: The server gives no complete answer.
    """
    table = read_classes(settings)
    features = osm_features.read(
        source.address, _ground(grid, rasterize.MARGIN_PX), rules=table.rules, date=source.date, store=source.store,
        offline=source.offline, sea=source.sea, core=_ground(grid, 0),
    )  # fmt: skip
    answers, read, losses = dict(features.sha256), dict(features.counts), features.losses
    count = len(features.table)
    if warning := lost_features.describe_many_lost(losses, count):
        log.warning("labels: %s", warning)
    drawing = rasterize.prepare(features.table, tag_rules.with_sea(table.rules), grid, settings)
    del features  # takes as much memory as the drawing
    # The labels of a whole area fit in memory, supersampled ones may not.
    painted = np.empty(grid.shape, np.uint8), np.empty(grid.shape, np.uint8)
    for window in grids.cut_tiles(grid.shape, TILE_PX):
        for array, tile in zip(painted, rasterize.paint(drawing, window), strict=True):
            array[window.slices] = tile
    agreement: Mapping[str, Any] = {}
    if source.raster:
        land = land_cover.read(source.raster, grid, land_cover.codes(settings.codes, table))
        class_names = dict(zip(table.space.ids, table.space.names, strict=True))
        agreement = land_cover.agreement(painted[0], land, class_names)
        painted = land_cover.draw_streets_over(*painted, land, land_cover.street_classes(table.rules))
        answers[source.raster.name] = files.sha256_file(source.raster)
    if source.gap_fill:
        painted = land_cover.fill_gaps(*painted, land_cover.read(source.gap_fill, grid, table.codes))
        answers[source.gap_fill.name] = files.sha256_file(source.gap_fill)
    unmapped = float((painted[0] == rasterize.UNMAPPED).mean())
    log.info("labels: %s; read: %s; unmapped: %.1f %%", dict(drawing.counts), read, 100 * unmapped)
    if unmapped > MANY_UNMAPPED:
        address = source.address if isinstance(source.address, str) else "the table"
        log.warning("labels: %.0f %% of the ground is unmapped in %s", 100 * unmapped, address)
    return PaintedLabels(painted=painted, answers=answers, losses=losses, features=count, agreement=agreement)


def _ground(grid: Grid, margin: int) -> object:
    """Return the area in degrees, with a margin in pixels, for features outside that cover ground inside."""
    import shapely

    shape = (grid.shape[0] + 2 * margin, grid.shape[1] + 2 * margin)
    wider = grids.crop(grid, Window(row=-margin, col=-margin, height=shape[0], width=shape[1]))
    return shapely.box(*aoi.in_degrees(wider))
