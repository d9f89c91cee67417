"""Benchmark a pretraining step (base 128, batch 8) on the CPU in bf16 against plain float32 attention, same model."""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from sgmodel.models import encoder, mae

BATCH, RATIO, STEPS = 8, 0.9, 2


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention with the scores of all pairs of tokens in memory."""
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


def stepper(*, dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that runs one step of a model with its optimizer on one batch."""
    torch.manual_seed(0)
    model = mae.MaskedAutoencoder(encoder.Encoder(encoder.base()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    images, noise = torch.rand(BATCH, 12, 128, 128), torch.rand(BATCH, model.config.tokens)

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
            loss = model(images, noise=noise, ratio=RATIO).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def rows() -> list[tuple[str, str, str, str]]:
    """Return the row of the speed table. Both kinds alternate; the fastest, least disturbed step of each counts."""
    ours, naive = stepper(dtype=torch.bfloat16), stepper(dtype=torch.float32)
    fast, slow = [], []
    for _ in range(STEPS + 1):  # the first of each warms up
        fast.append(seconds(ours))
        with mock.patch.object(functional, "scaled_dot_product_attention", plain_attention):
            slow.append(seconds(naive))
    a, b = min(fast[1:]), min(slow[1:])
    figure = f"{b / a:.1f}x ({a:.2f} s against {b:.2f} s, {torch.get_num_threads()} threads)"
    return [
        (
            "pretrain step, base 128, batch 8, CPU",
            "naive attention fp32 of the same model",
            ">= 3.5x (bf16)",
            figure,
        )
    ]


if __name__ == "__main__":
    print(*rows()[0], sep=" | ")
