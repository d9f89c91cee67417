"""Find the reader of a dataset, the module `sgdata.datasets.<name>` beside each card, and read samples with it.

To add a dataset, write a module with the two functions of `Reader`, a card and a recipe `recipes/shard/<name>.toml`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from sgdata.datasets import cards
from sgdata.datasets.types import SampleListing, SampleRef, ShardRecipe
from sgdata.types import Band, Contract, Sample


class Reader(Protocol):
    """Functions of the module of a dataset."""

    def list_samples(self, source: Path, recipe: ShardRecipe) -> SampleListing:
        """List the samples in a fixed order, without reading a pixel. Raises SettingError, SourceError."""

    def open_source(self, source: Path, contract: Contract) -> AbstractContextManager[Callable[[SampleRef], Sample]]:
        """Open `source`; the function returns a sample with its arrays at their native sizes or raises SourceError.

        The bands of `contract` are in the order of the files (the card's), and so are those of the sample.
        """


def reader(dataset: str) -> Reader:
    """Return the reader of a dataset. Raises SettingError if the catalogue has no such dataset."""
    return cast(Reader, importlib.import_module(f"sgdata.datasets.{cards.card(dataset).name}"))


@contextmanager
def open_samples(dataset: str, source: Path, contract: Contract) -> Iterator[Callable[[SampleRef], Sample]]:
    """Open a source of a dataset; the function reads a sample with its bands in the order of `contract`.

    Readers return the bands in the order of the files, and they are put in order here, once for all datasets.

    Args:
        dataset: Name of the dataset.
        source: Folder or archive.
        contract: Contract of the samples.

    Raises:
        SettingError: The catalogue has no such dataset.
        SourceError: The source cannot be opened; the function raises it for a sample that cannot be read.
    """
    editions = {edition.name: edition.bands for edition in cards.card(dataset).editions}
    by_name = {band.name: band for band in contract.bands}
    # A build and a table have contracts of their own, whose order is that in which their bands are read.
    order = dict.fromkeys((*editions.get(contract.version, ()), *by_name))
    stored = tuple(by_name[name] for name in order if name in by_name)
    with reader(dataset).open_source(source, replace(contract, bands=stored)) as read:
        yield lambda ref: _reorder_bands(read(ref), stored, contract.bands)


def _reorder_bands(sample: Sample, stored: Sequence[Band], target: Sequence[Band]) -> Sample:
    """Return a sample with the bands of its images, which are in the order `stored`, in the order `target`."""
    if tuple(stored) == tuple(target):
        return sample
    arrays = dict(sample.arrays)
    for name in arrays:
        if name.startswith("image"):
            native = name.removeprefix("image_").removesuffix("m")
            # Groups such as image_20m hold the bands of that resolution.
            group = [band for band in stored if not native.isdigit() or band.gsd_m == int(native)]
            if len(arrays[name]) == len(group):  # another number of bands is refused when the sample is checked
                arrays[name] = arrays[name][[group.index(band) for band in target if band in group]]
    return replace(sample, arrays=arrays)
