"""Test windows of samples of any size: positions as in the released code, contents, and pixels counted once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_shards import write_pairs

from sgmodel.data import loader, windows

MEMBERS = ("image_before", "image_after", "mask")
RELEASED = windows.WindowRecipe(px=128, stride=63, remainder="dropped", once=False)
ONCE = windows.WindowRecipe(px=16, stride=16, remainder="covered", once=True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> loader.Samples:
    return loader.Samples(write_pairs(tmp_path_factory.mktemp("pairs") / "shards"), "test", MEMBERS)


def test_the_released_grid(parity: Path) -> None:
    theirs = np.load(parity / "preprocess.npz")
    height, width = theirs["oscd/image1"].shape[:2]
    rows, cols = windows.starts(height, RELEASED), windows.starts(width, RELEASED)
    ours = [[top, top + 128, left, left + 128] for top in rows for left in cols]
    assert ours == theirs["oscd/patch_limits"].tolist()
    assert len(ours) == int(theirs["oscd/n_patches"])


@given(side=st.integers(128, 1200))
def test_the_released_count_per_side(side: int) -> None:
    assert len(windows.starts(side, RELEASED)) == -(-(side - 127) // 63)


@given(side=st.integers(16, 300), stride=st.integers(1, 16))
def test_covered_leaves_nothing_out(side: int, stride: int) -> None:
    found = windows.starts(side, dataclasses.replace(ONCE, stride=stride))
    seen = {pixel for start in found for pixel in range(start, start + 16)}
    assert seen == set(range(side))


def test_every_pixel_counts_once(pairs: loader.Samples) -> None:
    for stride in (16, 11):
        cut = windows.WindowedSamples(pairs, dataclasses.replace(ONCE, stride=stride))
        found = {key: np.zeros(shape) for key, shape in zip(pairs.keys, pairs.valid_size(np.arange(2)), strict=True)}
        for number, row in enumerate(cut.rows):
            top, left = row[1:3]
            found[pairs.keys[row[0]]][top : top + 16, left : left + 16] += cut.read(number, "mask") != 255
        assert all((counts == 1).all() for counts in found.values())


def test_windows_contain_the_pixels_of_their_positions(pairs: loader.Samples) -> None:
    cut = windows.WindowedSamples(pairs, dataclasses.replace(ONCE, once=False))
    assert len(set(cut.keys)) == len(cut) == 3 * 3 + 2 * 3
    (batch,) = loader.load(cut, loader.in_order(len(cut), 99), threads=2)
    for number, (scene, top, left, *_) in enumerate(cut.rows.tolist()):
        for name in MEMBERS:
            expected = pairs.read(scene, name)[..., top : top + 16, left : left + 16]
            assert np.array_equal(batch.arrays[name][number].numpy(), expected)
    assert batch.valid_size.unique().tolist() == [16]
    assert cut.keys[1] == "dora-r00000-c00016"


def test_a_side_shorter_than_a_window_gives_one_smaller_window(pairs: loader.Samples) -> None:
    cut = windows.WindowedSamples(pairs, dataclasses.replace(ONCE, px=40, stride=40))
    dora = pairs.keys.index("dora")
    sizes = cut.valid_size(np.flatnonzero(cut.rows[:, 0] == dora)).tolist()
    assert sizes == [[40, 37], [40, 37]]
