"""Write Cloud Optimized GeoTIFFs whose bytes are reproducible."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sgdata import files, output_names, sidecar_files
from sgdata.rasters import qgis_style
from sgdata.safe_names import with_ending
from sgdata.types import Array, Grid, Window

_RED_GREEN_BLUE = ("red", "green", "blue")


@dataclass(frozen=True, kw_only=True)
class RasterStyle:
    """Storage and appearance of an output raster.

    Attributes:
        descriptions: Band names, in order.
        nodata: Value of pixels without data; None if there is none.
        dtype: Type of the values.
        overviews: Kernel of the overviews.
        tags: Further tags.
        classes: Name and #rrggbb colour by value: stored as palette, as tags `class_<value>`, as category names in a
            PAM file that GDAL reads and, but for `nodata`, in a style of QGIS.
        unit: Unit of the values after scaling; "" if unknown.
        scale: Factor from stored values to that unit.
        red_green_blue: Positions of the bands to show as red, green and blue, from 0; None for no colours.
        spectra: Centre wavelength and width in nanometres of each band; empty if they are not spectral.
    """

    descriptions: tuple[str, ...]
    nodata: float | None = None
    dtype: Literal["uint8", "uint16", "int32", "float32"] = "uint16"
    overviews: Literal["nearest", "mode"] = "nearest"
    tags: dict[str, str] = field(default_factory=dict)
    classes: dict[int, tuple[str, str]] = field(default_factory=dict)
    unit: str = ""
    scale: float = 1.0
    red_green_blue: tuple[int, int, int] | None = None
    spectra: tuple[tuple[float, float], ...] = ()


def write(path: Path, grid: Grid, windows: Iterable[tuple[Window, Array]], *, style: RasterStyle) -> None:
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
    _write_beside(path, style)


def _write_beside(path: Path, style: RasterStyle) -> None:
    """Write what TIFF cannot store into files beside a raster, and remove those of a raster that was here before.

    Its statistics, which GIS programs keep there, are wrong now.
    """
    names, shown = with_ending(path, output_names.PAM), style_path(path)
    names.unlink(missing_ok=True)
    shown.unlink(missing_ok=True)
    if style.classes:
        files.write(shown, qgis_style.classes({v: as_ for v, as_ in style.classes.items() if v != style.nodata}))
    if style.classes and style.dtype != "int32":
        files.write(names, sidecar_files.categories({value: name for value, (name, _) in style.classes.items()}))


def style_path(path: Path) -> Path:
    """Return the file from which QGIS takes the style of a raster `NAME.tif`."""
    return path.with_name(path.name.removesuffix(".tif") + output_names.STYLE)


def _profile(grid: Grid, style: RasterStyle) -> dict[str, Any]:
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


def _describe(dataset: Any, style: RasterStyle) -> None:
    count = len(style.descriptions)
    for number, text in enumerate(style.descriptions, 1):
        dataset.set_band_description(number, text)
    if style.unit:
        dataset.scales, dataset.offsets, dataset.units = [style.scale] * count, [0.0] * count, [style.unit] * count
    if style.red_green_blue:
        colours = dict(zip(style.red_green_blue, _RED_GREEN_BLUE, strict=True))
        dataset.colorinterp = [_colour(colours.get(index, "undefined")) for index in range(count)]
    for number, (centre_nm, width_nm) in enumerate(style.spectra, 1):
        # The names and unit of GDAL's raster data model.
        micrometres = {"CENTRAL_WAVELENGTH_UM": centre_nm / 1000, "FWHM_UM": width_nm / 1000}
        dataset.update_tags(number, ns="IMAGERY", **{key: f"{value:g}" for key, value in micrometres.items()})
    names = {f"class_{value:03d}": name for value, (name, _) in style.classes.items()}
    dataset.update_tags(**dict(sorted((style.tags | names).items())))
    if style.classes and style.dtype != "int32":  # which has no palette
        palette = {value: tuple(bytes.fromhex(colour[1:])) for value, (_, colour) in sorted(style.classes.items())}
        dataset.write_colormap(1, palette)


def _colour(name: str) -> Any:
    from rasterio.enums import ColorInterp

    return ColorInterp[name]


def _cog_options(style: RasterStyle) -> dict[str, str]:
    predictor = "NO" if style.classes or style.dtype == "uint8" else "STANDARD"
    return {
        "COMPRESS": "DEFLATE", "LEVEL": "6", "PREDICTOR": predictor, "BLOCKSIZE": "512", "BIGTIFF": "IF_SAFER",
        "OVERVIEWS": "FORCE_USE_EXISTING", "NUM_THREADS": "1",
    }  # fmt: skip
