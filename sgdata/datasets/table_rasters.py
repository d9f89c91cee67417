"""Read the samples of a table, or the patches of builds, from their rasters: images and a mask on one grid."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import sentinel2
from sgdata.datasets import build_patches
from sgdata.datasets.sample_tables import SampleTable
from sgdata.datasets.types import SampleRef, SourceMember
from sgdata.errors import SourceError
from sgdata.rasters import allowed_formats, geotiff, grids, small_tiff
from sgdata.types import Array, Contract

LEAST_DN = 10
"""Images of floating-point numbers that are all smaller hold reflectance, not digital numbers."""
_FILE_FACTS = ("bands", "nodata", "ignore")

Rasters = Sequence[Any]
"""Open rasters of a sample: one or two images, and the mask if it has one."""


def read_bands_and_nodata(table: SampleTable) -> tuple[tuple[str, ...], float | None]:
    """Return the names of the bands and the number for no data of the first image of a table that can be read.

    Raises:
        SourceError: Neither table nor file names the bands, or no image can be read.
    """
    failure: SourceError | None = None
    for row in table.rows:
        path = table.folder / row.images[0]
        try:
            with geotiff.open_raster(str(path), use="user") as raster:
                names = row.bands or _band_descriptions(raster)
                if not names:
                    count = len(geotiff.data_bands(raster))
                    raise SourceError(f"{path}: {count} bands without names; name them in the table, bands = [...]")
                return names, raster.nodata
        except SourceError as error:
            failure = failure or error
    raise failure or SourceError(f"{table.folder}: no image")


def list_refs(table: SampleTable) -> tuple[SampleRef, ...]:
    """List the rows of a table as samples, with what `read_image` needs of each row in their `meta`."""
    refs = []
    for row in table.rows:
        members = tuple(SourceMember(name=path, size=(table.folder / path).stat().st_size) for path in row.paths)
        meta = {"bands": row.bands, "nodata": row.nodata, "ignore": table.document.ignore, "date": row.date or None}
        if row.after:
            meta["date_after"] = row.date_after or None
        size = sum(member.size for member in members)
        refs.append(SampleRef(key=row.key, split=row.split, members=members, bytes=size, meta=meta))
    return tuple(refs)


def find_sources(table: SampleTable) -> tuple[Path, ...]:
    """Return the sources of the virtual rasters of a table, which its samples depend on too. Raises SourceError."""
    paths = (table.folder / path for row in table.rows for path in row.paths)
    return tuple(file for path in paths if path.is_file() for file in allowed_formats.files_of(path)[1:])


@contextmanager
def open_rasters(folder: Path) -> Iterator[Callable[[SampleRef], Rasters]]:
    """Yield a function that opens the rasters of a sample, and keeps them open for samples of the same files.

    The function raises SourceError if a file cannot be read, or if its grid is not that of the first.
    """
    rasters_of: dict[tuple[str, ...], list[Any]] = {}
    with ExitStack() as stack:

        def rasters(ref: SampleRef) -> list[Any]:
            names = tuple(member.name for member in ref.members)
            if names not in rasters_of:
                stack.close()
                rasters_of.clear()
                # The user names the files, which may be virtual rasters.
                paths = [folder / name for name in names]
                try:
                    datasets = [stack.enter_context(build_patches.open_raster(path, use="user")) for path in paths]
                    _check_grids(datasets, names)
                except SourceError as error:
                    # Without its folder: the reason is stored with the samples, which may be anywhere.
                    raise SourceError(str(error).replace(f"{folder}/", "")) from None
                rasters_of[names] = datasets
            return rasters_of[names]

        yield rasters


def _check_grids(rasters: Sequence[Any], names: Sequence[str]) -> None:
    """Raise SourceError unless all rasters have the grid of the first: windows are in pixels."""
    first = geotiff.read_header(rasters[0]).grid
    for raster, name in zip(rasters, names, strict=True):
        if differ := grids.find_differences(geotiff.read_header(raster).grid, first):
            place = f"{raster.shape} at {raster.transform[2]:g}, {raster.transform[5]:g}"
            raise SourceError(f"{name}: {place} is another grid than that of {names[0]}: {'; '.join(differ)}; warp one")


def read_image(raster: Any, ref: SampleRef, contract: Contract) -> Array:
    """Read an image (C, H, W), a masked array, with the bands of `contract`.

    Args:
        raster: The open raster.
        ref: The sample, of a table or of a build.
        contract: Contract of the samples.

    Raises:
        SourceError: The image cannot be read, or is not what table and contract say.
    """
    if "window" in ref.meta:
        return build_patches.read_window(raster, ref.meta["window"])
    described, count = _band_descriptions(raster), len(geotiff.data_bands(raster))
    names = tuple(ref.meta["bands"]) or described
    if len(names) != count or (described and described != names):
        named = f", which it names {' '.join(described)}" if described else ""
        raise SourceError(
            f"{_file_name(raster)}: has {count} bands{named}, expected {' '.join(names) or 'names of them'}"
        )
    if absent := [band.name for band in contract.bands if band.name not in names]:
        raise SourceError(f"{_file_name(raster)}: has no band {' '.join(absent)}; expected some of {' '.join(names)}")
    grid = geotiff.read_header(raster).grid
    ground, expected = grids.ground_size_m(grid), contract.pixel_m
    if not math.isclose(ground, expected, rel_tol=grids.SAME_SIZE):
        message = f"{_file_name(raster)}: pixels are {ground:.3g} m on the ground, expected {expected:g}"
        raise SourceError(f"{message}; state gsd_m = {ground:.3g} in the table, or resample it")
    pixels = build_patches.read_window(raster, (0, 0, *raster.shape))
    values = np.ma.getdata(pixels)
    if values.dtype.kind == "f" and (top := np.max(values, where=np.isfinite(values), initial=0)) < LEAST_DN:
        message = f"{_file_name(raster)}: floating-point values up to {top:.3g}, expected digital numbers"
        raise SourceError(f"{message}; convert it: gdal_translate -ot UInt16 -scale 0 1 0 {1 / contract.scale:g}")
    if ref.meta["nodata"] is not None:
        pixels = np.ma.MaskedArray(values, np.ma.getmaskarray(pixels) | (values == ref.meta["nodata"]))
    return pixels[[names.index(band.name) for band in contract.bands]]


def read_mask(raster: Any, ref: SampleRef) -> Array:
    """Read a mask (H, W), a masked array, in which the value to ignore is masked too. Raises SourceError."""
    window = ref.meta.get("window", (0, 0, *raster.shape))
    values = build_patches.read_window(raster, window)
    if len(values) != 1:
        raise SourceError(f"{_file_name(raster)}: mask has {len(values)} bands, expected one of class ids")
    unlabelled = np.ma.getdata(values)[0] == ref.meta.get("ignore")
    return np.ma.MaskedArray(np.ma.getdata(values)[0], np.ma.getmaskarray(values)[0] | unlabelled)


def sample_metadata(raster: Any, ref: SampleRef) -> dict[str, Any]:
    """Return the facts of a sample for its `meta`: place, and what the table or the build says."""
    facts = {name: value for name, value in ref.meta.items() if name not in _FILE_FACTS and value is not None}
    if "bounds" not in facts:
        grid = geotiff.read_header(raster).grid
        where = small_tiff.Georeference(epsg=int(grid.crs.removeprefix("EPSG:")), transform=grid.transform)
        facts["bounds"] = list(small_tiff.bounds(where, grid.shape))
    return {**facts, "crs": str(raster.crs)}


def _band_descriptions(raster: Any) -> tuple[str, ...]:
    """Return the names of the bands in the file; empty unless each is that of a band of the sensor."""
    texts = (raster.descriptions[number - 1] or "" for number in geotiff.data_bands(raster))
    names = tuple(re.sub(r"^B(\d)$", r"B0\1", text) for text in texts)  # as Earth Engine writes them
    return names if set(names) <= set(sentinel2.BAND) else ()


def _file_name(raster: Any) -> str:
    return Path(raster.name).name
