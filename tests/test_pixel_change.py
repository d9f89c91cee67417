"""Test classical detectors of change at single pixels, and the recall of small changes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from synthetic_shards import pair, pair_contract, write_pairs
from test_detect_change import TRAIN, results, run_paths_for

from sgdata import files, output_names
from sgdata.errors import SettingError
from sgdata.shards import write_shards
from sgmodel.recipes import detect_change
from sgmodel.train import pixel_change_detectors

LINEAR = ("model={ backbone = 'linear' }", "val_split=", "test_split=test", "windows.px=16", "windows.stride=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "shards")


def run(folder: Path, out: Path, *settings: str) -> dict[str, object]:
    recipe = files.read(detect_change.ChangeRecipe, TRAIN / "detect_change-demo-tiny.toml", (*LINEAR, *settings))
    assert detect_change.main(recipe, run_paths_for(folder, out)) == 0
    return results(out)


@pytest.mark.parametrize(
    "settings",
    [
        ("mode=logistic",),
        ("mode=boosting", "mean_px=3", "threshold=chosen"),
        ("mode=angle", "threshold=chosen", f"normalise.mean={[0.0] * 12}", f"normalise.std={[1.0] * 12}"),
    ],
    ids=lambda value: value[0],
)
def test_changes_that_single_pixels_show_are_found_without_training(
    folder: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    figures = run(folder, tmp_path / "a", *settings)
    # The means mix the two sides of an edge; the angle is small where all bands brighten alike.
    assert figures["f1"] > (0.99 if "mode=logistic" in settings else 0.8 if "mean_px=3" in settings else 0.3)
    assert (figures["steps"], figures["split"], figures["samples"]) == (0, "test", 2)
    assert len((tmp_path / "a" / "scenes.jsonl").read_text().splitlines()) == 2
    run(folder, tmp_path / "b", *settings)
    assert (tmp_path / "a" / output_names.SUMS).read_bytes() == (tmp_path / "b" / output_names.SUMS).read_bytes()


def test_a_chosen_threshold_finds_more_where_change_is_rare_and_faint(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    made = []
    for number in range(6):
        faint = pair(f"s{number}", "train" if number < 4 else "test", 32, 32, seed=number)
        noise = rng.normal(1000, 100, (2, 12, 32, 32))
        noise[1, :, faint.arrays["mask"] > 0] += 12
        before, after = noise.astype(np.uint16)
        made.append(replace(faint, arrays={**faint.arrays, "image_before": before, "image_after": after}))
    write_shards.write(made, tmp_path / "shards", contract=pair_contract())
    half, chosen = (
        run(tmp_path / "shards", tmp_path / how, "mode=logistic", f"threshold={how}") for how in ("half", "chosen")
    )
    assert chosen["f1"] > half["f1"] + 0.1  # type: ignore[operator]
    with pytest.raises(SettingError, match="threshold is 'chosen' on 1 training sample: expected 2 or more"):
        run(tmp_path / "shards", tmp_path / "one", "mode=logistic", "threshold=chosen", "training.fraction=0.25")


def test_the_angle_between_spectra() -> None:
    x = np.array([[1, 0, 1, 0], [1, 0, 0, 2], [1, 1, 2, 2], [3, 0, 1, 1], [0, 0, 1, 1]], np.float32)
    np.testing.assert_allclose(
        pixel_change_detectors.spectral_angle(x), [0, np.pi / 2, 0, np.pi / 4, np.pi / 2], atol=1e-6
    )


@pytest.mark.parametrize("mean_px", [1, 3, 5])
def test_means_are_those_of_the_pixels_inside_the_image(mean_px: int) -> None:
    rng = np.random.default_rng(mean_px)
    before, after = rng.random((2, 1, 3, 7, 9)).astype(np.float32)
    found = pixel_change_detectors.pixel_features(torch.from_numpy(before), torch.from_numpy(after), mean_px)
    both, window = np.concatenate([before[0], after[0]]).astype(float), np.ones((mean_px, mean_px))
    inside = ndimage.convolve(np.ones((7, 9)), window, mode="constant")
    expected = [ndimage.convolve(band, window, mode="constant") / inside for band in both]
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-5)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=40))
def test_the_best_threshold_equals_that_of_a_search(pairs: list[tuple[int, bool]]) -> None:
    scores, changed = (np.array(part) for part in zip(*[(score / 20, truth) for score, truth in pairs], strict=True))

    def f1(threshold: float) -> float:
        found = scores >= threshold
        return 2 * (found & changed).sum() / max(found.sum() + changed.sum(), 1)

    best = pixel_change_detectors._best_threshold(scores, changed, pixel_change_detectors.THRESHOLDS)
    assert f1(best) == pytest.approx(max(f1(each) for each in pixel_change_detectors.THRESHOLDS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("mode=logistic", "mean_px=2"), "mean_px is 2: expected an odd number of pixels"),
        (("mode=angle",), "threshold is 'half', mode 'angle': an angle is no probability; set threshold = 'chosen'"),
    ],
)
def test_settings_that_no_detector_has_are_refused(
    folder: Path, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        run(folder, tmp_path, *settings)


def test_pixels_of_one_class_are_refused() -> None:
    with pytest.raises(SettingError, match="9 training pixels are all of one class"):
        pixel_change_detectors._fit_model("boosting", np.zeros((9, 2)), np.zeros(9, bool), 0)


def test_a_missing_library_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(SettingError, match=r"needs scikit-learn, .* pip install 'sgdata\[ledger\]'"):
        run(folder, tmp_path, "mode=boosting")


# --- small changes -------------------------------------------------------------------------


def test_changes_of_few_connected_pixels_are_counted_apart() -> None:
    target = torch.zeros(12, 12, dtype=torch.int64)
    target[0, :15] = 1  # 12 pixels along the edge
    target[3:7, 3:7] = 1  # 16 pixels are not small
    target[8, 8] = target[9, 9] = 1  # connected by a corner
    target[10, :4] = 255
    found = detect_change.part_small(target)
    assert found[0].tolist() == [2] * 12
    assert found[3:7, 3:7].unique().tolist() == [1]
    assert (int(found[8, 8]), int(found[9, 9])) == (2, 2)
    assert ((found == 255) == (target == 255)).all()
    assert ((found > 0) == (target > 0)).all()


class BrightAfter(torch.nn.Module):
    """Predicts change where the second date is bright in the first band."""

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        changed = (after[:, :1] > 0).float()
        return torch.cat([1 - changed, changed], dim=1)


def test_small_changes_do_not_alter_the_other_figures(folder: Path, tmp_path: Path) -> None:
    recipe = files.read(detect_change.ChangeRecipe, TRAIN / "detect_change-demo-tiny.toml", LINEAR)
    pairs = detect_change.loader.Samples(folder, "test", detect_change.MEMBERS)
    setup = detect_change.training.resolve(recipe, pairs.contract, run_paths_for(folder, tmp_path))
    counts, small = detect_change.evaluate_by_size(setup, BrightAfter(), pairs)
    assert torch.equal(counts, detect_change.evaluate(setup, BrightAfter(), pairs))
    found = total = 0
    for number in range(len(pairs)):
        mask = torch.from_numpy(pairs.read(number, "mask").astype(np.int64))
        after = torch.from_numpy(pairs.read(number, "image_after").astype(np.float32))
        bright = after[0] > setup.normalisation.mean[0]
        apart = detect_change.part_small(mask) == detect_change.SMALL
        found, total = found + int((apart & bright).sum()), total + int(apart.sum())
    assert small == ({"recall_small": found / total} if total else {})
