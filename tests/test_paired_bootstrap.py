"""Test the comparison of two rows of a ledger sample by sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import synthetic_shards
import torch

from sgdata import files
from sgdata.shards import write_shards
from sgmodel.ledger import paired_bootstrap, report
from sgmodel.recipes import detect_change
from sgmodel.train import metrics


def run(folder: Path, matrices: np.ndarray, keys: list[str] | None = None) -> Path:
    """Return the folder of a run with the confusion matrices (S, K, K) of its samples."""
    keys = keys or [f"s{n}" for n in range(len(matrices))]
    lines = [{"key": key, "confusion": each.tolist()} for key, each in zip(keys, matrices, strict=True)]
    files.write(folder / paired_bootstrap.SCENES, b"".join(map(files.canonical_json, lines)))
    return folder


def confusion(rng: np.random.Generator, samples: int, classes: int = 2) -> np.ndarray:
    return rng.integers(1, 400, (samples, classes, classes))


def test_figures_equal_those_of_the_programs() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        two, three = confusion(rng, 1), confusion(rng, 1, 3)
        if seed % 4 == 0:
            two[:, :, 1] = three[:, 2] = three[:, :, 2] = 0
        known = detect_change.compute_metrics(torch.from_numpy(two[0]))
        for name in ("f1", "precision", "recall", "iou_change", "oa"):
            assert paired_bootstrap.FIGURES[name](two)[0] == pytest.approx(known[name]), name
        assert paired_bootstrap.FIGURES["miou"](three)[0] == pytest.approx(
            metrics.scores(torch.from_numpy(three[0])).miou
        )


def test_a_small_gain_at_every_sample_is_found_where_single_intervals_overlap(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    theirs = confusion(rng, 40)
    ours = theirs.copy()
    gain = theirs[:, 1, 0] // 20  # of what was missed
    ours[:, 1, 0] -= gain
    ours[:, 1, 1] += gain
    found = paired_bootstrap.compare([run(tmp_path / "a", ours)], [run(tmp_path / "b", theirs)], "f1")
    assert found is not None
    f1 = [paired_bootstrap.FIGURES["f1"](each.sum(axis=0, keepdims=True))[0] for each in (ours, theirs)]
    assert found.difference == pytest.approx(f1[0] - f1[1])
    assert 0 < found.interval[0] < found.difference < found.interval[1] < 2 * found.difference
    assert found.samples == 40
    back = paired_bootstrap.compare([run(tmp_path / "b", theirs)], [run(tmp_path / "a", ours)], "f1")
    assert back is not None
    assert back.interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_the_interval_covers_the_true_difference_as_often_as_it_says(tmp_path: Path) -> None:
    """Of samples from one population, 95 of 100 intervals contain its difference; here 60 with a wide margin."""
    rng = np.random.default_rng(2)
    everything = np.stack([confusion(rng, 3000), confusion(rng, 3000)])
    values = [paired_bootstrap.FIGURES["f1"](each.sum(axis=0, keepdims=True))[0] for each in everything]
    hits = 0
    for number in range(60):
        drawn = everything[:, rng.integers(0, 3000, 30)]
        runs = [run(tmp_path / f"{number}-{side}", each) for side, each in enumerate(drawn)]
        found = paired_bootstrap.compare(runs[:1], runs[1:], "f1")
        assert found is not None
        hits += found.interval[0] <= values[0] - values[1] <= found.interval[1]
    assert 50 <= hits < 60 + 1


def test_seeds_are_pooled_by_their_mean(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    runs = [run(tmp_path / str(n), confusion(rng, 8)) for n in range(3)]
    both = paired_bootstrap.compare(runs[:2], runs[2:], "recall")
    single = [paired_bootstrap.compare([one], runs[2:], "recall") for one in runs[:2]]
    assert both is not None
    assert all(each is not None for each in single)
    assert both.difference == pytest.approx(np.mean([each.difference for each in single if each]))


def test_rows_without_the_same_samples_are_not_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    one = run(tmp_path / "a", confusion(rng, 3))
    others = run(tmp_path / "b", confusion(rng, 3), ["s0", "s1", "x"])
    nothing = tmp_path / "c"
    assert paired_bootstrap.compare([one], [others], "f1") is None
    assert paired_bootstrap.compare([one], [nothing], "f1") is None
    assert paired_bootstrap.compare([nothing], [nothing], "f1") is None
    assert paired_bootstrap.compare([one], [one], "recall_small") is None


def test_blocks_are_drawn_whole(tmp_path: Path) -> None:
    """Samples of a block that win and lose together count as one: the interval is that of as many samples as blocks."""
    rng = np.random.default_rng(5)
    few = np.stack([confusion(rng, 12), confusion(rng, 12)])
    many = few.repeat(9, axis=1)
    keys = [f"s{n:03d}" for n in range(108)]
    runs = [run(tmp_path / f"many-{side}", each, keys) for side, each in enumerate(many)]
    once = [run(tmp_path / f"few-{side}", each, keys[::9]) for side, each in enumerate(few)]
    blocks = {key: n // 9 for n, key in enumerate(keys)}
    whole = paired_bootstrap.compare(runs[:1], runs[1:], "f1", blocks)
    alone = paired_bootstrap.compare(runs[:1], runs[1:], "f1")
    expected = paired_bootstrap.compare(once[:1], once[1:], "f1")
    assert whole is not None
    assert alone is not None
    assert expected is not None
    assert whole.interval == pytest.approx(expected.interval)
    assert (whole.samples, whole.blocks, expected.blocks) == (108, 12, None)
    assert np.ptp(alone.interval) < 0.6 * np.ptp(whole.interval)


def test_scenes_are_compared_by_what_was_right(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    rights = rng.random((2, 50)) < [[0.8], [0.5]]
    for side, right in enumerate(rights):
        (tmp_path / str(side)).mkdir()
        table = pa.table({"key": [f"s{n}" for n in range(50)], "right": right})
        pq.write_table(table, tmp_path / str(side) / "scored.parquet")
    found = paired_bootstrap.compare([tmp_path / "0"], [tmp_path / "1"], "top1")
    assert found is not None
    assert found.difference == pytest.approx(rights[0].mean() - rights[1].mean())
    assert found.interval[0] < found.difference < found.interval[1]


def test_blocks_are_those_of_the_ground(tmp_path: Path) -> None:
    """Four fields at 9, 9.1, 12.2 and 12.25 degrees east on blocks of 50 km, and one without a place."""
    samples = [synthetic_shards.scene(number, "val", 16) for number in range(5)]
    for sample, west in zip(samples, (9.0, 9.1, 12.2, 12.25), strict=False):
        sample.meta.update(bounds=[west, 48.0, west + 0.001, 48.001], crs="EPSG:32632")
    folder = tmp_path / "fields"
    write_shards.write(samples, folder, contract=synthetic_shards.scene_contract(16, "single-label"))
    found = report.blocks_of_ground(folder, 50_000)
    west, west_too, east, east_too, nowhere = (found[sample.key] for sample in samples)
    assert west == west_too != east == east_too
    assert nowhere == samples[4].key
