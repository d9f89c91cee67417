"""Test every baseline on every task: shapes, gradients, checkpoints, and weights made elsewhere."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch
from baselines import BASELINES, ENCODER, GROUPS, build
from safetensors.torch import save_file
from torch import Tensor, nn

import sgmodel
from sgdata import files, package_data, sentinel2
from sgdata.errors import SettingError, SourceError
from sgmodel.checkpoints import cards, checkpoint_folder, load_weights
from sgmodel.models import factory, pixel_backbone, specs, torchvision_compat, weight_adaptation
from sgmodel.models.satmae import SatmaeConfig

TASKS = ("classify", "segment", "change")
TIMM = ("resnet", "vit", "beit", "swin")
NM = [band.wavelength_nm for band in sentinel2.bands(sentinel2.L2A_BANDS)]


def made(recipe: factory.ModelRecipe, task: str, bands: int = 12) -> nn.Module:
    torch.manual_seed(0)
    if task == "classify":
        return build("classifier", recipe, bands=bands, classes=3)
    if task == "segment":
        return build("segmenter", recipe, bands=bands, classes=3)
    return build("change", recipe, bands=bands)


def answered(model: nn.Module, task: str, bands: int = 12) -> Tensor:
    images = torch.rand(2, 2, bands, 32, 32, generator=torch.Generator().manual_seed(1))
    out: Tensor = model(*images) if task == "change" else model(images[0])
    return out


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_baseline_answers_learns_and_comes_back_from_its_card(name: str, task: str, tmp_path: Path) -> None:
    model = made(BASELINES[name], task)
    out = answered(model, task)
    assert out.shape == {"classify": (2, 3), "segment": (2, 3, 32, 32), "change": (2, 2, 32, 32)}[task]
    out.square().sum().backward()  # type: ignore[no-untyped-call]
    # A parameter that never gets a gradient would make ranks wait for ever.
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    checkpoint_folder.save(tmp_path, model, cards.ModelCard(model=specs.describe(model)))
    again = sgmodel.load(tmp_path)
    model.eval()
    # To the last bits only: other addresses, other vector loops.
    torch.testing.assert_close(answered(again, task), answered(model, task), rtol=1e-4, atol=1e-5)


def test_change_is_antisymmetric_where_nothing_changed() -> None:
    for name in ("unet", "resnet", "satmae"):
        model = made(BASELINES[name], "change").eval()
        image = torch.rand(2, 12, 32, 32)
        one, other = model(image, image), model(2 * image, 2 * image)
        assert torch.equal(one, other), name


def test_a_recipe_goes_through_toml_and_back() -> None:
    for recipe in BASELINES.values():
        assert files.parse(factory.ModelRecipe, files.to_plain(recipe), "itself") == recipe


@pytest.mark.parametrize("side", [33, 47])
def test_unet_and_resnet_take_any_size(side: int) -> None:
    for name in ("unet", "resnet"):
        assert made(BASELINES[name], "segment")(torch.rand(2, 12, side, side)).shape == (2, 3, side, side)


def test_invalid_models_are_refused() -> None:
    for change, message in (
        ({"backbone": "resnet50"}, "model.backbone is 'resnet50': expected 'spectralgpt'"),
        ({"backbone": "timm:resnet5000"}, "not a model of timm"),
        (
            {"backbone": "timm:vit_base_patch16_224", "image_px": 0},
            "model.image_px 0: .* takes images of one size only",
        ),
        ({"options": {"wings": 2}}, r"model.options of 'resnet50': 'wings' cannot be set"),
        ({"options": {"embed_dim": 2}}, r"model.options \{'embed_dim': 2\} of 'resnet50'"),
        ({"options": {"global_pool": "all"}}, r"model.options \{'global_pool': 'all'\} of 'resnet50'"),
        ({"backbone": "satmae"}, "'satmae' with a table"),
    ):
        with pytest.raises(SettingError, match=message):
            made(dataclasses.replace(BASELINES["resnet"], **change), "classify")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="the model takes 12 bands, the recipe names 10"):
        made(BASELINES["spectralgpt"], "segment", bands=10)
    for change, message in (
        ({"groups": ((0, 1), (1, 2))}, "at most once"),
        ({"image_px": 30}, "30 is not a multiple of 8"),
        ({"group_width": 24}, "group_width 24 of width 24"),
    ):
        config = BASELINES["satmae"].satmae
        assert config is not None
        with pytest.raises(SettingError, match=message):
            wrong = dataclasses.replace(config, **change)  # type: ignore[arg-type]
            made(dataclasses.replace(BASELINES["satmae"], satmae=wrong), "classify")


# --- SatMAE against the paper ----------------------------------------------------------------


def test_satmae_distinguishes_groups_and_positions_and_never_reads_other_bands() -> None:
    model = made(BASELINES["satmae"], "classify").backbone
    images = torch.rand(1, 12, 32, 32)
    tokens = model.embedded(images)
    assert tokens.shape == (1, 1 + 3 * 16, 24)
    moved = images.clone()
    moved[:, [0, 9]] += 1.0  # B01 and B09 are in no group
    assert torch.equal(model.embedded(moved), tokens)
    moved[:, 4, 8:16, 16:24] += 1.0  # group 1, row 1, column 2
    changed = (model.embedded(moved) != tokens).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [1 + 16 + 1 * 4 + 2]


def test_satmae_base_has_the_published_shapes() -> None:
    config = dataclasses.replace(BASELINES["satmae"], satmae=SatmaeConfig(groups=((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))))
    with torch.device("meta"):
        model = made(config, "classify", bands=10)
    state = {
        row["key"]: torch.zeros([int(n) for n in row["shape"].split("x")], device="meta")
        for row in package_data.table("satmae_base_keys")
    }
    report = load_weights.fit(model, state, at_least=1.0)
    assert not report.resized
    assert not report.unexpected or all(".qkv." in name for name in report.unexpected)


# --- weights made elsewhere ------------------------------------------------------------------

PREFIXES = {
    "torchvision": "",
    "DataParallel": "module.",
    "MoCo": "module.encoder_q.",
    "MoCo v3": "module.base_encoder.",
    "SimCLR": "backbone.",
    "Lightning": "model.encoder.",
}


def body(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a backbone by the names of the library that it comes from."""
    root = f"backbone.{model.backbone.root}"  # type: ignore[union-attr]
    return {n.removeprefix(root): t.clone() for n, t in model.state_dict().items() if n.startswith(root)}


