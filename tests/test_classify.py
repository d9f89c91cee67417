"""Test the classification program: learning, mixing, freezing, scores against counts by hand, and resuming."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_shards import scene, scene_contract, write, write_scenes

from sgdata import files, package_data
from sgdata.errors import ExitCode, SettingError, SourceError
from sgdata.shards import write_shards
from sgmodel.checkpoints import cards, load_weights
from sgmodel.models import heads
from sgmodel.recipes import classify
from sgmodel.train import run_paths

TRAIN = package_data.folder("recipes") / "train"
TINY = (
    "model.encoder.image_px=16",
    "model.encoder.width=32",
    "model.encoder.depth=2",
    "training.batch=4",
    "training.epochs=20",
    "training.log_every=10",
    "labels_from=labels",
)


def recipe(*overrides: str) -> classify.ClassifyRecipe:
    return files.read(classify.ClassifyRecipe, TRAIN / "classify-demo-tiny.toml", (*TINY, *overrides))


def run_paths_for(folder: Path, out: Path, **others: object) -> run_paths.RunPaths:
    return dataclasses.replace(run_paths.RunPaths(shards=folder, out=out, device="cpu", threads=1), **others)  # type: ignore[arg-type]


def results(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "results.json").read_text())
    return found


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_weights.read_weights(out / "checkpoint-last")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("single") / "shards")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("several") / "shards", train=16, task="multi-label")


MIXED = ("mix.mixup=0.8", "mix.cutmix=1.0", "smoothing=0.1")


@pytest.fixture(scope="module")
def whole(single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert classify.main(recipe(*MIXED, "evaluate_every=10"), run_paths_for(single, out)) == 0
    return out


def test_single_labels_are_learned_from_mixed_and_erased_scenes(whole: Path) -> None:
    figures = results(whole)
    assert figures["top1"] == 1.0
    assert figures["top1_interval"] == [1.0, 1.0]
    assert np.trace(np.array(figures["confusion"])) == 8
    assert figures["per_class_recall"] == dict.fromkeys(("dark", "left", "right", "bright"), 1.0)
    assert figures["best_epoch"]["top1"] >= figures["top1"]  # type: ignore[index]


def test_figures_name_their_subset(whole: Path) -> None:
    expected = {"dataset": "toy", "split": "val", "samples": 8, "train_split": "train", "train_samples": 12}
    assert expected.items() <= results(whole).items()


def test_interrupted_equals_uninterrupted_with_mixing_on(single: Path, whole: Path, tmp_path: Path) -> None:
    made = recipe(*MIXED, "evaluate_every=10")
    assert classify.main(made, run_paths_for(single, tmp_path, stop_after=7)) == ExitCode.FINDINGS
    assert classify.main(made, run_paths_for(single, tmp_path, workers=3)) == 0
    assert (tmp_path / "SHA256SUMS").read_bytes() == (whole / "SHA256SUMS").read_bytes()


def test_parts_of_a_batch_are_mixed_as_the_whole(single: Path, tmp_path: Path) -> None:
    still = (*MIXED, "model.encoder.drop_path=0.0", "training.epochs=2", "training.log_every=1")
    found = []
    for parts in (1, 2):
        out = tmp_path / str(parts)
        assert classify.main(recipe(*still, f"training.accumulate={parts}"), run_paths_for(single, out)) == 0
        found.append([json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    with pytest.raises(SettingError, match="batch 6 in 2 parts: mixup and CutMix pair neighbours"):
        classify.main(recipe(*MIXED, "training.batch=6", "training.accumulate=2"), run_paths_for(single, tmp_path))


def test_several_labels_are_learned_and_scored(several: Path, tmp_path: Path) -> None:
    assert classify.main(recipe("training.epochs=40"), run_paths_for(several, tmp_path)) == 0
    figures = results(tmp_path)
    assert figures["map_macro"] > 0.9  # type: ignore[operator]
    low, high = figures["map_macro_interval"]  # type: ignore[misc]
    assert low <= figures["map_macro"] <= high + 1e-9
    assert set(figures["per_class_ap"]) == {"dark", "left", "right", "bright"}  # type: ignore[call-overload]
    assert {"map_micro", "map_micro_batch_averaged", "map_micro_interval"} <= set(figures)


def test_a_model_of_figures_from_scores_by_hand() -> None:
    contract = scene_contract(16)
    scores = torch.tensor([[3.0, 1, 0, 0], [0, 2, 1, 0], [0, 2, 1, 0]])
    found = classify.compute_metrics(scores, torch.eye(4)[[0, 1, 2]], contract, final=True)
    assert found["top1"] == pytest.approx(2 / 3)
    assert found["per_class_recall"] == {"dark": 1.0, "left": 1.0, "right": 0.0, "bright": None}
    assert "confusion" not in classify.compute_metrics(scores, torch.eye(4)[[0, 1, 2]], contract, final=False)


def test_masks_give_labels_by_share(tmp_path: Path) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[:2] = 1
    mask[9, 5:] = 2
    mask[5] = 255
    assert classify.classes_in_mask(mask, range(4), 0.05) == [0, 1, 2]
    assert classify.classes_in_mask(mask, range(4), 0.051) == [0, 1]
    folder = write(tmp_path / "shards", train=4, val=3)
    made = recipe("labels_from=mask", "min_share=0.25", "training.epochs=1", "model.encoder.image_px=32")
    assert classify.main(made, run_paths_for(folder, tmp_path / "run")) == 0
    card = cards.read(tmp_path / "run" / "checkpoint-last")
    assert card.contract is not None
    assert card.contract.label_space.name == "toy, share >= 0.25"
    assert card.contract.label_space.task == "multi-label"
    with pytest.raises(
        SettingError, match="task 'segmentation', expected single-label or multi-label; set labels_from = 'mask'"
    ):
        classify.main(recipe(), run_paths_for(folder, tmp_path / "other"))


# --- what is trained -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["frozen", "linear-probe"])
def test_a_frozen_backbone_stays_as_it_came(single: Path, whole: Path, tmp_path: Path, mode: str) -> None:
    start = run_paths_for(single, tmp_path, weights=whole / "checkpoint-last")
    made = recipe(f"mode={mode}", "evaluate_every=1", "training.epochs=4", "training.optimizer.lr=0.05")
    assert classify.main(made, start) == 0
    before, after = weights(whole), weights(tmp_path)
    for name, tensor in after.items():
        if not name.startswith("head"):
            assert torch.equal(tensor, before[name]), name
    trained = [name for name in after if name.startswith("head")]
    expected = {"head.linear.weight", "head.linear.bias"} if mode == "linear-probe" else {"head.weight", "head.bias"}
    assert expected <= set(trained)
    model = cards.load(tmp_path / "checkpoint-last")
    assert isinstance(model.head, heads.Probe) == (mode == "linear-probe")
    memory = files.read_plain(tmp_path / "checkpoint-last" / "training.json")
    assert memory["steps"] == 12
    assert results(tmp_path)["top1"] == 1.0


def test_fewer_labels_are_the_same_ones_for_every_run(single: Path, tmp_path: Path) -> None:
    assert classify.main(recipe("training.fraction=0.5", "training.epochs=1"), run_paths_for(single, tmp_path)) == 0
    assert results(tmp_path)["train_samples"] == 6


def test_the_head_is_drawn_small_where_weights_are_given(single: Path, whole: Path, tmp_path: Path) -> None:
    start = run_paths_for(single, tmp_path, weights=whole / "checkpoint-last", stop_after=1)
    made = recipe("head_std=2e-5", "training.optimizer.lr=1e-12")
    assert classify.main(made, start) == ExitCode.FINDINGS
    assert float(weights(tmp_path)["head.weight"].std()) == pytest.approx(2e-5, rel=0.2)


# --- what is refused -----------------------------------------------------------------------


def test_labels_that_do_not_fit_their_task_are_named(tmp_path: Path) -> None:
    made = [scene(n, "train" if n else "val", 16) for n in range(4)]
    made[2].meta["labels"] = [1, 2]
    write_shards.write(made, tmp_path / "shards", contract=scene_contract(16))
    with pytest.raises(SourceError, match=r"sample 'scene-00002' has labels \[1, 2\], expected exactly one of 'toy'"):
        classify.main(recipe(), run_paths_for(tmp_path / "shards", tmp_path / "run"))


def test_settings_that_nothing_would_read_are_refused(several: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"smoothing is 0\.1, 'toy' is multi-label"):
        classify.main(recipe("smoothing=0.1"), run_paths_for(several, tmp_path))


def test_a_head_of_other_classes_is_refused(single: Path, several: Path, whole: Path, tmp_path: Path) -> None:
    space = dataclasses.replace(
        scene_contract(16).label_space, name="toy-3", ids=(0, 1, 2), names=("a", "b", "c"), colours=()
    )
    made = [scene(4 * n + n % 3, "train" if n < 4 else "val", 16) for n in range(6)]
    write_shards.write(made, tmp_path / "shards", contract=dataclasses.replace(scene_contract(16), label_space=space))
    start = run_paths_for(tmp_path / "shards", tmp_path / "run", weights=whole / "checkpoint-last")
    message = r"label_space is 'toy-3' \(3 classes\), the weights were trained for 'toy' \(4 classes\); accept ="
    with pytest.raises(SettingError, match=message):
        classify.main(recipe("training.epochs=1", "accept=['normalisation']"), start)
    assert classify.main(recipe("training.epochs=1", "accept=['normalisation', 'label_space']"), start) == 0


# --- several processes ---------------------------------------------------------------------


@pytest.mark.slow
def test_two_ranks_have_the_curve_of_one_with_mixing_on(single: Path, tmp_path: Path) -> None:
    curves = []
    for ranks in (1, 2):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if ranks > 1 else []
        program = ["-m", "sgmodel.recipes.classify", str(TRAIN / "classify-demo-tiny.toml")]
        more = (*TINY, *MIXED, "model.encoder.drop_path=0.0", "training.epochs=4", "training.log_every=1")
        out = tmp_path / str(ranks)
        words = ["--shards", str(single), "--out", str(out), "--device=cpu", "--threads=1", "-q"]
        words += [f"--set={text}" for text in more]
        subprocess.run([sys.executable, *torchrun, *program, *words], cwd=TRAIN.parents[1], check=True)
        curves.append([json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()])
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)
