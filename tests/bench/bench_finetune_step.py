"""Benchmark a fine-tuning step (base, 1,024 tokens, batch 2, bf16 on the CPU) against timm's ViT-B of the same size.

Both classify, with as many tokens of the same width and depth, mean pooling, fused AdamW and deterministic kernels. CPU
seconds of one thread count, which depend less on what else the machine does; the models take turns.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from sgmodel.models import encoder, heads, torchvision_compat
from sgmodel.models.spectralgpt import SpectralGPT
from sgmodel.models.token_reduction import TokenReduction

BATCH, CLASSES, STEPS = 2, 10, 5
REDUCTION = TokenReduction(method="merge", keep=0.5, after=(1, 4))


def spectralgpt(reduction: TokenReduction | None = None) -> tuple[nn.Module, int]:
    """Return our classifier and the side of its images."""
    backbone = SpectralGPT(encoder.Encoder(encoder.base()), reduction=reduction)
    return heads.Classifier(backbone, CLASSES), 128


def vit() -> tuple[nn.Module, int]:
    """Return timm's ViT-B over patches of 8 pixels, which makes 1,024 tokens of 256 pixels, and that side."""
    torchvision_compat.declare_operators()
    timm: Any = importlib.import_module("timm")
    settings = {"patch_size": 8, "img_size": 256, "in_chans": 12, "class_token": False, "global_pool": "avg"}
    return timm.create_model("vit_base_patch16_224", num_classes=CLASSES, **settings), 256


def stepper(model: nn.Module, px: int) -> Callable[[], float]:
    """Return a function that runs one step on one batch and returns its CPU seconds."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)
    images, labels = torch.rand(BATCH, 12, px, px), torch.arange(BATCH)

    def step() -> float:
        began = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        return time.process_time() - began

    return step


def rows() -> list[tuple[str, str, str, str]]:
    """Return the rows of the speed table: medians of the ratios of neighbouring steps."""
    torch.manual_seed(0)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        steps = [stepper(*made) for made in (spectralgpt(), vit(), spectralgpt(REDUCTION))]
        seconds = [[step() for step in steps] for _ in range(STEPS + 1)][1:]  # the first of each warms up
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    ours, theirs, reduced = (statistics.median(each) for each in zip(*seconds, strict=True))
    ratio = statistics.median(a / b for a, b, _ in seconds)
    gain = statistics.median(a / c for a, _, c in seconds)
    name = "fine-tuning step, base, 1,024 tokens, CPU"
    return [
        (name, "timm ViT-B of as many tokens", "<= 0.85x", f"{ratio:.2f}x ({ours:.2f} s against {theirs:.2f} s)"),
        (name, "with token reduction", ">= 2x", f"{gain:.2f}x ({ours:.2f} s against {reduced:.2f} s)"),
    ]


if __name__ == "__main__":
    for row in rows():
        print(*row, sep=" | ")
