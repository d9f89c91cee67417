"""Compare the analytic count of FLOPs with the operations that torch counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import baselines
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sgmodel.models import contrastive, encoder, factory, flops, heads, mae, specs, token_reduction, upernet

CONFIG = encoder.EncoderConfig(image_px=64, width=64, depth=2, heads=4)
DECODER = mae.DecoderConfig(width=48, depth=2, heads=4)
HEAD = upernet.HeadConfig(
    levels=(32, 64, 128, 256), hidden=(64, 64, 128), width=32, skip=8, skip_layers=2, skip_dilations=(2,)
)
PLAIN_HEAD = replace(HEAD, skip=0)
IMAGES, RATIO = 2, 0.75
MERGED = token_reduction.TokenReduction(keep=0.7)
TIMM = {("classifier", "vit"), ("change", "swin"), ("segmenter", "beit")}
CLASSES = {"classifier": 19, "segmenter": 13, "change": 2}


def spectralgpt(kind: heads.Kind, config: encoder.EncoderConfig = CONFIG, **settings: Any) -> specs.TaskSpec:
    head = {"classifier": None, "segmenter": HEAD, "change": HEAD}[kind]
    recipe = factory.ModelRecipe(backbone="spectralgpt", encoder=config, **{"head": head} | settings)
    return specs.TaskSpec(kind=kind, recipe=recipe, bands=config.image_bands, classes=CLASSES[kind])


def contrast(name: str, method: str) -> specs.ContrastSpec:
    objective = contrastive.ContrastiveObjective(method=method, temperature=0.1, projection=16, queue=8)  # type: ignore[arg-type]
    return specs.ContrastSpec(recipe=baselines.BASELINES[name], bands=12, objective=objective)


def autoencoder(**changes: Any) -> specs.AutoencoderSpec:
    return specs.AutoencoderSpec(encoder=replace(CONFIG, **changes), decoder=DECODER, objective=mae.MaskedObjective())


SPECS: dict[str, specs.ModelSpec] = {
    "encoder": specs.EncoderSpec(encoder=CONFIG),
    "autoencoder": autoencoder(),
    "autoencoder, class token": autoencoder(class_token=True),
    "autoencoder, times": autoencoder(timesteps=2),
    "classifier": spectralgpt("classifier"),
    "classifier, class token": spectralgpt("classifier", replace(CONFIG, class_token=True), pooling="class"),
    "classifier, released pooling": spectralgpt("classifier", pooling="released"),
    "segmenter": spectralgpt("segmenter"),
    "segmenter, merged tokens": spectralgpt("segmenter", reduction=MERGED),
    "classifier, dropped tokens": spectralgpt(
        "classifier", replace(CONFIG, class_token=True), reduction=replace(MERGED, method="drop", after=(0, 1))
    ),
    "segmenter, dropped group": spectralgpt("segmenter", replace(CONFIG, dropped_groups=(3,))),
    "change": spectralgpt("change"),
    "change without a shortcut": spectralgpt("change", head=PLAIN_HEAD),
    "probe of scenes": replace(spectralgpt("classifier"), probe=True),
    "probe of pixels": replace(spectralgpt("segmenter", head=PLAIN_HEAD), probe=True),
    "moco": contrast("resnet", "moco"),
    "simclr": contrast("unet", "simclr"),
    "simclr of satmae": contrast("satmae", "simclr"),
} | {
    f"{kind}, {name}": specs.TaskSpec(kind=kind, recipe=recipe, bands=12, classes=CLASSES[kind])
    for name, recipe in baselines.BASELINES.items()
    for kind in ("classifier", "segmenter", "change")
    # torch itself counts the backbones of timm; one case each for classes, a pyramid and a grid of maps.
    if name in ("linear", "statistics", "unet", "satmae") or (kind, name) in TIMM
}


def loss(spec: specs.ModelSpec, model: nn.Module, images: Tensor) -> Tensor:
    """Return a scalar that needs every output of the model."""
    if isinstance(spec, specs.AutoencoderSpec):
        total: Tensor = model(images, noise=torch.rand(IMAGES, spec.encoder.tokens), ratio=RATIO).loss
    elif isinstance(spec, specs.ContrastSpec):
        total = model(images, images.flip(0))[0]
    elif isinstance(spec, specs.TaskSpec) and spec.kind == "change":
        total = model(images, images.flip(0)).sum()
    else:
        total = model(images).sum()
    return total


@pytest.mark.parametrize("name", SPECS)
def test_a_step_has_the_counted_operations(name: str) -> None:
    spec = SPECS[name]
    px = spec.px or 32
    times = spec.encoder.timesteps if isinstance(spec, specs.AutoencoderSpec) else 1
    with torch.device("cpu" if "swin" in name else "meta"):  # Swin computes tables, which needs memory
        model = spec.build()
        bands = spec.bands if isinstance(spec, specs.TaskSpec | specs.ContrastSpec) else spec.encoder.image_bands
        images = torch.rand(IMAGES, times, bands, px, px) if times > 1 else torch.rand(IMAGES, bands, px, px)
        images.requires_grad_()  # else the first layer would have half a backward pass
        # Fused attention recomputes its scores in the backward pass, which is not counted as work of the model.
        with sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as forward:
                value = loss(spec, model, images)
            with FlopCounterMode(display=False) as backward:
                value.backward()
    expected = flops.training_sample(spec, px, mask_ratio=RATIO, compared=IMAGES)
    measured = (forward.get_total_flops() + backward.get_total_flops()) / IMAGES
    assert measured == pytest.approx(expected)
    if "tokens" in name:  # comparing tokens has no backward pass
        return
    if not isinstance(spec, specs.ContrastSpec):
        assert forward.get_total_flops() == pytest.approx(IMAGES * expected / 3)


@pytest.mark.parametrize("name", ["classifier", "segmenter", "change", "probe of pixels", "change, unet"])
def test_a_frozen_backbone_has_no_backward_pass(name: str) -> None:
    spec = SPECS[name]
    assert isinstance(spec, specs.TaskSpec)
    with torch.device("meta"):
        model = spec.build()
        model.backbone.freeze()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            loss(spec, model, torch.rand(IMAGES, spec.bands, spec.px or 32, spec.px or 32)).backward()
    px = spec.px or 32
    counted = flops.training_sample(spec, px, passes=1)
    assert 0.8 <= counter.get_total_flops() / (IMAGES * counted) <= 1.0
    assert counted < 0.75 * flops.training_sample(spec, px)
