"""Segmentation figures against the released evaluation and against counting by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgmodel import metrics


def test_all_figures_equal_the_released_ones(parity: Path) -> None:
    theirs = np.load(parity / "metrics.npz")
    pred, target = (torch.from_numpy(theirs[f"seg/{name}"]) for name in ("pred", "target"))
    counts = metrics.confusion(pred, target, classes=13)
    assert np.array_equal(counts.numpy(), theirs["seg/confusion"])
    ours = metrics.scores(counts)
    assert ours.oa == pytest.approx(float(theirs["seg/oa"]), rel=1e-6)
    assert ours.miou == pytest.approx(float(theirs["seg/miou"]), rel=1e-6)
    for name in ("iou", "recall", "precision"):
        np.testing.assert_allclose(np.array(getattr(ours, name), float), theirs[f"seg/{name}"], rtol=1e-6)


def test_an_absent_class_has_no_iou_and_does_not_enter_the_mean() -> None:
    ours = metrics.scores(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    assert ours.iou == (0.75, 0.8, None)
    assert ours.miou == pytest.approx(0.775)
    assert ours.miou_without_first == pytest.approx(0.8)


def test_nothing_labelled_scores_zero() -> None:
    ours = metrics.scores(metrics.confusion(torch.zeros(2, 2).long(), torch.full((2, 2), 255), classes=3))
    assert (ours.oa, ours.miou) == (0.0, 0.0)


def test_constant_answer() -> None:
    counts = torch.tensor([[3, 1], [2, 4]])
    assert metrics.constant(counts, 1).tolist() == [[0, 4], [0, 6]]
    assert metrics.scores(metrics.constant(counts, 1)).miou == pytest.approx(0.3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 6))
def test_iou_by_sets(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    target, pred = rng.integers(0, classes, 60), rng.integers(0, classes, 60)
    target[rng.random(60) < 0.2] = 255
    ours = metrics.scores(metrics.confusion(torch.from_numpy(pred), torch.from_numpy(target), classes=classes))
    kept = target != 255
    for label, value in enumerate(ours.iou):
        both = np.sum((pred == label) & (target == label))
        either = np.sum(((pred == label) & kept) | (target == label))
        assert value == (pytest.approx(both / either) if either else None)
