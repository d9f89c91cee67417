"""Test what the figures of a run mean: the maps that they score, baselines, splits, early stopping, losses."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_commands import sgmodel
from PIL import Image
from synthetic_shards import contract, pair, pair_contract, sample, scene, scene_contract, write_pairs
from test_classify import recipe as classification
from test_contrast import recipe as contrasting
from test_detect_change import recipe as change
from test_pretrain import recipe as pretraining
from test_segment import TINY, results, run_paths_for
from test_segment import recipe as segmentation
from torch import Tensor
from torch.nn import functional

from sgdata import files
from sgdata.errors import ExitCode, SettingError
from sgdata.shards import write_shards
from sgmodel.data import loader
from sgmodel.recipes import classify, contrast, detect_change, pretrain, segment
from sgmodel.train import dense_prediction, frozen_classifiers, losses, metrics, pixel_baseline, training

CROPS = ("model.encoder.image_px=16", "augment.crop_area=[0.25, 0.25]", "augment.crop_aspect=[1.0, 1.0]")


def shards(out: Path, **splits: int) -> Path:
    """Write shards with the given number of samples in each split, one with a hole and one without a label."""
    names = [name for name, count in splits.items() for _ in range(count)]
    made = [sample(n, name, 32, 32) for n, name in enumerate(names)]
    made[-1].arrays["image"][:, 20:, :9] = 0
    write_shards.write(made, out, contract=contract(32))
    return out


def confusions(folder: Path, maps_folder: Path, split: str) -> dict[str, list[list[int]]]:
    """Count the pixels of predicted maps of shards by hand, by sample."""
    source, counts = loader.Samples(folder, split, ("mask",)), {}
    classes = len(source.contract.label_space.ids)
    for number, key in enumerate(source.keys):
        mask = source.read(number, "mask").ravel()
        found = np.array(Image.open(maps_folder / "classes" / f"{key}.png")).ravel()
        kept = (mask != 255) & (found != 255)
        cells = np.bincount(mask[kept].astype(int) * classes + found[kept], minlength=classes**2)
        counts[key] = cells.reshape(classes, classes).tolist()
    return counts


def predicted(weights: Path, folder: Path, out: Path, split: str) -> Path:
    line = ("predict", "--input", folder, "--weights", weights, "--out", out, "--device", "cpu", "-q")
    assert sgmodel(*line, "--set", f"split={split}") == 0
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the maps that are scored --------------------------------------------------------------


def test_segmentation_is_scored_by_the_maps_that_prediction_writes(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards", train=6, test=3)
    more = ("val_split=", "test_split=test", "training.epochs=12")
    assert segment.main(segmentation("tiny", *TINY, *CROPS, *more), run_paths_for(folder, tmp_path / "run")) == 0
    expected = confusions(
        folder, predicted(tmp_path / "run" / "checkpoint-last", folder, tmp_path / "maps", "test"), "test"
    )
    figures = results(tmp_path / "run")
    assert figures["confusion"] == np.sum(list(expected.values()), axis=0).tolist()
    assert np.sum(figures["confusion"]) == 3 * (32 * 32 - 4) - 12 * 9  # type: ignore[arg-type]
    assert {one["key"]: one["confusion"] for one in lines(tmp_path / "run" / "scenes.jsonl")} == expected
    assert "scenes.jsonl" in files.read_sums(tmp_path / "run")


def test_change_is_scored_by_the_maps_that_prediction_writes(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "shards")
    assert detect_change.main(change(), run_paths_for(folder, tmp_path / "run")) == 0
    expected = confusions(
        folder, predicted(tmp_path / "run" / "checkpoint-last", folder, tmp_path / "maps", "test"), "test"
    )
    figures: Any = results(tmp_path / "run")
    assert {scene: one["confusion"] for scene, one in figures["per_scene"].items()} == expected
    (_, false), (missed, hit) = figures["confusion"]
    assert figures["iou_change"] == pytest.approx(hit / (hit + false + missed))
    assert "| windows |" not in (tmp_path / "run" / "card.md").read_text()
    assert f"| train_windows | {figures['train_windows']} |" in (tmp_path / "run" / "card.md").read_text()


# --- baselines -----------------------------------------------------------------------------


def discriminant(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], classes: int) -> np.ndarray[Any, Any]:
    """Classify `x` by linear discriminant analysis of itself, written from the formula of the normal densities."""
    mean = np.stack([x[y == k].mean(axis=0) for k in range(classes)])
    spread = sum(np.cov(x[y == k].T, bias=True) * (y == k).mean() for k in range(classes))
    away = x[:, None] - mean
    distance = np.einsum("nki,ij,nkj->nk", away, np.linalg.inv(spread), away)
    share = np.array([(y == k).mean() for k in range(classes)])
    return (np.log(share) - distance / 2).argmax(axis=1)


def test_the_linear_baseline_is_linear_discriminant_analysis(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    made = [sample(n, "train", 32, 32) for n in range(3)]
    for one in made:  # so that no class is without errors
        one.arrays["image"] = (one.arrays["image"] + rng.integers(0, 4000, (12, 32, 32))).astype(np.uint16)
    write_shards.write(made, tmp_path / "shards", contract=contract(32))
    source = loader.Samples(tmp_path / "shards", "train", ("image", "mask"))
    setting = training.resolve(
        segmentation("tiny", *TINY), source.contract, run_paths_for(tmp_path / "shards", tmp_path)
    )
    model = pixel_baseline.fit_linear(setting, source, ("image",), None)
    counts = metrics.weighted(dense_prediction.evaluate(setting, model, source))
    x = np.concatenate([one.arrays["image"].reshape(12, -1).T for one in made]).astype(float)
    y = np.concatenate([one.arrays["mask"].ravel() for one in made])
    ours = discriminant(x[y != 255], y[y != 255], 4)
    by_hand = np.bincount(y[y != 255].astype(int) * 4 + ours, minlength=16).reshape(4, 4)
    assert 0.5 < by_hand.trace() / by_hand.sum() < 0.99
    assert np.abs(counts.numpy() - by_hand).sum() <= 4  # float32 at the edge between two classes


def test_a_model_that_says_nothing_is_below_both_baselines(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "shards")
    blind = ("training.optimizer.lr=0.0", "training.epochs=1")
    assert detect_change.main(change(*blind), run_paths_for(folder, tmp_path / "run")) == 0
    figures: Any = results(tmp_path / "run")
    whole = np.array(figures["confusion"])
    assert figures["oa_majority"] == pytest.approx(whole[0].sum() / whole.sum())
    assert figures["f1_majority"] == 0
    assert figures["f1_linear"] > 0.95


# --- splits --------------------------------------------------------------------------------


def scenes(out: Path, **splits: int) -> Path:
    names = [name for name, count in splits.items() for _ in range(count)]
    write_shards.write([scene(n, name, 16) for n, name in enumerate(names)], out, contract=scene_contract(16))
    return out


@pytest.mark.parametrize("program", ["pretrain", "contrast", "segment", "classify"])
def test_without_a_validation_split_nothing_is_called_so(tmp_path: Path, program: str) -> None:
    run, folder = run_paths_for(tmp_path / "shards", tmp_path / "run"), tmp_path / "shards"
    alone = ("val_split=", "test_split=test", "training.epochs=1")
    if program == "classify":
        scenes(folder, train=8, test=4)
        assert classify.main(classification(*alone), run) == 0
    else:
        shards(folder, train=4, test=2)
        match program:
            case "pretrain":
                assert pretrain.main(pretraining("training.epochs=1", "test_split=test"), run) == 0
            case "contrast":
                assert contrast.main(contrasting("simclr", *alone), run) == 0
            case "segment":
                assert segment.main(segmentation("tiny", *TINY, *alone), run) == 0
    figures: Any = results(tmp_path / "run")
    assert (figures["split"], figures["samples"]) == ("test", 4 if program == "classify" else 2)
    for name in ("metrics.jsonl", "results.json", "card.md", "checkpoint-best/figures.json"):
        assert not re.search(r"\bval\b|val_|validation", (tmp_path / "run" / name).read_text())
    keys = {key for line in lines(tmp_path / "run" / "metrics.jsonl") for key in line}
    assert ("train_loss_token" in keys) == (program == "pretrain")


def test_a_test_split_beside_a_validation_split(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards", train=4, val=2, test=3)
    made = segmentation("tiny", *TINY, "test_split=test", "training.epochs=4", "evaluate_every=2")
    assert segment.main(made, run_paths_for(folder, tmp_path / "run")) == 0
    figures: Any = results(tmp_path / "run")
    assert (figures["split"], figures["val_split"], figures["samples"]) == ("test", "val", 3)
    scored = {line["step"]: line["miou"] for line in lines(tmp_path / "run" / "metrics.jsonl") if "miou" in line}
    assert list(scored) == [1, 3]
    assert figures["best_epoch"]["miou"] == max(scored.values())
    assert figures["miou"] not in scored.values()


def test_a_missing_split_is_named_with_a_cure_that_works(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards", train=4, test=2)
    with pytest.raises(SettingError, match="no split 'val'; it has test, train; set training.split and val_split"):
        segment.main(segmentation("tiny", *TINY), run_paths_for(folder, tmp_path / "run"))
    with pytest.raises(SettingError, match="val_split and test_split are empty: .* set test_split"):
        segmentation("tiny", *TINY, "val_split=")
    cured = segmentation("tiny", *TINY, "val_split=", "test_split=test", "training.epochs=0")
    assert segment.main(cured, run_paths_for(folder, tmp_path / "run")) == 0


# --- early stopping ------------------------------------------------------------------------


def test_training_ends_early_and_stays_ended(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards", train=4, val=2)
    # Without a step the score never changes: the first scoring is the best, the third one too many.
    made = segmentation("tiny", *TINY, "training.optimizer.lr=0.0", "training.epochs=9", "training.patience=2")
    assert segment.main(made, run_paths_for(folder, tmp_path / "run")) == 0
    assert results(tmp_path / "run")["steps"] == 3
    sums = (tmp_path / "run" / "SHA256SUMS").read_bytes()
    assert segment.main(made, run_paths_for(folder, tmp_path / "run")) == 0
    assert (tmp_path / "run" / "SHA256SUMS").read_bytes() == sums
    for stop in (1, 1):
        assert segment.main(made, run_paths_for(folder, tmp_path / "cut", stop_after=stop)) == ExitCode.FINDINGS
    assert segment.main(made, run_paths_for(folder, tmp_path / "cut")) == 0
    assert (tmp_path / "cut" / "SHA256SUMS").read_bytes() == sums
    # A later end is a change that a run takes, and records.
    more = segmentation("tiny", *TINY, "training.optimizer.lr=0.0", "training.epochs=9", "training.patience=0")
    assert segment.main(more, run_paths_for(folder, tmp_path / "cut")) == 0
    assert results(tmp_path / "cut")["steps"] == 9
    assert lines(tmp_path / "cut" / "changes.jsonl")[0]["settings"] == {"training.patience": {"was": 2, "is": 0}}
    with pytest.raises(SettingError, match=r"training.patience is 2: .* set val_split, and evaluate_every above 0"):
        segmentation("tiny", *TINY, "training.patience=2", "evaluate_every=0")


def test_pretraining_ends_early(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards", train=4, val=2)
    still = ("training.optimizer.lr=0.0", "picture_every=1", "training.patience=1")
    assert pretrain.main(pretraining(*still), run_paths_for(folder, tmp_path / "run")) == 0
    assert results(tmp_path / "run")["steps"] == 2


# --- losses --------------------------------------------------------------------------------


def logits() -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities and targets of four maps with few to many labels, and class weights."""
    torch.manual_seed(0)
    target = torch.randint(0, 3, (4, 8, 8))
    for n in range(4):
        target[n, : 2 * n] = 255
    return torch.randn(4, 3, 8, 8).log_softmax(dim=1), target, torch.tensor([1.0, 2.0, 0.5])


