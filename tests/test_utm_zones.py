"""Test areas covered by scenes of the next UTM zone, on a ground with a known value at every point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.transform import from_origin
from rasterio.warp import Resampling, reproject
from stac_wrap import Wrapped, wrap

from sgdata import files, output_names, package_data
from sgdata.builds import pipeline
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.rasters import geotiff
from sgdata.scenes import lock
from sgdata.scenes.aoi import Area
from sgdata.sentinel2 import BAND, L2A_BANDS
from sgdata.types import Array, Grid

SIDE = 360
HOME, NEXT = "EPSG:32633", "EPSG:32632"
# 12 degrees east, where the zones meet: the same ground in both, each on multiples of 60 m.
AREA = Grid(crs=HOME, origin=(277500.0, 5350020.0), gsd_m=10.0, shape=(150, 138))


def value(x: Array, y: Array) -> Array:
    """Return the DN at a point of the home zone: hills and a slope steep enough to show a shift of a metre."""
    east, south = x - AREA.origin[0], AREA.origin[1] - y
    slopes: Array = 3000 + 0.7 * east + 0.5 * south + 60 * np.sin(east / 250) * np.cos(south / 300)
    return slopes


def looks(crs: str, origin: tuple[float, float], gsd: int) -> Array:
    """Return a band of `gsd` in another zone, with the value at the centre of each pixel."""
    at = (np.arange(SIDE * 10 // gsd) + 0.5) * gsd
    x, y = np.meshgrid(origin[0] + at, origin[1] - at)
    moved = value(*Transformer.from_crs(crs, HOME, always_xy=True).transform(x, y))
    return np.floor(np.clip(moved, 1, 60000) + 0.5).astype(np.uint16)


def scene(tile: str, crs: str, origin: tuple[float, float], second: int = 0) -> Wrapped:
    layers: dict[str, tuple[Any, float]] = {
        band: (looks(crs, origin, BAND[band].gsd_m), float(BAND[band].gsd_m)) for band in L2A_BANDS
    }
    layers["SCL"] = (np.full((SIDE // 2, SIDE // 2), 5, np.uint8), 20.0)
    time = f"2019-06-01T10:00:{second:02d}Z"
    return Wrapped(id=f"S2A_{tile}_20190601_0_L2A", time=time, layers=layers, crs=crs, origin=origin)


def beside() -> tuple[float, float]:
    """Return the corner of a scene of the next zone that covers the whole area."""
    east, north = Transformer.from_crs(HOME, NEXT, always_xy=True).transform(*AREA.origin)
    return (float((east - 1020) // 60 * 60), float((north + 1020) // 60 * 60))


def run(folder: Path, scenes: Sequence[Wrapped], **changes: Any) -> tuple[Path, Array]:
    published = files.read(BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    small = replace(published.patches, size=32, stride=16), replace(published.split, block_px=48, gap_px=16)
    recipe = replace(published, dates="2019-01-01/2019-12-31", area=Area(grid=AREA), patches=small[0], split=small[1])
    archive = wrap(folder / "a", list(scenes))
    places = BuildPaths(out=folder / "b", stac=str(archive), osm="none", **changes)
    out = pipeline.build(recipe, places)
    with rasterio.open(out / "image.tif") as dataset:
        return out, dataset.read()


def truth() -> Array:
    rows, cols = np.mgrid[: AREA.shape[0], : AREA.shape[1]]
    return value(AREA.origin[0] + 10 * (cols + 0.5), AREA.origin[1] - 10 * (rows + 0.5))


def test_a_scene_of_the_next_zone_lands_where_it_belongs(tmp_path: Path) -> None:
    out, image = run(tmp_path, [scene("32UQU", NEXT, beside())], tile_px=64)
    assert (image > 0).all()
    away = np.abs(image - truth())
    # 60 m pixels are interpolated twice over hills; a shift of half a pixel of 10 m would be 4 DN everywhere.
    for band, plane in zip(L2A_BANDS, away, strict=True):
        assert plane.mean() < {10: 0.6, 20: 0.7, 60: 2.0}[BAND[band].gsd_m], band
        assert plane.max() < {10: 2.0, 20: 3.0, 60: 9.0}[BAND[band].gsd_m], band
    again, _ = run(tmp_path / "2", [scene("32UQU", NEXT, beside())], workers=2)
    assert (again / output_names.SUMS).read_text() == (out / output_names.SUMS).read_text()


def test_the_own_zone_is_used_first_and_the_next_fills_gaps(tmp_path: Path) -> None:
    # Ends in the middle of the area, on a multiple of 60 m.
    own = scene("33UTP", HOME, (AREA.origin[0] + 660 - SIDE * 10, AREA.origin[1] + 600), second=9)
    out, image = run(tmp_path, [scene("32UQU", NEXT, beside()), own])
    assert [item.scene.id[4:9] for item in lock.read(out / lock.NAME).items] == ["33UTP", "32UQU"]
    with rasterio.open(out / "provenance.tif") as dataset:
        index = dataset.read(1)
    assert (index[:, :66] == 0).all() and (index[:, 66:] == 1).all()
    away = np.abs(image - truth())
    away[:, :, 60:66] = 0  # where the own scene ends its last 60 m pixels have no neighbour to be interpolated with
    assert away.max() < 9


def test_no_part_that_is_read_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corner = beside()
    rng = np.random.Generator(np.random.Philox(key=1))
    noisy = rng.integers(0, 3000, (SIDE, SIDE)).astype(np.uint16)
    noisy[100:140, 100:140] = 0
    path = tmp_path / "B04.tif"
    about = {"driver": "GTiff", "width": SIDE, "height": SIDE, "count": 1, "dtype": "uint16", "nodata": 0}
    with rasterio.open(path, "w", crs=NEXT, transform=from_origin(*corner, 10, 10), **about) as dataset:
        dataset.write(noisy, 1)
    grid = replace(AREA, shape=(300, 138))
    found = []
    for size in (1 << 25, 1):
        monkeypatch.setattr(geotiff, "STRIP_BYTES", size)
        with geotiff.open_raster(str(path)) as dataset:
            found.append(np.concatenate(list(geotiff.read_warped(dataset, grid, "cubic"))))
    # float32 counts from the corner of the part: on noise, one value in thousands is rounded the other way.
    assert np.abs(found[0].astype(int) - found[1]).max() <= 1
    np.testing.assert_array_equal(found[0] == 0, found[1] == 0)
    # The same by GDAL's other way of warping, exact too.
    expected = np.zeros(grid.shape, np.uint16)
    onto = {"dst_crs": HOME, "dst_transform": from_origin(*AREA.origin, 10, 10), "src_nodata": 0, "dst_nodata": 0}
    with rasterio.open(path) as dataset:
        reproject(rasterio.band(dataset, 1), expected, resampling=Resampling.nearest, tolerance=0, **onto)
        np.testing.assert_array_equal(found[0] == 0, expected == 0)
        reproject(
            rasterio.band(dataset, 1), expected, resampling=Resampling.cubic, tolerance=0, XSCALE=1, YSCALE=1, **onto
        )
    both = (expected > 0) & (found[0] > 0)
    assert np.abs(found[0][both].astype(int) - expected[both]).max() <= 1
