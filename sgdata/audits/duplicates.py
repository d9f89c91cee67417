"""Find copies of an image: equal, rotated or mirrored, nearly equal, or cropped. Pure."""

from __future__ import annotations

import numpy as np

from sgdata.rasters.dihedral import symmetric_copies
from sgdata.types import Array

CELLS = 8
# RMS difference in standard deviations of the cells: noise and a new processing baseline stay below, another date
# does not.
NEAR = 0.08
# Least correlation of the second differences: images of hazy water are gradients, which resemble each other.
DETAIL = 0.7
TREE_AXES = 6
MARKS = 16
# 2^64 divided by the golden ratio: multiplying by it spreads neighbouring numbers (Fibonacci hashing).
_GOLDEN = 0x9E3779B97F4A7C15
# One byte per cell for four standard deviations to either side.
_STEP = 127 / 4


def make_thumbnail(image: Array) -> Array | None:
    """Reduce (C, H, W) to (C, 8, 8) int8 cell means, normalised per band; None for an image without structure."""
    if min(image.shape[1:]) < CELLS:
        return None
    cells = _pooling(image.shape[1]) @ image.astype(np.float32) @ _pooling(image.shape[2]).T
    centred = cells - cells.mean(axis=(1, 2), keepdims=True)
    spread = centred.std(axis=(1, 2), keepdims=True)
    # Every band must have structure: constant bands would match whatever the others show.
    if (spread < 0.5).any():
        return None
    small: Array = np.clip(np.rint(centred / spread * _STEP), -127, 127).astype(np.int8)
    return small


def _pooling(size: int) -> Array:
    """Return (8, size) weights of the mean over each eighth; border pixels are shared, so that it is symmetric."""
    edges = np.linspace(0, size, CELLS + 1)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: Array = (np.clip(overlap, 0, 1) * CELLS / size).astype(np.float32)
    return weights


def find_alike(thumbnails: Array) -> list[tuple[int, int]]:
    """Find pairs i < j of (N, C, 8, 8) thumbnails that are equal up to rotation and mirroring, within NEAR per band."""
    from scipy.spatial import cKDTree

    values = thumbnails.astype(np.float32) / _STEP
    # The mean over cells that symmetries map to each other is invariant: ten numbers per band.
    orbit = np.min(symmetric_copies(np.arange(CELLS**2).reshape(1, CELLS, CELLS)), axis=0).ravel()
    orbits, sizes = np.unique(orbit, return_counts=True)
    flat = values.reshape(*values.shape[:2], -1)
    # Weighted so that the distance of two is at most that of the pictures: no pair can be missed.
    fixed = np.stack(
        [flat[..., orbit == o].mean(-1) * np.sqrt(n / CELLS**2) for o, n in zip(orbits, sizes, strict=True)]
    )
    points = np.moveaxis(fixed, 0, -1).reshape(len(values), -1)
    reach = NEAR * np.sqrt(values.shape[1])
    # A tree is quick in few dimensions: in those where the pictures differ most, whose distances are no greater.
    centred = (points - points.mean(axis=0)).astype(float)
    narrow = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -TREE_AXES:]
    pairs = cKDTree(narrow).query_pairs(reach * (1 + 1e-6), output_type="ndarray")
    pairs = pairs[np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1) < reach * (1 + 1e-6)]
    return sorted((int(i), int(j)) for i, j in pairs if _same(values[i], values[j]))


def _same(one: Array, other: Array) -> bool:
    """Return whether the best of the eight orientations has a small RMS difference in all bands and equal details."""
    ways = np.stack(symmetric_copies(one))
    missed = np.sqrt(((ways - other) ** 2).mean(axis=(2, 3))).max(axis=1)
    best = ways[missed.argmin()]
    details = [np.concatenate([np.diff(image, 2, axis=axis).ravel() for axis in (1, 2)]) for image in (best, other)]
    return bool(missed.min() < NEAR and np.corrcoef(details)[0, 1] > DETAIL)


def hash_windows(image: Array) -> bytes:
    """Return the smallest hashes (8 bytes each, at most MARKS) of all 5 x 5 windows of a (C, H, W) image.

    The hash of a window does not change with its orientation, so that images that overlap share some hashes (MinHash).
    """
    pixels, reach = np.rint(image).astype(np.uint64), 2
    height, width = (max(size - 2 * reach, 0) for size in image.shape[1:])
    total = np.zeros((height, width), np.uint64)
    if not total.size:
        return b""
    steps = range(-reach, reach + 1)
    positions = [(dy, dx) for dy in steps for dx in steps]
    for band, plane in enumerate(pixels):
        for dy, dx in positions:
            # One odd weight per orbit of the eight symmetries of the window; sums wrap at 64 bits.
            orbit = 3 * max(abs(dy), abs(dx)) + min(abs(dy), abs(dx)) + 16 * band
            weight = np.uint64(pow(_GOLDEN, orbit + 2, 2**64) | 1)
            total += weight * plane[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
    total = (total ^ (total >> np.uint64(32))) * np.uint64(_GOLDEN)
    total ^= total >> np.uint64(29)
    inner = pixels[0, reach:-reach, reach:-reach]
    # Constant areas are equal everywhere: only pixels that differ from their four neighbours identify a place.
    around = [np.roll(pixels[0], step, axis=axis)[reach:-reach, reach:-reach] for step in (-1, 1) for axis in (0, 1)]
    distinct = np.logical_and.reduce([inner != other for other in around])
    return np.unique(total[distinct])[:MARKS].tobytes()
