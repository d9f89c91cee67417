"""Open a file of a scene through GDAL, which takes every layout and warps pixels of another CRS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from sgdata.composite import cloud_masks, scene_files
from sgdata.composite.scene_files import SceneFile, WindowRequest
from sgdata.rasters import geotiff, grids
from sgdata.remote import identity
from sgdata.types import Array, Window


@contextmanager
def open_with_gdal(request: WindowRequest, href: str) -> Iterator[SceneFile]:
    """Open the file of a window and compare its header with its item. Raises SourceError, also while it is read."""
    # Before it is opened, so that a change meanwhile is noticed later.
    identified = identity.identify_address(href, request.access) or ""
    with geotiff.open_raster(href, use="scene", access=request.access) as dataset:
        band = scene_files.choose_band(request, geotiff.data_bands(dataset))
        header = geotiff.read_header(dataset, band)
        scene_files.check(request, header)
        beyond = cloud_masks.BEYOND if header.dtype == "uint8" else 0  # 0 is a value in masks
        grid, window = scene_files.find_window(request, header, geographic=dataset.crs.is_geographic)
        if window is None:
            block = Window(row=0, col=0, height=grid.shape[0], width=grid.shape[1])

            def read(part: Window) -> Iterator[Array]:
                return geotiff.read_warped(dataset, grids.crop(grid, part), request.kernel, band=band, beyond=beyond)
        else:
            row, col = window.row, window.col
            block = scene_files.block_at(window, dataset.block_shapes[band - 1])

            def read(part: Window) -> Iterator[Array]:
                inside = Window(row=row + part.row, col=col + part.col, height=part.height, width=part.width)
                return geotiff.read_strips(dataset, inside, band=band, beyond=beyond)

        strips = partial(scene_files.one_by_one, read)
        yield SceneFile(grid=grid, dtype=header.dtype, block=block, strips=strips, identity=identified)
