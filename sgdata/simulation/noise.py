"""Random fields of absolute coordinates: the value at a pixel never depends on the window asked for. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sgdata.types import Array

Field = NDArray[np.float32]
# Standard deviation that cubic B-splines leave of a unit-variance lattice: per axis the mean over t of the summed
# squared weights is 151/315, and the square root of its square, for two axes, is the same number.
SPREAD = 0.4794


def hashed(seed: int, *keys: Array | int) -> NDArray[np.uint32]:
    """Return uniform uint32 from a seed and integer keys that broadcast (at least 1-D)."""
    # A hash of the address, not a generator: a tile needs its own pixels only, and any worker can draw them.
    state = np.full(1, seed & 0xFFFFFFFF, np.uint32)
    for key in keys:
        # 2^32 over the golden ratio spreads neighbouring keys; then the finalizer of MurmurHash3 (fmix32). Addresses
        # west or north of the origin are negative: through int64 they wrap instead of overflowing.
        state = state ^ (np.atleast_1d(key).astype(np.int64).astype(np.uint32) * np.uint32(0x9E3779B1))
        state = (state ^ (state >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        state = (state ^ (state >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        state = state ^ (state >> np.uint32(16))
    return state


def uniform(seed: int, *keys: Array | int) -> Field:
    """Return float32 in [0, 1) from a seed and integer keys."""
    # 24 bits are what a float32 holds: with all 32 the largest would round up to 1.
    return (hashed(seed, *keys) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _taps(positions: Array, cell: float) -> tuple[NDArray[np.int64], Field]:
    """Return the first lattice line of the four under each position, and their B-spline weights (4, N)."""
    scaled = np.asarray(positions, np.float64) / cell
    base = np.floor(scaled).astype(np.int64)
    t = scaled - base
    # Cubic, for its slope is smooth: the outline of a cloud or wood (a threshold) shows no trace of the lattice.
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    return base - 1, (np.stack(weights) / 6).astype(np.float32)


def lattice(seed: int, rows: Array, cols: Array, cell: float) -> Field:
    """Return (len(rows), len(cols)) smooth noise of mean 0 and variance 1, correlated over about `cell` pixels."""
    row0, row_weights = _taps(rows, cell)
    col0, col_weights = _taps(cols, cell)
    lines = np.arange(row0.min(), row0.max() + 4), np.arange(col0.min(), col0.max() + 4)
    knots = uniform(seed, lines[0][:, None], lines[1][None, :]) * np.float32(2) - np.float32(1)
    knots *= np.float32(3**0.5 / SPREAD)  # uniform in [-1, 1) has variance 1/3
    # One axis after the other, 4 + 4 look-ups a pixel instead of 16; transposed, so that both run along memory.
    across = sum(knots[row0 - lines[0][0] + k] * row_weights[k][:, None] for k in range(4))
    down = np.ascontiguousarray(np.asarray(across).T)
    result = sum(down[col0 - lines[1][0] + k] * col_weights[k][:, None] for k in range(4))
    return np.ascontiguousarray(np.asarray(result).T)


def fractal(seed: int, rows: Array, cols: Array, cells: Sequence[float], gain: float = 0.6) -> Field:
    """Sum lattices of falling cell sizes, each `gain` times the one before, to variance 1."""
    weights = np.array([gain**k for k in range(len(cells))])
    weights /= np.sqrt((weights**2).sum())
    parts = zip(weights.astype(np.float32), cells, strict=True)
    # The fields of a caller have neighbouring seeds: steps of 101 keep the octaves of one from being another.
    total = sum(w * lattice(seed + 101 * k, rows, cols, cell) for k, (w, cell) in enumerate(parts))
    return np.asarray(total, np.float32)


def at(seed: int, x: Array, y: Array, cell: float) -> Field:
    """Return noise as `lattice` at scattered points (N,), for choices about vector ground."""
    row0, row_weights = _taps(y, cell)
    col0, col_weights = _taps(x, cell)
    total = np.zeros(len(np.atleast_1d(x)), np.float32)
    for i in range(4):
        for j in range(4):
            knots = uniform(seed, row0 + i, col0 + j) * np.float32(2) - np.float32(1)
            total += knots * row_weights[i] * col_weights[j]
    return total * np.float32(3**0.5 / SPREAD)
