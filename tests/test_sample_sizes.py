"""Test that samples smaller than, equal to and larger than the images of a model train without being resized."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import test_classify
import test_contrast
import test_detect_change
import test_pretrain
import test_segment
import torch
from synthetic_shards import contract, pair, pair_contract, sample, scene, scene_contract
from torch import Tensor, nn

from sgdata.shards import write_shards
from sgdata.types import Array
from sgmodel.data import augment, loader, normalise, windows
from sgmodel.inference import predictor
from sgmodel.recipes import classify, contrast, detect_change, pretrain, segment
from sgmodel.train import run_paths

PX = 16
SIZES = {"smaller": (11, 13), "equal": (PX, PX), "larger": (40, 22), "one side": (9, 30)}
ALL = [*SIZES, "mixed"]
SOME = ["smaller", "larger", "mixed"]


def sizes_of(name: str) -> list[tuple[int, int]]:
    """Return the sizes of six samples."""
    return [SIZES.get(name, size) for size in [*SIZES.values(), *SIZES.values()][:6]]


def masks(out: Path, name: str) -> Path:
    sizes = sizes_of(name)
    made = [sample(n, "train" if n < 4 else "val", *size) for n, size in enumerate(sizes)]
    write_shards.write(made, out, contract=dataclasses.replace(contract(PX), shape=None))
    return out


def pairs(out: Path, name: str) -> Path:
    made = [pair(f"p{n}", "train" if n < 4 else "test", *size, seed=n) for n, size in enumerate(sizes_of(name))]
    write_shards.write(made, out, contract=pair_contract())
    return out


def scenes(out: Path, name: str) -> Path:
    made = []
    for number, (height, width) in enumerate(sizes_of(name)):
        one = scene(number, "train" if number < 4 else "val", max(height, width))
        made.append(dataclasses.replace(one, arrays={"image": one.arrays["image"][:, :height, :width]}))
    write_shards.write(made, out, contract=dataclasses.replace(scene_contract(PX), shape=None))
    return out


def run_paths_for(shards: Path, out: Path) -> run_paths.RunPaths:
    return run_paths.RunPaths(shards=shards, out=out, device="cpu", threads=1)


def without_crop(recipe: object) -> object:
    own = recipe.augment  # type: ignore[attr-defined]
    return dataclasses.replace(recipe, augment=dataclasses.replace(own, crop_area=None))  # type: ignore[type-var]


SMALL = ("training.epochs=1", "training.batch=2", "training.accumulate=1")


@pytest.mark.parametrize("name", SOME)
def test_pretraining_takes_samples_of_any_size(tmp_path: Path, name: str) -> None:
    recipe = without_crop(test_pretrain.recipe("model.image_px=16", *SMALL))
    assert pretrain.main(recipe, run_paths_for(masks(tmp_path / "shards", name), tmp_path / "run")) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "px"), [*((name, PX) for name in SOME), ("mixed", 0)])
def test_segmentation_takes_samples_of_any_size(tmp_path: Path, name: str, px: int) -> None:
    kind, size = ("tiny", f"model.encoder.image_px={px}") if px else ("linear", "model.image_px=0")
    settings = test_segment.TINY if px else ()
    recipe = without_crop(test_segment.recipe(kind, *settings, *SMALL, size))
    assert segment.main(recipe, run_paths_for(masks(tmp_path / "shards", name), tmp_path / "run")) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "scored"), [("mixed", ()), ("smaller", ()), ("mixed", test_detect_change.RELEASED)])
def test_change_detection_takes_pairs_of_any_size(tmp_path: Path, name: str, scored: tuple[str, ...]) -> None:
    recipe = test_detect_change.recipe(*SMALL, *scored, "weighting=none")
    assert detect_change.main(recipe, run_paths_for(pairs(tmp_path / "shards", name), tmp_path / "run")) == 0


@pytest.mark.parametrize(
    ("name", "zoom"),
    [*((name, "zoom=1.0") for name in SOME), ("mixed", "zoom=0.875"), ("mixed", "smoothing=0.0")],
)
def test_classification_takes_scenes_of_any_size(tmp_path: Path, name: str, zoom: str) -> None:
    recipe = without_crop(test_classify.recipe(*SMALL, "labels_from=labels", zoom))
    assert classify.main(recipe, run_paths_for(scenes(tmp_path / "shards", name), tmp_path / "run")) == 0  # type: ignore[arg-type]


def test_contrastive_pretraining_takes_samples_of_any_size(tmp_path: Path) -> None:
    recipe = without_crop(test_contrast.recipe("simclr", *SMALL, "model.image_px=16"))
    assert contrast.main(recipe, run_paths_for(masks(tmp_path / "shards", "mixed"), tmp_path / "run")) == 0  # type: ignore[arg-type]


# --- what the model sees -------------------------------------------------------------------


def shown(source: loader.Samples) -> Iterator[tuple[Array, Array]]:
    """Yield image and mask of each window as a model without a crop sees them, in stored units."""
    for batch in loader.load(source, loader.in_order(len(source), 3), threads=1):
        how = augment.draw(augment.AugmentRecipe(), batch.samples, batch.epoch, batch.valid_size, seed=0)
        images = augment.transform_images(batch.arrays["image"].float(), how, PX)
        targets = augment.transform_masks(batch.arrays["mask"].to(torch.int32), how, PX, 255)
        yield from zip(images.numpy(), targets.numpy(), strict=True)


@pytest.mark.parametrize("name", ALL)
def test_pixels_and_labels_are_those_of_the_samples(tmp_path: Path, name: str) -> None:
    samples = loader.Samples(masks(tmp_path / "shards", name), "train", ("image", "mask"))
    source = windows.fit_to_windows(samples, PX)
    seen = list(shown(source))
    covered = [np.zeros(size, int) for size in sizes_of(name)[:4]]
    rows = source.rows if isinstance(source, windows.WindowedSamples) else np.array([[n, 0, 0, 0, 0] for n in range(4)])
    for (number, top, left, _, _), (image, mask) in zip(rows.tolist(), seen, strict=True):
        whole = samples.read(number, "image")[:, top : top + PX, left : left + PX]
        height, width = whole.shape[1:]
        beyond = ((0, PX - height), (0, PX - width))
        np.testing.assert_array_equal(image, np.pad(whole, ((0, 0), *beyond), mode="reflect"))
        labels = samples.read(number, "mask")[top : top + PX, left : left + PX]
        np.testing.assert_array_equal(mask, np.pad(labels, beyond, constant_values=255))
        covered[number][top : top + PX, left : left + PX] += 1
    assert all((count > 0).all() for count in covered)


def test_no_more_than_the_cache_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = loader.Samples(masks(tmp_path / "shards", "larger"), "train", ("image", "mask"))
    source = windows.WindowedSamples(samples, windows.WindowRecipe(px=PX, stride=PX, remainder="covered", once=False))
    expected = list(shown(source))
    monkeypatch.setattr(windows, "CACHE_BYTES", 25_000)
    again = windows.WindowedSamples(samples, source.recipe)
    for (image, mask), (other, labels) in zip(shown(again), expected, strict=True):
        np.testing.assert_array_equal(image, other)
        np.testing.assert_array_equal(mask, labels)
    assert sum(array.nbytes for array in again._decoded.values()) <= 25_000


class Mean(nn.Module):
    """Records its images, and answers with the mean of each."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.images.append(images)
        return images.mean(dim=(2, 3))


