"""Parse the addresses of arrays in Zarr stores. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sgdata import urls
from sgdata.errors import SourceError

METADATA, METADATA_3 = ".zmetadata", "zarr.json"
"""Documents with the metadata of a whole store, in formats 2 and 3 of Zarr."""
_STORE = re.compile(r"([^?#]*?\.zarr(?=[/?#]|$))(?:/([^?#]*))?(\?[^#]*)?")
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class ArrayAddress:
    """An array in a store.

    Attributes:
        store: Address of the store.
        path: Path of the array in it.
    """

    store: str
    path: str

    @property
    def group(self) -> str:
        """Path of the group of the array."""
        return self.path.rpartition("/")[0]


def locate(href: str) -> ArrayAddress:
    """Return the store and the path of an array. Raises SourceError if the address is none."""
    match = _STORE.fullmatch(href)
    path = (match[2] or "").strip("/") if match else ""
    if match is None or not all(_PART.fullmatch(part) for part in path.split("/")):
        raise SourceError(
            f"{urls.without_secrets(href)}: names no array; expected PRODUCT.zarr/GROUP/ARRAY; leave it out"
        )
    return ArrayAddress(store=match[1] + (match[3] or ""), path=path)


def store_of(href: str) -> str:
    """Return the address of the store that an address leads into, for which `urls.is_zarr` must hold."""
    match = _STORE.match(href)
    assert match is not None, f"{href}: expected the address of a store"
    return match[1] + (match[3] or "")
