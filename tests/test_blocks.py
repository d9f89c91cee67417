"""Test splits by blocks: the gap between parts for any boxes, and rare classes in both parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdata.builds import patch_table
from sgdata.errors import SettingError
from sgdata.rasters import grids
from sgdata.splits import block_split
from sgdata.types import Grid, Window


def some_windows(height: int, width: int, size: int, stride: int) -> list[Window]:
    return list(grids.cut_patches((height, width), size, stride))


def distance_px(a: Window, b: Window) -> int:
    """Return the pixels between two windows along the axis that separates them most, negative if they overlap."""
    rows = max(a.row - (b.row + b.height), b.row - (a.row + a.height))
    cols = max(a.col - (b.col + b.width), b.col - (a.col + a.width))
    return max(rows, cols)


split_settings = st.builds(
    block_split.SplitSettings,
    block_px=st.integers(20, 60),
    gap_px=st.integers(0, 30),
    val_share=st.floats(0, 0.5),
    test_share=st.floats(0, 0.4),
    seed=st.integers(0, 5),
)


@settings(max_examples=40, deadline=None)
@given(split_settings, st.integers(40, 160), st.integers(40, 160), st.integers(4, 20), st.integers(4, 24), st.data())
def test_no_two_parts_come_closer_than_the_gap(
    chosen: block_split.SplitSettings, height: int, width: int, size: int, stride: int, data: st.DataObject
) -> None:
    windows = some_windows(height, width, size, stride)
    counts = np.random.default_rng(1).integers(0, 5, (len(windows), 3))
    parts, report = block_split.split(patch_table.window_boxes(windows), counts, chosen)

    by_part = {part: [w for w, p in zip(windows, parts, strict=True) if p == part] for part in block_split.SPLITS}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        for a in by_part[one]:
            assert all(distance_px(a, b) >= chosen.gap_px for b in by_part[other])
    assert report.leakage == 0
    assert sum(report.boxes.values()) + report.left_out == len(windows)

    order = data.draw(st.permutations(range(len(windows))))
    shuffled = [windows[i] for i in order]
    again, _ = block_split.split(patch_table.window_boxes(shuffled), counts[list(order)], chosen)
    assert [parts[i] for i in order] == list(again)


def test_blocks_of_a_rare_class_go_to_both_parts() -> None:
    windows = some_windows(1024, 1024, 64, 64)
    counts = np.ones((len(windows), 2)) * (64 * 64, 0)
    for i, window in enumerate(windows):  # two of 64 blocks hold the rare class
        if (window.row // 128, window.col // 128) in ((1, 1), (6, 5)):
            counts[i] = (0, 64 * 64)
    for seed in range(8):
        chosen = block_split.SplitSettings(block_px=128, gap_px=0, val_share=0.2, seed=seed)
        parts, report = block_split.split(patch_table.window_boxes(windows), counts, chosen)
        assert report.lacking == {"train": (), "val": ()}
        assert parts.count("val") / len(parts) == pytest.approx(0.2, abs=0.03)


def test_another_seed_is_another_split_of_the_same_shares() -> None:
    windows = some_windows(1000, 1000, 50, 50)
    counts = np.random.default_rng(0).integers(0, 9, (len(windows), 5))
    first, second = (
        block_split.split(
            patch_table.window_boxes(windows), counts, block_split.SplitSettings(block_px=100, gap_px=0, seed=seed)
        )[0]
        for seed in (0, 1)
    )
    assert first != second
    assert first.count("val") == pytest.approx(80, abs=8)
    assert second.count("val") == pytest.approx(80, abs=8)


def test_the_random_split_has_exact_shares_and_owns_its_leakage() -> None:
    chosen = block_split.SplitSettings(method="random", val_share=0.2)
    overlapping = some_windows(1280, 1280, 128, 64)
    parts, report = block_split.split(patch_table.window_boxes(overlapping), np.ones((len(overlapping), 1)), chosen)
    assert parts.count("val") == round(0.2 * len(overlapping))
    assert block_split.LEFT_OUT not in parts
    assert report.leakage > 0.9
    apart = some_windows(1280, 1280, 128, 128)
    assert block_split.split(patch_table.window_boxes(apart), np.ones((len(apart), 1)), chosen)[1].leakage == 0


def test_a_class_that_one_part_lacks_is_reported() -> None:
    windows = some_windows(200, 200, 50, 50)
    counts = np.ones((len(windows), 2))
    counts[1:, 1] = 0
    _, report = block_split.split(
        patch_table.window_boxes(windows), counts, block_split.SplitSettings(block_px=100, gap_px=0)
    )
    assert sorted(report.lacking.values()) == [(), (1,)]


def test_small_areas_are_divided_evenly_and_an_empty_part_is_named() -> None:
    windows = some_windows(800, 800, 128, 64)
    boxes, counts = patch_table.window_boxes(windows), np.ones((len(windows), 1))
    _, report = block_split.split(boxes, counts, block_split.SplitSettings())  # four blocks of 400 px
    assert report.boxes == {"train": 57, "val": 25}
    assert report.empty == ()
    _, report = block_split.split(boxes, counts, block_split.SplitSettings(block_px=2000))
    assert report.empty == ("val",)
    nothing, report = block_split.split(boxes[:0], counts[:0], block_split.SplitSettings())
    assert nothing == ()
    assert report.empty == ("train", "val")


def test_boxes_may_have_any_position_and_be_in_metres() -> None:
    windows = some_windows(1000, 1000, 128, 64)
    boxes, counts = patch_table.window_boxes(windows), np.random.default_rng(2).integers(0, 9, (len(windows), 4))
    here, _ = block_split.split(boxes, counts, block_split.SplitSettings(block_px=250, gap_px=64))
    metres = boxes * 10.0 + (671280, 5349540, 671280, 5349540)
    there, _ = block_split.split(metres, counts, block_split.SplitSettings(block_px=2500, gap_px=640))
    assert here == there


def test_few_patches_are_lost_to_the_gap() -> None:
    windows = some_windows(2958, 3847, 128, 64)  # the paper's area
    counts = np.random.default_rng(0).integers(0, 9, (len(windows), 13))
    parts, report = block_split.split(patch_table.window_boxes(windows), counts, block_split.SplitSettings())
    assert report.left_out < 0.3 * len(windows)
    assert report.boxes["val"] / (len(windows) - report.left_out) == pytest.approx(0.2, abs=0.03)
    assert parts.count("train") > 1500


def test_a_block_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(SettingError, match="block_px is 64; expected at least 128"):
        block_split.split(np.array([[0, 0, 128, 128]]), np.ones((1, 1)), block_split.SplitSettings(block_px=64))


@pytest.mark.parametrize("wrong", [{"val_share": 1.2}, {"block_px": 0}, {"gap_px": -1}, {"val_share": -0.1}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=str(next(iter(wrong.values())))):
        block_split.split(np.array([[0, 0, 1, 1]]), np.ones((1, 1)), block_split.SplitSettings(**wrong))  # type: ignore[arg-type]


def test_classes_are_counted_by_window() -> None:
    labels = np.random.default_rng(7).choice(np.array([0, 1, 2, 255], np.uint8), (70, 50))
    ids, windows = (0, 1, 2, 255), some_windows(70, 50, 16, 8)
    for window, counts in zip(windows, patch_table.class_counts(labels, windows, ids), strict=True):
        assert counts.tolist() == [int((labels[window.slices] == k).sum()) for k in ids]
    assert patch_table.class_counts(labels, [], ids).shape == (0, 4)


def test_the_table_of_patches_comes_back_from_its_file(tmp_path: Path) -> None:
    grid = Grid(crs="EPSG:32632", origin=(671280, 5349540), gsd_m=10, shape=(256, 256))
    windows = some_windows(256, 256, 128, 64)
    counts = np.tile([128 * 32, 128 * 96], (len(windows), 1))
    parts = ["train" if w.col < 64 else "" for w in windows]
    rows = patch_table.table("munich", grid, windows, splits=parts, counts=counts, ids=(3, 255))
    patch_table.write(tmp_path / "patches.parquet", rows)
    patch_table.write(tmp_path / "again.parquet", rows)
    assert (tmp_path / "patches.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()

    back = patch_table.read(tmp_path / "patches.parquet")
    assert list(back.columns) == ["key", "row", "col", "height", "width", "split", "share_3", "share_255", "geometry"]
    assert back.key.tolist() == ["munich-r00000-c00000", "munich-r00064-c00000", "munich-r00128-c00000"]
    assert back.share_255.tolist() == [0.75] * 3
    assert back.share_3.dtype == np.float32
    assert back.row.dtype == np.int32
    assert back.crs == "EPSG:4326"
    centre = back.to_crs(grid.crs).geometry.iloc[1].centroid
    assert (centre.x, centre.y) == pytest.approx((671280 + 640, 5349540 - 1280), abs=0.1)