def test_no_zoom_of_scenes_is_none() -> None:
    scenes = torch.arange(2 * 40 * 40.0).reshape(2, 1, 40, 40)
    model = Mean()
    valid_size = torch.tensor([[40, 22], [11, 13]])
    logits = predictor.predict_scenes(model, scenes, valid_size, PX, zoom=1.0)
    assert all(set(image.flatten().tolist()) <= set(scenes.flatten().tolist()) for image in model.images)
    tops, lefts = [0, 16, 24], [0, 6]
    expected = np.mean([scenes[0, 0, top : top + PX, left : left + PX].mean() for top in tops for left in lefts])
    assert float(logits[0]) == pytest.approx(float(expected))
    small = np.pad(scenes[1, 0, :11, :13].numpy(), ((0, 5), (0, 3)), mode="reflect")
    assert float(logits[1]) == pytest.approx(float(small.mean()), rel=1e-6)
    # Without the setting, whole scenes are resized to the image.
    resized = Mean()
    predictor.predict_scenes(resized, scenes, valid_size, PX, zoom=None)
    (image,) = resized.images
    assert tuple(image.shape) == (2, 1, PX, PX)
    assert not set(image.flatten().tolist()) <= set(scenes.flatten().tolist())


def test_padding_is_no_target_of_pretraining(tmp_path: Path) -> None:
    recipe = without_crop(test_pretrain.recipe("model.image_px=16", *SMALL))
    folder = masks(tmp_path / "shards", "smaller")
    source = pretrain._source(recipe, run_paths_for(folder, tmp_path / "run"))  # type: ignore[arg-type]
    setting = pretrain.training.resolve(recipe, source.contract, run_paths_for(folder, tmp_path / "run"))
    (batch,) = loader.load(source, loader.in_order(4, 4), threads=1)
    _, seen = pretrain._view(setting, batch, augment.centre_crop(batch.valid_size, PX))  # type: ignore[arg-type]
    expected = np.zeros((4, 12, PX, PX), bool)
    expected[:, :, :11, :13] = True
    np.testing.assert_array_equal(seen.numpy(), expected)


def test_the_extremes_of_an_image_ignore_its_padding() -> None:
    how = normalise.Normalisation(scheme="minmax", eps=1e-10, mean=(), std=())
    image = torch.full((1, 1, 4, 4), 100.0)
    image[0, 0, :2, :3] = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 3.0]])
    found = normalise.apply(how, image, torch.tensor([[2, 3]]))
    assert found[0, 0, :2, :3].flatten().tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.5])
