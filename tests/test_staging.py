"""Test mask layers of users on any grid: pixels without a mask value are not clear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from sgdata.errors import SourceError
from sgdata.rasters import grids
from sgdata.scenes.types import MASK_NODATA, Asset
from sgdata.staging import scene_files, staged_pixels, window_staging
from sgdata.types import Array, Grid, Window

AREA = Grid(crs="EPSG:32632", origin=(600060.0, 5399940.0), gsd_m=10.0, shape=(120, 120))


def staged(folder: Path, values: Array, crs: str, corner: tuple[float, float], gsd: float, nodata: int | None) -> Array:
    """Return a mask on the grid of the area, as a composite reads it."""
    path = folder / "mask.tif"
    about = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": values.shape[0], "width": values.shape[1]}
    with rasterio.open(path, "w", crs=crs, transform=from_origin(*corner, gsd, gsd), nodata=nodata, **about) as dataset:
        dataset.write(values, 1)
    request = scene_files.WindowRequest(
        name="x external",
        asset=Asset(href=str(path)),
        crs=AREA.crs,
        bounds=AREA.bounds,
        target=folder / "w",
        margin_m=60,
    )
    return window_staging.read_on_grid(window_staging.stage(request), AREA, kernel="nearest", beyond=MASK_NODATA)


@pytest.mark.parametrize(
    ("crs", "corner", "gsd", "exact"),
    [
        ("EPSG:32632", (600000.0, 5400000.0), 10.0, True),
        ("EPSG:32632", (600000.0, 5400000.0), 30.0, True),
        ("EPSG:4326", (10.35, 48.75), 0.0002, False),
        ("EPSG:32633", (158000.0, 5415000.0), 20.0, False),
    ],
)
@pytest.mark.parametrize("nodata", [None, 255])
def test_a_mask_on_any_grid(
    crs: str, corner: tuple[float, float], gsd: float, exact: bool, nodata: int | None, tmp_path: Path
) -> None:
    values = np.zeros((800, 800), np.uint8)
    found = staged(tmp_path, values, crs, corner, gsd, nodata)
    assert (found == 0).all()
    (tmp_path / "2").mkdir()
    found = staged(tmp_path / "2", values + 255, crs, corner, gsd, nodata)
    # Drawn as cloud or as unknown, never as clear.
    assert (found == 255).all() or (not exact and nodata == 255 and (found == MASK_NODATA).all())


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:32633"])
def test_where_a_mask_ends_nothing_is_clear(crs: str, tmp_path: Path) -> None:
    corner = {"EPSG:32632": (700000.0, 5500000.0), "EPSG:32633": (400000.0, 5500000.0)}[crs]
    found = staged(tmp_path, np.zeros((50, 50), np.uint8), crs, corner, 10.0, None)
    assert (found == MASK_NODATA).all()


def test_scratch_that_was_cut_short_is_an_error_and_not_nodata(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(120 * 119))
    cut = staged_pixels.StagedWindow(path=str(tmp_path / "w.bin"), grid=AREA, dtype="uint8", sha256="", holes=False)
    assert window_staging.read_on_grid(
        cut, grids.crop(AREA, Window(row=0, col=0, height=9, width=120)), kernel="nearest"
    ).size
    with pytest.raises(SourceError, match="ends before row 120 of 120; remove"):
        window_staging.read_on_grid(cut, AREA, kernel="nearest")
