"""Compare the analytic count of FLOPs with the operations that torch counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sgmodel.models import encoder, flops, heads, mae, upernet
from sgmodel.models.spectralgpt import SpectralGPT

CONFIG = encoder.EncoderConfig(image_px=64, width=64, depth=2, heads=4)
DECODER = mae.DecoderConfig(width=48, depth=2, heads=4)
HEAD = upernet.HeadConfig(levels=(32, 64, 128, 256), hidden=(64, 64, 128), width=32, skip=8)
PAIR_HEAD = upernet.HeadConfig(levels=(32, 64, 128, 256), hidden=(64, 64, 128), width=32)
IMAGES = 2


def pretraining() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], float]:
    model = mae.MaskedAutoencoder(encoder.Encoder(CONFIG), DECODER)
    noise = torch.rand(IMAGES, CONFIG.tokens)
    counted = flops.training_step("pretrain", CONFIG, mask_ratio=0.75, decoder=DECODER)
    return model, lambda model, x: model(x, noise=noise, ratio=0.75).loss, counted


def classification() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], float]:
    model = heads.Classifier(SpectralGPT(encoder.Encoder(CONFIG)), 19)
    return model, lambda model, x: model(x).sum(), flops.training_step("classify", CONFIG, classes=19)


def segmentation() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], float]:
    model = heads.Segmenter(SpectralGPT(encoder.Encoder(CONFIG)), 13, HEAD)
    return model, lambda model, x: model(x).sum(), flops.training_step("segment", CONFIG, head=HEAD, classes=13)


def change_detection() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], float]:
    model = heads.ChangeDetector(SpectralGPT(encoder.Encoder(CONFIG)), PAIR_HEAD)
    counted = flops.training_step("detect_change", CONFIG, head=PAIR_HEAD, classes=2)
    return model, lambda model, x: model(x, x.flip(0)).sum(), counted


@pytest.mark.parametrize("make", [pretraining, classification, segmentation, change_detection])
def test_a_step_has_the_counted_operations(
    make: Callable[[], tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], float]],
) -> None:
    model, loss, expected = make()
    images = torch.rand(IMAGES, 12, 64, 64)
    # Fused attention recomputes its scores in the backward pass, which is not counted as work of the model.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            value = loss(model, images)
        with FlopCounterMode(display=False) as backward:
            value.backward()
    assert forward.get_total_flops() == pytest.approx(IMAGES * expected / 3)
    # The first layer needs no gradient of its input: patches, and pixels for the shortcut.
    assert 0.95 <= backward.get_total_flops() / (IMAGES * expected * 2 / 3) <= 1.0
