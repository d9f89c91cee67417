"""Cloud Optimized GeoTIFFs as the providers write them: deflate, predictor 2, 1024 blocks (512 in small ones)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sgdata import files
from sgdata.rasters import geotiff
from sgdata.types import Array, Grid, Window

BLOCK = 1024
Sink = Callable[[Window, Array], None]


@contextmanager
def writing(path: Path, grid: Grid, names: tuple[str, ...], dtype: str, nodata: int | None) -> Iterator[Sink]:
    """Yield a writer of (window, (C, h, w)) in any order; the COG is at `path` once the context ends without error."""
    import rasterio
    import rasterio.shutil
    from rasterio.transform import Affine
    from rasterio.windows import Window as RasterWindow

    with files.replacing(path) as temporary:
        # The COG driver of GDAL only copies: a plain tiled file takes the pieces first.
        draft = temporary.with_name(temporary.name + ".draft")
        try:
            profile = {
                "driver": "GTiff", "dtype": dtype, "count": len(names), "nodata": nodata, "crs": grid.crs,
                "height": grid.shape[0], "width": grid.shape[1], "transform": Affine(*grid.transform), "tiled": True,
                "blockxsize": 256, "blockysize": 256, "interleave": "band", "BIGTIFF": "IF_SAFER",
            }  # fmt: skip
            with rasterio.open(draft, "w", **profile) as dataset:
                for number, name in enumerate(names, 1):
                    dataset.set_band_description(number, name)

                def sink(window: Window, pixels: Array) -> None:
                    dataset.write(pixels, window=RasterWindow(window.col, window.row, window.width, window.height))

                yield sink
            # Four overviews of a 10 m file, as Earth Search has them, and what corresponds at 20 m and 60 m.
            levels = {10: 4, 20: 3, 60: 1}[int(grid.gsd_m)]
            block = BLOCK if max(grid.shape) > BLOCK // 2 else BLOCK // 2
            # Classes and bit masks have no mean.
            averaged = "AVERAGE" if dtype == "uint16" else "NEAREST"
            rasterio.shutil.copy(
                draft, temporary, driver="COG", compress="DEFLATE", level=6, predictor="STANDARD", blocksize=block,
                overview_count=levels, overview_resampling=averaged, num_threads=1,
            )  # fmt: skip
        finally:
            draft.unlink(missing_ok=True)


def warp(source: Path, target: Path, grid: Grid) -> None:
    """Write the pixels of a COG on the grid of another CRS, by nearest neighbour."""
    import numpy as np
    from rasterio.transform import Affine
    from rasterio.warp import reproject

    with geotiff.open_raster(str(source)) as dataset:
        pixels = np.zeros((1, *grid.shape), dataset.dtypes[0])
        reproject(
            dataset.read(), pixels, src_transform=dataset.transform, src_crs=dataset.crs,
            dst_transform=Affine(*grid.transform), dst_crs=grid.crs, src_nodata=0, dst_nodata=0,
        )  # fmt: skip
        with writing(target, grid, dataset.descriptions, dataset.dtypes[0], 0) as sink:
            sink(Window(row=0, col=0, height=grid.shape[0], width=grid.shape[1]), pixels)
