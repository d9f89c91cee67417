"""Test checkpoints: equal bytes when saved again, every known layout of released files, and refused files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import get_args

import numpy as np
import pytest
import torch
from baselines import build, spectralgpt
from safetensors.torch import save_file
from test_encoder import TINY, images
from test_upernet import NARROW
from torch import Tensor, nn

import sgmodel
from sgdata import files, package_data
from sgdata.errors import SettingError, SourceError
from sgmodel.checkpoints import cards, checkpoint_folder, convert, hub, load_weights, weight_files
from sgmodel.data import normalise
from sgmodel.models import contrastive, encoder, factory, heads, mae, specs, weight_adaptation

ROOT = Path(__file__).resolve().parents[1]
DECODER = mae.DecoderConfig(width=16, depth=1, heads=2)


def fresh(config: encoder.EncoderConfig) -> encoder.Encoder:
    part = encoder.Encoder(config)
    encoder.initialise(part)
    return part


def started(model: heads.TaskModel) -> heads.TaskModel:
    encoder.initialise(model.backbone.encoder)  # type: ignore[arg-type]
    return model


def autoencoder(config: encoder.EncoderConfig = TINY) -> mae.MaskedAutoencoder:
    return mae.MaskedAutoencoder(encoder.Encoder(config), DECODER, mae.MaskedObjective(masking="tube", norm_pix=True))


MODELS = {
    "encoder": lambda: fresh(TINY),
    "autoencoder": autoencoder,
    "classifier": lambda: started(build("classifier", spectralgpt(TINY, pooling="released"), 12, 7)),
    "segmenter": lambda: started(build("segmenter", spectralgpt(TINY, head=NARROW), 12, 5)),
    "change": lambda: started(build("change", spectralgpt(TINY, head=NARROW), 12)),
}


def card_of(model: nn.Module) -> cards.ModelCard:
    how = normalise.Normalisation(scheme="minmax", eps=1e-10, mean=(), std=())
    return cards.ModelCard(
        model=specs.describe(model), normalisation=how, recipe={"steps": 3, "lr": 1e-4}, commit="0" * 40
    )


def test_every_kind_of_spec_describes_the_model_that_it_builds() -> None:
    objective = contrastive.ContrastiveObjective(method="simclr", temperature=0.2, projection=4)
    contrast = specs.ContrastSpec(recipe=factory.ModelRecipe(backbone="linear"), bands=3, objective=objective)
    cases = [*(specs.describe(make()) for make in MODELS.values()), contrast]
    assert {type(case) for case in cases} == set(get_args(specs.ModelSpec)), "add a case for the new kind"
    for case in cases:
        assert specs.describe(case.build()) == case


def same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


# --- our own ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_saved_checkpoint_is_loaded_equal(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    checkpoint_folder.save(tmp_path / "a", model, card_of(model))
    loaded = sgmodel.load(tmp_path / "a")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    same_weights(loaded.state_dict(), model.state_dict())
    assert cards.read(tmp_path / "a") == card_of(model)


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    model = autoencoder()
    for name in ("a", "b"):
        checkpoint_folder.save(tmp_path / name, model, card_of(model))
        model = cards.load(tmp_path / name)
    assert files.compute_sums(tmp_path / "a") == files.compute_sums(tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["SHA256SUMS", "card.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "card.json").unlink(), "no such file or folder; expected a checkpoint folder"),
        (lambda f: (f / "model.safetensors").unlink(), "no such file or folder; expected a safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 40), "not a whole safetensors file"),
        (lambda f: os.truncate(f / "model.safetensors", 9000), "not a whole safetensors file"),
        (lambda f: (f / "card.json").write_text("{}"), "'model'"),
        (
            lambda f: _edit(f, '"format": 3', '"format": 1'),
            "format 1, this version reads 2 and 3; use the version of sgmodel",
        ),
        (
            lambda f: (f / "card.json").write_text('{"format": 1, "model": {"kind": "x"}}'),
            "format 1, this version reads 2 and 3",
        ),
        (lambda f: _edit(f, '"depth": 2', '"depth": 3'), "weights do not fit the card"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(damage, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = MODELS["segmenter"]()
    checkpoint_folder.save(tmp_path, model, card_of(model))
    damage(tmp_path)
    with pytest.raises(SourceError, match=message) as refusal:
        cards.load(tmp_path)
    assert "\n" not in str(refusal.value)


def _edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "card.json").read_text()
    assert old in text
    (folder / "card.json").write_text(text.replace(old, new))


def test_a_card_with_the_names_of_format_2_is_read(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, timesteps=2, pos_embed_init="sincos", pos_embed="joint")
    model = encoder.Encoder(config)
    training = {
        "ema_decay": 0.9,
        "optimizer": {"schedule": "exponential", "weight_decay_on": "matrices-except-pos-embed"},
    }
    card = dataclasses.replace(card_of(model), recipe={"training": training})
    checkpoint_folder.save(tmp_path, model, card)
    for new, old in {
        '"format": 3': '"format": 2', '"timesteps": 2': '"times": 2', '"pos_embed": ': '"positions": ',
        '"dropped_groups": ': '"dropped": ', '"pos_embed_init": ': '"start": ', '"ema_decay": ': '"average": ',
        '"weight_decay_on": "matrices-except-pos-embed"': '"decay": "not tables"', '"exponential"': '"per epoch"',
    }.items():  # fmt: skip
        _edit(tmp_path, new, old)
    assert cards.read(tmp_path) == card
    assert cards.load(tmp_path).config == config


def test_the_commit_is_this_checkouts_or_nothing() -> None:
    commit = checkpoint_folder.commit()
    assert commit is None or (len(commit) == 40 and int(commit, 16))


# --- published files -------------------------------------------------------------------------


def fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with one `to_qkv` layer in each block, as the released code had for some months."""
    out = {}
    for name, tensor in state.items():
        if ".attn.q." in name:
            parts = [state[name.replace(".q.", f".{part}.")] for part in "qkv"]
            out[name.replace(".q.", ".to_qkv.")] = torch.cat(parts)
        elif ".attn.k." not in name and ".attn.v." not in name:
            out[name] = tensor
    return out


