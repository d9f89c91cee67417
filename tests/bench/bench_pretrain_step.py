"""Benchmark a pretraining step (base 128, batch 8) on the CPU in bf16.

Against plain float32 attention of the same model, and against the commit `BEFORE` of this repository, in CPU seconds of
one thread, by steps in turn, which depends less on what else the machine does.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from sgmodel import devices
from sgmodel.models import encoder, mae, mask_token_attention

BATCH, RATIO, STEPS = 8, 0.9, 2
HERE = Path(__file__).resolve().parent
BEFORE, PAIRS = "7dbe2a5", 8


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
    started = time.process_time()
    step()
    return time.process_time() - started


class Steps:
    """A process that takes a pretraining step whenever it is asked to.

    Args:
        tree: Folder of the packages.
    """

    def __init__(self, tree: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "pretrain_steps.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(tree)},
        )
        self.take()  # which warms up

    def take(self) -> float:
        """Take a step and return its CPU seconds."""
        assert self.process.stdin and self.process.stdout
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """End the process."""
        self.process.communicate()


def against_before() -> str:
    """Return the ratio of the CPU seconds of BEFORE to those of this tree: its median and range over pairs of steps."""
    root = HERE.parents[1]
    archive = subprocess.run(
        ["git", "-C", str(root), "archive", BEFORE, "sgdata", "sgmodel"], capture_output=True, check=False
    )
    if archive.returncode:
        return f"not measured: no commit {BEFORE} here"
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packages:
            packages.extractall(folder, filter="data")
        processes = [Steps(Path(folder)), Steps(root)]
        pairs = []
        for number in range(PAIRS):
            order = processes if number % 2 else processes[::-1]
            seconds = {id(each): each.take() for each in order}
            pairs.append([seconds[id(each)] for each in processes])
        for each in processes:
            each.end()
    ratios = sorted(before / now for before, now in pairs)
    before, now = (statistics.median(column) for column in zip(*pairs, strict=True))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    return f"{statistics.median(ratios):.2f}x ({spread} in {PAIRS} pairs; {before:.2f} s against {now:.2f} s of CPU)"


def rows() -> list[tuple[str, str, str, str]]:
    """Return the rows of the speed table. Both kinds alternate; the fastest, least disturbed step of each counts."""
    torch.set_num_threads(1)
    devices.keep_freed_memory()  # as training does
    ours, naive = stepper(dtype=torch.bfloat16), stepper(dtype=torch.float32)
    fast, slow = [], []
    for _ in range(STEPS + 1):  # the first of each warms up
        fast.append(seconds(ours))
        with (
            mock.patch.object(functional, "scaled_dot_product_attention", plain_attention),
            mock.patch.object(mask_token_attention, "is_faster", return_value=False),
        ):
            slow.append(seconds(naive))
    a, b = min(fast[1:]), min(slow[1:])
    figure = f"{b / a:.1f}x ({a:.2f} s against {b:.2f} s of CPU)"
    return [
        (
            "pretrain step, base 128, batch 8, CPU",
            "naive attention fp32 of the same model",
            ">= 3.5x (bf16)",
            figure,
        ),
        ("pretrain step, base 128, batch 8, CPU", f"commit {BEFORE}", ">= 1.6x", against_before()),
    ]


if __name__ == "__main__":
    for row in rows():
        print(*row, sep=" | ")
