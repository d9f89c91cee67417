"""Test every training program at its limits: no epoch, one sample, excessive learning rates, non-finite samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_shards import (
    contract,
    pair,
    pair_contract,
    sample,
    scene,
    scene_contract,
    write,
    write_pairs,
    write_scenes,
)

from sgdata import files, package_data
from sgdata.errors import SgdataError
from sgdata.shards import write_shards
from sgmodel import distributed
from sgmodel.data import augment
from sgmodel.models import heads
from sgmodel.recipes import classify, contrast, detect_change, pretrain, segment
from sgmodel.train import run_paths

TRAIN = package_data.folder("recipes") / "train"
SMALL = ("model.encoder.width=32", "model.encoder.depth=2", "training.batch=4", "training.epochs=1")
BASELINE = ("training.batch=4", "training.epochs=1")
CASES: dict[str, tuple[ModuleType, str, tuple[str, ...]]] = {
    "segment": (segment, "segment-demo-tiny", (*SMALL, "model.encoder.image_px=32")),
    "segment-baseline": (segment, "segment-demo-baseline", (*BASELINE, "model.image_px=32")),
    "classify": (classify, "classify-demo-tiny", (*SMALL, "model.encoder.image_px=16", "labels_from=labels")),
    "classify-baseline": (classify, "classify-demo-baseline", (*BASELINE, "labels_from=labels")),
    "detect_change": (
        detect_change,
        "detect_change-demo-tiny",
        (*SMALL, "model.encoder.image_px=16", "windows.px=16", "val_split=test"),
    ),
    "pretrain": (
        pretrain,
        "pretrain-demo-tiny",
        ("model.image_px=32", "model.width=32", "model.depth=2", *BASELINE, "augment.crop_area=[1.0, 1.0]"),
    ),
    "contrast": (contrast, "contrast-demo-simclr", BASELINE),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("edges")
    maps, scenes, pairs = write(top / "maps"), write_scenes(top / "scenes"), write_pairs(top / "pairs")
    kinds = {"classify": scenes, "classify-baseline": scenes, "detect_change": pairs}
    return {name: kinds.get(name, maps) for name in CASES}


def run(name: str, folder: Path, out: Path, *overrides: str, **others: Any) -> int:
    module, recipe, settings = CASES[name]
    made = files.read(module.PROGRAM.recipe, TRAIN / f"{recipe}.toml", (*settings, *overrides))
    paths = run_paths.RunPaths(shards=folder, out=out, device="cpu", threads=1)
    code: int = module.main(made, dataclasses.replace(paths, **others))
    return code


@pytest.mark.parametrize("name", sorted(CASES))
def test_without_an_epoch_the_weights_are_scored(
    name: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, folders[name], tmp_path / "run", "training.epochs=0") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures
    assert all(np.isfinite(value) for value in figures.values())
    assert not (tmp_path / "run" / "checkpoint-last").exists()


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_learning_rate_too_high_is_reported_with_the_samples(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    high = ("training.optimizer.lr=1e30", "training.optimizer.warmup_epochs=0", "training.epochs=3")
    with pytest.raises(
        SgdataError, match=r"step \d: .*(not finite for all 4 samples|every sample alone|not finite for)"
    ):
        run(name, folders[name], tmp_path, *high)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs=-1", "epochs' is -1: expected 0 to"),
        ("batch=0", "batch' is 0: expected 1 to"),
        ("accumulate=0", "accumulate' is 0: expected 1 to"),
        ("log_every=0", "log_every' is 0: expected 1 to"),
        ("ema_decay=1.0", "ema_decay' is 1: expected 0 to"),
        ("seed=99999999999", "seed' is 99999999999: expected 0 to 4294967295"),
    ],
)
def test_settings_of_which_nothing_can_be_made(
    setting: str, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(SgdataError, match=message):
        run("segment", folders["segment"], tmp_path, f"training.{setting}")


@pytest.mark.parametrize(
    ("name", "more"), [("classify", ("mode=linear-probe",)), ("segment-baseline", ()), ("classify", ())]
)
def test_a_batch_of_one_trains_or_is_refused_with_the_reason(
    name: str, more: tuple[str, ...], folders: dict[str, Path], tmp_path: Path
) -> None:
    alone = ("training.batch=1", "training.accumulate=1", "training.epochs=0.5", *more)
    if name == "classify" and not more:
        assert run(name, folders[name], tmp_path, *alone) == 0
        return
    with pytest.raises(SgdataError, match=r"a micro-batch has 1 samples, and the model normalises over them"):
        run(name, folders[name], tmp_path, *alone)


@pytest.mark.parametrize("mode", ["finetune", "linear-probe"])
@pytest.mark.parametrize("name", ["segment", "segment-baseline", "classify", "classify-baseline", "detect_change"])
def test_a_sample_that_poisons_its_batch_is_named(name: str, mode: str, tmp_path: Path) -> None:
    if name.startswith("classify"):
        made, form = [scene(n, "train" if n < 4 else "val", 16) for n in range(5)], scene_contract(16)
    elif name == "detect_change":
        made, form = (
            [pair(f"city-{n}", "train" if n < 4 else "test", 16, 16, seed=n) for n in range(5)],
            pair_contract(),
        )
    else:
        made, form = [sample(n, "train" if n < 4 else "val", 32, 32) for n in range(5)], contract(32)
    member = "image_after" if name == "detect_change" else "image"
    made[2].arrays[member][3] = 1000  # a constant band, which min-max without eps divides by zero
    write_shards.write(made, tmp_path / "shards", contract=form)
    message = rf"not finite for 1 of 4 samples: {made[2].key}"
    poison = ("normalise.scheme=minmax", "normalise.eps=0", f"mode={mode}", "training.accumulate=1")
    still = () if name.startswith("classify") or name == "detect_change" else ("model.head.skip=0",)
    with pytest.raises(SgdataError, match=message):
        run(name, tmp_path / "shards", tmp_path / "run", *poison, *still)


def test_labels_outside_the_classes_are_named(tmp_path: Path) -> None:
    for split in (0, 4):
        made = [sample(n, "train" if n < 4 else "val", 32, 32) for n in range(5)]
        made[split].arrays["mask"][:] = 77
        folder = tmp_path / f"shards-{split}"
        write_shards.write(made, folder, contract=contract(32))
        with pytest.raises(
            SgdataError, match=rf"masks of {made[split].key} hold \[77\], expected classes 0 to 3 or 255"
        ):
            run("segment", folder, tmp_path / f"run-{split}")


def test_scenes_without_any_change_cannot_balance_it(tmp_path: Path) -> None:
    made = [pair(f"city-{n}", "train" if n < 2 else "test", 32, 32, seed=n) for n in range(3)]
    for one in made:
        one.arrays["mask"][:] = 0
    write_shards.write(made, tmp_path / "shards", contract=pair_contract())
    with pytest.raises(SgdataError, match=r"weighting is 'share', 0% of the training scenes' labelled pixels"):
        run("detect_change", tmp_path / "shards", tmp_path / "run", "weighting=share")


@pytest.mark.parametrize("name", ["segment-baseline", "classify-baseline"])
def test_a_model_of_any_size_takes_samples_of_many(name: str, tmp_path: Path) -> None:
    if name.startswith("classify"):
        made, form = [scene(n, "train" if n < 4 else "val", 16 + 8 * (n % 2)) for n in range(6)], scene_contract(16)
    else:
        made, form = [sample(n, "train" if n < 4 else "val", 32, 24 + 8 * (n % 2)) for n in range(6)], contract(32)
    write_shards.write(made, tmp_path / "shards", contract=dataclasses.replace(form, shape=None))
    any_size = ("model.backbone=unet", "model.image_px=0", "model.options={}")
    run(name, tmp_path / "shards", tmp_path / "run", *any_size)
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("segment", "model.encoder.patch_px=0", "patch_px is 0: expected 1 or more"),
        ("segment", "model.encoder.heads=0", "heads is 0: expected 1 or more"),
        ("segment", "model.head.groups=7", "model 'spectralgpt' cannot be made: num_channels .* must be divisible"),
        ("segment", "training.optimizer.betas=[2, 3]", "training.optimizer.betas' is 2: expected 0 to"),
        ("segment", "augment.crop_area=[1.0, 0.1]", r"augment.crop_area is \(1.0, 0.1\), .*expected low <= high"),
        ("pretrain", "picture_every=0", "picture_every is 0: expected 1 or more"),
        ("pretrain", "model.image_px=36", "image_px 36 is not a multiple of patch_px 8"),
    ],
)
def test_models_and_crops_that_cannot_be_made(
    name: str, setting: str, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(SgdataError, match=message) as refusal:
        run(name, folders[name], tmp_path, setting)
    assert "\n" not in str(refusal.value)


def test_autocast_leaves_pixels_alone() -> None:
    x = torch.rand(2, 3, 16, 16)
    crop = augment.centre_crop(torch.tensor([[16, 16], [12, 12]]), 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = augment.transform_images(x, crop, 10)
    assert torch.equal(halved, augment.transform_images(x, crop, 10))


def test_partners_stay_together_on_any_number_of_processes(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(
        SgdataError, match="batch 6 in 1 parts on each of 2 processes: mixup and CutMix pair neighbours"
    ):
        run("classify", folders["classify"], tmp_path, "training.batch=6", "mix.mixup=0.8")


def test_the_probe_normalises_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = 3 + 2 * torch.randn(8, 5, 4, 4)
    one, two = heads.Probe(5, 3, dense=True), heads.Probe(5, 3, dense=True)
    two.load_state_dict(one.state_dict())
    expected = one(whole)

    def mean(figures: torch.Tensor) -> torch.Tensor:
        halves = [half.double() for half in whole.chunk(2)]
        return torch.stack([torch.stack([h.mean((0, 2, 3)), h.square().mean((0, 2, 3))]) for h in halves]).mean(0)

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "mean", mean)
    torch.testing.assert_close(torch.cat([two(half) for half in whole.chunk(2)[:1]]), expected[:4])
    for name, buffer in two.norm.state_dict().items():
        torch.testing.assert_close(buffer, one.norm.state_dict()[name])
