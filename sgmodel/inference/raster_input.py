"""Scenes to predict on: a build of ours or any GeoTIFF, checked against a model's card, bands in the model's order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sgdata import files, sentinel2
from sgdata.errors import SettingError, SourceError
from sgdata.rasters import geotiff
from sgdata.shards import contracts
from sgdata.types import Array, Contract, Grid, Level
from sgmodel.data import band_selection
from sgmodel.data.normalise import Normalisation

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What the user says of a raster without a contract, and the differences from the weights' data that are taken as
    they are."""

    bands: tuple[str, ...]
    level: Level | None
    accept: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Where the model's bands lie among those at hand (None: all, in order), as `band_selection.taken` has it."""

    band_indices: list[int] | None
    nodata: float | None

    def pixels(self, values: Array) -> tuple[Array, Array]:
        """Bands (B, H, W) as the data have them -> the model's (C, H, W), and where any of them was seen (H, W)."""
        if self.band_indices is not None:
            values = band_selection.taken(torch.from_numpy(values).float()[None], self.band_indices)[0].numpy()
        # One band alone may well be 0 over dark water; a pixel without data has none.
        there = np.isfinite(values) if self.nodata is None or np.isnan(self.nodata) else values != self.nodata
        seen: Array = there.max(axis=0)
        return np.nan_to_num(values) if values.dtype.kind == "f" else values, seen


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An open raster, ready for the model."""

    grid: Grid
    fit: Fit
    dataset: DatasetReader

    def read(self, row: int, rows: int) -> tuple[Array, Array]:
        """`rows` rows from `row` on, as `mosaic.Read`. Raises SourceError."""
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        try:
            values = self.dataset.read(window=Window(0, row, self.grid.shape[1], rows))
        except RasterioError as error:
            # Here, for the writer around us would call it a failure to write.
            raise SourceError(f"{self.dataset.name}: rows {row} to {row + rows} cannot be read: {error}") from error
        return self.fit.pixels(values)


def fit(ours: Contract, theirs: Contract, how: Normalisation, accept: Sequence[str]) -> Fit:
    """How data of the contract `ours` feed a model trained on `theirs`: bands are found by name, those that are missing
    get what its normalisation says. Raises SettingError naming every difference that matters and is not accepted.
    """
    # What training had to fill in is filled in the same way, even where these data have it.
    hidden = tuple(replace(band, name="") if band.name in how.absent else band for band in ours.bands)
    known, names = {band.name: band for band in hidden}, [band.name for band in theirs.bands]
    absent = [name for name in names if name not in known]
    if absent and how.missing == "refuse":
        raise SettingError(
            f"cannot predict on '{ours.dataset}': the model takes {len(names)} bands, {' '.join(absent)} not among the "
            f"{len(known)} there ({' '.join(known)}); bring them, or train on those alone or with normalise.missing"
        )
    labels = ours.label_space
    if labels.task != theirs.label_space.task:
        labels = theirs.label_space  # labels of another kind of task say nothing about this model's
    like = replace(ours, bands=tuple(known.get(band.name, band) for band in theirs.bands), label_space=labels)
    contracts.require(like, theirs, "predict", [name for name in accept if name != "gsd"])
    return Fit(band_indices=band_selection.indices(replace(ours, bands=hidden), names, how.missing), nodata=ours.nodata)


@contextmanager
def opened(path: Path, theirs: Contract, how: Normalisation, stated: Stated) -> Iterator[Scene]:
    """The build folder or GeoTIFF at `path` for a model trained on `theirs`. Raises SettingError, SourceError."""
    import rasterio

    file = files.existing(path / files.IMAGE if path.is_dir() else path, "a GeoTIFF, a build, or a folder of shards")
    with geotiff.opened(str(file)) as dataset:
        header = geotiff.header(dataset)
        ours = _contract(file, dataset, theirs, stated)
        if dataset.crs.is_geographic:
            message = f"{file}: {header.lattice.crs} has pixels of {header.lattice.gsd_m:g} degrees"
            raise SettingError(f"{message}, expected metres; warp it first: gdalwarp -t_srs EPSG:326.. -tr 10 10")
        # Feet too are a unit of maps.
        gsd = header.lattice.gsd_m * dataset.crs.linear_units_factor[1]
        trained = min(band.gsd_m for band in theirs.bands)
        if gsd != trained and "gsd" not in stated.accept:
            raise SettingError(
                f"{file}: pixels of {gsd:g} m, the model was trained on {trained} m; resample it, or accept = ['gsd']"
            )
        found = fit(ours, theirs, how, stated.accept)
        if header.nodata is not None:
            found = replace(found, nodata=header.nodata)
        # Rows of tiles are lower than the file's blocks: with less cache each block would be decoded many times over.
        block_row = dataset.block_shapes[0][0] * dataset.width * dataset.count * np.dtype(header.dtype).itemsize
        with rasterio.Env(GDAL_CACHEMAX=max(64 << 20, 2 * block_row)):
            yield Scene(grid=header.lattice, fit=found, dataset=dataset)


def _contract(file: Path, dataset: DatasetReader, theirs: Contract, stated: Stated) -> Contract:
    """The contract beside a raster, or one made of what its header and the user say."""
    if not stated.bands and (file.parent / files.CONTRACT).exists():
        beside = contracts.read(file.parent)
        if len(beside.bands) == dataset.count:
            return beside
    names = stated.bands or tuple(name or "" for name in dataset.descriptions)
    names = tuple(re.sub(r"^B(\d)$", r"B0\1", name) for name in names)  # as Earth Engine writes them
    if not stated.bands and "bands" in stated.accept and dataset.count == len(theirs.bands):
        names = tuple(band.name for band in theirs.bands)
    if len(names) != dataset.count or not set(names) <= set(sentinel2.BAND):
        raise SettingError(
            f"{file}: {dataset.count} bands named {' '.join(name or '?' for name in names)}, the model takes "
            f"{len(theirs.bands)}; name them in the file's order: --bands B02,B03,..."
        )
    level = stated.level or (theirs.level if "level" in stated.accept else None)
    if level is None:
        raise SettingError(
            f"{file}: no contract.json beside it says whether it is L1C or L2A, the model was trained on "
            f"{theirs.level}; give --level, or accept = ['level']"
        )
    # What 16 bits hold is DN unless the header says otherwise; floats and bytes are something else.
    declared = dataset.scales[0]
    scale = sentinel2.SCALE if declared == 1 and np.dtype(dataset.dtypes[0]).itemsize == 2 else declared
    if scale != theirs.scale and "scale" not in stated.accept:
        message = f"{file}: {dataset.dtypes[0]} of scale {scale:g}, the model takes DN of scale {theirs.scale:g}"
        rescale = f"gdal_translate -ot UInt16 -scale 0 {1 / scale:g} 0 {1 / theirs.scale:g}"
        raise SettingError(
            f"{message}; bring it there ({rescale}), or accept = ['scale'] where it holds such DN already"
        )
    return replace(
        theirs,
        dataset=file.name,
        bands=sentinel2.bands(names),
        level=level,
        scale=scale,
        # A header's offset is added after scaling, a contract's before.
        offset=round(dataset.offsets[0] / scale),
    )
