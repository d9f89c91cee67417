"""Test the comparison of two rows of a ledger sample by sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sgdata import files
from sgmodel.ledger import paired
from sgmodel.ledger.experiments import Run
from sgmodel.recipes import detect_change
from sgmodel.train import metrics


def run(folder: Path, matrices: np.ndarray, keys: list[str] | None = None) -> Run:
    """Return a run with the confusion matrices (S, K, K) of its samples."""
    keys = keys or [f"s{n}" for n in range(len(matrices))]
    lines = [{"key": key, "confusion": each.tolist()} for key, each in zip(keys, matrices, strict=True)]
    files.write(folder / paired.SCENES, b"".join(map(files.canonical_json, lines)))
    return Run(folder=folder, command=(), program="detect_change", recipe=b"", data="", seed=0)


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
            assert paired.FIGURES[name](two)[0] == pytest.approx(known[name]), name
        assert paired.FIGURES["miou"](three)[0] == pytest.approx(metrics.scores(torch.from_numpy(three[0])).miou)


def test_a_small_gain_at_every_sample_is_found_where_single_intervals_overlap(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    theirs = confusion(rng, 40)
    ours = theirs.copy()
    gain = theirs[:, 1, 0] // 20  # of what was missed
    ours[:, 1, 0] -= gain
    ours[:, 1, 1] += gain
    found = paired.compare([run(tmp_path / "a", ours)], [run(tmp_path / "b", theirs)], "f1")
    assert found is not None
    f1 = [paired.FIGURES["f1"](each.sum(axis=0, keepdims=True))[0] for each in (ours, theirs)]
    assert found.difference == pytest.approx(f1[0] - f1[1])
    assert 0 < found.interval[0] < found.difference < found.interval[1] < 2 * found.difference
    assert found.samples == 40
    back = paired.compare([run(tmp_path / "b", theirs)], [run(tmp_path / "a", ours)], "f1")
    assert back is not None
    assert back.interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_the_interval_covers_the_true_difference_as_often_as_it_says(tmp_path: Path) -> None:
    """Of samples from one population, 95 of 100 intervals contain its difference; here 60 with a wide margin."""
    rng = np.random.default_rng(2)
    everything = np.stack([confusion(rng, 3000), confusion(rng, 3000)])
    values = [paired.FIGURES["f1"](each.sum(axis=0, keepdims=True))[0] for each in everything]
    hits = 0
    for number in range(60):
        drawn = everything[:, rng.integers(0, 3000, 30)]
        runs = [run(tmp_path / f"{number}-{side}", each) for side, each in enumerate(drawn)]
        found = paired.compare(runs[:1], runs[1:], "f1")
        assert found is not None
        hits += found.interval[0] <= values[0] - values[1] <= found.interval[1]
    assert 50 <= hits < 60 + 1


def test_seeds_are_pooled_by_their_mean(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    runs = [run(tmp_path / str(n), confusion(rng, 8)) for n in range(3)]
    both = paired.compare(runs[:2], runs[2:], "recall")
    single = [paired.compare([one], runs[2:], "recall") for one in runs[:2]]
    assert both is not None
    assert all(each is not None for each in single)
    assert both.difference == pytest.approx(np.mean([each.difference for each in single if each]))


def test_rows_without_the_same_samples_are_not_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    one = run(tmp_path / "a", confusion(rng, 3))
    others = run(tmp_path / "b", confusion(rng, 3), ["s0", "s1", "x"])
    nothing = Run(folder=tmp_path / "c", command=(), program="classify", recipe=b"", data="", seed=0)
    assert paired.compare([one], [others], "f1") is None
    assert paired.compare([one], [nothing], "f1") is None
    assert paired.compare([nothing], [nothing], "f1") is None
    assert paired.compare([one], [one], "recall_small") is None
