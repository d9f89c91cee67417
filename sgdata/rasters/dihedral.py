"""Hash rasters up to the eight turns and mirrorings of a square."""

from __future__ import annotations

import hashlib

import numpy as np

from sgdata.types import Array


def hashes(image: Array) -> tuple[str, str]:
    """32 hexadecimal digits of a (C, H, W) image, and the least such hash under the eight symmetries of the square.

    The least of eight: no canonical corner has to be found, which ties (a lake, a roof) would leave open.
    """
    each = [_hash(way) for way in _turned(image)]
    return each[0], min(each)


def d4_hash(image: Array) -> str:
    """The same for an image and its copies under the eight symmetries of the square."""
    return hashes(image)[1]


def _hash(image: Array) -> str:
    stored = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
    digest = hashlib.blake2b(f"{stored.dtype.str} {stored.shape}".encode(), digest_size=16)
    digest.update(stored.data)
    return digest.hexdigest()


def _turned(image: Array) -> list[Array]:
    """The eight ways to lay a (C, H, W) image, itself first."""
    return [np.rot90(way, k, axes=(1, 2)) for way in (image, image[:, :, ::-1]) for k in range(4)]
