"""Compute CRC-32C, the checksum of Zarr's shards (RFC 3720, appendix B.4)."""

from __future__ import annotations

import numba
import numpy as np

from sgdata.types import Array

_POLYNOMIAL = 0x82F63B78


def _table() -> Array:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


@numba.njit(cache=True, nogil=True)
def _update(content: Array, table: Array) -> int:
    crc = np.uint32(0xFFFFFFFF)
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> np.uint32(8))
    return int(crc ^ np.uint32(0xFFFFFFFF))


def crc32c(content: bytes) -> int:
    """Return the CRC-32C of some bytes."""
    return int(_update(np.frombuffer(content, np.uint8), _table()))