LAYOUTS = {
    "as published": lambda s: {
        "model": s,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 199,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(batch_size=16, data_path="somewhere", betas=(0.9, 0.95), seed=None),
    },
    "bare": lambda s: s,
    "from DataParallel": lambda s: {f"module.{name}": tensor for name, tensor in s.items()},
    "compiled": lambda s: {"state_dict": {f"_orig_mod.{name}": tensor for name, tensor in s.items()}},
    "fused qkv": lambda s: {"model": fused(s)},
    "under a name of its own": lambda s: {"epoch": 3, "run": {"model_state_dict": s}, "optimizer": {"state": {0: s}}},
    "averaged ones beside it": lambda s: {"model_ema": {n: t + 1 for n, t in s.items()}, "model": s},
    "as a part": lambda s: {"state_dict": {f"model.backbone.{name}": tensor for name, tensor in s.items()}},
}


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_published_layouts_load(layout: str, old_format: bool, tmp_path: Path) -> None:
    source = autoencoder()
    document = LAYOUTS[layout](source.state_dict())
    torch.save(document, tmp_path / "a.pth", _use_new_zipfile_serialization=not old_format)
    target = autoencoder()
    report = load_weights.fit(target, load_weights.read_weights(tmp_path / "a.pth"))
    assert set(report.matched) == set(target.state_dict())
    assert not (report.resized or report.missing or report.unexpected)
    same_weights(target.state_dict(), source.state_dict())


