"""Write the files of a scene as ESA publishes them in its EOPF format: one Zarr store (format 2) per product.

Groups, attributes and compression follow published products. A chunk is a quarter of a tile, as of the L2A products, so
that every array of a simulated scene is one chunk. As there, coarser groups repeat finer bands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files
from sgdata.rasters import geotiff, zarr_addresses
from sgdata.sentinel2 import L2A_BANDS, MSI, SceneClass
from sgdata.types import Array, Grid

CHUNK_PX = 5490
GSDS_M = (10, 20, 60)
REPEATED = {20: ("B01", "B02", "B03", "B04"), 60: tuple(band for band in L2A_BANDS if band != "B08")}
"""Bands of other pixel sizes in the groups of 20 m and 60 m."""
CLOUD_PER_CENT = {
    SceneClass.CLOUD_SHADOW: 5, SceneClass.CLOUD_MEDIUM: 55, SceneClass.CLOUD_HIGH: 95, SceneClass.CIRRUS: 30,
}  # fmt: skip
CODEC, LEVEL, BIT_SHUFFLE = "zstd", 3, 2
COMPRESSOR = {"blocksize": 0, "clevel": LEVEL, "cname": CODEC, "id": "blosc", "shuffle": BIT_SHUFFLE}

Put = Callable[[str, bytes], None]
"""Stores bytes under a key."""


def write_product(folder: Path, name: str, document: dict[str, Any], *, offset: bool) -> None:
    """Write `name`.zarr from the GeoTIFFs of a scene in `folder`, which are removed.

    Args:
        folder: Folder of `B02.tif` ... and `SCL.tif`.
        name: Name of the product.
        document: Item of the scene, which the store repeats.
        offset: Whether the offset of 1000 is in the pixels.
    """
    store = folder / f"{name}.zarr"
    metadata: dict[str, Any] = {}

    def put(key: str, content: bytes) -> None:
        files.write(store / key, content)

    def describe(key: str, content: dict[str, Any]) -> None:
        metadata[key] = content
        put(key, files.pretty_json(content))

    discovery = {key: document[key] for key in ("type", "stac_version", "id", "bbox", "geometry", "properties")}
    describe(".zgroup", {"zarr_format": 2})
    describe(".zattrs", {"stac_discovery": discovery | {"id": f"{name}.SAFE"}, "other_metadata": {}})
    sources = {band: _read(folder / f"{band}.tif") for band in (*L2A_BANDS, "SCL")}
    for group, arrays in _groups(sources).items():
        for parent in (*reversed(Path(group).parents), Path(group)):
            if (key := f"{parent.as_posix()}/.zgroup") not in metadata and parent.name:
                describe(key, {"zarr_format": 2})
        grid = next(iter(arrays.values()))[0]
        for axis, values in zip("xy", _coordinates(grid), strict=True):
            _write_array(f"{group}/{axis}", values, {"_ARRAY_DIMENSIONS": [axis]}, None, put, describe)
        for array, (_, values) in arrays.items():
            is_band = group.startswith("measurements")
            attributes = _attributes(grid, array, is_band=is_band, offset=offset)
            _write_array(f"{group}/{array}", values, attributes, 0 if is_band else None, put, describe)
    put(zarr_addresses.METADATA, files.pretty_json({"metadata": metadata, "zarr_consolidated_format": 1}))
    for band in sources:
        (folder / f"{band}.tif").unlink()


def _read(path: Path) -> tuple[Grid, Array]:
    with geotiff.open_raster(str(path)) as dataset:
        return geotiff.read_header(dataset).grid, dataset.read(1)


def _groups(sources: dict[str, tuple[Grid, Array]]) -> dict[str, dict[str, tuple[Grid, Array]]]:
    """Return grid and values of each array, by group and name."""
    groups: dict[str, dict[str, tuple[Grid, Array]]] = {}
    for gsd in GSDS_M:
        native_bands = tuple(band for band in L2A_BANDS if MSI.gsd_m(band) == gsd)
        bands = sorted({*native_bands, *REPEATED.get(gsd, ())}, key=str.lower)
        grid = sources[native_bands[0]][0]
        group = {band.lower(): (grid, _to_grid(sources[band], grid)) for band in bands}
        groups[f"measurements/reflectance/r{gsd}m"] = group
    scl, at_60m = sources["SCL"], sources["B01"][0]
    for gsd, grid in ((20, scl[0]), (60, at_60m)):
        step = round(grid.gsd_m / scl[0].gsd_m)
        values = scl[1][step // 2 :: step, step // 2 :: step]
        groups[f"conditions/mask/l2a_classification/r{gsd}m"] = {"scl": (grid, values)}
    cloud, snow = np.zeros((2, 256), np.uint8)
    for value, per_cent in CLOUD_PER_CENT.items():
        cloud[value] = per_cent
    snow[SceneClass.SNOW] = 95
    probability = {"cld": (scl[0], cloud[scl[1]]), "snw": (scl[0], snow[scl[1]])}
    return groups | {"quality/probability/r20m": probability}


def _to_grid(source: tuple[Grid, Array], grid: Grid) -> Array:
    """Return a band on the grid of another pixel size: its mean, or its pixels repeated."""
    source_grid, values = source
    factor = round(max(source_grid.gsd_m, grid.gsd_m) / min(source_grid.gsd_m, grid.gsd_m))
    if source_grid.gsd_m >= grid.gsd_m:
        return values.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = grid.shape
    blocks = values.reshape(height, factor, width, factor).astype(np.uint32)
    means = np.rint(blocks.mean(axis=(1, 3))).astype(np.uint16)
    return np.where(blocks.min(axis=(1, 3)) == 0, 0, means).astype(np.uint16)


def _coordinates(grid: Grid) -> tuple[Array, Array]:
    """Return the coordinates of the centres of the pixels, whole metres."""
    west, north = grid.origin
    gsd = round(grid.gsd_m)
    x = round(west) + gsd // 2 + gsd * np.arange(grid.shape[1], dtype=np.int64)
    y = round(north) - gsd // 2 - gsd * np.arange(grid.shape[0], dtype=np.int64)
    return x, y


def _attributes(grid: Grid, array: str, *, is_band: bool, offset: bool) -> dict[str, Any]:
    from pyproj import CRS

    eopf_attributes: dict[str, Any] = {"coordinates": ["x", "y"], "dimensions": ["y", "x"]}
    west, south, east, north = grid.bounds
    attributes = {
        "_ARRAY_DIMENSIONS": ["y", "x"],
        "proj:bbox": [west, south, east, north],
        "proj:epsg": int(grid.crs.removeprefix("EPSG:")),
        "proj:shape": list(grid.shape),
        "proj:transform": [*grid.transform, 0.0, 0.0, 1.0],
        "proj:wkt2": CRS.from_user_input(grid.crs).to_wkt("WKT1_GDAL"),
    }
    if is_band:
        stored = {
            "add_offset": -0.1 if offset else 0.0, "dtype": "<u2", "fill_value": 0, "scale_factor": 0.0001,
            "long_name": f"BOA reflectance from MSI acquisition at spectral band {array}", "units": "digital_counts",
        }  # fmt: skip
        eopf_attributes |= stored | {"eopf_is_masked": True, "eopf_target_dtype": "<f8"}
        attributes |= stored | {"valid_min": 1, "valid_max": 65535}
    return attributes | {"_eopf_attrs": eopf_attributes}


def _write_array(
    path: str,
    values: Array,
    attributes: dict[str, Any],
    fill: int | None,
    put: Put,
    describe: Callable[[str, dict[str, Any]], None],
) -> None:
    chunks = [min(CHUNK_PX, size) for size in values.shape]
    array_metadata = {
        "chunks": chunks, "compressor": COMPRESSOR, "dimension_separator": ".", "dtype": values.dtype.str,
        "fill_value": fill, "filters": None, "order": "C", "shape": list(values.shape), "zarr_format": 2,
    }  # fmt: skip
    describe(f"{path}/.zarray", array_metadata)
    describe(f"{path}/.zattrs", attributes)
    for key, chunk in _chunks(values, chunks):
        put(f"{path}/{key}", compress(chunk))


def _chunks(values: Array, sides: list[int]) -> Iterator[tuple[str, Array]]:
    """Yield key and values of each chunk; those at the edges are padded with zeros."""
    counts = [math.ceil(size / side) for size, side in zip(values.shape, sides, strict=True)]
    for index in np.ndindex(*counts):
        inside = values[tuple(slice(n * side, (n + 1) * side) for n, side in zip(index, sides, strict=True))]
        chunk = np.zeros(sides, values.dtype)
        chunk[tuple(slice(0, size) for size in inside.shape)] = inside
        yield ".".join(map(str, index)), chunk


def compress(values: Array) -> bytes:
    """Return a chunk as its file holds it."""
    import imagecodecs

    # One thread: several write the blocks in the order in which they finish.
    return bytes(
        imagecodecs.blosc_encode(
            values.tobytes(), level=LEVEL, compressor=CODEC, shuffle=BIT_SHUFFLE, typesize=values.itemsize,
            blocksize=0, numthreads=1,
        )
    )  # fmt: skip
