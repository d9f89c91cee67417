"""Test grids: snapping, nesting, tiles that cover each pixel once, patches within the grid."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdata.errors import SettingError
from sgdata.rasters import grids
from sgdata.types import Grid, Window

coordinates = st.integers(-10_000_000, 10_000_000).map(lambda tenth: tenth / 10)


@given(coordinates, coordinates, st.integers(1, 10**5), st.integers(1, 10**5))
def test_the_covering_grid_covers_and_is_snapped(west: float, south: float, width: float, height: float) -> None:
    made = grids.snap_outward((west, south, west + width, south + height), "EPSG:32632")
    left, bottom, right, top = made.bounds
    assert left <= west
    assert bottom <= south
    assert right >= west + width
    assert top >= south + height
    assert all(edge % 60 == 0 for edge in (left, bottom, right, top))
    assert (left + 60 > west) and (top - 60 < south + height)


def test_an_empty_area_is_refused() -> None:
    with pytest.raises(SettingError, match="west < east"):
        grids.snap_outward((10, 0, 5, 5), "EPSG:32632")


@settings(deadline=None)  # tiles of one pixel are 90,000 steps
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 128))
def test_tiles_cover_every_pixel_once(height: int, width: int, size: int) -> None:
    seen = np.zeros((height, width), int)
    for window in grids.cut_tiles((height, width), size):
        seen[window.slices] += 1
    assert (seen == 1).all()


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(1, 64))
def test_patches_are_whole_and_inside(height: int, width: int, size: int, stride: int) -> None:
    made = list(grids.cut_patches((height, width), size, stride))
    assert all(w.row + size <= height and w.col + size <= width and w.height == w.width == size for w in made)
    expected = max(0, (height - size) // stride + 1) * max(0, (width - size) // stride + 1)
    assert len(made) == expected


def test_the_paper_cut_gives_the_published_number() -> None:
    assert len(list(grids.cut_patches((2958, 3847), 128, 64))) == 59 * 45


def test_a_window_of_a_grid_has_the_right_position() -> None:
    whole = Grid(crs="EPSG:32632", origin=(600000, 5300040), gsd_m=10, shape=(60, 120))
    part = grids.crop(whole, Window(row=6, col=12, height=30, width=18))
    assert part.origin == (600120, 5299980)
    assert part.bounds == (600120, 5299680, 600300, 5299980)
    assert grids.coarsen(whole, 6).shape == (10, 20)
    assert grids.coarsen(whole, 6).bounds == whole.bounds
    with pytest.raises(SettingError, match="does not divide"):
        grids.coarsen(part, 4)


@given(st.tuples(st.integers(0, 90), st.integers(1, 40)), st.integers(1, 2000), st.integers(1, 9))
def test_strips_cover_once_in_whole_multiples(shape: tuple[int, int], pixels: int, multiple: int) -> None:
    found = list(grids.cut_strips(shape, pixels, multiple=multiple))
    assert sum(strip.height for strip in found) == shape[0]
    for strip, following in pairwise(found):
        assert (strip.height % multiple, strip.row + strip.height) == (0, following.row)
        assert strip.width * strip.height <= max(pixels, multiple * shape[1])
