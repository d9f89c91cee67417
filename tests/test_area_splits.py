"""Test splits for an area: those of the recipe, or smaller blocks if a part would be empty."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from sgdata.builds import cut_patches, patch_table
from sgdata.rasters import grids
from sgdata.splits import block_split
from sgdata.types import Array


def boxes(side: int) -> tuple[Array, Array]:
    windows = list(grids.cut_patches((side, side), 128, 64))
    return patch_table.window_boxes(windows), np.ones((len(windows), 1))


def test_a_large_area_is_split_with_the_blocks_of_the_recipe() -> None:
    settings = block_split.SplitSettings()
    where, counts = boxes(2400)
    assert cut_patches.split_area(where, counts, settings) == block_split.split(where, counts, settings)


@pytest.mark.parametrize("side", [400, 600, 700])
def test_a_small_area_gets_smaller_blocks_with_a_warning(side: int, caplog: pytest.LogCaptureFixture) -> None:
    where, counts = boxes(side)
    assert block_split.split(where, counts, block_split.SplitSettings())[1].empty
    with caplog.at_level(logging.WARNING, logger="sgdata"):
        parts, report = cut_patches.split_area(where, counts, block_split.SplitSettings())
    assert report.empty == ()
    assert report.leakage == 0
    assert {"train", "val"} <= set(parts)
    assert report.boxes["train"] >= report.boxes["val"]
    assert "a small area" in caplog.text


def test_blocks_shrink_until_no_part_lacks_a_class() -> None:
    windows = list(grids.cut_patches((500, 500), 128, 32))
    where = patch_table.window_boxes(windows)
    # One class occurs in a corner only: with two by two blocks, one part would lack it.
    counts = np.stack([np.ones(len(where)), (where[:, 0] < 100) & (where[:, 1] < 200)], axis=1).astype(float)
    assert any(block_split.split(where, counts, block_split.SplitSettings(block_px=256, gap_px=64))[1].lacking.values())
    _, report = cut_patches.split_area(where, counts, block_split.SplitSettings())
    assert report.boxes["train"] > report.boxes["val"] > 0
    assert set(report.lacking.values()) == {()}


@pytest.mark.parametrize("side", [400, 450, 500, 640, 800, 1000])
@pytest.mark.parametrize("stride", [32, 64, 128])
def test_no_square_of_three_patches_is_left_without_a_part(side: int, stride: int) -> None:
    windows = list(grids.cut_patches((side, side), 128, stride))
    where, counts = patch_table.window_boxes(windows), np.ones((len(windows), 1))
    _, report = cut_patches.split_area(where, counts, block_split.SplitSettings())
    assert report.empty == ()
    assert report.leakage == 0


def test_an_area_of_one_patch_comes_back_as_it_is() -> None:
    where, counts = boxes(128)
    _, report = cut_patches.split_area(where, counts, block_split.SplitSettings())
    assert report.empty
