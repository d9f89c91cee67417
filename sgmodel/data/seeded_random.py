"""Random numbers as a pure function of (seed, epoch, sample): the same on any device, rank and batch size.

Philox4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3") in integer tensor
operations. Each number has its own counter, so that results do not depend on the order of calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOW = 0xFFFFFFFF


class RandomStream(IntEnum):
    """Purpose of a random number; different streams of one sample are independent."""

    ORDER = 0
    CROP = 1
    TURN = 2
    MASK = 3
    ERASE = 4
    MIX = 5
    JITTER = 6


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Return four int64 tensors of 32-bit words for four counter words (int64 tensors below 2^32, one shape)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _product(0xD2511F53, c0)
        high1, low1 = _product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return [c0, c1, c2, c3]


def _product(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    # A signed 64-bit product wraps to the same 64 bits as an unsigned one; the mask undoes the signed shift.
    product = factor * word
    return (product >> 32) & LOW, product & LOW


def uniform(samples: Tensor, count: int, *, seed: int, epoch: Tensor, stream: RandomStream) -> Tensor:
    """Return (N, count) float32 in [0, 1) with 24 random bits, for samples (N,) int64 in epochs (N,) int64."""
    blocks = torch.arange(-(-count // 4), device=samples.device)
    shape = (len(samples), len(blocks))
    counter = (
        blocks.expand(shape),
        samples[:, None].expand(shape),
        epoch[:, None].expand(shape),
        torch.full(shape, int(stream), dtype=torch.int64, device=samples.device),
    )
    words = torch.stack(philox(counter, (seed & LOW, (seed >> 32) & LOW)), dim=-1)
    return (words.reshape(len(samples), -1)[:, :count] >> 8).float() * 2.0**-24


def order(count: int, *, seed: int, epoch: int, lane: int = 0) -> NDArray[np.int64]:
    """Return a permutation of range(count): a pure function of (seed, epoch, lane), on any machine and version."""
    blocks = torch.arange(count)
    fixed = [torch.full((count,), value) for value in (lane, epoch, int(RandomStream.ORDER))]
    words = philox((blocks, *fixed), (seed & LOW, (seed >> 32) & LOW))
    # 62 random bits each: a tie among a million samples happens once in ten million epochs, and is stable.
    keys = (words[0] << 30) | (words[1] >> 2)
    return torch.argsort(keys, stable=True).numpy()
