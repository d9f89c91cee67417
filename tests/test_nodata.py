"""Test that no data, however a file marks it, reaches neither statistics nor models nor losses as numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp
from synthetic_shards import CLASSES, contract, sample
from test_predict import NAMES, PX, saved, segmenter
from test_pretrain import recipe as pretraining
from test_pretrain import run_paths_for
from test_reported_issues import classes
from test_segment import TINY as SMALL
from test_segment import recipe as segmentation

from sgdata.audits import collect_evidence
from sgdata.datasets import build_patches
from sgdata.errors import SettingError, SourceError
from sgdata.pages import output_page as pages
from sgdata.shards import array_codec, contracts, statistics, write_shards
from sgdata.types import LabelSpace, Sample
from sgmodel.checkpoints import cards
from sgmodel.data import augment, loader, normalise
from sgmodel.models import specs
from sgmodel.recipes import pretrain, segment
from sgmodel.train import training

SIDE = 48
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[5:30, 20:] = True

# How a file marks no data: its number and type, or a mask.
NUMBERS = {"0": (0, "uint16"), "65535": (65535, "uint16"), "-9999": (-9999, "int16"), "nan": (np.nan, "float32")}
FORMS = (*NUMBERS, "mask", "mask beside", "alpha")


def scene(path: Path, form: str, number: int = 0) -> Path:
    """Write a scene with a hole in the given form; without a number the hole holds other pixels."""
    image = sample(number, "train", SIDE, SIDE).arrays["image"]
    nodata, dtype = NUMBERS.get(form, (None, "uint16"))
    values = image.astype(dtype)
    values[:, HOLE] = image[:, ::-1, ::-1][:, HOLE] if nodata is None else nodata
    profile = {"height": SIDE, "width": SIDE, "count": 12 + (form == "alpha"), "dtype": dtype, "crs": "EPSG:32632"}
    place = rasterio.transform.from_origin(690_120.0, 5_340_060.0, 10, 10)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=form == "mask"),
        rasterio.open(path, "w", driver="GTiff", nodata=nodata, transform=place, **profile) as dataset,
    ):
        dataset.write(values, list(range(1, 13)))
        for at, name in enumerate(NAMES, 1):
            dataset.set_band_description(at, name)
        dataset.scales = [1e-4] * dataset.count
        if form.startswith("mask"):
            dataset.write_mask(~HOLE)
        if form == "alpha":
            dataset.write(np.where(HOLE, 0, 65535).astype(np.uint16), 13)
            dataset.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * 11, ColorInterp.alpha]
    return path


def shards(out: Path, form: str) -> Path:
    """Write samples that are read from scenes with a hole in the given form."""
    samples = []
    for number in range(4):
        path = scene(out.parent / f"{out.name}-{number}.tif", form, number)
        with build_patches.open_raster(path, use="user") as raster:
            image = build_patches.read_window(raster, (0, 0, SIDE, SIDE))
        mask = sample(number, "train", SIDE, SIDE).arrays["mask"]
        samples.append(Sample(key=f"s{number}", split="train", arrays={"image": image, "mask": mask}))
    nodata = NUMBERS.get(form, NUMBERS["0"])[0]
    write_shards.write(samples, out, contract=dataclasses.replace(contract(SIDE), nodata=nodata))  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {form: shards(tmp_path_factory.mktemp("forms") / "shards", form) for form in FORMS}


def test_classes_of_seen_pixels_are_equal_for_every_form(tmp_path: Path) -> None:
    weights = saved(tmp_path / "weights", segmenter, contract(PX))
    found = {form: classes(scene(tmp_path / f"{form}.tif", form), weights, tmp_path / form) for form in FORMS}
    assert len(np.unique(found["0"][~HOLE])) > 1
    for form in FORMS:
        assert (found[form][HOLE] == 255).all()
        np.testing.assert_array_equal(found[form], found["0"])


def test_statistics_are_equal_for_every_form(folders: dict[str, Path]) -> None:
    expected = contracts.read(folders["0"]).statistics
    assert expected["B04"].count == 4 * (~HOLE).sum()
    assert expected["B04"].min > 100
    for folder in folders.values():
        assert contracts.read(folder).statistics == expected
        assert contracts.read(folder).fill == 0


@pytest.mark.parametrize("scheme", ["zscore", "minmax", "clip"])
@pytest.mark.parametrize("crop", ["[1.0, 1.0]", "[0.3, 0.8]"])
def test_the_loss_of_pretraining_is_equal_for_every_form(folders: dict[str, Path], scheme: str, crop: str) -> None:
    made = pretraining(f"normalise.scheme={scheme}", f"augment.crop_area={crop}", "model.image_px=48")
    found = {}
    for form, folder in folders.items():
        source = training.open_samples(folder, made.training, ("image",))
        setting = training.resolve(made, source.contract, run_paths_for(folder, folder / "run"))
        model = pretrain.build(setting.recipe)
        (batch,) = loader.load(source, loader.in_order(4, 4), threads=1)
        found[form] = {name: float(value.detach()) for name, value in pretrain.objective(setting, model, batch).items()}
    assert found["0"]["loss"] > 0
    for terms in found.values():
        assert terms == found["0"]


@pytest.mark.parametrize("scheme", ["zscore", "minmax"])
def test_the_loss_of_segmentation_is_equal_for_every_form(folders: dict[str, Path], scheme: str) -> None:
    made = segmentation("tiny", *SMALL, f"normalise.scheme={scheme}")
    found = {}
    for form, folder in folders.items():
        source = training.open_samples(folder, made.training, ("image", "mask"))
        setting = training.resolve(made, source.contract, run_paths_for(folder, folder / "run"))
        torch.manual_seed(0)
        model = segment.build(setting.recipe, CLASSES).eval()
        (batch,) = loader.load(source, loader.in_order(4, 4), threads=1)
        found[form] = float(segment.objective(setting, model, batch)["loss"].detach())
    assert set(found.values()) == {found["0"]}


def test_what_is_in_a_hole_does_not_change_the_loss_of_pretraining(folders: dict[str, Path]) -> None:
    made = pretraining("model.image_px=48", "mask_ratio=0.95")
    source = training.open_samples(folders["0"], made.training, ("image",))
    setting = training.resolve(made, source.contract, run_paths_for(folders["0"], folders["0"] / "run"))
    (batch,) = loader.load(source, loader.in_order(4, 4), threads=1)
    # The targets of a hole are no number at all, so that no prediction is compared with them.
    geometry = augment.centre_crop(batch.valid_size, SIDE)
    images, valid = pretrain._view(setting, batch, geometry)
    assert torch.equal(~valid, torch.from_numpy(HOLE).expand_as(valid))
    model = pretrain.build(setting.recipe)
    noise = torch.rand(4, setting.recipe.model.tokens)
    model(images, noise=noise, ratio=0.75, valid=valid).loss.backward()
    assert all(part.grad is None or bool(part.grad.isfinite().all()) for part in model.parameters())
    errors = []
    for junk in (0.0, 1e6):
        target = images.where(valid, torch.nan)
        pred = images.where(valid, junk) + 1
        patches = [pretrain.encoder.patchify(x, setting.recipe.model) for x in (pred, target)]
        result = model.compare(*patches, torch.ones(4, setting.recipe.model.tokens))
        errors.append([float(result.loss.detach()), *result.loss_band.tolist()])
    assert errors[0] == errors[1]
    assert errors[0][1:] == pytest.approx([1.0] * 12, rel=1e-4)


def test_extremes_are_those_of_seen_pixels() -> None:
    how = normalise.Normalisation(scheme="minmax", eps=0.0, mean=(), std=())
    stored = torch.tensor([[[[1000.0, 2000.0], [3000.0, torch.nan]]], [[[torch.nan] * 2] * 2]])
    found = normalise.apply(dataclasses.replace(how, eps=1e-10), stored, torch.tensor([[2, 2]] * 2))
    assert found[0].flatten().tolist() == [0.0, 0.5, 1.0, 0.0]
    assert found[1].flatten().tolist() == [0.0] * 4


def test_models_see_the_fill_of_their_contract(tmp_path: Path) -> None:
    data = dataclasses.replace(contract(PX), fill=2500.0)
    write_shards.write([sample(n, "train", PX, PX) for n in range(3)], tmp_path / "shards", contract=data)
    read = contracts.read(tmp_path / "shards")
    assert read.fill == 2500.0
    how = normalise.resolve(normalise.NormaliseRecipe(scheme="zscore", eps=0.0), read)
    known = normalise.mask_nodata(torch.tensor([[[[65535, 7]]] * 12]).reshape(1, 12, 1, 2), 65535)
    found = normalise.apply(how, known, torch.tensor([[1, 2]]))
    expected = [(2500.0 - mean) / std for mean, std in zip(how.mean, how.std, strict=True)]
    assert found[0, :, 0, 0].tolist() == pytest.approx(expected)
    card = cards.ModelCard(model=specs.describe(segmenter()), contract=read, normalisation=how)
    with pytest.raises(SettingError, match=r"normalisation differs from the weights': fill is 0.0, was 2500.0"):
        cards.compare(card, read, dataclasses.replace(how, fill=0.0), accept=())


# --- labels --------------------------------------------------------------------------------

CODES = {
    "uint8": 255, "int8": -1, "uint16": 65535, "int16": -9999, "int32": -(2**31), "int64": -1,
    "float32": np.nan, "float64": -9999.0, ">u2": 65535, ">i4": -1,
}  # fmt: skip


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("masked", [True, False])
def test_no_data_in_masks_of_any_type_is_the_value_to_ignore(dtype: str, masked: bool) -> None:
    nodata = CODES[dtype]
    ignore = 255 if masked or np.isnan(nodata) else int(nodata)
    space: LabelSpace = dataclasses.replace(contract(2).label_space, ignore=ignore)
    data = dataclasses.replace(contract(2), label_space=space)
    mask = np.array([[0, 1], [3, 0]], dtype)
    mask[1, 1] = nodata
    labels = np.ma.masked_invalid(np.ma.masked_equal(mask, nodata)) if masked else mask
    one = Sample(key="a", split="train", arrays={"image": np.full((12, 2, 2), 7, np.uint16), "mask": labels})
    stored = write_shards.storable(one, data).arrays["mask"]
    assert not isinstance(stored, np.ma.MaskedArray)
    assert stored.dtype.name in array_codec.STORED_DTYPES
    assert stored.dtype.kind != "f"
    assert stored.tolist() == [[0, 1], [3, ignore]]


def test_masked_pixels_without_a_number_are_refused_by_name() -> None:
    data = dataclasses.replace(contract(2), nodata=None)
    image = np.ma.masked_equal(np.arange(48, dtype=np.uint16).reshape(12, 2, 2), 5)
    with pytest.raises(SourceError, match="sample 'a': image has masked pixels, the contract no number for them"):
        write_shards.storable(Sample(key="a", split="train", arrays={"image": image}), data)
    floats = write_shards.storable(Sample(key="a", split="train", arrays={"image": image.astype(np.float32)}), data)
    assert np.isnan(floats.arrays["image"]).sum() == 1
    wider = write_shards.storable(
        Sample(key="a", split="train", arrays={"image": image}), dataclasses.replace(data, nodata=-9999)
    )
    assert (wider.arrays["image"] == -9999).sum() == 1


def test_values_that_are_no_data_are_not_counted() -> None:
    image = np.array([[[1.0, np.nan, -9999.0, 3.0]]], np.float32)
    total = statistics.empty(1)
    statistics.add(image, total, statistics.valid_mask(image, -9999))
    assert np.flatnonzero(total[0]).tolist() == [1, 3]
    assert total.sum() == 2


def test_pages_and_audits_take_nan_and_class_values_above_255(tmp_path: Path) -> None:
    space = dataclasses.replace(contract(SIDE).label_space, ids=(300, 301, 302, 303), ignore=-1)
    samples = []
    for number in range(4):
        one = sample(number, "train", SIDE, SIDE)
        image = one.arrays["image"].astype(np.float32)
        image[:, HOLE] = np.nan
        mask = one.arrays["mask"].astype(np.int32)
        arrays = {"image": image, "mask": np.where(mask == 255, -1, mask + 300)}
        samples.append(dataclasses.replace(one, arrays=arrays))
    data = dataclasses.replace(contract(SIDE), nodata=None, label_space=space)
    write_shards.write(samples, tmp_path / "shards", contract=data)
    pages.write(tmp_path / "shards", tmp_path / "page", ())
    assert "left" in (tmp_path / "page" / "index.html").read_text()
    facts = collect_evidence.collect_evidence(collect_evidence.detect_subject(tmp_path / "shards"), workers=1)
    assert facts.totals.count.tolist() == [4 * (~HOLE).sum()] * 12