def of(settings: dict[str, Any], log_p: Tensor, target: Tensor, weights: Tensor | None) -> tuple[float, float]:
    made = dataclasses.replace(segmentation("tiny", *TINY), **settings)
    terms = losses.map_loss(made, log_p, target, weights, 255)
    return terms["loss"].item(), terms["weight"].item()


@pytest.mark.parametrize(
    "settings", [{}, {"focal_gamma": 2.0}, {"dice_weight": 0.5}, {"dice_weight": 1.0}, {"smoothing": 0.1}]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_loss_is_the_same_in_one_part_and_in_several(settings: dict[str, Any], weighted: bool) -> None:
    log_p, target, weights = logits()
    given = weights if weighted else None
    whole, share = of(settings, log_p, target, given)
    parts = [of(settings, log_p[n : n + 1], target[n : n + 1], given) for n in range(4)]
    assert share == pytest.approx(sum(weight for _, weight in parts))
    assert whole == pytest.approx(sum(loss * weight for loss, weight in parts) / share, rel=1e-5)


def test_losses_by_hand() -> None:
    log_p, target, weights = logits()
    known = target != 255
    p = log_p.exp().movedim(1, -1)[known]
    y = target[known]
    right = p[torch.arange(len(y)), y]
    assert of({}, log_p, target, None)[0] == pytest.approx(-right.log().mean().item(), rel=1e-5)
    focal = -(weights[y] * (1 - right) ** 2 * right.log()).sum() / weights[y].sum()
    assert of({"focal_gamma": 2.0}, log_p, target, weights)[0] == pytest.approx(focal.item(), rel=1e-5)
    dice = []
    for one, truth in zip(log_p.exp(), target, strict=True):
        kept = truth != 255
        hot = functional.one_hot(truth[kept], 3).T
        soft = one[:, kept]
        dice.append((1 - 2 * (soft * hot).sum(1) / (soft.sum(1) + hot.sum(1))).mean() * kept.sum())
    assert of({"dice_weight": 1.0}, log_p, target, None)[0] == pytest.approx((sum(dice) / known.sum()).item(), rel=1e-5)
    perfect = functional.one_hot(target.where(known, 0), 3).movedim(-1, 1).clamp(1e-9, 1).log()
    assert of({"dice_weight": 1.0}, perfect, target, None)[0] == pytest.approx(0, abs=1e-6)


def test_class_weights_are_balanced_or_given(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards", train=4, val=2)
    curves = {}
    masks = [sample(n, "train", 32, 32).arrays["mask"] for n in range(4)]
    counts = np.bincount(np.concatenate(masks).ravel(), minlength=256)[:4]
    given = (counts.sum() / (4 * counts)).round(6).tolist()
    for name, more in {"none": (), "balanced": ("weighting=balanced",), "given": (f"class_weights={given}",)}.items():
        made = segmentation("tiny", *TINY, *more, "training.epochs=1", "training.optimizer.warmup_epochs=0")
        assert segment.main(made, run_paths_for(folder, tmp_path / name)) == 0
        curves[name] = [line["loss"] for line in lines(tmp_path / name / "metrics.jsonl") if "loss" in line]
    assert curves["balanced"] == pytest.approx(curves["given"], rel=1e-4)
    assert curves["balanced"] != pytest.approx(curves["none"], rel=1e-3)
    for setting, cure in (("class_weights=[1.0]", "the data 4 classes: give one for each"),):
        with pytest.raises(SettingError, match=cure):
            segment.main(segmentation("tiny", *TINY, setting), run_paths_for(folder, tmp_path / "no"))
    for setting in ("class_weights=[1.0, -1.0]", "class_weights=[0.0, 0.0]"):
        with pytest.raises(SettingError, match="expected weights of 0 or more, not all 0"):
            segmentation("tiny", setting)
    with pytest.raises(SettingError, match="and weighting = 'none'"):
        segmentation("tiny", "class_weights=[1.0, 2.0]", "weighting=balanced")


@pytest.mark.parametrize("more", [("dice_weight=0.5",), ("focal_gamma=2.0",), ("weighting=balanced",)])
def test_change_is_learned_with_other_losses(tmp_path: Path, more: tuple[str, ...]) -> None:
    made = [pair(f"city-{n}", "train" if n < 3 else "val", 32, 32, seed=n) for n in range(4)]
    write_shards.write(made, tmp_path / "shards", contract=pair_contract())
    recipe = change("val_split=val", "test_split=", "training.epochs=10", *more)
    assert detect_change.main(recipe, run_paths_for(tmp_path / "shards", tmp_path / "run")) == 0
    assert results(tmp_path / "run")["f1"] > 0.8  # type: ignore[operator]


# --- classification without training, and with few samples ---------------------------------


def test_neighbours_vote(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "shards", train=12, val=8)
    made = classification("mode=knn", "neighbours=3", "shots=2")
    assert classify.main(made, run_paths_for(folder, tmp_path / "run")) == 0
    figures = results(tmp_path / "run")
    assert (figures["steps"], figures["train_samples"], figures["mode"]) == (0, 8, "knn")
    assert figures["top1"] > 0.5  # type: ignore[operator]  # by chance 0.25
    assert not (tmp_path / "run" / "checkpoint-last").exists()


def test_votes_by_hand() -> None:
    features, bank = torch.eye(2), torch.tensor([[1.0, 0.1], [2.0, 0.0], [0.0, 3.0]])
    found = frozen_classifiers.cosine_votes(features, bank, torch.eye(3), 2)
    near = torch.tensor([1 / 1.01**0.5, 1.0]) / 0.07
    torch.testing.assert_close(found[0, :2], near.softmax(0))
    assert found[0, 2] == 0
    assert found[1].argmax() == 2


def test_shots_are_the_same_samples_in_any_order(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "shards", train=16, val=4)
    source = loader.Samples(folder, "train", ("image",))
    made = classification("shots=2")
    every = classify.targets(source, made)
    chosen = classify.select_shots(source, every, made)
    assert every[chosen].sum(dim=0).tolist() == [2, 2, 2, 2]
    more = classify.select_shots(source, every, classification("shots=3"))
    assert set(chosen) < set(more)
    with pytest.raises(SettingError, match="class 'dark' has 4 training samples: set shots = 4"):
        classify.select_shots(source, every, classification("shots=5"))
    assert len(classify.select_shots(source, every, classification("shots=4"))) == 16


def test_losses_of_scenes_by_hand() -> None:
    torch.manual_seed(1)
    logits, weights = torch.randn(5, 4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    y = functional.one_hot(torch.arange(5) % 4, 4).float()
    p, which = logits.softmax(1), torch.arange(5) % 4
    right = p[torch.arange(5), which]
    plain, focal = classification(), classification("focal_gamma=2.0")
    found = classify.loss(plain, logits, y, weights, single=True)
    torch.testing.assert_close(found, (-weights[which] * right.log()).mean())
    found = classify.loss(focal, logits, y, weights, single=True)
    torch.testing.assert_close(found, (-weights[which] * (1 - right) ** 2 * right.log()).mean())
    q = logits.sigmoid()
    each = -(y * (1 - q) ** 2 * q.log() + (1 - y) * q**2 * (1 - q).log())
    found = classify.loss(focal, logits, y, weights, single=False)
    torch.testing.assert_close(found, (weights * each).mean())
    same = dataclasses.replace(focal, focal_gamma=1e-7)
    for single in (True, False):
        almost = classify.loss(same, logits, y, weights, single=single)
        torch.testing.assert_close(almost, classify.loss(plain, logits, y, weights, single=single))
