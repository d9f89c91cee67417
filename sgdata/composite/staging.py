"""Windows of scene files, copied once to scratch on their own lattice, and read back on the build's grid.

Stacked composites look at every date of a pixel at once. So each file is decoded once, block by block, into
plain bytes on disk; tiles then read the few rows they need. Memory is flat in area and dates, and a piece that
is complete is never fetched again.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sgdata import files, retry
from sgdata.composite import cloud_masks
from sgdata.errors import SourceError
from sgdata.rasters import geotiff, grid, resample
from sgdata.scenes import signing
from sgdata.scenes.types import Asset
from sgdata.types import Array, Bounds, Grid, Window

RETRY = retry.RetryPolicy(tries=3, wait_s=2.0)
MARGIN_PX = 2
"""Cubic looks two coarse pixels beyond the area, so that pixels at its edge do not depend on where it ends."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One file to stage: the pixels of `asset` over `bounds`, to `target` (`.bin`, and `.json` once complete).

    `margin_m` beyond the bounds is read too, and no less than MARGIN_PX pixels.
    """

    name: str
    asset: Asset
    crs: str
    bounds: Bounds
    target: Path
    tokens: str = ""
    """The service that signs this file's URL, as `signing.signed` takes it."""
    margin_m: float = 0
    kernel: resample.Kernel = "nearest"
    """How pixels of another CRS are brought into this one."""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """Staged pixels: C-order little-endian bytes of `lattice.shape` at `path`; `sha256` as pixel hashes go.

    `holes`: some pixel of the area may have no data.
    """

    path: str
    lattice: Grid
    dtype: str
    sha256: str
    holes: bool

    def rows(self, first: int, last: int) -> Array:
        """(last - first, W) from the file; empty where that does not reach the area.

        Read, not mapped: what threads map and give up again, thousands of times in a build, each makes the others wait.
        """
        width, dtype = self.lattice.shape[1], np.dtype(self.dtype).newbyteorder("<")
        values = np.empty((last - first, width), dtype)
        with Path(self.path).open("rb", buffering=0) as handle:
            handle.seek(first * width * dtype.itemsize)
            if handle.readinto(values.data) != values.nbytes:
                raise SourceError(
                    f"{self.path}: ends before row {last} of {self.lattice.shape[0]}; remove the scratch folder"
                )
        return values

    @property
    def pixels(self) -> Array:
        """(H, W): the whole window."""
        return self.rows(0, self.lattice.shape[0])


def stage(piece: Piece) -> Staged:
    """Copy a window to scratch, or take it from there if an earlier run did.

    What fails over the line is tried again from the start, with a new signature: GDAL itself asks again for busy
    answers, but not for a connection dropped midway or a token that has expired. Raises SourceError: unreadable, or
    the file's header differs from what its item says.
    """
    done = piece.target.with_suffix(".json")
    if done.exists():
        return replace(files.read(Staged, done), path=str(piece.target.with_suffix(".bin")))
    href = ""

    def attempt() -> Staged:
        nonlocal href
        href = signing.signed(piece.asset.href, piece.tokens, failed=href)
        return _copied(piece, href, done)

    def is_transient(error: BaseException) -> bool:
        # Only a failed read has a cause; a header that differs from its item will not change.
        return isinstance(error, SourceError) and error.__cause__ is not None and "://" in href

    return retry.call(attempt, RETRY, retry_on=is_transient)


