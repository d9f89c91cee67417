"""Compute the features of a frozen backbone once per sample, where nothing about a sample is random.

They are computed in the order of the samples and in batches of one size, so that a run that is resumed, or that has
other processes, trains on the same numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdata.types import Array
from sgmodel import distributed
from sgmodel.data import loader
from sgmodel.models import heads
from sgmodel.train import loop

if TYPE_CHECKING:
    from sgmodel.train.training import TrainingSetup

log = logging.getLogger("sgdata")
FEATURE = "feature"
"""Begins the names of features among the arrays of a batch."""
Images = Callable[[loader.Batch], Sequence[Tensor]]
"""A function from a batch to the images that the model takes, one tensor for each date."""


class EncodedSamples:
    """Samples with features in place of images.

    Args:
        source: The samples.
        features: Features by name, (samples, ...) each, see `_named`.
    """

    def __init__(self, source: loader.Samples, features: dict[str, Tensor]) -> None:
        self.source, self.features = source, features
        self.contract, self.split, self.keys = source.contract, source.split, source.keys
        self.members = {name: member for name, member in source.members.items() if not name.startswith("image")}

    def __len__(self) -> int:
        return len(self.source)

    def size(self) -> dict[str, int]:
        """Return the number of samples, and of windows if they are cut."""
        return self.source.size()

    def valid_size(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return height and width (N, 2) of samples (N,)."""
        return self.source.valid_size(samples)

    def extra_arrays(self, samples: NDArray[Any]) -> dict[str, Tensor]:
        """Return the features of samples (N,)."""
        rows = torch.from_numpy(samples)
        return {name: values[rows] for name, values in self.features.items()}

    def stream(self, batch: int, *, seed: int, first: int, last: int) -> Iterator[loader.BatchIndices]:
        """Yield the global batches of steps [first, last)."""
        return self.source.stream(batch, seed=seed, first=first, last=last)

    def fill(self, samples: Sequence[int], targets: Mapping[str, Sequence[Array]]) -> None:
        """Decode members `targets` of `samples`."""
        self.source.fill(samples, targets)


def encode(
    setup: TrainingSetup[Any],
    model: heads.TaskModel,
    source: loader.Samples,
    images: Images,
    *,
    limit_gb: float,
) -> loader.SampleSource:
    """Return `source` with features in place of images, or unchanged where they would take more than `limit_gb`.

    Args:
        setup: Resolved recipe.
        model: Model with a frozen backbone, which is moved to its device.
        source: Training samples.
        images: Makes the images of a batch.
        limit_gb: Memory for the features, in 10^9 bytes.
    """
    mine = distributed.assign_to_rank(loader.in_order(len(source), setup.scored_at_once))
    loaded = loader.load(source, (indices for indices, _ in mine), threads=1)
    batches = distributed.agreed(loaded)
    features: dict[str, Tensor] = {}
    with loop.evaluating(model.to(setup.launch.device)), setup.launch.autocast():
        for (indices, counting), batch in zip(mine, batches, strict=True):
            parts = _name_parts([model.encode(image) for image in images(batch)])
            if not features:
                gb = sum(part[0].nbytes for part in parts.values()) * len(source) / 1e9
                if gb > limit_gb:
                    log.info("features would take %.3g GB, above features_gb = %g: computed in each step", gb, limit_gb)
                    return source
                features = {name: part.new_zeros(len(source), *part.shape[1:]).cpu() for name, part in parts.items()}
            for name, part in parts.items():
                if counting:
                    features[name][torch.from_numpy(indices.samples)] = part.cpu()
    gathered = {name: distributed.total(values, setup.launch.device) for name, values in features.items()}
    return EncodedSamples(source, gathered)


def from_batch(batch: loader.Batch, device: torch.device, px: int) -> list[heads.EncodedImages]:
    """Return the features of the images of a batch, of each date its own; empty for a batch with images.

    Args:
        batch: The batch.
        device: Device of the model.
        px: Side of the images.
    """
    dates: dict[str, list[Tensor]] = {}
    for name, array in batch.arrays.items():
        if name.startswith(FEATURE):
            dates.setdefault(name.split()[1], []).append(array.to(device, non_blocking=True))
    return [heads.EncodedImages(tuple(parts), (px, px)) for parts in dates.values()]


def _name_parts(encoded: Sequence[heads.EncodedImages]) -> dict[str, Tensor]:
    """Return the parts of each image as arrays of a batch, named by the number of the image and of the part."""
    return {f"{FEATURE} {n} {m}": part for n, image in enumerate(encoded) for m, part in enumerate(image.parts)}
