"""Read coded land-cover rasters as classes, and combine them with the labels painted from OpenStreetMap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from sgdata import package_data
from sgdata.errors import SettingError, SourceError
from sgdata.labels import rasterize, tag_rules
from sgdata.labels.class_tables import ClassTable
from sgdata.rasters import geotiff
from sgdata.types import Array, Grid

SUBSTITUTES = {51: 5, 52: 5, 42: 41}
"""Codes of CORINE level 2 that class tables with fewer classes join: waters, and wetlands."""
RASTERS = ("corine", "worldcover")


def codes(name: str, table: ClassTable) -> dict[int, int]:
    """Return the class of each code of a raster.

    Args:
        name: "" for the codes of the class table itself, `corine` (codes of level 3, or grid codes 1 to 44),
            `worldcover`, or the path of a file of tab-separated values with columns `code` and `class`, by name or id.
        table: The class table.

    Raises:
        SettingError: There is no such table, or a row is wrong.
    """
    if not name:
        return dict(table.codes)
    if name in RASTERS:
        rows = [row for row in package_data.table("raster_codes") if row["raster"] == name]
        level_2_of = {int(row["code"]): int(row["corine"]) for row in rows}
        by_code = {
            code: table.codes.get(level_2_code, table.codes.get(SUBSTITUTES.get(level_2_code, level_2_code)))
            for code, level_2_code in level_2_of.items()
        }
        return {code: rasterize.UNMAPPED if class_id is None else class_id for code, class_id in by_code.items()}
    path = Path(name)
    if not path.is_file():
        raise SettingError(f"labels.codes is {name!r}: expected {', '.join(RASTERS)}, or a file of codes and classes")
    ids = {text: class_id for class_id, class_name in zip(table.space.ids, table.space.names, strict=True)
           for text in (class_name, str(class_id))}  # fmt: skip
    class_ids: dict[int, int] = {}
    for number, row in enumerate(package_data.read_table(path), start=2):
        code, class_text = (row.get("code") or "").strip(), (row.get("class") or "").strip()
        if not code.isdecimal() or class_text not in ids:
            expected = f"a whole number and one of {', '.join(table.space.names)}"
            raise SettingError(f"{path} line {number}: code {code!r}, class {class_text!r}; expected {expected:.300}")
        class_ids[int(code)] = ids[class_text]
    if not class_ids:
        raise SettingError(f"{path}: has no codes; expected the tab-separated columns code and class")
    return class_ids


def read(path: Path, grid: Grid, class_of: Mapping[int, int]) -> Array:
    """Read (H, W) uint8 classes from a raster of codes in any CRS, by nearest neighbour. Raises SourceError."""
    from rasterio.transform import Affine
    from rasterio.vrt import WarpedVRT

    height, width = grid.shape
    georeference = {"crs": grid.crs, "transform": Affine(*grid.transform), "width": width, "height": height}
    with geotiff.open_raster(str(path), use="user") as dataset, WarpedVRT(dataset, **georeference) as warped:
        bands = geotiff.data_bands(dataset)
        if len(bands) != 1:
            raise SourceError(f"{path}: has {len(bands)} bands, expected one of class codes; write that one alone")
        pixels = warped.read(bands[0])
        nodata = dataset.nodata
    if pixels.dtype.kind not in "ui":
        raise SourceError(
            f"{path}: pixels are {pixels.dtype}, expected whole numbers, the codes of the classes; convert them"
        )
    present, inverse = np.unique(pixels, return_inverse=True)
    unknown = sorted(set(present.tolist()) - set(class_of) - {0, nodata, rasterize.UNMAPPED})
    if unknown:
        raise SourceError(
            f"{path}: holds codes {unknown[:6]}; expected {sorted(class_of)}; give their table, labels.codes"
        )
    classes = [class_of.get(code, rasterize.UNMAPPED) for code in present.tolist()]
    return np.array(classes, np.uint8)[inverse].reshape(pixels.shape)


def street_classes(rules: tag_rules.RuleTable) -> set[int]:
    """Return the classes of streets."""
    return {rule.label for rule in rules.values() if rule.kind == "line" and rule.key == "highway"}


def draw_streets_over(labels: Array, source: Array, land: Array, classes: Iterable[int]) -> tuple[Array, Array]:
    """Return the classes of a raster with the streets that are painted drawn over them, and their sources.

    Args:
        labels: (H, W) uint8 painted from OpenStreetMap.
        source: (H, W) uint8, their sources.
        land: (H, W) uint8 classes of the raster.
        classes: Classes of streets.
    """
    is_street = (source == rasterize.LINE) & np.isin(labels, list(classes))
    of_raster = np.where(land == rasterize.UNMAPPED, 0, rasterize.RASTER).astype(np.uint8)
    return np.where(is_street, labels, land), np.where(is_street, source, of_raster)


def fill_gaps(labels: Array, source: Array, gap_labels: Array) -> tuple[Array, Array]:
    """Return labels and sources with unmapped pixels taken from `gap_labels`, (H, W) uint8 of the same label space."""
    gaps = (labels == rasterize.UNMAPPED) & (gap_labels != rasterize.UNMAPPED)
    return np.where(gaps, gap_labels, labels), np.where(gaps, np.uint8(rasterize.GAP_FILL), source)


def agreement(labels: Array, land: Array, names: Mapping[int, str]) -> dict[str, dict[str, float | int | None]]:
    """Compare the labels of tag rules with the classes of a raster, where both are mapped, by class name.

    Returns:
        Pixels of the class by the raster, by the rules and by both, and the share of both in either (IoU).
    """
    mapped = (labels != rasterize.UNMAPPED) & (land != rasterize.UNMAPPED)
    rows: dict[str, dict[str, float | int | None]] = {}
    for class_id, name in names.items():
        by_raster, by_rules = mapped & (land == class_id), mapped & (labels == class_id)
        both, either = int((by_raster & by_rules).sum()), int((by_raster | by_rules).sum())
        rows[name] = {
            "raster": int(by_raster.sum()), "rules": int(by_rules.sum()), "both": both,
            "iou": round(both / either, 4) if either else None,
        }  # fmt: skip
    return rows