def _copied(piece: Piece, href: str, done: Path) -> Staged:
    data = piece.target.with_suffix(".bin")
    # The file is opened inside: a failed read must come out as what it is, not as a failed write.
    with (
        files.replacing(data, durable=False) as temporary,
        temporary.open("wb") as handle,
        geotiff.opened(href) as dataset,
    ):
        header = geotiff.header(dataset)
        check(piece, header)
        # A mask in degrees lands on the finest pixels there are.
        gsd = 10.0 if dataset.crs.is_geographic else header.lattice.gsd_m
        margin = max(MARGIN_PX, math.ceil(piece.margin_m / gsd))
        if header.lattice.crs == piece.crs:
            window = geotiff.window_over(header.lattice, piece.bounds, margin=margin)
            lattice = grid.windowed(header.lattice, window)
            found = geotiff.strips(dataset, window)
        else:
            # As scenes of the area's own zone lie: edges are multiples of their pixels.
            endless = Grid(crs=piece.crs, origin=(0.0, 0.0), gsd_m=gsd, shape=(0, 0))
            lattice = grid.windowed(endless, grid.over(endless, piece.bounds, margin=margin))
            mask = header.dtype == "uint8"
            found = geotiff.warped(dataset, lattice, piece.kernel, beyond=cloud_masks.BEYOND if mask else 0)
        digest = hashlib.sha256(geotiff.digest_start(lattice, 1, header.dtype))
        west, south, east, north = lattice.bounds
        inside = west <= piece.bounds[0] and south <= piece.bounds[1] and east >= piece.bounds[2]
        # What the file does not cover is a hole like any other.
        holes = not (inside and north >= piece.bounds[3])
        for values in found:
            holes = holes or not values.all()
            # Hashed as it is written: reading 50 GB again only for the lock would double the time.
            content = geotiff.little_endian(values)
            digest.update(content)
            handle.write(content)
    staged = Staged(path=str(data), lattice=lattice, dtype=header.dtype, sha256=digest.hexdigest(), holes=bool(holes))
    with files.replacing(done, durable=False) as temporary:
        temporary.write_bytes(files.canonical_json(staged))
    return staged


def check(piece: Piece, header: geotiff.Header) -> None:
    """Hold the file's header against its item and the grid. Raises SourceError naming both."""
    told, lattice = piece.asset, header.lattice
    pairs = (
        ("CRS", lattice.crs, told.crs),
        ("transform", lattice.transform, told.transform),
        ("shape", lattice.shape, told.shape),
        ("data type", header.dtype, told.dtype),
    )
    for what, found, promised in pairs:
        if promised is not None and found != promised:
            raise SourceError(f"{piece.name}: {what} of the file is {found}, its item says {promised}; leave it out")
    if header.dtype not in {"uint8", "uint16"}:
        raise SourceError(f"{piece.name}: pixels are {header.dtype}, expected uint8 or uint16")


def on_grid(staged: Staged, target: Grid, *, kernel: resample.Kernel, offset: int = 0, beyond: int = 0) -> Array:
    """(H, W) of `target` from staged pixels, `offset` added to valid DN; `beyond` where the file does not reach.

    Raises SourceError where the lattices do not nest.
    """
    from sgdata.scenes.offsets import corrected

    # Pure integer placement: no resampling library, hence no half-pixel convention to get wrong.
    factor, row, col = place(staged, target)
    height, width = (size * factor for size in staged.lattice.shape)
    top, left = max(row, 0), max(col, 0)
    bottom, right = min(row + target.shape[0], height), min(col + target.shape[1], width)
    if top >= bottom or left >= right:
        return np.full(target.shape, beyond, staged.dtype)
    # The coarse pixels under the window and two more on each side, then the window inside those.
    first_row, first_col = max(top // factor - MARGIN_PX, 0), max(left // factor - MARGIN_PX, 0)
    last_row = min(-(-bottom // factor) + MARGIN_PX, staged.lattice.shape[0])
    coarse = staged.rows(first_row, last_row)[:, first_col : -(-right // factor) + MARGIN_PX]
    window = Window(
        row=top - first_row * factor, col=left - first_col * factor, height=bottom - top, width=right - left
    )
    fine = resample.finer(corrected(coarse, offset), factor, kernel=kernel, window=window)
    if fine.shape == target.shape:
        return fine
    out = np.full(target.shape, beyond, staged.dtype)
    out[top - row : bottom - row, left - col : right - col] = fine
    return out


def place(staged: Staged, target: Grid) -> tuple[int, int, int]:
    """(factor, row, col): fine pixels per staged pixel, and where `target` begins counted in fine pixels."""
    lattice = staged.lattice
    factor = lattice.gsd_m / target.gsd_m
    row = (lattice.origin[1] - target.origin[1]) / target.gsd_m
    col = (target.origin[0] - lattice.origin[0]) / target.gsd_m
    if any(abs(value - round(value)) > 1e-6 for value in (factor, row, col)) or round(factor) < 1:
        raise SourceError(
            f"{Path(staged.path).stem}: pixels of {lattice.gsd_m:g} m from {lattice.origin} do not nest in the "
            f"grid of {target.gsd_m:g} m from {target.origin}; choose an area on the scene's own lattice"
        )
    return round(factor), round(row), round(col)
