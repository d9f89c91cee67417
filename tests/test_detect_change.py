"""Test the change detection program, and each property of the released change model (no parity file covers it)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from baselines import build, spectralgpt
from synthetic_shards import pair_contract, write, write_pairs
from test_encoder import TINY as TINY_ENCODER
from test_encoder import images

from sgdata import files, package_data
from sgdata.errors import ExitCode, SettingError
from sgmodel.checkpoints import cards, load_weights, weight_files
from sgmodel.data import augment, loader, normalise, windows
from sgmodel.models import heads, upernet
from sgmodel.recipes import detect_change
from sgmodel.train import dense_prediction, run_paths, training

TRAIN = package_data.folder("recipes") / "train"
TINY = (
    "model.encoder.image_px=16",
    "model.encoder.width=32",
    "model.encoder.depth=2",
    "windows.px=16",
    "windows.stride=8",
    "val_split=",
    "test_split=test",
    "training.batch=8",
    "training.epochs=4",
)


RELEASED = ("scored.px=16", "scored.stride=7", "scored.remainder=dropped", "scored.once=false")


def recipe(*overrides: str) -> detect_change.ChangeRecipe:
    return files.read(detect_change.ChangeRecipe, TRAIN / "detect_change-demo-tiny.toml", (*TINY, *overrides))


def run_paths_for(folder: Path, out: Path, **others: object) -> run_paths.RunPaths:
    return dataclasses.replace(run_paths.RunPaths(shards=folder, out=out, device="cpu", threads=1), **others)  # type: ignore[arg-type]


def results(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "results.json").read_text())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "shards")


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert (
        detect_change.main(
            recipe("training.epochs=12", "val_split=test", "evaluate_every=6"), run_paths_for(folder, out)
        )
        == 0
    )
    return out


def test_change_is_learned_and_scored_per_city(whole: Path) -> None:
    figures = results(whole)
    assert figures["f1"] > 0.9  # type: ignore[operator]
    assert set(figures["per_scene"]) == {"dora", "emma"}  # type: ignore[call-overload]
    assert np.sum(figures["confusion"]) == 43 * 37 + 32 * 48
    assert (figures["samples"], figures["train_samples"], figures["train_windows"]) == (2, 3, 5 * 4 + 3 * 3 + 4 * 6)
    (_, false), (missed, hit) = figures["confusion"]  # type: ignore[misc]
    assert figures["precision"] == pytest.approx(hit / (hit + false))
    assert figures["recall"] == pytest.approx(hit / (hit + missed))
    low, high = figures["f1_interval"]  # type: ignore[misc]
    assert low <= figures["f1"] <= high


def test_the_program_counts_windows_in_the_place_of_pairs(folder: Path) -> None:
    assert detect_change.PROGRAM.count is not None
    assert detect_change.PROGRAM.count(recipe(), folder) == 5 * 4 + 3 * 3 + 4 * 6


def test_interrupted_equals_uninterrupted(folder: Path, whole: Path, tmp_path: Path) -> None:
    made = recipe("training.epochs=12", "val_split=test", "evaluate_every=6")
    assert detect_change.main(made, run_paths_for(folder, tmp_path, stop_after=3)) == ExitCode.FINDINGS
    assert detect_change.main(made, run_paths_for(folder, tmp_path, workers=3)) == 0
    assert (tmp_path / "SHA256SUMS").read_bytes() == (whole / "SHA256SUMS").read_bytes()


@pytest.mark.parametrize("mode", ["frozen", "linear-probe"])
def test_modes(folder: Path, whole: Path, tmp_path: Path, mode: str) -> None:
    start = run_paths_for(folder, tmp_path, weights=whole / "checkpoint-last")
    assert detect_change.main(recipe(f"mode={mode}", "training.epochs=1"), start) == 0
    before, after = (load_weights.read_weights(out / "checkpoint-last") for out in (whole, tmp_path))
    assert all(torch.equal(before[name], after[name]) for name in after if name.startswith(("blocks.", "patch_embed.")))
    model = cards.load(tmp_path / "checkpoint-last")
    assert isinstance(model.head, heads.Probe) == (mode == "linear-probe")
    assert model(torch.rand(1, 12, 16, 16), torch.rand(1, 12, 16, 16)).shape == (1, 2, 16, 16)


def test_a_full_resolution_path_is_trained_and_loaded_again(folder: Path, tmp_path: Path) -> None:
    assert detect_change.main(recipe("model.head.skip=8"), run_paths_for(folder, tmp_path)) == 0
    model = cards.load(tmp_path / "checkpoint-last")
    assert isinstance(model, heads.ChangeDetector)
    assert model.skip is not None
    assert model.skip[0].weight.shape == (8, 24, 3, 3)


def test_mismatched_inputs_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"scored\.px is 8, the model takes images of 16"):
        detect_change.main(recipe(*RELEASED, "scored.px=8"), run_paths_for(folder, tmp_path))
    masks = write(tmp_path / "masks", train=2, val=1)
    with pytest.raises(SettingError, match="samples have no 'image_before'; they have image, mask"):
        detect_change.main(recipe(), run_paths_for(masks, tmp_path))


# --- the released model, point by point --------------------------------------------------


def released() -> heads.ChangeDetector:
    path = TRAIN / "detect_change-oscd-base-released_code.toml"
    with torch.device("meta"):
        model = build("change", files.read(detect_change.ChangeRecipe, path).model, bands=12)
    assert isinstance(model, heads.ChangeDetector)
    return model


def test_keys_shapes_and_size_are_the_published_ones() -> None:
    model = released()
    ours = {
        weight_files.released_name(name, "change"): tuple(value.shape) for name, value in model.state_dict().items()
    }
    rows = package_data.table("spectralgpt_base_change_keys")
    assert {name: "x".join(map(str, shape)) for name, shape in ours.items()} == {
        row["key"]: row["shape"] for row in rows
    }
    assert len(ours) == 266
    assert sum(p.numel() for p in model.parameters()) == 109_219_591


def test_drop_path_dropout_and_the_unused_norm_are_as_released() -> None:
    model = released()
    assert model.backbone.encoder.blocks[-1].drop_path == 0.5
    rates = {
        name: {part.p for part in model.head.get_submodule(name).modules() if isinstance(part, torch.nn.Dropout)}
        for name in ("levels", "pooling", "lateral", "smooth", "fuse")
    }
    assert rates == {"levels": {0.0}, "pooling": {0.0}, "lateral": {0.5}, "smooth": {0.5}, "fuse": {0.5}}
    assert not any(parameter.requires_grad for parameter in model.backbone.encoder.norm.parameters())


def test_one_encoder_and_one_merge_serve_both_dates() -> None:
    torch.manual_seed(0)
    narrow = upernet.HeadConfig(levels=(8, 8, 8, 8), hidden=(8, 8, 8), width=8, groups=4, groups_levels=4)
    model = build("change", spectralgpt(TINY_ENCODER, head=narrow), 12).eval()
    before, after = images(TINY_ENCODER), images(TINY_ENCODER)
    seen: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0].detach()))
    model(before, after)
    merged = [model.backbone.merge(model.backbone.encoder.tokens(x)) for x in (before, after)]
    torch.testing.assert_close(seen[0], merged[0] - merged[1])


def test_class_weights_are_the_released_ones(parity: Path) -> None:
    theirs = np.load(parity / "preprocess.npz")
    share = float(theirs["oscd/change_map"].mean())
    ours = detect_change.class_weights(share, 10.0)
    np.testing.assert_allclose(ours.numpy(), theirs["oscd/class_weights"], rtol=1e-6)


def test_the_share_is_that_of_whole_scenes(folder: Path) -> None:
    samples = loader.Samples(folder, "train", ("image_before", "image_after", "mask"))
    masks = [samples.read(number, "mask").ravel() for number in range(3)]
    assert detect_change.changed(dense_prediction.class_counts(samples)) == pytest.approx(np.concatenate(masks).mean())


def test_each_date_of_a_window_is_normalised_by_itself(parity: Path) -> None:
    theirs = np.load(parity / "preprocess.npz")
    top, _, left, _ = theirs["oscd/patch_limits"][-1]
    patch = theirs["oscd/image1"][top : top + 128, left : left + 128].transpose(2, 0, 1)
    how = normalise.Normalisation(scheme="minmax", eps=0.0, mean=(), std=())
    ours = normalise.apply(how, torch.from_numpy(np.ascontiguousarray(patch))[None], torch.tensor([[128, 128]]))[0]
    np.testing.assert_allclose(ours.numpy(), theirs["oscd/last_patch_image1"], atol=1e-6)
    change = theirs["oscd/change_map"][top : top + 128, left : left + 128]
    assert np.array_equal(change.astype(float), theirs["oscd/last_patch_label"])


class Pixel(torch.nn.Module):
    """A model with known output: change where the second date is brighter."""

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        more = (after - before).mean(dim=1)
        return torch.stack([-more, more], dim=1).log_softmax(dim=1)


def setting(folder: Path, *overrides: str) -> detect_change.Setup:
    made = recipe("normalise.scheme=zscore", *overrides)
    contract = files.read(type(pair_contract()), folder / "contract.json")
    return training.resolve(made, contract, run_paths_for(folder, folder))


def test_both_dates_and_the_map_are_moved_alike(folder: Path) -> None:
    """A model of single pixels has the same loss with any rotation as without."""
    losses = []
    for chance in ("0.0", "1.0"):
        moved = setting(folder, f"augment.horizontal_flip={chance}", "augment.vertical_flip=0.0")
        still = dataclasses.replace(
            moved.recipe, augment=dataclasses.replace(moved.recipe.augment, quarter_turns=chance == "1.0")
        )
        moved = dataclasses.replace(moved, recipe=still)
        samples = loader.Samples(folder, "train", ("image_before", "image_after", "mask"))
        source = windows.WindowedSamples(samples, moved.recipe.windows)
        (batch,) = loader.load(source, loader.in_order(len(source), 999), threads=1)
        losses.append(float(detect_change.objective(moved, None, Pixel(), batch)["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_loss_is_the_weighted_mean_of_the_framework(folder: Path) -> None:
    made = setting(folder)
    samples = loader.Samples(folder, "train", ("image_before", "image_after", "mask"))
    (batch,) = loader.load(windows.WindowedSamples(samples, made.recipe.windows), loader.in_order(5, 5), threads=1)
    batch.arrays["mask"][0, :3] = 255
    weights = detect_change.class_weights(0.2, 5.0)
    plain = dataclasses.replace(made, recipe=dataclasses.replace(made.recipe, augment=augment.AugmentRecipe()))
    ours = detect_change.objective(plain, weights, Pixel(), batch)["loss"]
    log_p = Pixel()(*detect_change.dates(plain, batch))
    theirs = torch.nn.functional.nll_loss(log_p, batch.arrays["mask"].long(), weight=weights, ignore_index=255)
    torch.testing.assert_close(ours, theirs)
    batch.arrays["mask"][:] = 255
    assert float(detect_change.objective(plain, weights, Pixel(), batch)["loss"]) == 0.0


def test_the_released_score_counts_overlaps_and_drops_the_last_batch(folder: Path) -> None:
    made = setting(folder, *RELEASED, "drop_incomplete=true", "training.batch=4")
    samples = loader.Samples(folder, "test", ("image_before", "image_after", "mask"))
    source = windows.WindowedSamples(samples, made.recipe.scored)  # type: ignore[arg-type]
    counts = detect_change.evaluate(made, Pixel(), samples)
    assert len(source) % 4
    assert int(counts.sum()) == len(source) // 4 * 4 * 16 * 16


def test_figures_by_hand() -> None:
    counts = torch.tensor([[[50, 10], [5, 35]], [[80, 0], [20, 0]]])
    linear = torch.tensor([[[60, 0], [40, 0]], [[80, 0], [0, 20]]])
    found = dense_prediction.score_confusion(counts, 0, linear, detect_change.compute_metrics)
    assert found["precision"] == pytest.approx(35 / 45)
    assert found["recall"] == pytest.approx(35 / 60)
    assert found["f1"] == pytest.approx(2 * 35 / (2 * 35 + 10 + 25))
    assert found["iou_change"] == pytest.approx(35 / (35 + 10 + 25))
    assert found["oa"] == pytest.approx(165 / 200)
    assert (found["f1_majority"], found["oa_majority"]) == (0.0, pytest.approx(140 / 200))
    assert (found["f1_linear"], found["iou_change_linear"]) == (pytest.approx(0.5), pytest.approx(1 / 3))
    assert detect_change.compute_metrics(counts[1]) == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "iou_change": 0.0,
        "oa": 0.8,
    }
