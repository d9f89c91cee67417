"""Test prediction: tiles without seams, georeferenced maps, and refusal of mismatched inputs and weights."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from baselines import build
from hypothesis import given, settings
from hypothesis import strategies as st
from model_commands import sgmodel
from rasterio.transform import from_origin
from synthetic_shards import CLASSES, contract, scene_contract, write, write_scenes
from test_encoder import TINY
from test_upernet import NARROW
from torch import nn

from sgdata import files, sentinel2, verification
from sgdata.shards import contracts, tar_format, write_shards
from sgdata.types import Array, Contract, LabelSpace, Sample
from sgmodel import devices
from sgmodel.checkpoints import cards
from sgmodel.checkpoints import checkpoint_folder as folders
from sgmodel.data import normalise
from sgmodel.inference import predict, tiling
from sgmodel.models import contrastive, encoder, factory, heads, mae, specs
from sgmodel.models.spectralgpt import SpectralGPT

NAMES = sentinel2.L2A_BANDS
PX = TINY.image_px


# --- makings -------------------------------------------------------------------------------


def restless() -> encoder.Encoder:
    """Return an encoder that depends strongly on the position within a tile, the worst case for seams."""
    part = encoder.Encoder(TINY)
    with torch.no_grad():
        part.pos_embed_spatial.normal_(std=2.0)
    return part


def segmenter() -> nn.Module:
    return heads.Segmenter(SpectralGPT(restless()), CLASSES, dataclasses.replace(NARROW, skip=4))


def classifier() -> nn.Module:
    return heads.Classifier(SpectralGPT(restless()), CLASSES)


def detector() -> nn.Module:
    return heads.ChangeDetector(SpectralGPT(restless()), NARROW)


def saved(folder: Path, make: Callable[[], nn.Module], data: Contract, *, zoom: float = 1.0, **how: object) -> Path:
    """Save a checkpoint of a random model whose card records training on `data`."""
    torch.manual_seed(0)
    model = make()
    normal = normalise.Normalisation(scheme="zscore", eps=0.0, mean=(2000.0,) * 12, std=(1000.0,) * 12, **how)  # type: ignore[arg-type]
    card = cards.ModelCard(model=specs.describe(model), contract=data, normalisation=normal, recipe={"zoom": zoom})
    folders.save(folder, model, card)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("weights") / "segmenter", segmenter, contract(PX))


def pixels(height: int, width: int, seed: int = 1) -> Array:
    rng = np.random.Generator(np.random.Philox(key=[seed, 9]))
    return rng.integers(1, 4000, (12, height, width)).astype(np.uint16)


def geotiff(path: Path, values: Array, names: tuple[str, ...] = NAMES, gsd: float = 10.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    about = {"count": count, "height": height, "width": width, "dtype": values.dtype, "crs": "EPSG:32632"}
    transform = from_origin(690_120.0, 5_340_060.0, gsd, gsd)
    with rasterio.open(path, "w", driver="GTiff", nodata=0, transform=transform, **about) as dataset:
        dataset.write(values)
        for number, name in enumerate(names, 1):
            dataset.set_band_description(number, name)
    return path


def built(folder: Path, values: Array, **other: object) -> Path:
    geotiff(folder / "image.tif", values)
    contracts.write(folder, dataclasses.replace(contract(PX), **other))  # type: ignore[arg-type]
    files.write_sums(folder)
    return folder


def run(*arguments: object) -> int:
    threads = () if "--threads" in arguments else ("--threads", 1)  # given once
    return sgmodel("predict", *threads, "-q", *arguments)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(*arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def raster(path: Path) -> Array:
    with rasterio.open(path) as dataset:
        values: Array = dataset.read()
    return values


# --- the mosaic ----------------------------------------------------------------------------


@given(st.integers(1, 90), st.integers(1, 8), st.floats(0, 0.75))
def test_shares_sum_to_one_everywhere(size: int, side: int, overlap: float) -> None:
    shared = int(side * overlap)
    first = tiling.tile_starts(size, side, side - shared)
    total = np.zeros(max(size, side))
    for start, share in zip(first, tiling.blend_weights(first, side, shared), strict=True):
        total[start : start + side] += share
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert first[-1] + side == max(size, side)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.3, 0.5, 0.75]), st.sampled_from([1, 2, 8]))
def test_an_identity_model_reproduces_the_scene(height: int, width: int, overlap: float, unit: int) -> None:
    scene = pixels(height, width)[:2]

    def predict(tiles: Array) -> Array:
        side = 8 // unit
        return tiles.reshape(len(tiles), 2, side, unit, side, unit).mean(axis=(3, 5), dtype=np.float32)

    plan = tiling.plan((height, width), px=8, output_shape=(2, 8 // unit), overlap=overlap)
    seen = np.ones((height, width), bool)
    rows = [
        (row, answer.copy(), there)
        for row, answer, there in tiling.blend(
            plan, lambda row, n: (scene[:, row : row + n], seen[row : row + n]), predict, batch=3
        )
    ]
    found = np.concatenate([answer for _, answer, _ in rows], axis=1)
    assert found.shape == (2, -(-height // unit), -(-width // unit))
    assert [row for row, _, _ in rows] == np.cumsum([0, *(a.shape[1] for _, a, _ in rows[:-1])]).tolist()
    whole = (height // unit, width // unit)
    inside = scene[:, : whole[0] * unit, : whole[1] * unit]
    means = inside.reshape(2, whole[0], unit, whole[1], unit).mean(axis=(2, 4))
    np.testing.assert_allclose(found[:, : whole[0], : whole[1]], means, rtol=1e-5)
    assert all(there.all() for _, _, there in rows)


def test_memory_is_that_of_a_row_of_tiles() -> None:
    def peak(height: int) -> int:
        plan = tiling.plan((height, 4096), px=32, output_shape=(4, 32), overlap=0.5)
        tracemalloc.start()
        rows = tiling.blend(
            plan,
            lambda row, n: (np.ones((4, n, 4096), np.uint16), np.ones((n, 4096), bool)),
            lambda tiles: tiles.astype(np.float32),
            batch=8,
        )
        for _ in rows:
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(128), peak(1024)
    assert many < 1.02 * few
    assert many < 12 * 4 * 32 * 4096 * 4  # a few rows of tiles, of 128 rows in the scene


def test_no_seams(weights: Path) -> None:
    where = devices.setup_device("cpu", precision="fp32", threads=1)
    model = predict.load(weights, where, embeddings=False)
    scene, seen = pixels(160, 160), np.ones((160, 160), bool)

    def step_at_borders(overlap: float) -> float:
        plan = tiling.plan((160, 160), px=PX, output_shape=model.output_shape, overlap=overlap)
        rows = tiling.blend(plan, lambda r, n: (scene[:, r : r + n], seen[r : r + n]), model.predict, batch=16)
        steps = np.abs(np.diff(np.concatenate([a.copy() for _, a, _ in rows], axis=1), axis=2)).mean(axis=(0, 1))
        at = sorted({col - 1 for col in plan.cols if col} | {col + PX - 1 for col in plan.cols if col + PX < 160})
        return float(steps[at].mean() / np.delete(steps, at).mean())

    # Without overlap the same statistic shows the seams: 1.54. With it 0.98, 1.00 and 0.99 were measured.
    assert step_at_borders(0.0) > 1.3
    assert max(map(step_at_borders, (0.25, 0.5, 0.75))) < 1.03


# --- maps of a scene -----------------------------------------------------------------------


def test_a_map_has_the_georeference_of_the_scene_with_names_and_colours(tmp_path: Path, weights: Path) -> None:
    values = pixels(45, 70)
    values[:, :9, :20] = 0
    values[3, 20, 20] = 0  # one band alone is dark water, not a hole
    folder = built(tmp_path / "build", values)
    assert run("--input", folder, "--weights", weights, "--out", tmp_path / "out", "--what", "probabilities") == 0
    space = contract(PX).label_space
    with rasterio.open(folder / "image.tif") as scene, rasterio.open(tmp_path / "out" / "classes.tif") as made:
        assert (made.crs, made.transform, made.shape) == (scene.crs, scene.transform, scene.shape)
        assert made.nodata == 255 and made.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        for label, name, colour in zip(space.ids, space.names, space.colours, strict=True):
            assert made.tags()[f"class_{label:03d}"] == name
            assert made.colormap(1)[label][:3] == tuple(bytes.fromhex(colour[1:]))
        classes = made.read(1)
    np.testing.assert_array_equal(classes == 255, (values == 0).all(axis=0))
    with rasterio.open(tmp_path / "out" / "probabilities.tif") as made:
        assert made.descriptions == space.names and made.dtypes[0] == "float32"
        shares = made.read()
    seen = classes != 255
    assert np.isnan(shares[:, ~seen]).all()
    np.testing.assert_allclose(shares[:, seen].sum(axis=0), 1, atol=0.003)
    best = np.take_along_axis(shares, np.where(seen, classes, 0)[None], axis=0)[0]
    np.testing.assert_allclose(best[seen], shares[:, seen].max(axis=0), atol=0.001)
    assert verification.verify(tmp_path / "out") == []
    assert not list((tmp_path / "out").glob(".*tif")) and not (tmp_path / "out" / ".classes").exists()


def test_several_inputs_get_a_folder_each_and_one_that_fails_stops_no_other(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = [geotiff(tmp_path / f"{name}.tif", pixels(PX, PX, seed)) for seed, name in enumerate(("ulm", "bonn"))]
    how = ("--weights", weights, "--level", "L2A")
    assert run("--input", scenes[0], *how, "--out", tmp_path / "alone") == 0
    given = [word for path in (*scenes, tmp_path / "nowhere.tif") for word in ("--input", path)]
    assert run(*given, *how, "--out", tmp_path / "all") == 3
    said = capsys.readouterr().out
    assert f"ulm: {tmp_path / 'all' / 'ulm'}" in said
    assert "nowhere: " in said
    one, same = ((folder / "SHA256SUMS").read_text() for folder in (tmp_path / "alone", tmp_path / "all" / "ulm"))
    assert one == same
    assert verification.verify(tmp_path / "all" / "bonn") == []
    twice = refused(capsys, "--input", scenes[0], "--input", scenes[0], "--weights", weights, "--out", tmp_path / "o")
    assert "both named 'ulm'" in twice
    alone = refused(capsys, "--input", scenes[0], "--weights", weights, "--cluster", "tcp://x:1")
    assert "one input is predicted here" in alone


def test_a_scene_of_one_tile_gets_the_output_of_the_model(tmp_path: Path, weights: Path) -> None:
    values = pixels(PX, PX)
    folder = built(tmp_path / "build", values)
    assert run("--input", folder, "--weights", weights, "--out", tmp_path / "out") == 0
    model = cards.load(weights)
    with torch.no_grad():
        expected = model((torch.from_numpy(values).float()[None] - 2000) / 1000).argmax(dim=1)[0]
    np.testing.assert_array_equal(raster(tmp_path / "out" / "classes.tif")[0], expected.numpy())


def test_equal_runs_give_equal_bytes_and_the_batch_only_the_last_bits(tmp_path: Path, weights: Path) -> None:
    folder = built(tmp_path / "build", pixels(50, 61))
    same = ("--input", folder, "--weights", weights, "--what", "probabilities")
    for name, more in (("a", []), ("b", []), ("c", ["--set", "batch=3", "--threads", "2"])):
        assert run(*same, "--out", tmp_path / name, *more) == 0
    assert (tmp_path / "a" / "SHA256SUMS").read_bytes() == (tmp_path / "b" / "SHA256SUMS").read_bytes()
    shares = [raster(tmp_path / name / "probabilities.tif") for name in "ac"]
    np.testing.assert_allclose(*shares, atol=1.1 / 1024)
    classes = [raster(tmp_path / name / "classes.tif") for name in "ac"]
    assert (classes[0] != classes[1]).mean() < 1e-3


def test_bands_are_found_by_name_whatever_their_order(tmp_path: Path, weights: Path) -> None:
    values, turned = pixels(20, 20), tuple(reversed(NAMES))
    extra = np.concatenate([values[::-1], values[:1]])
    plain = geotiff(tmp_path / "a.tif", values)
    other = geotiff(tmp_path / "b.tif", extra, (*turned, "B10"))
    nameless = geotiff(tmp_path / "c.tif", values[::-1], ())
    same = ("--weights", weights, "--level", "L2A")
    assert run("--input", plain, *same, "--out", tmp_path / "a") == 0
    assert run("--input", other, *same, "--out", tmp_path / "b") == 0
    assert run("--input", nameless, *same, "--out", tmp_path / "c", "--bands", ",".join(turned)) == 0
    for name in "bc":
        np.testing.assert_array_equal(raster(tmp_path / "a" / "classes.tif"), raster(tmp_path / name / "classes.tif"))


def test_missing_bands_are_filled_as_in_the_card(tmp_path: Path) -> None:
    values = pixels(20, 20)
    ten = geotiff(tmp_path / "ten.tif", values[1:11], NAMES[1:11])
    filled = np.concatenate([values[1:2], values[1:11], values[10:11]])  # the nearest in wavelength
    full = geotiff(tmp_path / "full.tif", filled)
    nearest = saved(tmp_path / "w", segmenter, contract(PX), missing="nearest")
    for scene in (ten, full):
        assert run("--input", scene, "--weights", nearest, "--level", "L2A", "--out", tmp_path / scene.stem) == 0
    np.testing.assert_array_equal(raster(tmp_path / "ten" / "classes.tif"), raster(tmp_path / "full" / "classes.tif"))


def test_a_failed_read_is_an_error_and_leaves_no_map(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = built(tmp_path / "build", pixels(200, 200))
    out = tmp_path / "out"
    assert run("--input", folder, "--weights", weights, "--out", out, "--set", "overlap=0.0") == 0
    content = (folder / "image.tif").read_bytes()
    (folder / "image.tif").write_bytes(content[: len(content) // 2])
    assert "cannot be read" in refused(capsys, "--input", folder, "--weights", weights, "--out", out)
    # Neither a half map nor that of the earlier run, and nothing says that the folder is finished.
    assert sorted(path.name for path in out.iterdir()) == [".lock", "contract.json", "recipe.toml"]


# --- other tasks ---------------------------------------------------------------------------


def test_scenes_get_a_row_and_a_pixel_each(tmp_path: Path) -> None:
    weights = saved(tmp_path / "w", classifier, scene_contract(PX))
    values = pixels(40, 50)
    values[:, 32:] = 0
    folder = built(tmp_path / "build", values)  # its labels are of another task: they say nothing of this model's
    assert run("--input", folder, "--weights", weights, "--out", tmp_path / "out") == 0
    rows = pq.read_table(tmp_path / "out" / "patches.parquet").to_pylist()
    with rasterio.open(tmp_path / "out" / "classes.tif") as made, rasterio.open(folder / "image.tif") as scene:
        assert made.shape == (3, 4) and made.transform.a == 160 and made.bounds.top == scene.bounds.top
        classes = made.read(1)
    assert (classes[2] == 255).all() and len(rows) == 8
    model = cards.load(weights)
    for row in rows:
        top, left = int(row["key"][1:6]), int(row["key"][8:])
        assert classes[top // PX, left // PX] == row["labels"][0]
        assert (row["west"], row["north"]) == (690_120 + 10 * left, 5_340_060 - 10 * top)
        assert row["crs"] == "EPSG:32632"
        if left + PX <= 50:
            tile = (torch.from_numpy(values[None, :, top : top + PX, left : left + PX]).float() - 2000) / 1000
            with torch.no_grad():
                expected = model(tile).softmax(dim=1)[0]
            np.testing.assert_allclose(row["probabilities"], expected, atol=1e-5)


def test_several_labels_and_a_zoom(tmp_path: Path) -> None:
    data = scene_contract(24, "multi-label")
    weights = saved(tmp_path / "w", classifier, data, zoom=0.875)
    folder = built(tmp_path / "build", pixels(48, 48))
    assert run("--input", folder, "--weights", weights, "--out", tmp_path / "out") == 0
    assert not (tmp_path / "out" / "classes.tif").exists()
    shares = raster(tmp_path / "out" / "probabilities.tif")
    rows = pq.read_table(tmp_path / "out" / "patches.parquet").to_pylist()
    assert shares.shape == (CLASSES, 2, 2) and len(rows) == 4  # a pixel per 24 px, the size of a training sample
    for row in rows:
        assert row["labels"] == [label for label in range(CLASSES) if row["probabilities"][label] >= 0.5]


def change_contract() -> Contract:
    space = LabelSpace(name="oscd", task="change", ids=(0, 1), names=("no change", "change"))
    return dataclasses.replace(contract(PX), label_space=space)


def test_change_between_two_dates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = saved(tmp_path / "w", detector, change_contract())
    old, new = pixels(PX, PX), pixels(PX, PX, seed=2)
    new[:, :4] = 0
    before, after = built(tmp_path / "a", old), built(tmp_path / "b", new)
    pair = ("--input", before, "--after", after, "--weights", weights)
    assert run(*pair, "--out", tmp_path / "out") == 0
    with rasterio.open(tmp_path / "out" / "classes.tif") as made:
        found = made.read(1)
        assert len({made.colormap(1)[label] for label in (0, 1)}) == 2  # colours, though its label space has none
    with torch.no_grad():
        dates = [(torch.from_numpy(date[None]).float() - 2000) / 1000 for date in (old, new)]
        expected = cards.load(weights)(*dates).argmax(dim=1)[0].numpy()
    np.testing.assert_array_equal(found, np.where((new == 0).all(axis=0), 255, expected))
    assert "--input and --after" in refused(capsys, *pair[:2], *pair[4:], "--out", tmp_path / "x")
    elsewhere = built(tmp_path / "c", pixels(PX, 20))
    line = refused(capsys, "--input", before, "--after", elsewhere, *pair[4:], "--out", tmp_path / "x")
    assert "--after covers other pixels" in line


def test_embeddings_are_the_mean_of_the_tokens_of_a_place(tmp_path: Path, weights: Path) -> None:
    values = pixels(20, 30)
    folder = built(tmp_path / "build", values)
    unlabelled = built(tmp_path / "other", values, label_space=LabelSpace(name="mine", task="segmentation"))
    encoded = saved(tmp_path / "mae", lambda: mae.MaskedAutoencoder(restless()), contract(PX))
    for checkpoint_folder, scene in ((weights, folder), (encoded, unlabelled)):
        out = tmp_path / f"out-{scene.name}"
        assert run("--input", scene, "--weights", checkpoint_folder, "--what", "embeddings", "--out", out) == 0
        with rasterio.open(out / "embeddings.tif") as made:
            assert (made.count, made.shape, made.transform.a) == (TINY.width, (3, 4), 80.0)
            corner = made.read()[:, 0, 0]
        model = cards.load(checkpoint_folder)
        with torch.no_grad():
            x = (torch.from_numpy(values[None, :, :PX, :PX]).float() - 2000) / 1000
            parts = model.backbone.encoder if hasattr(model, "backbone") else model
            tokens = parts.norm(encoder.tokens(parts, x))[0].reshape(4, 2, 2, -1).mean(dim=0)
        np.testing.assert_allclose(corner, tokens[0, 0], atol=1e-4)


def test_a_baseline_predicts_by_its_card(tmp_path: Path) -> None:
    recipe = factory.ModelRecipe(backbone="unet", widths=(8, 16), head=NARROW)
    weights = saved(tmp_path / "w", lambda: build("segmenter", recipe, bands=12, classes=CLASSES), contract(24))
    folder = built(tmp_path / "build", pixels(30, 50))
    assert run("--input", folder, "--weights", weights, "--out", tmp_path / "out") == 0
    assert raster(tmp_path / "out" / "classes.tif").shape == (1, 30, 50)
    assert run("--input", folder, "--weights", weights, "--out", tmp_path / "out", "--what", "embeddings") == 0
    # Another answer in the same folder leaves none of the first behind.
    assert (tmp_path / "out" / "embeddings.tif").exists() and not (tmp_path / "out" / "classes.tif").exists()
    assert verification.verify(tmp_path / "out") == []


# --- shards --------------------------------------------------------------------------------


def test_shards_of_scenes_get_a_row_per_sample(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "shards", train=3, val=2)
    weights = saved(tmp_path / "w", classifier, contracts.read(folder))
    same = ("--input", folder, "--weights", weights)
    assert run(*same, "--out", tmp_path / "out") == 0
    rows = pq.read_table(tmp_path / "out" / "patches.parquet").to_pylist()
    assert [row["split"] for row in rows] == ["train"] * 3 + ["val"] * 2
    assert all(len(row["probabilities"]) == CLASSES and row["label_names"] for row in rows)
    assert run(*same, "--out", tmp_path / "out", "--what", "embeddings", "--set", "split=val") == 0
    rows = pq.read_table(tmp_path / "out" / "patches.parquet").to_pylist()
    assert len(rows) == 2 and len(rows[0]["embedding"]) == TINY.width


def test_shards_of_maps_get_a_picture_per_sample(tmp_path: Path, weights: Path) -> None:
    from PIL import Image

    folder = write(tmp_path / "shards", train=1, val=2, px=20)  # larger than the model's images
    assert run("--input", folder, "--weights", weights, "--out", tmp_path / "out", "--set", "split=val") == 0
    found = sorted((tmp_path / "out" / "classes").iterdir())
    assert [path.stem for path in found] == ["toy-00001", "toy-00002"]
    scene = built(tmp_path / "build", next(tar_format.samples(folder, "val")).arrays["image"])
    assert run("--input", scene, "--weights", weights, "--out", tmp_path / "map") == 0
    np.testing.assert_array_equal(np.asarray(Image.open(found[0])), raster(tmp_path / "map" / "classes.tif")[0])


def test_shards_of_pairs(tmp_path: Path) -> None:
    arrays = {"image_before": pixels(PX, PX), "image_after": pixels(PX, PX, seed=2)}
    sample = Sample(key="town", split="test", arrays=arrays)
    write_shards.write([sample], tmp_path / "shards", contract=change_contract())
    weights = saved(tmp_path / "w", detector, contracts.read(tmp_path / "shards"))
    assert run("--input", tmp_path / "shards", "--weights", weights, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "classes" / "town.png").exists()


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"level": "L1C"}, "level is 'L1C', expected 'L2A'"),
        ({"scale": 5e-5}, "scale is 5e-05, expected 0.0001"),
        ({"offset": -1000.0}, "offset is -1000.0, expected 0.0"),
        (
            {"label_space": LabelSpace(name="other", task="segmentation", ids=(0,), names=("all",))},
            "label_space is 'other' (1 classes), expected 'toy' (4 classes)",
        ),
    ],
)
def test_a_build_that_differs_is_refused_unless_accepted(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], other: dict[str, object], expected: str
) -> None:
    folder = built(tmp_path / "build", pixels(PX, PX), **other)
    same = ("--input", folder, "--weights", weights, "--out", tmp_path / "out")
    line = refused(capsys, *same)
    (name,) = other
    assert expected in line and f"accept = ['{name}']" in line
    assert not (tmp_path / "out" / "recipe.toml").exists()
    assert run(*same, "--set", f"accept={json.dumps([name])}") == 0


def test_a_geotiff_with_missing_metadata_is_refused_by_name(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = pixels(PX, PX)
    named, nameless = geotiff(tmp_path / "named.tif", values), geotiff(tmp_path / "nameless.tif", values, ())
    ten = geotiff(tmp_path / "ten.tif", values[1:11], NAMES[1:11])
    coarse = geotiff(tmp_path / "coarse.tif", values, gsd=20.0)
    floats = geotiff(tmp_path / "floats.tif", (values / 1e4).astype(np.float32))
    rest = ("--weights", weights, "--out", tmp_path / "out")
    assert "--level" in refused(capsys, "--input", named, *rest)
    assert "level is 'L1C'" in refused(capsys, "--input", named, *rest, "--level", "L1C")
    assert "--bands B02,B03" in refused(capsys, "--input", nameless, *rest)
    line = refused(capsys, "--input", ten, *rest, "--level", "L2A")
    assert "takes 12 bands, B01 B12 not among its 10 (" in line
    line = refused(capsys, "--input", nameless, *rest, "--bands", ",".join(NAMES[:10]))
    assert "12 bands named B01" in line
    assert "pixels of 20 m, the model was trained on 10 m" in refused(
        capsys, "--input", coarse, *rest, "--level", "L2A"
    )
    line = refused(capsys, "--input", floats, *rest, "--level", "L2A")
    assert "float32 of scale 1, the model takes DN of scale 0.0001; convert it (gdal_translate" in line
    spelt = geotiff(tmp_path / "spelt.tif", values, tuple(name.replace("B0", "B") for name in NAMES))
    assert run("--input", spelt, *rest, "--level", "L2A") == 0
    assert run("--input", nameless, *rest, "--set", 'accept=["bands", "level"]') == 0
    assert run("--input", coarse, *rest, "--level", "L2A", "--set", 'accept=["gsd"]') == 0


def test_weights_that_cannot_predict(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = built(tmp_path / "build", pixels(PX, PX))
    rest = ("--input", folder, "--out", tmp_path / "out")
    encoded = saved(tmp_path / "mae", lambda: mae.MaskedAutoencoder(restless()), contract(PX))
    unlike = contrastive.ContrastiveObjective(method="simclr", temperature=0.1, projection=4)
    recipe = factory.ModelRecipe(backbone="unet", widths=(8, 16))
    told_apart = saved(
        tmp_path / "simclr", lambda: specs.ContrastSpec(recipe=recipe, bands=12, objective=unlike).build(), contract(PX)
    )
    for pretrained in (encoded, told_apart):
        assert "--what embeddings" in refused(capsys, *rest, "--weights", pretrained)
    bare = cards.load(weights)
    folders.save(tmp_path / "bare", bare, cards.ModelCard(model=specs.describe(bare)))
    assert "no bands or normalisation" in refused(capsys, *rest, "--weights", tmp_path / "bare")
    file = weights / "model.safetensors"
    assert "has no card" in refused(capsys, *rest, "--weights", file)
    assert "'overlap' is 0.9" in refused(capsys, *rest, "--weights", weights, "--set", "overlap=0.9")
    assert "no such file" in refused(capsys, "--input", tmp_path / "none", "--weights", weights)
    assert "--input alone" in refused(capsys, *rest, "--weights", weights, "--after", folder)


def test_degrees_and_feet_are_refused(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for crs, message in (
        ("EPSG:4326", "EPSG:4326 has pixels of 10 degrees, expected metres"),
        ("EPSG:2263", "of 3.048"),
    ):
        path = geotiff(tmp_path / "scene.tif", pixels(20, 20))
        with rasterio.open(path, "r+") as dataset:
            dataset.crs = crs
        line = refused(capsys, "--input", path, "--weights", weights, "--out", tmp_path / "out", "--level", "L2A")
        assert message in line


def test_names_of_bands_may_have_spaces(tmp_path: Path, weights: Path) -> None:
    path = geotiff(tmp_path / "scene.tif", pixels(20, 20), names=())
    where = ("--weights", weights, "--out", tmp_path / "out", "--level", "L2A")
    assert run("--input", path, *where, "--bands", ", ".join(NAMES)) == 0


def test_settings_that_run_nothing(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = geotiff(tmp_path / "scene.tif", pixels(20, 20))
    where = ("--input", path, "--weights", weights, "--out", tmp_path / "out", "--level", "L2A")
    assert "'batch' is 0: expected 1 to" in refused(capsys, *where, "--set", "batch=0")
    assert "--threads '0': expected greater than or equal to 1" in refused(capsys, *where, "--threads", "0")


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 33), (1, 40)])
@pytest.mark.parametrize("what", ["probabilities", "embeddings"])
def test_scenes_smaller_than_a_tile_and_odd_ones(
    tmp_path: Path, weights: Path, shape: tuple[int, int], what: str
) -> None:
    values = pixels(*shape)
    values[:, :1, :1] = 0
    folder = built(tmp_path / "build", values)
    assert run("--input", folder, "--weights", weights, "--out", tmp_path / "out", "--what", what) == 0
    found = raster(tmp_path / "out" / f"{what}.tif")
    if what == "embeddings":
        assert found.shape[1:] == tuple(-(-side // TINY.patch_px) for side in shape)
        return
    assert found.shape[1:] == shape
    assert np.isnan(found[:, 0, 0]).all()
    np.testing.assert_allclose(found.sum(axis=0)[values[0] > 0], 1.0, atol=3e-3)


@pytest.mark.parametrize(
    ("crs", "west", "north", "gsd", "accepted"),
    [
        ("EPSG:3857", 1_280_000.0, 6_130_000.0, 10 / np.cos(np.radians(48.1)), True),
        ("EPSG:3857", 1_280_000.0, 6_130_000.0, 10.0, False),
        ("EPSG:3413", 0.0, -2_200_000.0, 10.0, True),  # true to scale at 70 degrees north
        ("EPSG:3995", 0.0, -5_000_000.0, 10.0, False),  # at 45 degrees north
        ("EPSG:2225", 6_000_000.0, 2_000_000.0, 10 / 0.3048006, True),  # in feet
    ],
)
def test_the_pixel_size_is_that_on_the_ground(
    tmp_path: Path, weights: Path, crs: str, west: float, north: float, gsd: float, accepted: bool
) -> None:
    path = geotiff(tmp_path / "scene.tif", pixels(20, 20))
    with rasterio.open(path, "r+") as dataset:
        dataset.crs, dataset.transform = crs, from_origin(west, north, gsd, gsd)
    given = ("--input", path, "--weights", weights, "--level", "L2A", "--out", tmp_path / "out")
    assert run(*given) == (0 if accepted else 2)
