"""Write Cloud Optimized GeoTIFFs whose bytes are reproducible."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sgdata import files
from sgdata.types import Array, Grid, Window


@dataclass(frozen=True, kw_only=True)
class Style:
    """Storage and appearance of an output raster.

    Attributes:
        descriptions: band names, in order.
        nodata: value of pixels without data; None if there is none.
        dtype: type of the values.
        overviews: kernel of the overviews.
        tags: further tags.
        classes: name and #rrggbb colour by value: stored as palette, as tags `class_<value>` and in a sidecar that QGIS
            reads.
    """

    descriptions: tuple[str, ...]
    nodata: float | None = None
    dtype: Literal["uint8", "uint16", "int32", "float32"] = "uint16"
    overviews: Literal["nearest", "mode"] = "nearest"
    tags: dict[str, str] = field(default_factory=dict)
    classes: dict[int, tuple[str, str]] = field(default_factory=dict)


def write(path: Path, grid: Grid, windows: Iterable[tuple[Window, Array]], *, style: Style) -> None:
    """Write (window, (C, h, w) pixels) pairs that cover `grid` as a Cloud Optimized GeoTIFF.

    DEFLATE level 6, horizontal predictor (none for classes), blocks of 512; equal pixels and style give equal
    bytes under one GDAL. Raises OutputError.
    """
    import rasterio
    import rasterio.shutil
    from rasterio._err import CPLE_BaseError
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError

    plain = path.with_name(f".{path.name}.plain.tif")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.Env(GDAL_PAM_ENABLED="NO", GDAL_CACHEMAX=16 << 20, GDAL_TIFF_OVR_BLOCKSIZE=512):
            with rasterio.open(plain, "w", **_profile(grid, style)) as dataset:
                _describe(dataset, style)
                for window, values in windows:
                    dataset.write(
                        values, window=rasterio.windows.Window(window.col, window.row, window.width, window.height)
                    )
            # Not while copying, which would hold all bands at once and take twice as long.
            with rasterio.open(plain, "r+") as dataset:
                dataset.build_overviews(_halves(grid.shape), Resampling[style.overviews])
            with files.replacing(path) as temporary:
                rasterio.shutil.copy(plain, temporary, driver="COG", **_cog_options(style))
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise files.write_error(path, error) from error
    finally:
        plain.unlink(missing_ok=True)
    if style.classes and style.dtype != "int32":
        files.write(path.with_name(path.name + ".aux.xml"), _category_sidecar(style.classes))


def _profile(grid: Grid, style: Style) -> dict[str, Any]:
    from rasterio.transform import Affine

    return {
        "driver": "GTiff", "dtype": style.dtype, "count": len(style.descriptions), "nodata": style.nodata,
        "height": grid.shape[0], "width": grid.shape[1], "crs": grid.crs, "transform": Affine(*grid.transform),
        # Rows of one band are contiguous: windows of any shape are written and read back in little memory.
        "interleave": "band", "blockysize": 64, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip


def _halves(shape: tuple[int, int]) -> list[int]:
    """Return the factors of the overviews: powers of two up to the one whose overview fits in one block."""
    return [2**n for n in range(1, 24) if max(shape) > 512 * 2 ** (n - 1)]


def _describe(dataset: Any, style: Style) -> None:
    for number, text in enumerate(style.descriptions, 1):
        dataset.set_band_description(number, text)
    names = {f"class_{value:03d}": name for value, (name, _) in style.classes.items()}
    dataset.update_tags(**dict(sorted((style.tags | names).items())))
    if style.classes and style.dtype != "int32":  # which has no palette
        palette = {value: tuple(bytes.fromhex(colour[1:])) for value, (_, colour) in sorted(style.classes.items())}
        dataset.write_colormap(1, palette)


def _cog_options(style: Style) -> dict[str, str]:
    predictor = "NO" if style.classes or style.dtype == "uint8" else "STANDARD"
    return {
        "COMPRESS": "DEFLATE", "LEVEL": "6", "PREDICTOR": predictor, "BLOCKSIZE": "512", "BIGTIFF": "IF_SAFER",
        "OVERVIEWS": "FORCE_USE_EXISTING", "NUM_THREADS": "1",
    }  # fmt: skip


def _category_sidecar(classes: dict[int, tuple[str, str]]) -> bytes:
    """Return GDAL's PAM document with category names, which TIFF cannot store and QGIS reads."""
    root = ET.Element("PAMDataset")
    names = ET.SubElement(ET.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    # QGIS reads names by position; a value such as 65535 for no data would need that many.
    for value in range(max((value for value in classes if value < 4096), default=-1) + 1):
        ET.SubElement(names, "Category").text = classes.get(value, ("", ""))[0]
    ET.indent(root)
    return ET.tostring(root) + b"\n"
