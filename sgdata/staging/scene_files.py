"""Describe one open file of a scene: the part of it that a build needs, whatever opens and reads it.

Each layout has an opener of its own (`window_staging.open_scene_file` chooses it), a context manager that takes a
request and an address and yields a `SceneFile`. Openers share the checks and the choice of the window, so that the
pixels of a window do not depend on what reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgdata import limits
from sgdata.errors import SourceError
from sgdata.rasters import grids, resample
from sgdata.rasters.cells import Cells
from sgdata.rasters.geotiff import RasterHeader
from sgdata.rasters.tiff_header import BlockTable, OtherLayoutError
from sgdata.remote.allowed_addresses import Access
from sgdata.scenes.types import Asset
from sgdata.sentinel2 import MSI
from sgdata.types import Array, Bounds, Grid, Window

MARGIN_PX = 2
"""The cubic kernel reads two coarse pixels beyond the area; pixels at its edge must not depend on where it ends."""


@dataclass(frozen=True, kw_only=True)
class WindowRequest:
    """One file to stage: the pixels of `asset` over `bounds`.

    Attributes:
        name: Scene and band, for messages.
        asset: The file, and what its item says of it.
        crs: CRS of the bounds and of the staged pixels.
        bounds: West, south, east, north in `crs`.
        target: Path without its ending: `.bin` is appended for the pixels, `.json` once they are complete.
        tokens: Service that signs the URL of the file, as in `signing.sign`.
        margin_m: Margin in metres that is read as well, at least MARGIN_PX pixels.
        kernel: Resampling kernel for pixels of another CRS.
        access: Hosts that may be asked; None: those of an address that the user named.
        headers: Folder that keeps the headers of remote files; None to keep none.
        cells: Parts of `bounds` that are needed; None for all.
    """

    name: str
    asset: Asset
    crs: str
    bounds: Bounds
    target: Path
    tokens: str = ""
    margin_m: float = 0
    kernel: resample.Kernel = "nearest"
    access: Access | None = None
    headers: Path | None = None
    cells: Cells | None = None


@dataclass(frozen=True, kw_only=True)
class SceneFile:
    """An open file, and the window of it that a request needs.

    Attributes:
        grid: Grid of the window.
        dtype: NumPy type of the values.
        block: A block of the file in pixels of `grid`, of which the others are multiples; it may begin before the
            window. The whole window where pixels are warped.
        strips: Function that yields parts of `grid`, in the order given and each from top to bottom, as strips with
            their pixels (h, w), which end where blocks end. They may share memory: copy those that must outlive the
            next one.
        identity: Identity of the file from before any pixel was read (`sgdata.remote.file_identity`); "" if a server
            gives none.
    """

    grid: Grid
    dtype: str
    block: Window
    strips: Callable[[Iterable[Window]], Iterator[tuple[Window, Array]]]
    identity: str

    def rows(self, first: int = 0, last: int | None = None) -> Iterator[Array]:
        """Yield rows `first` to `last` (default: all) from top to bottom; strips may share memory, as in `strips`."""
        height, width = self.grid.shape
        part = Window(row=first, col=0, height=(height if last is None else last) - first, width=width)
        return (values for _, values in self.strips([part]))


def one_by_one(read: Callable[[Window], Iterator[Array]], parts: Iterable[Window]) -> Iterator[tuple[Window, Array]]:
    """Yield the strips of each part, which `read` returns from top to bottom, with their windows."""
    for part in parts:
        row = part.row
        for values in read(part):
            yield Window(row=row, col=part.col, height=values.shape[0], width=part.width), values
            row += values.shape[0]


def find_window(request: WindowRequest, header: RasterHeader, *, geographic: bool) -> tuple[Grid, Window | None]:
    """Return the grid of the pixels to stage, and their window in the file; None where they must be warped.

    Args:
        request: Area, CRS and margin.
        header: Header of the file.
        geographic: Whether the CRS of the file is in degrees.

    Raises:
        SourceError: Pixels are too small or too large.
    """
    # A mask in degrees is resampled to 10 m, the finest pixels of the sensor.
    gsd = float(MSI.finest_gsd_m) if geographic else header.grid.gsd_m
    # Windows are counted in the file's own pixels: too fine ones would fill the disk.
    limits.PIXELS_PER_M.check(1 / gsd, request.name)
    limits.PIXEL_SIZE_M.check(gsd, request.name)
    margin = max(MARGIN_PX, math.ceil(request.margin_m / gsd))
    if header.grid.crs == request.crs:
        window = grids.window_over(header.grid, request.bounds, margin=margin)
        return grids.crop(header.grid, window), window
    # As in scenes of the area's own zone, edges are multiples of the pixel size.
    endless = Grid(crs=request.crs, origin=(0.0, 0.0), gsd_m=gsd, shape=(0, 0))
    return grids.crop(endless, grids.find_window(endless, request.bounds, margin=margin)), None


def locate_blocks(request: WindowRequest, table: BlockTable) -> tuple[Grid, Window]:
    """Compare a file that is read by blocks with its item; return the grid of the pixels to stage, and their window.

    Raises:
        OtherLayoutError: The pixels must be warped, which is left to GDAL.
        SourceError: The file differs from its item, or its pixels are too small or too large.
    """
    header = RasterHeader(grid=table.grid, dtype=np.dtype(table.dtype).name, nodata=table.nodata, bands=1)
    choose_band(request, [1])
    check(request, header)
    grid, window = find_window(request, header, geographic=False)
    if window is None:
        raise OtherLayoutError("pixels of another CRS")
    return grid, window


def block_at(window: Window, shape: tuple[int, int]) -> Window:
    """Return the block of a file with blocks of `shape` that holds the first pixel of `window`, as from that pixel."""
    height, width = shape
    return Window(row=-(window.row % height), col=-(window.col % width), height=height, width=width)


def choose_band(request: WindowRequest, bands: list[int]) -> int:
    """Return the band of the file to read. Raises SourceError for a file of several that its item does not name."""
    band = request.asset.band
    if band is None and len(bands) == 1:
        return bands[0]
    if band is None or band not in bands:
        named = "names none of them for this asset" if band is None else f"names band {band}"
        raise SourceError(
            f"{request.name}: the file has {len(bands)} bands and its item {named}, expected one band or names in "
            "eo:bands or bands; leave it out"
        )
    return band


def check(request: WindowRequest, header: RasterHeader) -> None:
    """Compare the header of the file with its item. Raises SourceError naming both values."""
    item, grid = request.asset, header.grid
    pairs = (
        ("CRS", grid.crs, item.crs),
        ("transform", grid.transform, item.transform),
        ("shape", grid.shape, item.shape),
        ("data type", header.dtype, item.dtype),
    )
    for what, actual, declared in pairs:
        if declared is not None and actual != declared:
            raise SourceError(f"{request.name}: {what} of the file is {actual}, its item says {declared}; leave it out")
    if header.dtype not in {"uint8", "uint16"}:
        raise SourceError(f"{request.name}: pixels are {header.dtype}, expected uint8 or uint16")