def test_harmless_values_next_to_the_weights_are_allowed(tmp_path: Path) -> None:
    source = autoencoder()
    args = argparse.Namespace(lr=np.float64(1e-3), batch=np.int64(16), out=PurePosixPath("out"), flag=np.bool_(True))
    document = {"model": source.state_dict(), "args": args, "best": np.float32(0.5), 3: torch.zeros(2)}
    torch.save(document, tmp_path / "a.pth")
    same_weights(load_weights.read_weights(tmp_path / "a.pth"), source.state_dict())
    # As numpy 1 and Python 3.13 write their names.
    for old, new in ((b"numpy._core.multiarray", b"numpy.core.multiarray"), (b"PurePosixPath", b"_local.PosixPath")):
        torch.save(document, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
        content = (tmp_path / "b.pth").read_bytes().replace(b"cpathlib._local\n", b"cpathlib\n")  # where this is 3.13
        assert old in content
        (tmp_path / "b.pth").write_bytes(content.replace(old, new))
        same_weights(load_weights.read_weights(tmp_path / "b.pth"), source.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_fill_models_of_single_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    source, larger = autoencoder(), autoencoder(dataclasses.replace(TINY, image_px=32))
    torch.save({name: tensor.to(dtype) for name, tensor in source.state_dict().items()}, tmp_path / "a.pth")
    report = load_weights.fit(larger, load_weights.read_weights(tmp_path / "a.pth"))
    assert set(report.resized) == {"pos_embed_spatial", "decoder_pos_embed_spatial"}
    for name, tensor in larger.state_dict().items():
        assert tensor.dtype == torch.float32
        if name not in report.resized:
            torch.testing.assert_close(tensor, source.state_dict()[name], rtol=1e-2, atol=1e-6)


def in_parts(state: dict[str, Tensor], folder: Path) -> None:
    """Save weights in parts with an index, as the hub's libraries save large models."""
    folder.mkdir()
    names, parts = list(state), [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for n, part in enumerate(parts):
        save_file({name: state[name] for name in names[n::2]}, folder / part)
    index = {"metadata": {}, "weight_map": {name: parts[n % 2] for n, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_weights_in_parts_are_put_together_or_refused(tmp_path: Path) -> None:
    source = autoencoder()
    in_parts(source.state_dict(), tmp_path / "hub")
    same_weights(load_weights.read_weights(tmp_path / "hub"), source.state_dict())
    index = tmp_path / "hub" / "model.safetensors.index.json"
    whole = index.read_text()
    for old, new, message in (
        ("model-00002", "model-00003", "model-00003-of-00002.safetensors: no such file"),
        ("model-00002", "../model-00002", r"names parts elsewhere \(\.\./model-00002"),
        ('"pos_embed_spatial"', '"pos_embed_other"', r"1 weights are in no part \(first, pos_embed_other\)"),
        ('"weight_map"', '"map"', "names no parts, expected 'weight_map'"),
    ):
        index.write_text(whole.replace(old, new))
        with pytest.raises(SourceError, match=message) as refusal:
            load_weights.read_weights(tmp_path / "hub")
        assert "\n" not in str(refusal.value)


def test_a_published_file_without_part_of_its_decoder_is_not_half_random(tmp_path: Path) -> None:
    state = {name: t for name, t in autoencoder().state_dict().items() if not name.startswith("decoder_pred")}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(SourceError, match=r"2 weights of the autoencoder are missing \(first, decoder_pred.weight\)"):
        cards.load(tmp_path / "a.pth")


def test_the_folder_of_a_run_names_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-best").mkdir()
    with pytest.raises(SettingError, match=f"is the folder of a run; give .*{tmp_path.name}/checkpoint-best"):
        hub.resolve(tmp_path)
    assert hub.resolve(tmp_path / "checkpoint-best") == tmp_path / "checkpoint-best"


def test_files_missing_on_the_hub_are_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def offline(*_: object, **__: object) -> str:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(SourceError, match="hf:owner/name: cannot be fetched from the hub .no route to the hub"):
        sgmodel.from_pretrained("hf:owner/name")


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.mark),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": autoencoder().state_dict(), "args": Bomb(tmp_path / "ran")}, tmp_path / "a.pth")
    with pytest.raises(SourceError, match=r"holds \S*mkdir, which loading would run") as refusal:
        load_weights.read_weights(tmp_path / "a.pth")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bytes that are not a whole torch file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a whole torch file"),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        load_weights.read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "old.pth", "a.safetensors"])
def test_damaged_files_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    state = {"a.weight": torch.rand(3, 4), "b": torch.rand(5)}
    path = tmp_path / name
    if path.suffix == ".pth":
        document = {"model": state, "args": argparse.Namespace(x=1)}
        torch.save(document, path, _use_new_zipfile_serialization=name == "a.pth")
    else:
        save_file(state, path)
    whole, random = path.read_bytes(), np.random.Generator(np.random.Philox(key=1))
    refusals = []
    for trial in range(150):
        content = bytearray(whole[: int(random.integers(len(whole)))] if trial % 3 == 0 else whole)
        for at in random.integers(max(len(content), 1), size=int(content != b"") * 4):
            content[at] = int(random.integers(256))
        path.write_bytes(content)
        try:
            weight_files.read(path)
        except SourceError as refusal:
            refusals.append(str(refusal))
    assert len(refusals) > 50
    assert not any("\n" in line for line in refusals)


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    torch.save(autoencoder().state_dict(), tmp_path / "a.pth")
    os.truncate(tmp_path / "a.pth", 20_000)
    with pytest.raises(SourceError, match="bytes that are not a whole torch file"):
        load_weights.read_weights(tmp_path / "a.pth")
    with pytest.raises(SourceError, match="no such file or folder"):
        load_weights.read_weights(tmp_path / "b.pth")


# --- fitting ---------------------------------------------------------------------------------


def test_pretrained_weights_reach_every_downstream_model(tmp_path: Path) -> None:
    source = autoencoder()
    checkpoint_folder.save(tmp_path, source, card_of(source))
    state = load_weights.read_weights(tmp_path)
    x = images(TINY)
    expected = encoder.tokens(source, x)
    for kind in ("encoder", "classifier", "segmenter", "change"):
        model = MODELS[kind]()
        report = load_weights.fit(model, state, at_least=1.0)
        part = model.backbone.encoder if hasattr(model, "backbone") else model
        torch.testing.assert_close(encoder.tokens(part, x), expected)
        assert all(name.startswith(("decoder", "mask_token")) for name in report.unexpected)
        assert all(not name.startswith(("blocks", "pos_embed", "patch_embed", "norm")) for name in report.missing)


def test_a_published_segmentation_file_fills_a_segmenter(tmp_path: Path) -> None:
    source, target = MODELS["segmenter"](), MODELS["segmenter"]()
    theirs = {weight_files.released_name(n, "segmenter"): t for n, t in source.state_dict().items()}
    torch.save({"model": theirs, "lr_scheduler": {}, "epoch": 1}, tmp_path / "a.pth")
    report = load_weights.fit(target, load_weights.read_weights(tmp_path / "a.pth"))
    assert not (report.missing or report.unexpected)
    same_weights(target.state_dict(), source.state_dict())


def test_position_tables_are_interpolated_or_drawn_again() -> None:
    source, larger = autoencoder(), dataclasses.replace(TINY, image_px=32)
    with torch.no_grad():  # a table that is a plane over the ground: bicubic keeps it, but for the outermost ring
        row, col = torch.meshgrid(torch.arange(2.0), torch.arange(2.0), indexing="ij")
        source.pos_embed_spatial.copy_((1 + 0 * row).reshape(1, 4, 1).expand_as(source.pos_embed_spatial))
        source.decoder_pos_embed_spatial.copy_(
            (row + 10 * col).reshape(1, 4, 1).expand_as(source.decoder_pos_embed_spatial)
        )
    target = autoencoder(larger)
    report = load_weights.fit(target, source.state_dict())
    assert set(report.resized) == {"pos_embed_spatial", "decoder_pos_embed_spatial"}
    torch.testing.assert_close(target.pos_embed_spatial, torch.ones(1, 16, 24))
    grid = target.decoder_pos_embed_spatial[0, :, 0].reshape(4, 4)
    assert (grid.diff(dim=0) > 0).all()
    assert (grid.diff(dim=1) > 5 * grid.diff(dim=0).mean()).all(), "columns stay columns"

    target = autoencoder(larger)
    before = target.pos_embed_spatial.clone()
    report = load_weights.fit(target, source.state_dict(), tables="redraw")
    assert not report.resized
    assert set(report.missing) == {"pos_embed_spatial", "decoder_pos_embed_spatial"}
    assert torch.equal(target.pos_embed_spatial, before)
    assert torch.equal(target.pos_embed_temporal, source.pos_embed_temporal)


def test_joint_tables_are_resized_group_by_group() -> None:
    table = torch.arange(3.0).reshape(1, 3, 1, 1).expand(1, 3, 16, 5).reshape(1, 48, 5)
    resized = weight_adaptation.resize_table(table, rows=3 * 36, planes=3)
    torch.testing.assert_close(resized.reshape(3, 36, 5), torch.arange(3.0).reshape(3, 1, 1).expand(3, 36, 5))


def test_resizing_there_and_back_keeps_a_smooth_table() -> None:
    row, col = torch.meshgrid(torch.linspace(0, 3, 12), torch.linspace(0, 3, 12), indexing="ij")
    table = torch.stack([row.sin(), col.cos(), (row * col).sin() / 3], dim=-1).reshape(1, 144, 3)
    larger = weight_adaptation.resize_table(table, rows=256, planes=1)
    torch.testing.assert_close(weight_adaptation.resize_table(larger, rows=144, planes=1), table, rtol=0, atol=0.02)


def test_the_released_classifier_trains_its_joint_table_from_zero() -> None:
    joint = dataclasses.replace(TINY, pos_embed="joint")
    model = build("classifier", spectralgpt(joint, pooling="released"), 12, 7)
    report = load_weights.fit(model, autoencoder().state_dict(), at_least=0.8)
    assert {"pos_embed", "head.weight", "head.bias"} == set(report.missing)
    assert {"pos_embed_spatial", "pos_embed_temporal"} <= set(report.unexpected)
    assert model.backbone.encoder.pos_embed.abs().max() == 0


def test_another_class_count_keeps_the_fresh_head() -> None:
    ten, seven = (started(build("classifier", spectralgpt(TINY), 12, classes)) for classes in (10, 7))
    before = seven.head.weight.clone()
    report = load_weights.fit(seven, ten.state_dict())
    assert set(report.missing) == set(report.unexpected) == {"head.weight", "head.bias"}
    assert torch.equal(seven.head.weight, before)


@pytest.mark.parametrize("change", [{"width": 48}, {"depth": 9}])
def test_too_little_is_refused_and_changes_nothing(change: dict[str, int]) -> None:
    model = autoencoder(dataclasses.replace(TINY, **change))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SourceError, match=r"a\.pth: only \d+% of the encoder's parameters fit; first, \w+"):
        load_weights.fit(model, autoencoder().state_dict(), origin="a.pth", at_least=0.9)
    same_weights(model.state_dict(), before)


def test_missing_half_the_keys_is_refused() -> None:
    state = {name: t for name, t in autoencoder().state_dict().items() if ".mlp." not in name}
    with pytest.raises(SourceError, match=r"first, blocks\.0\.mlp\.fc1\.weight is absent"):
        load_weights.fit(autoencoder(), state)


# --- published files without a card ----------------------------------------------------------


@pytest.mark.parametrize("table", ["base", "large", "huge", "base_classify", "base_segment", "base_change"])
def test_the_published_models_are_known_by_their_shapes(table: str) -> None:
    rows = package_data.table(f"spectralgpt_{table}_keys")
    with torch.device("meta"):
        state = {row["key"]: torch.empty([int(n) for n in row["shape"].split("x")]) for row in rows}
        spec = cards.infer(state, origin="a.pth")
        model = spec.build()
    own = {weight_files.released_name(name, spec.kind): t.shape for name, t in model.state_dict().items()}
    assert own == {name: t.shape for name, t in state.items()}
    size = table.split("_")[0]
    sizes = {"base": encoder.base(), "large": encoder.large(), "huge": encoder.huge()}
    joint = "joint" if "classify" in table else "separate"
    known = spec.recipe.encoder if isinstance(spec, specs.TaskSpec) else spec.encoder
    assert known == dataclasses.replace(sizes[size], pos_embed=joint)
    assert getattr(spec, "decoder", None) in {None, mae.DecoderConfig()}


def test_a_published_file_loads_as_a_model(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, width=64, heads=1)
    source = started(build("classifier", spectralgpt(config, pooling="released"), 12, 10)).eval()
    torch.save({f"module.{name}": t for name, t in source.state_dict().items()}, tmp_path / "a.pth")
    loaded = sgmodel.load(str(tmp_path / "a.pth"))
    assert isinstance(loaded, heads.Classifier)
    x = images(TINY)
    torch.testing.assert_close(loaded(x), source(x), rtol=0, atol=0)


def test_weights_of_another_family_are_refused() -> None:
    with pytest.raises(SourceError, match="not the weights of a SpectralGPT model"):
        cards.infer({"conv1.weight": torch.zeros(64, 3, 7, 7)}, origin="resnet.pth")


def test_the_package_itself_imports_no_torch_and_the_core_no_timm() -> None:
    core = "import sgmodel.checkpoints.cards; print('timm' in sys.modules)"
    code = f"import sys, sgmodel; print('torch' in sys.modules); {core}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\nFalse\n"


# --- parts of an encoder -------------------------------------------------------------------


PARTS = (
    "blocks.1.",
    "blocks.0.attn.proj.",
    "blocks.1.mlp.fc2.bias",
    "blocks.0.norm2.",
    "norm.",
    "patch_embed.proj.bias",
)


@pytest.mark.parametrize("part", [*PARTS, "pos_embed_spatial"])
def test_weights_without_a_part_of_the_encoder_are_refused_by_name(tmp_path: Path, part: str) -> None:
    config = dataclasses.replace(TINY, width=64, heads=1, depth=40, bands=3)
    source = encoder.Encoder(config).state_dict()
    lacking = {name: tensor for name, tensor in source.items() if not name.startswith(part)}
    first = next(name for name in source if name not in lacking)
    with pytest.raises(SourceError, match=rf"only 9\d% of the encoder's parameters fit; first, {first} is absent"):
        load_weights.fit(encoder.Encoder(config), lacking)
    torch.save(lacking, tmp_path / "a.pth")
    if part != "pos_embed_spatial":  # without which it is no file of SpectralGPT
        with pytest.raises(SourceError, match=f"first, {first} is absent"):
            convert.convert(tmp_path / "a.pth", tmp_path / "out", at_least=0.9)
        with pytest.raises(SourceError, match=f"first, {first} is absent"):
            cards.load(tmp_path / "a.pth")
    load_weights.fit(encoder.Encoder(config), lacking, at_least=0.0)  # on purpose


def test_tables_that_are_drawn_again_may_be_missing() -> None:
    source = {name: tensor for name, tensor in encoder.Encoder(TINY).state_dict().items() if "pos_embed" not in name}
    report = load_weights.fit(encoder.Encoder(TINY), source, tables="redraw")
    assert set(report.missing) == {"pos_embed_spatial", "pos_embed_temporal"}


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.q.lora_A.default.weight", "base_model.model.lora_B.weight", "lora_q.a"]
)
def test_lora_layers_beside_the_weights_are_named(tmp_path: Path, name: str) -> None:
    state = {**encoder.Encoder(TINY).state_dict(), name: torch.zeros(4, TINY.width)}
    with pytest.raises(SourceError, match=f"1 weights of LoRA layers .first, {name}.; merge them"):
        load_weights.fit(encoder.Encoder(TINY), state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(SourceError, match=r"LoRA layers .* merge them"):
        convert.convert(tmp_path / "a.pth", tmp_path / "out", at_least=0.9)