def trained(name: str, bands: int = 12) -> nn.Module:
    model = made(BASELINES[name], "classify", bands)
    for part in model.modules():  # fresh running figures are all alike
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()  # type: ignore[union-attr]
    return model


@pytest.mark.parametrize("layout", sorted(PREFIXES))
def test_prefixes_of_every_known_layout_are_found(layout: str, tmp_path: Path) -> None:
    source, prefix = body(trained("resnet")), PREFIXES[layout]
    state = {prefix + name: tensor for name, tensor in source.items()}
    if "encoder_q" in prefix:  # the key encoder beside it is another one
        state |= {prefix.replace("_q", "_k") + name: tensor + 1 for name, tensor in source.items()}
        state["module.queue"] = torch.rand(8, 4)
    torch.save({"state_dict": state, "epoch": 200}, tmp_path / "a.pth")
    for task in TASKS:
        model = made(BASELINES["resnet"], task)
        report = load_weights.fit(model, load_weights.read_weights(tmp_path / "a.pth"))
        assert report.encoder_share == 1.0
        assert all(torch.equal(tensor, source[name]) for name, tensor in body(model).items())


def test_seco_is_a_list_of_layers(tmp_path: Path) -> None:
    source = body(trained("resnet", bands=3))
    number = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    named = {f"{number[n.partition('.')[0]]}.{n.partition('.')[2]}": t for n, t in source.items()}
    state = {f"encoder_{part}.{name}": tensor for part in "qk" for name, tensor in named.items()}
    torch.save({"state_dict": state | {"heads_q.0.0.weight": torch.rand(4, 4)}}, tmp_path / "seco.ckpt")
    model = made(dataclasses.replace(BASELINES["resnet"], first_layer="repeated"), "segment")
    report = load_weights.fit(model, load_weights.read_weights(tmp_path / "seco.ckpt"), wavelengths=NM)
    assert report.encoder_share == 1.0
    assert report.resized == ("backbone.body.conv1.weight",)
    assert torch.equal(body(model)["layer4.0.conv3.weight"], source["layer4.0.conv3.weight"])


@pytest.mark.parametrize("name", TIMM)
def test_weights_of_three_bands_and_another_size_fit_every_timm_baseline(name: str, tmp_path: Path) -> None:
    other = dataclasses.replace(BASELINES[name], image_px=64)
    if name == "swin":
        other = dataclasses.replace(other, options={**other.options, "window_size": 4})
    torch.manual_seed(3)
    source = body(build("classifier", other, bands=3, classes=5))
    save_file({n: t.contiguous() for n, t in source.items()}, tmp_path / "model.safetensors")
    for task in TASKS:
        model = made(BASELINES[name], task)
        report = load_weights.fit(model, load_weights.read_weights(tmp_path / "model.safetensors"), wavelengths=NM)
        assert report.encoder_share == 1.0, report
        assert torch.isfinite(answered(model, task)).all()


