"""Hash rasters up to the eight turns and mirrorings of a square."""

from __future__ import annotations

import hashlib

import numpy as np

from sgdata.types import Array


def hashes(image: Array) -> tuple[str, str]:
    """Return the hash of a (C, H, W) image, and the smallest hash of its eight symmetric copies.

    A hash has 32 hexadecimal digits. Taking the smallest needs no canonical orientation, which would be undefined for
    symmetric images.
    """
    each = [_hash(copy) for copy in symmetric_copies(image)]
    return each[0], min(each)


def d4_hash(image: Array) -> str:
    """Return a hash that is equal for an image and its copies under the eight symmetries of the square."""
    return hashes(image)[1]


def _hash(image: Array) -> str:
    stored = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
    digest = hashlib.blake2b(f"{stored.dtype.str} {stored.shape}".encode(), digest_size=16)
    digest.update(stored.data)
    return digest.hexdigest()


def symmetric_copies(image: Array) -> list[Array]:
    """Return the eight symmetric copies of a (C, H, W) image, itself first."""
    return [np.rot90(each, k, axes=(1, 2)) for each in (image, image[:, :, ::-1]) for k in range(4)]
