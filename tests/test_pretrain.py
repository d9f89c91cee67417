"""Test the pretraining program: one curve per seed, exact resuming, overfitting, refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from baselines import build, spectralgpt
from synthetic_shards import contract, sample, write

import sgmodel
from sgdata import files, package_data
from sgdata.errors import ExitCode, OutputError, SettingError, SourceError
from sgdata.shards import tar_format, write_shards
from sgmodel.checkpoints import cards, checkpoint_folder, load_weights, weight_files
from sgmodel.models import encoder, mae, specs, upernet
from sgmodel.models.spectralgpt import Pooling
from sgmodel.recipes import pretrain
from sgmodel.train import loop, run_paths

TINY = (
    "model.image_px=32",
    "model.width=32",
    "model.depth=2",
    "decoder.width=32",
    "training.batch=4",
    "training.accumulate=2",
    "training.epochs=6",
    "picture_every=100",
)


def recipe(*overrides: str) -> pretrain.PretrainRecipe:
    path = package_data.folder("recipes") / "train" / "pretrain-demo-tiny.toml"
    whole = ("augment.crop_area=[1.0, 1.0]",)  # of 32 px samples
    return files.read(pretrain.PretrainRecipe, path, (*TINY, *whole, *overrides))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pretrain") / "shards", train=6, val=2)


def run_paths_for(folder: Path, out: Path, **others: object) -> run_paths.RunPaths:
    return dataclasses.replace(run_paths.RunPaths(shards=folder, out=out, device="cpu", threads=1), **others)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run of nine steps."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain.main(recipe(), run_paths_for(folder, out)) == 0
    return out


def test_a_run_leaves_everything_in_its_folder(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(9), 8]
    bands = {f"loss_{name}" for name in recipe().bands}
    assert set(lines[0]) == {"step", "loss", "loss_token", "loss_spectral", "lr", "grad_norm", *bands}
    assert np.mean([lines[0][name] for name in bands]) == pytest.approx(lines[0]["loss_token"], rel=0.2)
    assert set(lines[-1]) == {"step", "val_loss_token", "val_loss_token_visible_mean", "val_loss_token_nearest"}
    times = json.loads((whole / "timings.jsonl").read_text().splitlines()[0])
    assert set(times) == {"step", "wait_s", "step_s", "images_per_s", "wait_share", "tflops", "mfu", "memory_gb"}
    sums = (whole / "SHA256SUMS").read_text()
    assert sums == files.compute_sums(whole).decode()
    named = {line.split("  ")[1] for line in sums.splitlines()}
    assert named == {
        *("recipe.toml", "contract.json", "metrics.jsonl", "results.json", "card.md", "pictures/step-000009.png"),
        *(f"checkpoint-{kind}/SHA256SUMS" for kind in ("last", "best")),
        *(f"checkpoint-last/{name}" for name in ("card.json", "model.safetensors")),
        *(f"checkpoint-last/{name}" for name in ("training.json", "training.safetensors")),
        *(f"checkpoint-best/{name}" for name in ("card.json", "model.safetensors", "figures.json")),
    }
    assert (whole / "tensorboard").is_dir()
    assert files.read(pretrain.PretrainRecipe, whole / "recipe.toml") == recipe()


def test_one_seed_one_result_however_samples_are_decoded(folder: Path, whole: Path, tmp_path: Path) -> None:
    pretrain.main(recipe(), run_paths_for(folder, tmp_path / "again", workers=5))
    assert (tmp_path / "again" / "SHA256SUMS").read_bytes() == (whole / "SHA256SUMS").read_bytes()


def test_another_seed_another_curve(folder: Path, whole: Path, tmp_path: Path) -> None:
    pretrain.main(recipe("training.seed=2"), run_paths_for(folder, tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() != (whole / "metrics.jsonl").read_bytes()


def test_stopped_twice_and_resumed_equals_uninterrupted(folder: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert pretrain.main(recipe(), run_paths_for(folder, out, stop_after=4)) == ExitCode.FINDINGS
    assert not (out / "SHA256SUMS").exists()
    # Killed before the checkpoint that was replaced had gone.
    shutil.copytree(out / "checkpoint-last", out / ".checkpoint-last.old")
    assert pretrain.main(recipe(), run_paths_for(folder, out, stop_after=1)) == ExitCode.FINDINGS
    # Killed after a step that no checkpoint holds: its line is written again.
    with (out / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 5, "loss": 0.0}\n{"step": 6, "lo')
    # Killed between the two renames of a checkpoint.
    (out / "checkpoint-last").rename(out / ".checkpoint-last.old")
    assert pretrain.main(recipe(), run_paths_for(folder, out)) == 0
    assert (out / "SHA256SUMS").read_bytes() == (whole / "SHA256SUMS").read_bytes()
    assert pretrain.main(recipe(), run_paths_for(folder, out)) == 0
    assert (out / "SHA256SUMS").read_bytes() == (whole / "SHA256SUMS").read_bytes()


def test_sigterm_saves_and_the_same_command_resumes(folder: Path, tmp_path: Path) -> None:
    settings = [f"--set={text}" for text in (*TINY, "training.epochs=300")]
    path = package_data.folder("recipes") / "train" / "pretrain-demo-tiny.toml"
    line = [
        sys.executable,
        "-m",
        "sgmodel.recipes.pretrain",
        str(path),
        "--shards",
        str(folder),
        "--out",
        str(tmp_path),
    ]
    child = subprocess.Popen(
        [*line, *settings, "--threads=1"], stderr=subprocess.PIPE, cwd=package_data.folder("recipes").parent
    )
    metrics, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    assert child.returncode == ExitCode.INTERRUPTED, said
    done = json.loads((tmp_path / "checkpoint-last" / "training.json").read_text())["steps"]
    assert done == metrics.read_text().count("\n") > 3


def test_two_samples_overfit(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards", train=2, val=1)
    more = (
        "training.epochs=350",
        "training.batch=2",
        "training.accumulate=1",
        "training.optimizer.lr=3e-3",
        "training.log_every=350",
        "mask_ratio=0.5",
    )
    still = ("augment.horizontal_flip=0", "augment.vertical_flip=0", "augment.quarter_turns=false")
    pretrain.main(recipe(*more, *still), run_paths_for(folder, tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["loss_last"] < 0.1 * results["loss_first"]


def test_recipe_of_another_run_is_refused_by_name(folder: Path, whole: Path) -> None:
    with pytest.raises(OutputError, match=r"training.optimizer.lr is 0.5, was 0.002.*--fresh"):
        pretrain.main(recipe("training.optimizer.lr=0.5"), run_paths_for(folder, whole))


def test_fresh_starts_over(folder: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "notes.txt").write_text("mine")
    assert (
        pretrain.main(recipe("training.seed=5"), run_paths_for(folder, out, fresh=True, stop_after=1))
        == ExitCode.FINDINGS
    )
    assert (out / "metrics.jsonl").read_text().count("\n") == 1
    assert (out / "notes.txt").read_text() == "mine"


def test_other_data_is_refused_by_name(whole: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", train=5, val=2)
    with pytest.raises(SettingError, match="cannot resume on 'toy': .*fingerprint"):
        pretrain.main(recipe(), run_paths_for(other, whole))


def test_starting_weights_and_their_contract(folder: Path, whole: Path, tmp_path: Path) -> None:
    start = run_paths_for(folder, tmp_path / "run", weights=whole / "checkpoint-last", stop_after=1)
    assert pretrain.main(recipe(), start) == ExitCode.FINDINGS
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-2])
    assert first["loss"] < 1.2 * last["loss"]

    toa = tmp_path / "toa"
    made = [sample(n, "train", 32, 32) for n in range(4)]
    write_shards.write(made, toa, contract=dataclasses.replace(contract(32), level="L1C"))
    waived = dataclasses.replace(start, shards=toa, out=tmp_path / "toa-run")
    with pytest.raises(SettingError, match="level is 'L1C', expected 'L2A'; accept = .'level'. in the recipe waives"):
        pretrain.main(recipe(), waived)
    with pytest.raises(SettingError, match="normalisation differs .* mean is"):
        pretrain.main(recipe('accept=["level"]'), waived)
    assert pretrain.main(recipe('accept=["level", "normalisation"]'), waived) == ExitCode.FINDINGS


def test_data_that_cannot_feed_the_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="the model takes 9 bands, the recipe names 12: B01 B02"):
        pretrain.main(recipe("model.bands=9"), run_paths_for(folder, tmp_path))


def test_bands_are_chosen_by_name(folder: Path, tmp_path: Path) -> None:
    names = ("B12", "B02", "B08")
    made = dataclasses.replace(recipe("model.bands=3"), bands=names)
    assert pretrain.main(made, run_paths_for(folder, tmp_path, stop_after=1)) == ExitCode.FINDINGS
    card = cards.read(tmp_path / "checkpoint-last")
    assert card.contract is not None
    assert card.normalisation is not None
    assert tuple(band.name for band in card.contract.bands) == names
    stored = np.stack([one.arrays["image"][[11, 1, 7]] for one in tar_format.samples(folder, "train")])
    np.testing.assert_allclose(card.normalisation.mean, stored.mean(axis=(0, 2, 3)), rtol=1e-6)
    with pytest.raises(SettingError, match="bands: B10 not in the shards, which have B01"):
        pretrain.main(dataclasses.replace(made, bands=("B10",)), run_paths_for(folder, tmp_path / "other"))


def test_a_poisoned_sample_is_named(tmp_path: Path) -> None:
    made = [sample(n, "train", 32, 32) for n in range(4)]
    made[2].arrays["image"][3] = 1000  # a constant band, which min-max without eps divides by zero
    write_shards.write(made, tmp_path / "shards", contract=contract(32))
    with pytest.raises(loop.NotFiniteError, match="step 0: loss nan.*not finite for 1 of 4 samples: toy-00002"):
        pretrain.main(
            recipe("normalise.scheme=minmax", "normalise.eps=0"), run_paths_for(tmp_path / "shards", tmp_path / "run")
        )


def test_a_diverged_run_is_reported(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(loop.NotFiniteError, match="each sample alone is finite|not finite for"):
        pretrain.main(
            recipe("training.optimizer.lr=1e30", "training.optimizer.warmup_epochs=0"), run_paths_for(folder, tmp_path)
        )


def test_a_damaged_held_out_sample_is_one_line(tmp_path: Path) -> None:
    made = [sample(n, "train" if n < 4 else "val", 32, 32) for n in range(6)]
    made[5].arrays["image"][3] = 1000
    write_shards.write(made, tmp_path / "shards", contract=contract(32))
    with pytest.raises(SourceError, match="step 5: {'val_loss_token': nan.*not finite; find damaged samples"):
        pretrain.main(
            recipe("normalise.scheme=minmax", "normalise.eps=0"), run_paths_for(tmp_path / "shards", tmp_path / "run")
        )


def test_dry_run_writes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(recipe(), run_paths_for(folder, tmp_path / "run", dry_run=True)) == 0
    assert "6 samples x 6 epochs = 9 steps of 4" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_visible_mean_by_hand() -> None:
    config = encoder.EncoderConfig(bands=2, image_px=4, patch_px=2, group_bands=1, width=8, depth=1, heads=1)
    images = torch.arange(32.0).reshape(1, 2, 4, 4)
    target = encoder.patchify(images, config)
    mask = torch.tensor([[0.0, 1, 1, 1, 1, 1, 1, 1]])
    guess = mae.unpatchify(pretrain.visible_mean(target, mask, config), config)
    assert torch.equal(guess[0, 0], torch.full((4, 4), (0 + 1 + 4 + 5) / 4))
    assert torch.equal(guess[0, 1], torch.zeros(4, 4))


@pytest.mark.parametrize("tables", ["interpolate", "redraw"])
def test_a_progressive_run_trains_every_stage(folder: Path, tmp_path: Path, tables: str) -> None:
    stages = tuple(pretrain.PretrainStage(data="toy", image_px=px, epochs=2, lr=1e-3) for px in (16, 32))
    made = dataclasses.replace(recipe("augment.crop_area=[0.2, 1.0]", f"pos_embed_resize={tables}"), stages=stages)
    start = run_paths_for(folder, tmp_path / "run", named={"toy": folder})
    assert pretrain.main(made, dataclasses.replace(start, stop_after=2)) == ExitCode.FINDINGS
    assert pretrain.main(made, start) == 0
    first, second = (tmp_path / "run" / f"stage-{n}-toy" for n in (1, 2))
    losses = [json.loads((one / "results.json").read_text()) for one in (first, second)]
    assert losses[1]["loss_first"] < losses[0]["loss_first"]  # at 32 px it began from what it had learnt at 16 px
    assert cards.read(second / "checkpoint-last").model.encoder.image_px == 32  # type: ignore[union-attr]
    # Untrained, the second stage has the tables of the first, resized, or those of a fresh model.
    fresh = pretrain.build(dataclasses.replace(made, model=dataclasses.replace(made.model, image_px=32)))
    before = fresh.pos_embed_spatial.clone()
    load_weights.fit(fresh, load_weights.read_weights(first / "checkpoint-last"), tables=made.pos_embed_resize)
    assert torch.equal(fresh.pos_embed_spatial, before) == (tables == "redraw")
    optimizer = dataclasses.replace(made.training.optimizer, lr=0.0)
    still = dataclasses.replace(
        made, stages=(), training=dataclasses.replace(made.training, epochs=0.1, optimizer=optimizer)
    )
    begun = dataclasses.replace(start, out=tmp_path / "begun", weights=first / "checkpoint-last")
    assert pretrain.main(still, begun) == 0
    table = load_weights.read_weights(tmp_path / "begun" / "checkpoint-last")["pos_embed_spatial"]
    torch.testing.assert_close(table, fresh.pos_embed_spatial.detach())
    finished = (second / "SHA256SUMS").read_bytes()
    assert pretrain.main(made, start) == 0
    assert (second / "SHA256SUMS").read_bytes() == finished
    with pytest.raises(SettingError, match="stage 1 is on 'toy', --shards gives none; add --shards DIR"):
        pretrain.main(made, dataclasses.replace(start, named={}))


def _name_as_earlier(out: Path) -> None:
    """Give settings and files of an interrupted run the names of earlier versions, under which it is resumed."""
    recipe_text = (out / "recipe.toml").read_text()
    for new, old in {"ema_decay": "average", "timesteps": "times", "dropped_groups": "dropped"}.items():
        assert new in recipe_text
        recipe_text = recipe_text.replace(new, old)
    (out / "recipe.toml").write_text(recipe_text)
    last = out / "checkpoint-last"
    (last / "ema.safetensors").rename(last / "average.safetensors")
    files.write_sums(last)


@pytest.mark.parametrize("more", [["training.precision=fp16"], ["training.precision=bf16", "training.recompute=true"]])
def test_other_ways_of_training_learn_alike(folder: Path, whole: Path, tmp_path: Path, more: list[str]) -> None:
    made = recipe(*more, "training.ema_decay=0.5", "training.epochs=4")
    assert pretrain.main(made, run_paths_for(folder, tmp_path, stop_after=3)) == ExitCode.FINDINGS
    _name_as_earlier(tmp_path)
    assert pretrain.main(made, run_paths_for(folder, tmp_path)) == 0
    ours, theirs = (
        [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()[:2]]
        for out in (tmp_path, whole)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-2)
    last, mean = (files_of(tmp_path / "checkpoint-last", name) for name in ("model", "ema"))
    assert last.keys() == mean.keys()
    assert not torch.equal(last["norm.weight"], mean["norm.weight"])
    torch.testing.assert_close(last["norm.weight"], mean["norm.weight"], atol=0.05, rtol=0)
    loaded = sgmodel.load(tmp_path / "checkpoint-last" / "ema.safetensors")
    assert isinstance(loaded, mae.MaskedAutoencoder)
    assert torch.equal(loaded.norm.weight, mean["norm.weight"])
    weights = tmp_path / "checkpoint-last" / "ema.safetensors"
    other = recipe("normalise.scheme=minmax", "training.epochs=1")
    with pytest.raises(SettingError, match="scheme is 'minmax', was 'zscore'"):  # its card is compared like any other
        pretrain.main(other, run_paths_for(folder, tmp_path / "next", weights=weights))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler's own, which differ from release to release
def test_a_compiled_model_has_the_same_curve(folder: Path, whole: Path, tmp_path: Path) -> None:
    made = recipe("training.compile=true", "training.epochs=4", "picture_every=2")
    torch._dynamo.utils.counters.clear()
    assert pretrain.main(made, run_paths_for(folder, tmp_path)) == 0
    # One graph for all steps; scoring, whose batches are of other sizes, runs as written.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert len(losses(tmp_path)) == 6
    # Another number of epochs has another schedule, so what is compared is the first batch.
    np.testing.assert_allclose(losses(tmp_path)[0], losses(whole)[0], rtol=1e-5)
    assert (
        cards.load(tmp_path / "checkpoint-last").state_dict().keys()
        == files_of(whole / "checkpoint-last", "model").keys()
    )


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_weights_are_scored_at_other_ratios_without_training(
    folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = run_paths_for(folder, tmp_path / "run", weights=whole / "checkpoint-last")
    records = []
    for ratio in (recipe().mask_ratio, 0.5):
        assert pretrain.main(recipe("training.epochs=0", f"mask_ratio={ratio}"), start) == 0
        records.append(json.loads(capsys.readouterr().out))
    results = json.loads((whole / "results.json").read_text())
    assert records[0]["loss_token"] == pytest.approx(results["loss_token"])
    assert records[1]["mask_ratio"] == 0.5
    assert records[1]["loss_token_nearest"] != records[0]["loss_token_nearest"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("normalised", [True, False])
def test_trivial_predictors_have_the_units_of_the_loss(
    folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], normalised: bool
) -> None:
    start = run_paths_for(folder, tmp_path / "run", weights=whole / "checkpoint-last")
    same = "accept=['normalisation']"
    figures = []
    for scale in (100.0, 1000.0):
        units = [f"normalise.{name}={[value] * 12}" for name, value in (("mean", 0.0), ("std", scale))]
        norm_pix = f"objective.norm_pix={str(normalised).lower()}"
        assert pretrain.main(recipe("training.epochs=0", norm_pix, same, *units), start) == 0
        figures.append(json.loads(capsys.readouterr().out))
    ratio = 1 if normalised else 100
    for name in ("loss_token_visible_mean", "loss_token_nearest"):
        assert figures[0][name] == pytest.approx(ratio * figures[1][name], rel=0.02)


@pytest.mark.parametrize("masking", ["random", "tube", "spectral"])
def test_masking_modes_hide_the_expected_tokens(folder: Path, tmp_path: Path, masking: str) -> None:
    made = recipe(f"objective.masking={masking}", "training.epochs=2")
    assert pretrain.main(made, run_paths_for(folder, tmp_path)) == 0
    model = cards.load(tmp_path / "checkpoint-last")
    noise = torch.rand(2, made.model.tokens, generator=torch.Generator().manual_seed(0))
    mask = model(torch.rand(2, 12, 32, 32), noise=noise, ratio=0.75).mask.reshape(2, 4, 16)
    assert mask.mean() == 0.75
    assert bool((mask == mask[:, :1]).all()) == (masking == "tube")
    assert bool((mask == mask[:, :, :1]).all()) == (masking == "spectral")


TEN = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
SHAPES = {
    "ten bands in pairs": (TEN, {"bands": 10, "group_bands": 2}),
    "a token per band": (TEN[:3], {"bands": 3, "group_bands": 1}),
    "one group of all": (TEN, {"bands": 10, "group_bands": 10}),
    "patches of 4": ((), {"patch_px": 4, "image_px": 24}),
    "patches of 16": ((), {"patch_px": 16}),
    "a class token": ((), {"class_token": True}),
    "one joint table": ((), {"pos_embed": "joint"}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_other_shapes_are_pretrained_and_classify_and_segment(folder: Path, tmp_path: Path, name: str) -> None:
    bands, change = SHAPES[name]
    made = recipe("training.epochs=2")
    made = dataclasses.replace(made, bands=bands or made.bands, model=dataclasses.replace(made.model, **change))
    assert pretrain.main(made, run_paths_for(folder, tmp_path)) == 0
    state, config = load_weights.read_weights(tmp_path / "checkpoint-last"), made.model
    images = torch.rand(2, config.bands, config.image_px, config.image_px)
    pooling: Pooling = "class" if config.class_token else "mean"
    narrow = upernet.HeadConfig(levels=(16, 16, 16, 16), hidden=(16, 16, 16), width=16, groups_levels=4, groups=4)
    scene = build("classifier", spectralgpt(config, pooling=pooling), config.bands, 3)
    dense = build("segmenter", spectralgpt(config, head=narrow), config.bands, 5)
    for model, shape in ((scene, (2, 3)), (dense, (2, 5, config.image_px, config.image_px))):
        assert load_weights.fit(model, state, at_least=1.0).encoder_share == 1.0
        assert model(images).shape == shape
    checkpoint_folder.save(tmp_path / "scene", scene, cards.ModelCard(model=specs.describe(scene)))
    torch.testing.assert_close(sgmodel.load(tmp_path / "scene")(images), scene.eval()(images))


def files_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return weight_files.read_safetensors(folder / f"{name}.safetensors")


def test_nearest_visible_by_hand() -> None:
    config = encoder.EncoderConfig(bands=2, image_px=6, patch_px=2, group_bands=1, width=8, depth=1, heads=1)
    target = torch.arange(18.0).reshape(1, 18, 1).expand(1, 18, 4)
    mask = torch.ones(1, 18)
    mask[0, [0, 8, 9 + 4]] = 0
    guess = pretrain.nearest_visible(target, mask, config)[0, :, 0]
    assert guess.tolist() == [0, 0, 0, 0, 0, 8, 0, 8, 8, *[13.0] * 9]
