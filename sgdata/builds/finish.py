"""What a build says about its image: labels painted from OpenStreetMap, patches with their part, the contract."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sgdata import files
from sgdata.builds import build_folder, patch_table
from sgdata.errors import SourceError
from sgdata.labels import class_tables, osm_features, rasterize
from sgdata.rasters import geotiff, grid
from sgdata.rasters.resample import VERSION as RESAMPLING_VERSION
from sgdata.rasters.resample import Kernel
from sgdata.scenes import aoi
from sgdata.sentinel2 import NODATA, SCALE, bands
from sgdata.shards import contracts, statistics
from sgdata.splits import blocks
from sgdata.types import Array, Contract, Grid, LabelSpace, Level, Window

log = logging.getLogger("sgdata")

TILE_PX = 512
LEAST_GAP_PX = 12
MANY_UNMAPPED = 0.4
"""Above this share of unmapped ground, classes follow the habits of mappers more than the land."""


@dataclass(frozen=True, kw_only=True)
class PatchSettings:
    """Patches cut from the composite: side and step in pixels."""

    size: int
    stride: int


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


def label(folder: Path, lattice: Grid, source: OsmSource, settings: rasterize.LabelSettings) -> dict[str, str]:
    """Write `labels.tif` and `label_source.tif` from OpenStreetMap; the hash of each answer used, by name.

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
    build_folder.write_labels(folder, lattice, table.space, rasterize.SOURCES, painted)
    return answers


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


def cut(
    folder: Path,
    name: str,
    lattice: Grid,
    settings: PatchSettings,
    split: blocks.SplitSettings,
    *,
    space: LabelSpace,
) -> None:
    """Write `patches.parquet`: windows, parts and shares of `space`'s classes (none where the build has no labels)."""
    windows = list(grid.patches(lattice.shape, settings.size, settings.stride))
    ids: tuple[int, ...] = ()
    counts = np.zeros((len(windows), 0), np.int64)
    if (folder / build_folder.LABELS).exists():
        ids = (*space.ids, rasterize.UNMAPPED)
        with geotiff.opened(str(folder / build_folder.LABELS)) as dataset:
            counts = patch_table.class_counts(dataset.read(1), windows, ids)
    # Unmapped ground is no class to be balanced between the parts.
    parts, report = fitting_split(patch_table.window_boxes(windows), counts[:, :-1] if ids else counts, split)
    log.info("patches: %s, %d left out, leakage %.3f", report.boxes, report.left_out, report.leakage)
    if report.empty:
        log.warning("patches: none for %s; choose a smaller split.block_px or split.gap_px", " and ".join(report.empty))
    rows = patch_table.table(name, lattice, windows, parts=parts, counts=counts, ids=ids)
    patch_table.write(folder / "patches.parquet", rows)


def fitting_split(
    boxes: Array, counts: Array, settings: blocks.SplitSettings
) -> tuple[tuple[str, ...], blocks.SplitReport]:
    """The split by `settings`; where the area is too small for it (a part is empty, or train smaller than val), the
    best by smaller blocks: the largest ones with which no part is empty, too small, or short of a class.

    What cannot be mended so comes back with the fewest faults. Raises SettingError.
    """
    more_to_train = 1 - settings.test_share > 2 * settings.val_share

    def faults(report: blocks.SplitReport) -> tuple[int, bool, int]:
        # Most of the patches in val, unless wanted so, is nearly as useless as none there.
        small = more_to_train and report.boxes["train"] < report.boxes["val"]
        return len(report.empty), small, sum(map(len, report.lacking.values()))

    tried = [(settings, *blocks.split(boxes, counts, settings))]
    # A class that is lacking in a large area is rare: no reason to leave the recipe.
    if settings.method == "blocks" and any(faults(tried[0][2])[:2]):
        for smaller in _smaller(boxes, settings):
            tried.append((smaller, *blocks.split(boxes, counts, smaller)))
            if not any(faults(tried[-1][2])):
                break
    chosen, parts, report = min(tried, key=lambda one: faults(one[2]))
    if chosen != settings:
        # Said aloud: the recipe beside the output still shows what was asked for.
        log.warning("split: a small area: blocks of %d px, gap of %d px", chosen.block_px, chosen.gap_px)
    return parts, report


def _smaller(boxes: Array, settings: blocks.SplitSettings) -> Iterator[blocks.SplitSettings]:
    """Ever smaller blocks, not below a patch, that divide the area evenly: the gap first in proportion, then least."""
    side = int((boxes[:, 2:4] - boxes[:, 0:2]).max(initial=0))
    extent = int((boxes[:, 2:4].max(axis=0) - boxes[:, 0:2].min(axis=0)).max())
    sizes = [size for n in range(2, extent // side + 1) if (size := extent // n) < settings.block_px]
    # What lies nearer than 120 m shares ground: a 60 m pixel, resampled to 10 m, reaches that far.
    least = min(settings.gap_px, LEAST_GAP_PX)
    gaps = [max(settings.gap_px * size // settings.block_px, least) for size in sizes]
    for size, gap in [*zip(sizes, gaps, strict=True), *((size, least) for size in sizes)]:
        yield replace(settings, block_px=size, gap_px=gap)


def agree(
    folder: Path, name: str, dates: str, level: Level, kernel: Kernel, *, space: LabelSpace, outputs: dict[str, str]
) -> None:
    """Write `contract.json` for the finished rasters, whose hashes are `outputs`, and patches.

    Statistics run over the ground of the train split, each pixel once, no-data pixels left out.
    """
    rows = patch_table.read(folder / "patches.parquet")
    with geotiff.opened(str(folder / build_folder.IMAGE)) as dataset:
        names = tuple(dataset.descriptions)
        train = np.zeros(dataset.shape, bool)
        for row in rows[rows["split"] == "train"].itertuples():
            train[row.row : row.row + row.height, row.col : row.col + row.width] = True
        counted = statistics.empty(len(names))
        for window in grid.tiles(dataset.shape, TILE_PX):
            counted += statistics.counts(dataset.read(window=window.slices)[:, train[window.slices]][:, None])
    labelled = (folder / build_folder.LABELS).exists()
    splits = {part: int((rows["split"] == part).sum()) for part in blocks.PARTS}
    side = int(rows["height"].iloc[0]) if len(rows) else 0
    identity = [outputs, rows["key"].tolist(), rows["split"].tolist()]
    contracts.write(
        folder,
        Contract(
            format=contracts.FORMAT,
            dataset=name,
            version=dates,
            bands=bands(names),
            level=level,
            scale=SCALE,
            offset=0.0,
            nodata=NODATA,
            resampling=kernel,
            resampling_version=RESAMPLING_VERSION,
            shape=(len(names), side, side) if len(rows) else None,
            label_space=space if labelled else LabelSpace(name="none", task="none"),
            statistics=statistics.summarise(counted, names, NODATA),
            splits={part: count for part, count in splits.items() if count},
            fingerprint=files.sha256(files.canonical_json(identity)),
        ),
    )
