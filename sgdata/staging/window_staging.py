"""Copy windows of scene files to scratch on their own grid, and read them back on the grid of the build.

Composites need every date of a pixel at once. Each file is therefore decoded once, block by block, into plain bytes
on disk, of which tiles read only the rows they need. Memory does not grow with area or dates, and a complete window is
never fetched again. Of a window that is needed in some cells only, only the blocks over these are read; the rest of the
file in scratch is a hole.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import numpy as np

from sgdata import files, safe_names, urls
from sgdata.errors import SettingError, SgdataError, SourceError
from sgdata.rasters import cells, geotiff, resample
from sgdata.rasters.cells import Cells
from sgdata.rasters.tiff_header import OtherLayoutError
from sgdata.remote import file_identity, retry
from sgdata.scenes import signing
from sgdata.staging import gdal_files, local_tiffs, remote_tiffs, staged_pixels
from sgdata.staging.scene_files import MARGIN_PX, SceneFile, WindowRequest
from sgdata.staging.staged_pixels import StagedWindow
from sgdata.types import Array, Grid, Window

T = TypeVar("T")

log = logging.getLogger("sgdata")

RETRY = retry.RetryPolicy(tries=3, wait_s=2.0)
GDAL_READERS = 4
"""Remote files that GDAL reads at a time."""
SAMPLE_ROWS = 64
"""Rows of a staged window that are compared with a file whose server gives neither ETag nor date."""


def stage(request: WindowRequest) -> StagedWindow:
    """Copy a window to scratch, or take it from there if an earlier run did and its file has not changed since.

    Failed reads of remote files are repeated from the start, with a new signature: GDAL itself repeats requests to busy
    servers, but not those of a dropped connection or an expired token.

    Raises:
        SourceError: The file cannot be read, or its header differs from its item.
    """
    done = safe_names.with_ending(request.target, ".json")
    staged = _staged(done, safe_names.with_ending(request.target, ".bin"))
    if staged and not _is_current(staged, request):
        staged = None
    if staged and cells.hold(staged.cells, request.cells):
        return _limited(staged, request.cells)
    if request.cells is None:
        return _read_signed(request, lambda href: _copied(request, href, done))
    return _limited(_read_signed(request, lambda href: _copied_in_part(request, href, done, staged)), request.cells)


def _read_signed(request: WindowRequest, read: Callable[[str], T]) -> T:
    """Call `read` with the signed address of a file, again if reading a remote one fails. Raises SourceError."""

    def is_transient(error: BaseException) -> bool:
        # Only a failed read has a cause; a header that differs from its item will not change.
        return isinstance(error, SourceError) and error.__cause__ is not None and "://" in request.asset.href

    return signing.call(read, request.asset.href, request.tokens, RETRY, retry_on=is_transient)


def _limited(staged: StagedWindow, part: Cells | None) -> StagedWindow:
    """Return a staged window with the hash of some of its cells: what it holds beside them must not show anywhere."""
    return (
        staged if staged.cells == part else replace(staged, cells=part, sha256=staged_pixels.compute_hash(staged, part))
    )


def _staged(done: Path, data: Path) -> StagedWindow | None:
    """Return the window that an earlier run completed; None if its files are missing, damaged, cut short or swapped."""
    document = files.read_checked_json(done)
    if document is None:
        return None
    try:
        staged = files.parse(StagedWindow, document, str(done))
    except SettingError:  # of another version
        return None
    size = math.prod(staged.grid.shape) * np.dtype(staged.dtype).itemsize
    if Path(staged.path).name != data.name or not data.is_file() or data.stat().st_size != size:
        return None
    staged = replace(staged, path=str(data))
    return staged if staged_pixels.compute_hash(staged, staged.cells) == staged.sha256 else None


def _is_current(staged: StagedWindow, request: WindowRequest) -> bool:
    """Return whether the source file is unchanged, as far as its identity shows; an unreachable file counts as such."""
    host = urlsplit(request.asset.href).netloc
    if host in _unreached():
        return True
    try:
        href = signing.sign(request.asset.href, request.tokens)
        if urls.is_zarr(href) and "://" in href:  # many files, of which those of the window count
            with open_scene_file(replace(request, headers=None), href) as source:
                current: str | None = source.identity
        else:
            current = file_identity.identify_address(href, request.access)
        if current == staged.source == "":  # a store, or a server without ETags and dates
            return _has_same_sample(staged, request, href)
        if current is not None:
            return current == staged.source
    except SgdataError as error:
        # Only a failed read has a cause; a header that differs from its item is that of another file.
        if isinstance(error, SourceError) and error.__cause__ is None:
            return False
    # Asked once, since every failure takes seconds.
    _unreached().add(host)
    log.warning("%s: not reached; scenes that are in the scratch folder are not compared with it", host)
    return True


@cache
def _unreached() -> set[str]:
    """Return the hosts and buckets that could not be reached to compare staged windows, in this process."""
    return set()


def _has_same_sample(staged: StagedWindow, request: WindowRequest, href: str) -> bool:
    """Compare rows near the middle of a window with those of its file. Raises SourceError if it cannot be read."""
    height, width = staged.grid.shape
    first = height // 2 // SAMPLE_ROWS * SAMPLE_ROWS
    part = Window(row=first, col=0, height=min(SAMPLE_ROWS, height - first), width=width)
    with open_scene_file(request, href) as source:
        if (source.grid, source.dtype) != (staged.grid, staged.dtype):
            return False
        if staged.cells is not None:
            read = cells.find_blocks(staged.cells, staged.grid, MARGIN_PX, source.block)
            part = replace(read[len(read) // 2], height=min(SAMPLE_ROWS, read[len(read) // 2].height)) if read else part
        return all(
            np.array_equal(values, staged.rows(at.row, at.row + at.height)[:, at.col : at.col + at.width])
            for at, values in source.strips([part] if staged.cells is None or read else [])
        )


@cache
def _gdal_turns() -> threading.BoundedSemaphore:
    """Return the turns of this process to read a remote file through GDAL, whose cache serves few at a time."""
    return threading.BoundedSemaphore(GDAL_READERS)


@contextmanager
def open_scene_file(request: WindowRequest, href: str) -> Iterator[SceneFile]:
    """Open the file of a window with what its layout takes, and compare its header with its item.

    Args:
        request: The window, and what the item says of the file.
        href: Address to open, signed where its server wants that.

    Yields:
        The open file.

    Raises:
        SourceError: The file cannot be opened or differs from its item, also while it is read.
    """
    with ExitStack() as stack:
        if urls.is_zarr(href):
            from sgdata.staging import zarr_files

            yield stack.enter_context(zarr_files.open_zarr(request, href))
            return
        for can_read, open_tiff in (
            (remote_tiffs.can_read, remote_tiffs.open_remote_tiff),
            (local_tiffs.can_read, local_tiffs.open_local_tiff),
        ):
            if not can_read(href):
                continue
            try:
                yield stack.enter_context(open_tiff(request, href))
                return
            except OtherLayoutError as error:
                log.debug("%s: has %s, which is read by GDAL", request.name, error)
        if "://" in href:
            stack.enter_context(_gdal_turns())
        yield stack.enter_context(gdal_files.open_with_gdal(request, href))


def _copied(request: WindowRequest, href: str, done: Path) -> StagedWindow:
    data = safe_names.with_ending(request.target, ".bin")
    # The source is opened inside, so that a failed read is not reported as a failed write.
    with (
        files.replacing(data, durable=False) as temporary,  # the pixel hash tells a later run what is damaged
        temporary.open("wb") as handle,
        open_scene_file(request, href) as source,
    ):
        grid = source.grid
        digest = hashlib.sha256(geotiff.digest_start(grid, 1, source.dtype))
        holes = not _covers(grid, request)
        for values in source.rows():
            holes = holes or staged_pixels.has_holes(values)
            # Hashed while writing: reading all windows again for the lock would double the time.
            content = geotiff.little_endian(values)
            digest.update(content)
            handle.write(content)
    staged = StagedWindow(
        path=str(data),
        grid=grid,
        dtype=source.dtype,
        sha256=digest.hexdigest(),
        holes=bool(holes),
        source=source.identity,
    )
    files.write(done, files.checked_json(staged), durable=False)
    return staged


def _covers(grid: Grid, request: WindowRequest) -> bool:
    """Return whether a file covers the area; ground that it does not cover counts as a hole."""
    west, south, east, north = grid.bounds
    inside = west <= request.bounds[0] and south <= request.bounds[1] and east >= request.bounds[2]
    return inside and north >= request.bounds[3]


def _copied_in_part(request: WindowRequest, href: str, done: Path, staged: StagedWindow | None) -> StagedWindow:
    """Copy the blocks over the cells of a request that are not `staged`, beside those that are."""
    wanted = request.cells
    assert wanted is not None
    data = safe_names.with_ending(request.target, ".bin")
    # The source is opened inside, as in `_copied`.
    with files.writing(data), open_scene_file(request, href) as source:
        # Blocks that are staged stay as they are: where a run ends meanwhile, their hash still holds.
        if staged is None or staged.cells is None or _differs(staged, source):
            staged, missing = None, wanted
            with files.replacing(data, durable=False) as temporary:
                temporary.touch()
                os.truncate(temporary, math.prod(source.grid.shape) * np.dtype(source.dtype).itemsize)
        else:
            missing = wanted.choose(wanted.included & ~staged.cells.included)
        holes = not _covers(source.grid, request)
        with data.open("r+b", buffering=0) as handle:
            for part, values in source.strips(cells.find_blocks(missing, source.grid, MARGIN_PX, source.block)):
                staged_pixels.write_part(handle.fileno(), source.grid.shape[1], part, values)
    held = wanted if staged is None or staged.cells is None else wanted.choose(wanted.included | staged.cells.included)
    copied = StagedWindow(
        path=str(data), grid=source.grid, dtype=source.dtype, sha256="", holes=holes, source=source.identity, cells=held
    )
    sha256, some_empty = staged_pixels.search_and_hash(copied, held)
    copied = replace(copied, sha256=sha256, holes=holes or some_empty)
    files.write(done, files.checked_json(copied), durable=False)
    return copied


def _differs(staged: StagedWindow, source: SceneFile) -> bool:
    """Return whether what is staged is of another file than the one that is open."""
    return (staged.grid, staged.dtype, staged.source) != (source.grid, source.dtype, source.identity)


@dataclass(frozen=True, kw_only=True)
class WindowInMemory:
    """Pixels (H, W) of the file `path` on their own grid, to be read as those of a staged window."""

    path: str
    grid: Grid
    values: Array

    @property
    def dtype(self) -> str:
        """NumPy type of the values."""
        return self.values.dtype.name

    def rows(self, first: int, last: int) -> Array:
        """Return (last - first, W) pixels."""
        return self.values[first:last]


def read_unstaged(request: WindowRequest, target: Grid, *, kernel: resample.Kernel, offset: int) -> Array:
    """Read the part of a file over `target` on this grid, as `read_on_grid`, without writing it to scratch.

    Raises:
        SourceError: The file cannot be read, or its header differs from its item.
    """

    def read(href: str) -> WindowInMemory:
        with open_scene_file(replace(request, bounds=target.bounds), href) as source:
            strips = [*map(np.copy, source.rows())]
            values = np.concatenate(strips) if strips else np.zeros(source.grid.shape, source.dtype)
            return WindowInMemory(path=request.name, grid=source.grid, values=values)

    part = _read_signed(request, read)
    if 0 in part.grid.shape:
        return np.zeros(target.shape, part.values.dtype)
    return read_on_grid(part, target, kernel=kernel, offset=offset)


def read_on_grid(
    staged: StagedWindow | WindowInMemory, target: Grid, *, kernel: resample.Kernel, offset: int = 0, beyond: int = 0
) -> Array:
    """Read staged pixels on the grid `target`.

    Args:
        staged: The staged window, of the same or a coarser pixel size.
        target: The grid to return.
        kernel: How coarse pixels become fine ones.
        offset: Added to valid DN.
        beyond: Value where the staged window does not reach.

    Returns:
        (H, W) in the data type of the staged window.

    Raises:
        SourceError: The pixels do not nest.
    """
    from sgdata.scenes.offsets import apply_offset

    # Pure integer placement, without the half-pixel conventions of resampling libraries.
    factor, row, col = grid_offset(staged, target)
    height, width = (size * factor for size in staged.grid.shape)
    top, left = max(row, 0), max(col, 0)
    bottom, right = min(row + target.shape[0], height), min(col + target.shape[1], width)
    if top >= bottom or left >= right:
        return np.full(target.shape, beyond, staged.dtype)
    # The coarse pixels under the window and MARGIN_PX more on each side, then the window inside those.
    first_row, first_col = max(top // factor - MARGIN_PX, 0), max(left // factor - MARGIN_PX, 0)
    last_row = min(-(-bottom // factor) + MARGIN_PX, staged.grid.shape[0])
    coarse = staged.rows(first_row, last_row)[:, first_col : -(-right // factor) + MARGIN_PX]
    window = Window(
        row=top - first_row * factor, col=left - first_col * factor, height=bottom - top, width=right - left
    )
    fine = resample.upsample(apply_offset(coarse, offset), factor, kernel=kernel, window=window)
    if fine.shape == target.shape:
        return fine
    out = np.full(target.shape, beyond, staged.dtype)
    out[top - row : bottom - row, left - col : right - col] = fine
    return out


def grid_offset(staged: StagedWindow | WindowInMemory, target: Grid) -> tuple[int, int, int]:
    """Return (factor, row, col): fine pixels per staged pixel, and the origin of `target` in fine pixels.

    Raises SourceError where the pixels do not nest.
    """
    grid = staged.grid
    factor = grid.gsd_m / target.gsd_m
    row = (grid.origin[1] - target.origin[1]) / target.gsd_m
    col = (target.origin[0] - grid.origin[0]) / target.gsd_m
    if any(abs(value - round(value)) > 1e-6 for value in (factor, row, col)) or round(factor) < 1:
        raise SourceError(
            f"{Path(staged.path).stem}: pixels of {grid.gsd_m:g} m from {grid.origin} do not nest in the "
            f"grid of {target.gsd_m:g} m from {target.origin}; choose an area on the scene's own grid"
        )
    return round(factor), round(row), round(col)
