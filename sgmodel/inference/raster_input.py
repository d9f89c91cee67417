"""Open scenes for prediction: builds or any GeoTIFF, checked against the card of a model, bands in its order."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sgdata import files, output_names, sentinel2
from sgdata.errors import SettingError, SourceError
from sgdata.rasters import geotiff, grids
from sgdata.shards import contracts
from sgdata.types import Array, Contract, Grid, PixelLevel
from sgmodel.data import band_selection, normalise
from sgmodel.data.normalise import Normalisation

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

# Greatest distortion of lengths in a map projection whose units are taken for those on the ground, and greatest
# difference in pixel size from the training data.
CONFORMING = 0.01


@dataclass(frozen=True, kw_only=True)
class InputFacts:
    """Facts of a raster without a contract, given by the user.

    Attributes:
        bands: Band names in the order of the file; empty to read them from the file.
        level: Processing level; None if not given.
        accept: Differences from the training data that are allowed.
    """

    bands: tuple[str, ...]
    level: PixelLevel | None
    accept: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BandMapping:
    """Selection of the bands of a model from those of a file, and the value without data.

    Attributes:
        band_indices: Indices for `band_selection.select`; None for all bands in order.
        nodata: Value of pixels without data, if any.
    """

    band_indices: list[int] | None
    nodata: float | None

    def pixels(self, values: Array, valid: Array | None = None) -> tuple[Array, Array]:
        """Select the model's bands.

        Args:
            values: (B, H, W) as stored.
            valid: (B, H, W), where values are known to be data apart from `nodata`; None for everywhere.

        Returns:
            (C, H, W) float32 with NaN as no data, and the mask of valid pixels (H, W).
        """
        masked = normalise.mask_nodata(torch.from_numpy(values), self.nodata)
        if valid is not None:
            masked = masked.where(torch.from_numpy(valid), float("nan"))
        if self.band_indices is not None:
            masked = band_selection.select(masked[None], self.band_indices)[0]
        # A single band may be 0 over dark water; a pixel without data is nodata in all bands.
        return masked.numpy(), masked.isfinite().any(dim=0).numpy()


@dataclass(frozen=True, kw_only=True)
class RasterScene:
    """An open raster.

    Attributes:
        grid: Its grid.
        fit: Its bands in the order of the model.
        dataset: The open file.
    """

    grid: Grid
    fit: BandMapping
    dataset: DatasetReader

    def read(self, row: int, rows: int) -> tuple[Array, Array]:
        """Read `rows` rows from `row` on, as `tiling.Read`. Raises SourceError."""
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        try:
            window = Window(0, row, self.grid.shape[1], rows)
            values = self.dataset.read(geotiff.data_bands(self.dataset), window=window)
            valid = geotiff.read_valid_mask(self.dataset, values, window)
        except RasterioError as error:
            # Converted here, since the calling writer reports an OSError as a failure to write.
            raise SourceError(
                f"{self.dataset.name}: rows {row} to {row + rows} cannot be read: {error}; copy it again"
            ) from error
        return self.fit.pixels(values, valid)


def map_bands(ours: Contract, theirs: Contract, normalisation: Normalisation, accept: Sequence[str]) -> BandMapping:
    """Fit data to a model: select its bands by name, and substitute missing ones as its normalisation records.

    Args:
        ours: Contract of the data.
        theirs: Contract of the model's training data.
        normalisation: Normalisation of the model.
        accept: Differences that are allowed.

    Raises:
        SettingError: Bands are missing, or other differences are not accepted; the message names all of them.
    """
    # Bands that the training data lacked are substituted as in training, even if these data have them.
    hidden = tuple(replace(band, name="") if band.name in normalisation.absent else band for band in ours.bands)
    by_name, names = {band.name: band for band in hidden}, [band.name for band in theirs.bands]
    absent = [name for name in names if name not in by_name]
    if absent and normalisation.missing == "refuse":
        raise SettingError(
            f"cannot predict on '{ours.dataset}': the model takes {len(names)} bands, {' '.join(absent)} not among its "
            f"{len(by_name)} ({' '.join(by_name)}); add them, or train on these bands only or with normalise.missing"
        )
    labels = ours.label_space
    if labels.task != theirs.label_space.task:
        labels = theirs.label_space  # labels of another task are irrelevant to this model
    like = replace(ours, bands=tuple(by_name.get(band.name, band) for band in theirs.bands), label_space=labels)
    contracts.require(like, theirs, "predict", [name for name in accept if name != "gsd"])
    selected = band_selection.find_indices(replace(ours, bands=hidden), names, normalisation.missing)
    return BandMapping(band_indices=selected, nodata=ours.nodata)


@contextmanager
def open_scene(path: Path, theirs: Contract, normalisation: Normalisation, stated: InputFacts) -> Iterator[RasterScene]:
    """Open a build folder or GeoTIFF for prediction.

    Args:
        path: Build folder or GeoTIFF.
        theirs: Contract of the model's training data.
        normalisation: Normalisation of the model.
        stated: Facts given by the user.

    Raises:
        SettingError: The raster does not fit the model.
        SourceError: The raster cannot be read.
    """
    import rasterio

    file = files.require_file(
        path / output_names.IMAGE if path.is_dir() else path, "a GeoTIFF, a build, or a folder of shards"
    )
    if file.name == output_names.IMAGE and (path.is_dir() or (file.parent / output_names.CONTRACT).exists()):
        files.require_finished(file.parent)
    with geotiff.open_raster(str(file), use="user") as dataset:
        header = geotiff.read_header(dataset)
        ours = _contract(file, dataset, theirs, stated)
        if dataset.crs.is_geographic:
            message = f"{file}: {header.grid.crs} has pixels of {header.grid.gsd_m:g} degrees"
            raise SettingError(f"{message}, expected metres; warp it first: gdalwarp -t_srs EPSG:326.. -tr 10 10")
        trained, slack = theirs.pixel_m, CONFORMING if theirs.gsd_m is None else grids.SAME_SIZE
        gsd, size = _ground_size(header.grid, dataset.crs.linear_units_factor[1])
        if not math.isclose(gsd, trained, rel_tol=slack) and "gsd" not in stated.accept:
            raise SettingError(
                f"{file}: pixels of {size}, the model was trained on {trained:g} m; resample it, or accept = ['gsd']"
            )
        fitted = map_bands(ours, theirs, normalisation, stated.accept)
        if header.nodata is not None:
            fitted = replace(fitted, nodata=header.nodata)
        # Rows of tiles may be lower than the blocks of the file, which a smaller cache would decode repeatedly.
        block_row = dataset.block_shapes[0][0] * dataset.width * dataset.count * np.dtype(header.dtype).itemsize
        with rasterio.Env(GDAL_CACHEMAX=max(64 << 20, 2 * block_row)):
            yield RasterScene(grid=header.grid, fit=fitted, dataset=dataset)


def _ground_size(grid: Grid, unit_m: float) -> tuple[float, str]:
    """Return the size of a pixel on the ground in metres, and the same in words.

    Args:
        grid: Grid of the raster, in units of its CRS.
        unit_m: Metres per unit, which may also be a foot.
    """
    on_map = grid.gsd_m * unit_m
    factor = grids.scale_factor(grid)
    # UTM and national grids call a pixel of 10.003 m one of 10 m, as their users do.
    if abs(factor - 1) < CONFORMING:
        return on_map, f"{on_map:g} m"
    ground = on_map / factor
    return ground, f"{on_map:g} m on the map of {grid.crs}, {ground:.1f} m on the ground"


def _contract(file: Path, dataset: DatasetReader, theirs: Contract, stated: InputFacts) -> Contract:
    """Return the contract beside a raster, or one made from its header and the user's statements."""
    count = len(geotiff.data_bands(dataset))
    if not stated.bands and (file.parent / output_names.CONTRACT).exists():
        beside = contracts.read(file.parent)
        if len(beside.bands) == count:
            return beside
    names = stated.bands or tuple(dataset.descriptions[number - 1] or "" for number in geotiff.data_bands(dataset))
    names = tuple(re.sub(r"^B(\d)$", r"B0\1", name) for name in names)  # as Earth Engine writes them
    if not stated.bands and "bands" in stated.accept and count == len(theirs.bands):
        names = tuple(band.name for band in theirs.bands)
    if len(names) != count or not set(names) <= set(sentinel2.BAND):
        raise SettingError(
            f"{file}: {count} bands named {' '.join(name or '?' for name in names)}, the model takes "
            f"{len(theirs.bands)}; name them in the file's order: --bands B02,B03,..."
        )
    level = stated.level or (theirs.level if "level" in stated.accept else None)
    if level is None:
        raise SettingError(
            f"{file}: processing level unknown without a contract.json, the model was trained on {theirs.level}; "
            "give --level L1C or L2A, or accept = ['level']"
        )
    # 16-bit values are DN unless the header has a scale; floats and bytes are taken at their own scale.
    declared = dataset.scales[0]
    scale = sentinel2.MSI.scale if declared == 1 and np.dtype(dataset.dtypes[0]).itemsize == 2 else declared
    if scale != theirs.scale and "scale" not in stated.accept:
        message = f"{file}: {dataset.dtypes[0]} of scale {scale:g}, the model takes DN of scale {theirs.scale:g}"
        rescale = f"gdal_translate -ot UInt16 -scale 0 {1 / scale:g} 0 {1 / theirs.scale:g}"
        raise SettingError(f"{message}; convert it ({rescale}), or accept = ['scale'] if its values are such DN")
    return replace(
        theirs,
        dataset=file.name,
        bands=sentinel2.bands(names),
        level=level,
        scale=scale,
        # The offset of a header is added after scaling, that of a contract before.
        offset=round(dataset.offsets[0] / scale),
    )
