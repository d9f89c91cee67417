"""Test segmentation metrics against the released evaluation and against counts by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgmodel.train import metrics


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


def test_f1_of_change_equals_the_released_one(parity: Path) -> None:
    theirs = np.load(parity / "metrics.npz")
    pred, target = (torch.from_numpy(theirs[f"oscd/{name}"]).long() for name in ("pred", "target"))
    counts = metrics.confusion(pred, target, classes=2)
    hit, false, missed, rest = theirs["oscd/tp_fp_fn_tn"].tolist()
    assert counts.tolist() == [[rest, false], [missed, hit]]
    ours = metrics.scores(counts)
    figures = [ours.precision[1], ours.recall[1], ours.f1[1]]
    np.testing.assert_allclose(np.array(figures, float), theirs["oscd/precision_recall_f1"], rtol=1e-6)


def test_mean_average_precision_equals_torchmetrics_and_sklearn(parity: Path) -> None:
    theirs = np.load(parity / "metrics.npz")
    scores, targets = (torch.from_numpy(theirs[f"ben/{name}"]) for name in ("scores", "targets"))
    per_class = [metrics.average_precision(ranked) for ranked in metrics.macro(scores, targets)]
    np.testing.assert_allclose(np.array(per_class, float), theirs["ben/ap_per_class"], rtol=1e-5)
    for name in ("ben/macro_map_whole_set", "ben/sklearn_macro"):
        ours = metrics.mean_average_precision(metrics.macro(scores, targets))
        assert ours == pytest.approx(float(theirs[name]), rel=1e-6)
    for name in ("ben/micro_map_whole_set", "ben/sklearn_micro"):
        ours = metrics.mean_average_precision(metrics.micro(scores, targets))
        assert ours == pytest.approx(float(theirs[name]), rel=1e-6)
    batched = metrics.micro_map_batch_averaged(scores, targets, int(theirs["ben/batch"]))
    assert batched == pytest.approx(float(theirs["ben/micro_map_batch_averaged_official"]), rel=1e-6)


def area_by_hand(scores: np.ndarray, targets: np.ndarray) -> float:
    """Compute the area with a separate count for each threshold."""
    total, before = 0.0, 0.0
    for threshold in np.unique(scores)[::-1]:
        chosen = scores >= threshold
        recall = targets[chosen].sum() / targets.sum()
        total += (recall - before) * targets[chosen].mean()
        before = recall
    return total


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.integers(1, 30))
def test_average_precision_with_ties_and_weights_by_hand(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores, targets = rng.integers(0, levels, 25) / levels, rng.integers(0, 2, 25)
    targets[0] = 1
    weights = rng.integers(0, 4, 25)
    ranked = metrics.rank(torch.from_numpy(scores), torch.from_numpy(targets))
    assert metrics.average_precision(ranked) == pytest.approx(area_by_hand(scores, targets))
    weights[0] = 1
    again = metrics.average_precision(ranked, weights)
    assert again == pytest.approx(area_by_hand(scores.repeat(weights), targets.repeat(weights)))


@pytest.fixture(scope="module")
def torchmetrics() -> Any:
    """Return `torchmetrics.functional`, imported after the module that lets torchvision be imported."""
    importlib.import_module("sgmodel.timm_models")
    return pytest.importorskip("torchmetrics.functional")


def test_released_figures_equal_torchmetrics(parity: Path, torchmetrics: Any) -> None:
    theirs = np.load(parity / "metrics.npz")
    scores, targets = (torch.from_numpy(theirs[f"ben/{name}"]) for name in ("scores", "targets"))
    for average, rank in (("macro", metrics.macro), ("micro", metrics.micro)):
        expected = torchmetrics.average_precision(scores, targets, task="multilabel", num_labels=19, average=average)
        assert metrics.mean_average_precision(rank(scores, targets)) == pytest.approx(float(expected), rel=1e-5)
    pred, target = (torch.from_numpy(theirs[f"seg/{name}"]).long() for name in ("pred", "target"))
    mean_iou = torchmetrics.jaccard_index(pred, target, task="multiclass", num_classes=13, ignore_index=255)
    ours = metrics.scores(metrics.confusion(pred, target, classes=13))
    assert ours.miou == pytest.approx(float(mean_iou), rel=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_figures_of_random_maps_equal_torchmetrics(seed: int, torchmetrics: Any) -> None:
    """Compare maps of 7 classes with ignored pixels, where some classes occur in neither map."""
    rng = np.random.default_rng(seed)
    present = rng.choice(7, size=2 + seed % 5, replace=False)
    pred, target = (torch.from_numpy(rng.choice(present, (3, 16, 16))) for _ in range(2))
    target[torch.from_numpy(rng.random((3, 16, 16)) < 0.2)] = 255
    kind = {"task": "multiclass", "num_classes": 7, "ignore_index": 255}
    counts = metrics.confusion(pred, target, classes=7)
    assert torch.equal(counts, torchmetrics.confusion_matrix(pred, target, **kind))
    ours = metrics.scores(counts)
    assert ours.oa == pytest.approx(float(torchmetrics.accuracy(pred, target, average="micro", **kind)), rel=1e-5)
    assert ours.miou == pytest.approx(float(torchmetrics.jaccard_index(pred, target, **kind)), rel=1e-5)
    for name, function in (("f1", torchmetrics.f1_score), ("recall", torchmetrics.recall)):
        theirs = function(pred, target, average="none", **kind).tolist()
        for label, value in enumerate(getattr(ours, name)):
            assert value is None or value == pytest.approx(theirs[label], rel=1e-5)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.filterwarnings("ignore:No positive samples found in target")
def test_average_precision_of_random_scores_equals_torchmetrics(seed: int, torchmetrics: Any) -> None:
    """Scores with ties, and a class without positives in every second case.

    torchmetrics gives such a class 0 in the macro mean; here it is left out of the mean.
    """
    rng = np.random.default_rng(seed)
    levels = 4 + 40 * seed
    scores = torch.from_numpy(rng.integers(0, levels, (50, 5)) / levels).float()
    targets = torch.from_numpy(rng.integers(0, 2, (50, 5)))
    if seed % 2:
        targets[:, 3] = 0
    kind = {"task": "multilabel", "num_labels": 5}
    theirs = torchmetrics.average_precision(scores, targets, average="none", **kind).tolist()
    rankings = metrics.macro(scores, targets)
    for label, ranked in enumerate(rankings):
        value = metrics.average_precision(ranked)
        assert value == pytest.approx(theirs[label], rel=1e-5) if targets[:, label].any() else value is None
    known = [value for label, value in enumerate(theirs) if targets[:, label].any()]
    assert metrics.mean_average_precision(rankings) == pytest.approx(np.mean(known), rel=1e-5)
    micro = torchmetrics.average_precision(scores, targets, average="micro", **kind)
    assert metrics.mean_average_precision(metrics.micro(scores, targets)) == pytest.approx(float(micro), rel=1e-5)


def test_a_class_without_positives_has_no_average_precision() -> None:
    scores, targets = torch.rand(5, 2), torch.tensor([[1, 0]] * 5)
    assert [metrics.average_precision(ranked) for ranked in metrics.macro(scores, targets)] == [1.0, None]
    assert metrics.mean_average_precision(metrics.macro(scores, targets)) == 1.0


def test_the_interval_is_that_of_the_binomial_and_repeats() -> None:
    right = torch.from_numpy(np.random.default_rng(1).random(400) < 0.8)
    low, high = metrics.interval(lambda weights: metrics.top1(right, weights), 400, seed=3)
    share = metrics.top1(right)
    half = 1.96 * (share * (1 - share) / 400) ** 0.5
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.006)
    assert (low, high) == metrics.interval(lambda weights: metrics.top1(right, weights), 400, seed=3)


def test_samples_of_one_kind_have_an_interval_of_no_width() -> None:
    counts = torch.tensor([[[3, 1], [0, 4]]] * 5)
    low, high = metrics.interval(lambda weights: metrics.scores(metrics.weighted(counts, weights)).miou, 5)
    assert low == high == pytest.approx(metrics.scores(metrics.weighted(counts)).miou)
