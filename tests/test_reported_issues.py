"""Test issues reported for other libraries and models, one test per issue; xfail if this package is affected."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pickle
import resource
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from synthetic_shards import contract, sample, scene, scene_contract, write
from test_encoder import TINY
from test_predict import (
    NAMES,
    PX,
    change_contract,
    classifier,
    detector,
    geotiff,
    pixels,
    raster,
    refused,
    restless,
    run,
    saved,
    segmenter,
)
from test_pretrain import recipe as pretraining
from test_pretrain import run_paths_for
from test_segment import TINY as SMALL
from test_segment import recipe as segmentation
from test_segment import results
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

import sgmodel
from sgdata import package_data
from sgdata.errors import ExitCode, SourceError
from sgdata.shards import contracts, write_shards
from sgdata.types import Array, Sample
from sgmodel import commands
from sgmodel.checkpoints import cards, load_weights, weight_files
from sgmodel.data import loader, normalise
from sgmodel.models import encoder, heads, mae
from sgmodel.recipes import pretrain, segment

Change = Callable[[Sample], None]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("weights") / "segmenter", segmenter, contract(PX))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cases") / "shards", train=6, val=3)


def sealed(out: Path, change: Change, **other: object) -> Path:
    """Copy the shards of `folder` with each sample passed through `change` and `other` fields in the contract."""
    samples = [sample(n, "train" if n < 6 else "val", 32, 32) for n in range(9)]
    for one in samples:
        change(one)
    write_shards.write(samples, out, contract=dataclasses.replace(contract(32), **other))  # type: ignore[arg-type]
    return out


def retyped(member: str, dtype: str) -> Change:
    """Convert one array of a sample to another type."""

    def change(one: Sample) -> None:
        one.arrays[member] = one.arrays[member].astype(dtype)

    return change


def holed(number: int, dtype: str = "uint16") -> Change:
    """Set a sixteenth of a sample to `number` as nodata."""

    def change(one: Sample) -> None:
        one.arrays["image"] = one.arrays["image"].astype(dtype)
        one.arrays["image"][:, :8, :8] = number

    return change


def segmented(shards: Path, out: Path, *settings: str) -> dict[str, Any]:
    """Train a tiny segmenter and return its results."""
    assert segment.main(segmentation("tiny", *SMALL, *settings), run_paths_for(shards, out)) == 0
    return results(out)


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def classes(path: Path, weights: Path, out: Path) -> Array:
    """Return the class map of a GeoTIFF."""
    assert run("--input", path, "--weights", weights, "--level", "L2A", "--out", out) == 0
    return raster(out / "classes.tif")[0]


@contextmanager
def looked(kind: type[nn.Module], note: Callable[[nn.Module, int], None]) -> Iterator[None]:
    """Call `note` with each model of `kind` and the batch size before each forward pass within the context."""

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, kind):
            note(module, len(inputs[0]))

    hook = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


# --- no data -------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "dtype"), [(65535, "uint16"), (-9999, "int16")])
def test_the_nodata_value_does_not_change_neighbouring_classes(
    tmp_path: Path, weights: Path, number: int, dtype: str
) -> None:
    hole = np.zeros((64, 64), bool)
    hole[:, 40:] = True
    found = []
    for declared, kind in ((0, "uint16"), (number, dtype)):
        values = pixels(64, 64).astype(kind)
        values[:, hole] = declared
        path = geotiff(tmp_path / f"{declared}.tif", values)
        with rasterio.open(path, "r+") as dataset:
            dataset.nodata = declared
        found.append(classes(path, weights, tmp_path / f"out{declared}"))
    assert (found[1][hole] == 255).all()
    np.testing.assert_array_equal(found[1], found[0])


@pytest.mark.parametrize("scheme", ["zscore", "minmax"])
def test_the_nodata_value_does_not_change_the_loss(tmp_path: Path, scheme: str) -> None:
    curves = []
    for number in (0, 65535):
        shards = sealed(tmp_path / f"shards{number}", holed(number), nodata=number)
        segmented(shards, tmp_path / f"run{number}", f"normalise.scheme={scheme}")
        curves.append(losses(tmp_path / f"run{number}"))
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)


def test_statistics_leave_out_negative_no_data(tmp_path: Path) -> None:
    shards = sealed(tmp_path / "shards", holed(-9999, "int32"), nodata=-9999)
    found = contracts.read(shards).statistics["B04"]
    band = np.stack([sample(n, "train", 32, 32).arrays["image"][NAMES.index("B04")] for n in range(6)]).astype(float)
    band[:, :8, :8] = np.nan
    assert found.count == np.isfinite(band).sum()
    assert (found.min, found.max) == (np.nanmin(band), np.nanmax(band))
    assert (found.mean, found.std) == pytest.approx((np.nanmean(band), np.nanstd(band)))


# --- scenes --------------------------------------------------------------------------------


def test_pixels_of_ten_metres_but_for_the_last_bit(tmp_path: Path, weights: Path) -> None:
    values = pixels(32, 32)
    plain = geotiff(tmp_path / "plain.tif", values)
    noisy = geotiff(tmp_path / "noisy.tif", values, gsd=10.000000000000002)
    found = [classes(path, weights, tmp_path / path.stem) for path in (plain, noisy)]
    np.testing.assert_array_equal(*found)


def test_two_dates_on_one_grid_but_for_the_last_bit(tmp_path: Path) -> None:
    weights = saved(tmp_path / "w", detector, change_contract())
    before = geotiff(tmp_path / "before.tif", pixels(PX, PX))
    after = geotiff(tmp_path / "after.tif", pixels(PX, PX, seed=2))
    with rasterio.open(after, "r+") as dataset:
        dataset.transform = from_origin(690_120.0, np.nextafter(5_340_060.0, np.inf), 10.0, 10.0)
    pair = ("--input", before, "--after", after, "--weights", weights, "--level", "L2A")
    assert run(*pair, "--out", tmp_path / "out") == 0


def test_ten_units_of_web_mercator_are_fewer_metres_on_the_ground(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = geotiff(tmp_path / "scene.tif", pixels(20, 20))
    with rasterio.open(path, "r+") as dataset:
        dataset.crs = "EPSG:3857"
        dataset.transform = from_origin(1_280_000.0, 6_130_000.0, 10.0, 10.0)  # 48.1 degrees north
    line = refused(capsys, "--input", path, "--weights", weights, "--out", tmp_path / "out", "--level", "L2A")
    assert "6.7" in line


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="gee-community/qgis-earthengine-plugin#366: QA60 refused")
def test_a_band_of_flags_beside_all_that_are_needed(tmp_path: Path, weights: Path) -> None:
    values = pixels(32, 32)
    plain = geotiff(tmp_path / "plain.tif", values)
    more = geotiff(tmp_path / "more.tif", np.concatenate([values[:1] % 4, values]), names=("QA60", *NAMES))
    found = [classes(path, weights, tmp_path / path.stem) for path in (plain, more)]
    np.testing.assert_array_equal(*found)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="microsoft/PlanetaryComputer#134: known, not applied")
def test_the_offset_of_a_header_is_applied(tmp_path: Path, weights: Path) -> None:
    values = pixels(32, 32)
    values[:, :5, :5] = 0
    plain = geotiff(tmp_path / "plain.tif", values)
    moved = geotiff(tmp_path / "moved.tif", np.where(values, values + 1000, 0).astype(np.uint16))
    with rasterio.open(moved, "r+") as dataset:
        dataset.scales, dataset.offsets = [1e-4] * 12, [-0.1] * 12
    found = [classes(path, weights, tmp_path / path.stem) for path in (plain, moved)]
    np.testing.assert_array_equal(*found)


# --- samples -------------------------------------------------------------------------------


def test_samples_go_to_another_process(folder: Path) -> None:
    samples = loader.Samples(folder, "train", ("image", "mask"))
    again = pickle.loads(pickle.dumps(samples))
    assert len(again) == len(samples)
    for number in range(len(samples)):
        for name, array in samples[number].items():
            assert torch.equal(again[number][name], array)


def test_masks_of_16_bits_train_like_those_of_8(folder: Path, tmp_path: Path) -> None:
    wide = sealed(tmp_path / "shards", retyped("mask", "uint16"))
    assert segmented(wide, tmp_path / "wide") == segmented(folder, tmp_path / "run")
    assert losses(tmp_path / "wide") == losses(tmp_path / "run")


@pytest.mark.parametrize(("member", "dtype"), [("image", "int16"), ("image", "float64"), ("mask", "int64")])
def test_other_types_are_stored_or_refused_by_name(tmp_path: Path, member: str, dtype: str) -> None:
    try:
        shards = sealed(tmp_path / "shards", retyped(member, dtype))
    except SourceError as error:
        assert dtype in str(error)  # noqa: PT017
        return
    found = loader.Samples(shards, "train", (member,))
    for number in range(6):
        np.testing.assert_array_equal(found.read(number, member), sample(number, "train", 32, 32).arrays[member])


def test_class_values_with_gaps_train_like_those_without(folder: Path, tmp_path: Path) -> None:
    def worldcover(one: Sample) -> None:
        mask = one.arrays["mask"]
        one.arrays["mask"] = np.where(mask == 255, 0, (mask + 1) * 10).astype(np.uint8)

    space = dataclasses.replace(contract(32).label_space, ids=(10, 20, 30, 40), ignore=0)
    coded = sealed(tmp_path / "shards", worldcover, label_space=space)
    assert segmented(coded, tmp_path / "coded") == segmented(folder, tmp_path / "plain")
    path = geotiff(tmp_path / "scene.tif", sample(9, "val", 32, 32).arrays["image"])
    plain, found = (
        classes(path, tmp_path / name / "checkpoint-last", tmp_path / f"map-{name}") for name in ("plain", "coded")
    )
    np.testing.assert_array_equal(found, (plain + 1) * 10)


# --- runs ----------------------------------------------------------------------------------


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Limit the size of files to `room` bytes within the context."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_reported_in_one_line_and_the_same_command_resumes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = package_data.folder("recipes") / "train" / "pretrain-demo-tiny.toml"
    settings = ("model.image_px=32", "augment.crop_area=[1.0, 1.0]", "training.epochs=1", "picture_every=100")
    line = [path, "--shards", folder, "--out", tmp_path / "run", "--device", "cpu", "--threads", 1, "-q"]
    argv = [*map(str, line), *(f"--set={text}" for text in settings)]
    with full_disk(200_000), pytest.raises(SystemExit) as ended:
        commands.run_training(pretrain.PROGRAM, argv)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "cannot be written" in said and said.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        commands.run_training(pretrain.PROGRAM, argv)
    assert ended.value.code == 0


def test_all_files_of_a_checkpoint_have_the_rights_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        made = saved(tmp_path / "checkpoint", segmenter, contract(PX))
    finally:
        os.umask(before)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()} == {
        "SHA256SUMS": 0o640,
        "card.json": 0o640,
        "model.safetensors": 0o640,
    }


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="Lightning-AI/pytorch-lightning#4265: SIGUSR1 is no end")
def test_the_warning_signal_of_slurm_saves_and_the_same_command_resumes(folder: Path, tmp_path: Path) -> None:
    seen = []

    def warn(model: nn.Module, size: int) -> None:
        seen.append(size)
        if len(seen) == 3:  # in the second step: two parts make one
            signal.raise_signal(signal.SIGUSR1)

    # Where the program does not listen, the signal would end this process.
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with looked(mae.MaskedAutoencoder, warn):
            code = pretrain.main(pretraining(), run_paths_for(folder, tmp_path))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert code == ExitCode.FINDINGS
    assert json.loads((tmp_path / "checkpoint-last" / "training.json").read_text())["steps"] == 2
    assert pretrain.main(pretraining(), run_paths_for(folder, tmp_path)) == 0


@pytest.fixture(scope="module")
def stopped(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run stopped after two steps."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    assert pretrain.main(pretraining(), run_paths_for(folder, out, stop_after=2)) == ExitCode.FINDINGS
    return out


@pytest.mark.parametrize(
    "setting", ["training.log_every=5", "training.accumulate=4", "training.recompute=true", "picture_every=2"]
)
def test_a_run_resumes_with_settings_that_change_no_result(
    folder: Path, stopped: Path, tmp_path: Path, setting: str
) -> None:
    states = []
    for name, settings in (("same", ()), ("other", (setting,))):
        shutil.copytree(stopped, tmp_path / name)
        made = pretraining(*settings)
        assert pretrain.main(made, run_paths_for(folder, tmp_path / name, stop_after=1)) == ExitCode.FINDINGS
        states.append(weight_files.read_safetensors(tmp_path / name / "checkpoint-last" / "model.safetensors"))
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-4)


def test_a_run_resumes_to_more_epochs(folder: Path, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    assert pretrain.main(pretraining("training.epochs=8"), run_paths_for(folder, tmp_path / "run")) == 0
    assert len(losses(tmp_path / "run")) == 12


def test_no_more_samples_are_scored_at_once_than_trained(folder: Path, tmp_path: Path) -> None:
    sizes: dict[bool, list[int]] = {True: [], False: []}
    with looked(heads.Segmenter, lambda model, size: sizes[model.training].append(size)):
        segmented(folder, tmp_path, "training.accumulate=4", "training.epochs=1")
    assert max(sizes[True]) == 1
    assert max(sizes[False]) == 1


# --- other people's tools ------------------------------------------------------------------


@pytest.mark.xfail(strict=True, raises=RuntimeError, reason="roboflow/rf-detr#949: the batch is fixed")
@pytest.mark.parametrize("make", [classifier, segmenter], ids=lambda make: make.__name__)
def test_an_exported_model_accepts_batches_of_any_size(make: Callable[[], nn.Module]) -> None:
    model, images = make().eval(), torch.rand(5, 12, PX, PX)
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=shapes).module()
    for size in (1, 5):
        torch.testing.assert_close(program(images[:size]), model(images[:size]), rtol=1e-4, atol=1e-5)


def timm_model(**options: object) -> Any:
    """Return a model of this package created by timm, without memory for its weights."""
    from sgmodel import timm_models  # noqa: F401  # before timm: it lets timm's torchvision be imported

    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        return timm.create_model("spectralgpt_base_patch8_96", **options)


@pytest.mark.xfail(strict=True, raises=TypeError, reason="huggingface/pytorch-image-models#2131: no features_only")
def test_timm_gives_maps_of_features_to_decoders() -> None:
    model = timm_model(features_only=True, out_indices=(3, 11))
    assert model.feature_info.channels() == [768, 768]
    assert model.feature_info.reduction() == [8, 8]
    with torch.device("meta"):
        assert [layer.shape for layer in model(torch.empty(2, 12, 96, 96))] == [(2, 768, 12, 12)] * 2


@pytest.mark.xfail(strict=True, raises=TypeError, reason="huggingface/pytorch-image-models#397: no drop_rate")
def test_timm_sets_the_dropout_before_the_head() -> None:
    model = timm_model(num_classes=10, drop_rate=0.1)
    assert 0.1 in [part.p for part in model.modules() if isinstance(part, nn.Dropout)]


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="huggingface/pytorch-image-models#1957: that of RGB")
def test_timm_reports_the_image_size_of_a_model() -> None:
    model = timm_model()
    data = importlib.import_module("timm.data")
    found = data.resolve_model_data_config(model)
    assert found["input_size"] == (12, 96, 96)
    assert len(found["mean"]) == len(found["std"]) == 12


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="huggingface/pytorch-image-models#2131: no layer decay")
def test_timm_decays_learning_rates_by_layer() -> None:
    model = timm_model(num_classes=10)
    optim = importlib.import_module("timm.optim")
    groups = optim.param_groups_layer_decay(model, layer_decay=0.75)
    # The embedding, twelve blocks, and the head, whose rate stays as it is.
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales == pytest.approx([0.75**depth for depth in range(13, -1, -1)])
    assert sum(len(group["params"]) for group in groups) == len([p for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"])
def test_names_of_wrappers_are_removed_at_any_position(tmp_path: Path, wrapper: str) -> None:
    torch.manual_seed(1)
    state = restless().state_dict()
    names = {name: name.split(".") for name in state}
    within = {name: [*p[:2], wrapper, *p[2:]] if p[0] == "blocks" else p for name, p in names.items()}
    torch.save({".".join([wrapper, *within[name]]): tensor for name, tensor in state.items()}, tmp_path / "w.pth")
    model = encoder.Encoder(TINY)
    assert load_weights.fit(model, load_weights.read_weights(tmp_path / "w.pth"), at_least=1.0).encoder_share == 1.0
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


BESIDE = {"array": np.arange(3.0), "random state": np.random.RandomState(0).get_state(), "str_": np.str_("x")}


@pytest.mark.parametrize("kind", BESIDE)
def test_values_of_numpy_beside_the_weights_do_no_harm(tmp_path: Path, kind: str) -> None:
    state = restless().state_dict()
    torch.save({"state_dict": state, "beside": BESIDE[kind]}, tmp_path / "w.pth")
    found = load_weights.read_weights(tmp_path / "w.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())


@pytest.mark.xfail(strict=True, raises=ValueError, reason="Clay-foundation/model#73: no GIS opens patches.parquet")
def test_patches_of_a_scene_are_places_to_a_gis(tmp_path: Path) -> None:
    weights = saved(tmp_path / "w", classifier, scene_contract(PX))
    path = geotiff(tmp_path / "scene.tif", pixels(2 * PX, 2 * PX))
    classes(path, weights, tmp_path / "out")
    rows = geopandas.read_parquet(tmp_path / "out" / "patches.parquet")
    assert rows.crs.to_epsg() == 32632
    side = 10 * PX
    found = {tuple(bounds) for bounds in rows.bounds.itertuples(index=False)}
    corners = [(690_120 + j * side, 5_340_060 - i * side) for i in range(2) for j in range(2)]
    assert found == {(west, north - side, west + side, north) for west, north in corners}


@pytest.mark.xfail(strict=True, raises=ValueError, reason="Clay-foundation/model#73: no GIS opens the embeddings")
def test_embeddings_of_samples_are_places_to_a_gis(tmp_path: Path) -> None:
    samples = [scene(n, "val", PX) for n in range(3)]
    for number, one in enumerate(samples):
        one.meta["bounds"] = (11.0 + number, 48.0, 11.5 + number, 48.5)
    write_shards.write(samples, tmp_path / "shards", contract=scene_contract(PX))
    weights = saved(tmp_path / "w", classifier, scene_contract(PX))
    same = ("--input", tmp_path / "shards", "--weights", weights, "--out", tmp_path / "out")
    assert run(*same, "--what", "embeddings") == 0
    rows = geopandas.read_parquet(tmp_path / "out" / "patches.parquet")
    assert rows.crs.to_epsg() == 4326
    assert [tuple(one) for one in rows.bounds.to_numpy()] == [one.meta["bounds"] for one in samples]
    assert {len(embedding) for embedding in rows["embedding"]} == {TINY.width}


def normalised(card: cards.ModelCard, stored: torch.Tensor) -> torch.Tensor:
    assert card.normalisation is not None
    valid_size = torch.tensor(stored.shape[-2:]).expand(len(stored), 2)
    return normalise.apply(card.normalisation, stored, valid_size)


@pytest.mark.xfail(strict=True, raises=AttributeError, reason="nasaharvest/galileo#27: no way from pixels to a vector")
@pytest.mark.parametrize(
    "make", [lambda: mae.MaskedAutoencoder(restless()), segmenter], ids=["pretrained", "fine-tuned"]
)
def test_a_loaded_model_gives_a_vector_of_stored_pixels(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    saved(tmp_path, make, contract(PX))
    stored = torch.from_numpy(pixels(PX, PX).astype(np.int32))[None]
    model: Any = sgmodel.load(tmp_path)
    with torch.no_grad():
        found = model.embed(stored)
        parts = model.backbone.encoder if hasattr(model, "backbone") else model
        expected = parts.norm(encoder.tokens(parts, normalised(cards.read(tmp_path), stored))).mean(dim=1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("ids", "ignore", "dtype"),
    [((3, 255, 300, 1000), None, "uint16"), ((0, 1, 2, 700), 65535, "uint16"), ((10, 20, 30, 40), -1, "int32")],
)
def test_class_values_above_255_train_and_are_written(
    folder: Path, tmp_path: Path, ids: tuple[int, ...], ignore: int | None, dtype: str
) -> None:
    space = dataclasses.replace(contract(32).label_space, ids=ids, ignore=ignore)

    def wide(one: Sample) -> None:
        mask = one.arrays["mask"]
        one.arrays["mask"] = np.array([*ids, space.ignore_index])[np.where(mask == 255, 4, mask)]

    coded = sealed(tmp_path / "shards", wide, label_space=space)
    assert segmented(coded, tmp_path / "coded") == segmented(folder, tmp_path / "plain")
    values = sample(9, "val", 32, 32).arrays["image"]
    values[:, :4] = 0
    path = geotiff(tmp_path / "scene.tif", values)
    plain, found = (
        classes(path, tmp_path / name / "checkpoint-last", tmp_path / f"map-{name}") for name in ("plain", "coded")
    )
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.array([*ids, space.ignore_index])[np.where(plain == 255, 4, plain)])
    weights = tmp_path / "coded" / "checkpoint-last"
    assert run("--input", coded, "--weights", weights, "--out", tmp_path / "pictures") == 0
    picture = np.asarray(Image.open(next((tmp_path / "pictures" / "classes").glob("*.png"))))
    assert set(np.unique(picture).tolist()) <= set(ids)
