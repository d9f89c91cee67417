"""Test the segmentation program: learning, scores against counts by hand, exact resuming, refusals."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from synthetic_shards import contract, sample, write

from sgdata import files, package_data
from sgdata.errors import ExitCode, SettingError, SourceError
from sgdata.shards import tar_format, write_shards
from sgmodel.checkpoints import cards
from sgmodel.recipes import pretrain, segment
from sgmodel.train import finetune, run_paths

TINY = (
    "model.encoder.image_px=32",
    "augment.crop_area=[1.0, 1.0]",
    "model.encoder.width=32",
    "model.encoder.depth=2",
    "model.encoder.heads=2",
    "training.batch=4",
    "training.epochs=3",
    "evaluate_every=1",
    "model.head.dropout=0.1",
    "model.head.dropout_levels=0.1",
)


def recipe(name: str, *overrides: str) -> segment.SegmentRecipe:
    path = package_data.folder("recipes") / "train" / f"segment-demo-{name}.toml"
    return files.read(segment.SegmentRecipe, path, overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("segment") / "shards", train=6, val=3)


def run_paths_for(folder: Path, out: Path, **others: object) -> run_paths.RunPaths:
    return dataclasses.replace(run_paths.RunPaths(shards=folder, out=out, device="cpu", threads=1), **others)  # type: ignore[arg-type]


def results(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "results.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert segment.main(recipe("tiny", *TINY), run_paths_for(folder, out)) == 0
    return out


def test_a_run_leaves_scores_and_pictures(whole: Path) -> None:
    figures = results(whole)
    assert set(figures["per_class_iou"]) == {"dark", "left", "right", "bright"}
    assert np.sum(figures["confusion"]) == 3 * (32 * 32 - 4)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "miou" in line] == [1, 2]
    assert (whole / "pictures" / "step-000005.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_checkpoint_is_that_of_the_smallest_figure_where_smaller_is_better(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "ScoringSpec", partial(finetune.ScoringSpec, sign=-1))
    assert segment.main(recipe("tiny", *TINY), run_paths_for(folder, tmp_path / "run")) == 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    scores = [*(line["miou"] for line in lines if "miou" in line), results(whole)["miou"]]
    assert min(scores) < max(scores)
    for out, chosen in ((whole, max(scores)), (tmp_path / "run", min(scores))):
        assert results(out)["best_epoch"]["miou"] == chosen  # type: ignore[index]


def test_interrupted_equals_uninterrupted_with_dropout_on(
    folder: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = recipe("tiny", *TINY)
    assert made.model.head is not None
    assert made.model.head.dropout > 0
    assert segment.main(made, run_paths_for(folder, tmp_path, stop_after=2)) == ExitCode.FINDINGS
    with caplog.at_level("INFO", "sgdata"):
        assert segment.main(made, run_paths_for(folder, tmp_path, workers=3)) == 0
    assert f"{tmp_path}: resumes at step 2 of " in caplog.text
    assert (tmp_path / "SHA256SUMS").read_bytes() == (whole / "SHA256SUMS").read_bytes()


def test_the_linear_baseline_learns_from_single_pixels(folder: Path, tmp_path: Path) -> None:
    made = recipe("linear", "training.epochs=60", "training.optimizer.lr=0.1")
    assert segment.main(made, run_paths_for(folder, tmp_path)) == 0
    figures = results(tmp_path)
    assert figures["miou"] > 0.95
    assert figures["miou"] > 3 * figures["miou_majority"]
    model = cards.load(tmp_path / "checkpoint-last")
    assert sum(p.numel() for p in model.parameters()) == 13 * 4


def test_the_model_learns(folder: Path, tmp_path: Path) -> None:
    more = ("training.epochs=60", "evaluate_every=0", "training.log_every=20")
    assert segment.main(recipe("tiny", *TINY, *more), run_paths_for(folder, tmp_path)) == 0
    assert results(tmp_path)["miou"] > 0.8


def test_majority_by_hand(folder: Path, whole: Path) -> None:
    train, val = (
        np.concatenate([one.arrays["mask"].ravel() for one in tar_format.samples(folder, split)])
        for split in ("train", "val")
    )
    label = np.bincount(train[train != 255]).argmax()
    kept = val[val != 255]
    figures = results(whole)
    assert figures["majority_class"] == contract(32).label_space.names[label]
    assert figures["miou_majority"] == pytest.approx(np.mean(kept == label) / 4)


def test_fine_tuning_loads_the_encoder_of_a_pretraining_run(folder: Path, tmp_path: Path) -> None:
    path = package_data.folder("recipes") / "train" / "pretrain-demo-tiny.toml"
    tiny = [text.replace(".encoder.", ".") for text in TINY if not text.startswith(("evaluate", "model.head"))]
    pretraining = files.read(pretrain.PretrainRecipe, path, (*tiny, "decoder.width=32"))
    pretrain.main(pretraining, run_paths_for(folder, tmp_path / "pretrain"))
    weights = tmp_path / "pretrain" / "checkpoint-last"
    start = run_paths_for(folder, tmp_path / "segment", weights=weights, stop_after=1)
    assert segment.main(recipe("tiny", *TINY), start) == ExitCode.FINDINGS

    with pytest.raises(SettingError, match="normalisation differs .* scheme is 'minmax', was 'zscore'"):
        segment.main(recipe("tiny", *TINY, "normalise.scheme=minmax"), start)
    with pytest.raises(SourceError, match="of the encoder's parameters fit"):
        segment.main(recipe("tiny", *TINY, "model.encoder.width=64"), start)
    with pytest.raises(SourceError, match="the model has no encoder to fill"):
        segment.main(recipe("linear"), start)

    toa = dataclasses.replace(contract(32), level="L1C")
    write_shards.write(
        [sample(n, split, 32, 32) for n, split in enumerate(("train", "val"))], tmp_path / "other", contract=toa
    )
    other = dataclasses.replace(start, shards=tmp_path / "other")
    with pytest.raises(SettingError, match="cannot fine-tune on 'toy': level is 'L1C', expected 'L2A'"):
        segment.main(recipe("tiny", *TINY), other)


def test_samples_without_masks_of_classes_are_refused(tmp_path: Path) -> None:
    # Ids need not begin at 0, but there must be some.
    space = dataclasses.replace(contract(32).label_space, ids=(), names=(), colours=())
    made = [sample(n, split, 32, 32) for n, split in enumerate(("train", "val"))]
    write_shards.write(made, tmp_path / "shards", contract=dataclasses.replace(contract(32), label_space=space))
    with pytest.raises(SettingError, match=r"label space 'toy': task 'segmentation', ids \[\]; expected"):
        segment.main(recipe("tiny", *TINY), run_paths_for(tmp_path / "shards", tmp_path / "run"))


def test_a_model_without_its_table_is_refused(folder: Path, tmp_path: Path) -> None:
    made = recipe("tiny", *TINY)
    made = dataclasses.replace(made, model=dataclasses.replace(made.model, encoder=None))
    with pytest.raises(SettingError, match=r"model.backbone is 'spectralgpt': expected a table \[model.encoder\]"):
        segment.main(made, run_paths_for(folder, tmp_path))


def test_a_batch_with_no_label_at_all_does_not_stop_training(tmp_path: Path) -> None:
    made = [sample(n, "train" if n < 2 else "val", 32, 32) for n in range(3)]
    for one in made[:2]:
        one.arrays["mask"][:] = 255
    write_shards.write(made, tmp_path / "shards", contract=contract(32))
    assert (
        segment.main(recipe("tiny", *TINY, "training.batch=1"), run_paths_for(tmp_path / "shards", tmp_path / "run"))
        == 0
    )


def test_the_loss_is_the_mean_over_the_labelled_pixels_of_the_whole_batch(tmp_path: Path) -> None:
    """The loss does not depend on how the batch is divided: a part with few labels has little weight."""
    made = [sample(n, "train" if n < 4 else "val", 32, 32) for n in range(5)]
    for n, one in enumerate(made):
        one.arrays["mask"][: 9 * n] = 255
    write_shards.write(made, tmp_path / "shards", contract=contract(32))
    still = ("model.head.dropout=0.0", "model.head.dropout_levels=0.0", "model.encoder.drop_path=0.0")
    curves = []
    for parts in (1, 4):
        out = tmp_path / str(parts)
        made_of = recipe("tiny", *TINY, *still, f"training.accumulate={parts}", "training.optimizer.warmup_epochs=0")
        assert segment.main(made_of, run_paths_for(tmp_path / "shards", out)) == 0
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        curves.append([(line["loss"], line["grad_norm"]) for line in lines if "loss" in line])
        assert "weight" not in lines[0]
    np.testing.assert_allclose(curves[1], curves[0], rtol=2e-6)


def test_a_model_of_smaller_images_learns_from_crops_and_scores_whole_samples(folder: Path, tmp_path: Path) -> None:
    small = ("model.encoder.image_px=16", "augment.crop_area=[0.25, 0.25]", "augment.crop_aspect=[1.0, 1.0]")
    assert segment.main(recipe("tiny", *TINY, *small), run_paths_for(folder, tmp_path)) == 0
    assert np.sum(results(tmp_path)["confusion"]) == 3 * (32 * 32 - 4)
