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
        level_2 = {int(row["code"]): int(row["corine"]) for row in rows}
        by_code = {
            code: table.codes.get(two, table.codes.get(SUBSTITUTES.get(two, two))) for code, two in level_2.items()
        }
        return {code: rasterize.UNMAPPED if at is None else at for code, at in by_code.items()}
    path = Path(name)
    if not path.is_file():
        raise SettingError(f"labels.codes is {name!r}: expected {', '.join(RASTERS)}, or a file of codes and classes")
    ids = {text: at for at, class_name in zip(table.space.ids, table.space.names, strict=True)
           for text in (class_name, str(at))}  # fmt: skip
    class_ids: dict[int, int] = {}
    for number, row in enumerate(package_data.read_table(path), start=2):
        code, of = (row.get("code") or "").strip(), (row.get("class") or "").strip()
        if not code.isdecimal() or of not in ids:
            expected = f"a whole number and one of {', '.join(table.space.names)}"
            raise SettingError(f"{path} line {number}: code {code!r}, class {of!r}; expected {expected:.300}")
        class_ids[int(code)] = ids[of]
    if not class_ids:
        raise SettingError(f"{path}: has no codes; expected the tab-separated columns code and class")
    return class_ids


def read(path: Path, grid: Grid, of_codes: Mapping[int, int]) -> Array:
    """Read (H, W) uint8 classes from a raster of codes in any CRS, by nearest neighbour. Raises SourceError."""
    from rasterio.transform import Affine
    from rasterio.vrt import WarpedVRT

    height, width = grid.shape
    place = {"crs": grid.crs, "transform": Affine(*grid.transform), "width": width, "height": height}
    with geotiff.open_raster(str(path), use="user") as dataset, WarpedVRT(dataset, **place) as warped:
        bands = geotiff.data_bands(dataset)
        if len(bands) != 1:
            raise SourceError(f"{path}: has {len(bands)} bands, expected one of class codes; write that one alone")
        pixels = warped.read(bands[0])
        nodata = dataset.nodata
    if pixels.dtype.kind not in "ui":
        raise SourceError(
            f"{path}: pixels are {pixels.dtype}, expected whole numbers, the codes of the classes; convert them"
        )
    present, places = np.unique(pixels, return_inverse=True)
    unknown = sorted(set(present.tolist()) - set(of_codes) - {0, nodata, rasterize.UNMAPPED})
    if unknown:
        raise SourceError(
            f"{path}: holds codes {unknown[:6]}; expected {sorted(of_codes)}; give their table, labels.codes"
        )
    classes = [of_codes.get(code, rasterize.UNMAPPED) for code in present.tolist()]
    return np.array(classes, np.uint8)[places].reshape(pixels.shape)


def streets(rules: tag_rules.RuleTable) -> set[int]:
    """Return the classes of streets."""
    return {rule.label for rule in rules.values() if rule.kind == "line" and rule.key == "highway"}


def with_streets(labels: Array, source: Array, land: Array, classes: Iterable[int]) -> tuple[Array, Array]:
    """Return the classes of a raster with the streets that are painted drawn over them, and their sources.

    Args:
        labels: (H, W) uint8 painted from OpenStreetMap.
        source: (H, W) uint8, their sources.
        land: (H, W) uint8 classes of the raster.
        classes: Classes of streets.
    """
    drawn = (source == rasterize.LINE) & np.isin(labels, list(classes))
    of_raster = np.where(land == rasterize.UNMAPPED, 0, rasterize.RASTER).astype(np.uint8)
    return np.where(drawn, labels, land), np.where(drawn, source, of_raster)


def fill_gaps(labels: Array, source: Array, other: Array) -> tuple[Array, Array]:
    """Return labels and sources with unmapped pixels taken from `other`, (H, W) uint8 of the same label space."""
    gaps = (labels == rasterize.UNMAPPED) & (other != rasterize.UNMAPPED)
    return np.where(gaps, other, labels), np.where(gaps, np.uint8(rasterize.GAP_FILL), source)


def agreement(labels: Array, land: Array, names: Mapping[int, str]) -> dict[str, dict[str, float | int | None]]:
    """Compare the labels of tag rules with the classes of a raster, where both are mapped, by class name.

    Returns:
        Pixels of the class by the raster, by the rules and by both, and the share of both in either (IoU).
    """
    mapped = (labels != rasterize.UNMAPPED) & (land != rasterize.UNMAPPED)
    rows: dict[str, dict[str, float | int | None]] = {}
    for at, name in names.items():
        by_raster, by_rules = mapped & (land == at), mapped & (labels == at)
        both, either = int((by_raster & by_rules).sum()), int((by_raster | by_rules).sum())
        rows[name] = {
            "raster": int(by_raster.sum()), "rules": int(by_rules.sum()), "both": both,
            "iou": round(both / either, 4) if either else None,
        }  # fmt: skip
    return rows
