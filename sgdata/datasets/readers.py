"""Find the reader of a dataset: the module `sgdata.datasets.<name>` beside each card `catalogs/<name>.toml`.

To add a dataset, write a module with the two functions of `Reader`, a card and a recipe `recipes/shard/<name>.toml`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, cast

from sgdata.datasets import cards
from sgdata.datasets.types import SampleListing, SampleRef, ShardRecipe
from sgdata.types import Contract, Sample


class Reader(Protocol):
    """Functions of the module of a dataset."""

    def find(self, source: Path, recipe: ShardRecipe) -> SampleListing:
        """List the samples in a fixed order, without reading a pixel. Raises SettingError, SourceError."""

    def reading(self, source: Path, contract: Contract) -> AbstractContextManager[Callable[[SampleRef], Sample]]:
        """Open `source`; the function returns a sample with its arrays at their native sizes or raises SourceError."""


def reader(dataset: str) -> Reader:
    """Return the reader of a dataset. Raises SettingError if the catalogue has no such dataset."""
    return cast(Reader, importlib.import_module(f"sgdata.datasets.{cards.card(dataset).name}"))
