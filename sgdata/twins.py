"""Copies of a picture that were only turned or mirrored, found by their pixels."""

from __future__ import annotations

import hashlib

import numpy as np

from sgdata.types import Array


def d4_hash(image: Array) -> str:
    """The same 32 hexadecimal digits for a (C, H, W) image and its copies under the eight symmetries of the square.

    The least of eight hashes: no canonical corner has to be found, which ties (a lake, a roof) would leave open.
    """
    turned = [np.rot90(way, k, axes=(1, 2)) for way in (image, image[:, :, ::-1]) for k in range(4)]
    return min(_hash(each) for each in turned)


def _hash(image: Array) -> str:
    stored = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
    digest = hashlib.blake2b(f"{stored.dtype.str} {stored.shape}".encode(), digest_size=16)
    digest.update(stored.data)
    return digest.hexdigest()