def test_satmae_weights_with_fused_qkv_and_another_size(tmp_path: Path) -> None:
    config = BASELINES["satmae"].satmae
    assert config is not None
    larger = dataclasses.replace(BASELINES["satmae"], satmae=dataclasses.replace(config, image_px=64))
    source = body(made(larger, "classify"))
    fused = {n: t for n, t in source.items() if ".attn.proj" in n or ".attn." not in n}
    for block in range(2):
        for kind in ("weight", "bias"):
            parts = [source[f"blocks.{block}.attn.{part}.{kind}"] for part in "qkv"]
            fused[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    del fused["channel_cls_embed"]  # pretraining has none
    fused |= {"mask_token": torch.zeros(1, 1, 8), "decoder_norm.bias": torch.zeros(8)}
    torch.save({"model": fused}, tmp_path / "a.pth")
    model = made(BASELINES["satmae"], "segment")
    report = load_weights.fit(model, load_weights.read_weights(tmp_path / "a.pth"))
    assert report.resized == ("backbone.pos_embed",)
    assert "backbone.channel_cls_embed" in report.missing
    assert torch.equal(body(model)["blocks.1.attn.k.weight"], source["blocks.1.attn.k.weight"])


def test_the_first_layer_is_adapted_as_stated() -> None:
    weight = torch.rand(4, 3, 1, 1)
    mean = weight_adaptation.first_layer(weight, 12, "mean-scaled", ())
    assert mean is not None
    # A grey image, the same in all bands, is answered as before.
    torch.testing.assert_close(mean.sum(1), weight.sum(1))
    repeated = weight_adaptation.first_layer(weight, 12, "repeated", NM)
    assert repeated is not None
    red, green, blue = (list(sentinel2.L2A_BANDS).index(name) for name in ("B04", "B03", "B02"))
    torch.testing.assert_close(repeated[:, [red, green, blue]], weight / 4)
    torch.testing.assert_close(repeated[:, 10], weight[:, 1] / 4)  # the eleventh band: 10 mod 3
    assert weight_adaptation.first_layer(weight, 12, "new", NM) is None
    assert weight_adaptation.first_layer(torch.rand(4, 13, 1, 1), 12, "repeated", NM) is None


def test_a_new_first_layer_keeps_the_models_own() -> None:
    source = body(trained("resnet", bands=3))
    model = made(dataclasses.replace(BASELINES["resnet"], first_layer="new"), "classify")
    before = body(model)["conv1.weight"]
    report = load_weights.fit(model, source, at_least=0.2)
    assert torch.equal(body(model)["conv1.weight"], before)
    assert "backbone.body.conv1.weight" in report.missing


def test_half_the_keys_another_model_or_code_are_refused(tmp_path: Path) -> None:
    source = body(trained("resnet"))
    half = dict(list(source.items())[: len(source) // 2])
    model = made(BASELINES["resnet"], "classify")
    before = body(model)
    for state, message in (
        (half, r"only \d+% of the encoder's parameters fit; first, backbone.body.layer\d"),
        (body(made(BASELINES["vit"], "classify")), r"only 0% .* backbone.body.conv1.weight is absent"),
    ):
        with pytest.raises(SourceError, match=message):
            load_weights.fit(model, state, origin="a.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in body(model).items())
    torch.save({"state_dict": source, "callback": Path}, tmp_path / "bad.ckpt")
    with pytest.raises(SourceError, match="holds .*, which loading would run"):
        load_weights.read_weights(tmp_path / "bad.ckpt")
    with pytest.raises(SourceError, match="no encoder to fill"):
        load_weights.fit(made(BASELINES["linear"], "classify"), source)


def test_weights_of_a_baseline_trained_here_bring_their_head_only_to_the_same_task(tmp_path: Path) -> None:
    source = trained("resnet")
    checkpoint_folder.save(tmp_path, source, cards.ModelCard(model=specs.describe(source)))
    same, other = made(BASELINES["resnet"], "classify"), made(BASELINES["resnet"], "segment")
    nn.init.zeros_(same.head.weight)  # type: ignore[union-attr, arg-type]
    assert not load_weights.fit(same, load_weights.read_weights(tmp_path)).missing
    assert torch.equal(same.head.weight, source.head.weight)  # type: ignore[union-attr, arg-type]
    report = load_weights.fit(other, load_weights.read_weights(tmp_path))
    assert report.encoder_share == 1.0
    assert {name.partition(".")[0] for name in report.missing} == {"head"}


def test_one_map_gets_one_linear_layer() -> None:
    model = made(BASELINES["linear"], "segment")
    assert isinstance(model.backbone, pixel_backbone.PixelBackbone)
    assert sum(p.numel() for p in model.parameters()) == 13 * 3
    assert ENCODER.bands == 1 + max(max(group) for group in GROUPS)


def test_a_folder_from_the_hub_needs_no_card(tmp_path: Path) -> None:
    source = body(trained("resnet"))
    save_file(source, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    report = load_weights.fit(made(BASELINES["resnet"], "segment"), load_weights.read_weights(tmp_path))
    assert report.encoder_share == 1.0
    with pytest.raises(SourceError, match="not the weights of a SpectralGPT model"):
        cards.load(tmp_path)


def test_the_catalogue_names_models_that_can_be_built() -> None:
    torchvision_compat.declare_operators()
    timm = importlib.import_module("timm")
    for row in package_data.table("published_weights"):
        assert all(row[key] for key in ("name", "model", "bands", "where", "licence", "layout")), row
        backbone = row["model"].partition(",")[0].partition(" ")[0]
        known = backbone in {"spectralgpt", "satmae"}
        assert known or timm.is_model(backbone.removeprefix("timm:")), row
