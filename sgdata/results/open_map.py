"""Open the maps that a model predicted as an xarray.Dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sgdata import files
from sgdata.errors import SourceError
from sgdata.shards import contracts

if TYPE_CHECKING:
    import xarray

AXES = {"classes": "", "probabilities": "class", "embeddings": "feature"}
"""The rasters of a prediction, and the name of the axis of those with several values per pixel."""


def open_map(folder: str | Path) -> xarray.Dataset:
    """Open the rasters of `sgmodel predict` lazily, with their CRS through rioxarray.

    Args:
        folder: Folder of predictions of a raster or a build.

    Returns:
        What was predicted of `classes` (y, x), `probabilities` (class, y, x) and `embeddings` (feature, y, x);
        attribute `classes`: names by value.

    Raises:
        SourceError: The folder is unfinished, or has no map.
    """
    import rioxarray
    import xarray

    folder = Path(folder)
    files.require_finished(folder)
    arrays = {}
    for name, axis in AXES.items():
        if not (folder / f"{name}.tif").is_file():
            continue
        array = rioxarray.open_rasterio(folder / f"{name}.tif")
        assert isinstance(array, xarray.DataArray)
        names = array.attrs.pop("long_name", None)
        if axis:
            array = array.rename(band=axis)
            arrays[name] = array.assign_coords({axis: list(names)}) if isinstance(names, tuple) else array
        else:
            arrays[name] = array.squeeze("band", drop=True)
    if not arrays:
        raise SourceError(
            f"{folder}: no {', '.join(f'{name}.tif' for name in AXES)}; give a folder of `sgmodel predict`"
        )
    space = contracts.read(folder).label_space
    return xarray.Dataset(arrays, attrs={"classes": dict(zip(space.ids, space.names, strict=True))})
