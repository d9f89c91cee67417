"""Mix several datasets into one stream by shares: a pure function of (seed, epoch).

An epoch has as many positions as all datasets have samples. Each dataset gets exactly its share of them, at positions
that are redrawn in every epoch, and fills them from its own endless stream: no sample is repeated before all others of
its dataset were used, over however many epochs. Values are rescaled to the scale of the dataset that is first by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdata import files
from sgdata.errors import SettingError
from sgdata.shards import contracts
from sgdata.types import Array, BandStatistics, Contract, LabelSpace
from sgmodel.data import band_selection, loader, member_layout, seeded_random


def quotas(counts: Sequence[int], shares: Sequence[float]) -> NDArray[np.int64]:
    """Return the positions of each dataset in an epoch: `shares` of the sum of `counts`, by largest remainders.

    Ties go to the first.
    """
    exact = np.array(shares, float) / sum(shares) * sum(counts)
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: sum(counts) - whole.sum()]] += 1
    return whole


def epoch(counts: Sequence[int], shares: Sequence[float], *, seed: int, number: int) -> loader.BatchIndices:
    """Return one epoch: samples numbered through the datasets, each with the epoch of its own dataset."""
    which = np.repeat(np.arange(len(counts)), quotas(counts, shares))
    which = which[seeded_random.order(sum(counts), seed=seed, epoch=number)]
    samples, epochs = np.empty_like(which), np.empty_like(which)
    for at, (count, quota) in enumerate(zip(counts, quotas(counts, shares).tolist(), strict=True)):
        # The position in the dataset's own stream follows from the number of the epoch, so that resuming is exact.
        own_epochs, positions = np.divmod(number * quota + np.arange(quota), count)
        drawn = np.empty(quota, np.int64)
        for own_epoch in np.unique(own_epochs):
            order = seeded_random.order(count, seed=seed, epoch=int(own_epoch), lane=at + 1)
            drawn[own_epochs == own_epoch] = order[positions[own_epochs == own_epoch]]
        samples[which == at], epochs[which == at] = sum(counts[:at]) + drawn, own_epochs
    return loader.BatchIndices(samples=samples, epoch=epochs)


class Mixture:
    """A mixture of datasets with their shares, as a source for `loader.load`; bands are selected by name."""

    def __init__(
        self,
        sources: Mapping[str, loader.Samples],
        shares: Mapping[str, float],
        bands: Sequence[str],
        accept: Sequence[str],
    ) -> None:
        """Open a mixture.

        Args:
            sources: Datasets by name.
            shares: Share of each dataset, above 0.
            bands: Bands to select from each, in order.
            accept: Contract fields in which the datasets may differ.

        Raises:
            SettingError: Names differ, a share is not positive, or the contracts differ in other fields.
        """
        if sources.keys() != shares.keys() or any(not share > 0 for share in shares.values()):
            message = f"training.mixture is {dict(shares)}, --shards gives {', '.join(sources)}"
            raise SettingError(f"{message}; expected a share above 0 for each of them")
        self.names = sorted(sources)
        self.sources = [source for _, source in sorted(sources.items())]
        self.shares = [share for _, share in sorted(shares.items())]
        parts = [band_selection.narrow(source.contract, bands) for source in self.sources]
        first = parts[0]
        for part in parts[1:]:
            # `accept` may also name the normalisation of starting weights, which is not part of a contract.
            waived = [name for name in accept if name != "normalisation"]
            contracts.require(replace(part, scale=first.scale), first, "fine-tune", waived)
        self.contract = _together(parts, self.shares, [source.split for source in self.sources])
        self.split = self.sources[0].split
        self.keys = [key for source in self.sources for key in source.keys]
        self.starts = np.cumsum([0, *map(len, self.sources)])
        self.members = {"image": _member(self.sources)}
        every = list(range(len(bands)))
        self._band_indices = np.array(
            [band_selection.find_indices(one.contract, bands) or every for one in self.sources]
        )
        # No number is NaN, which therefore says that a dataset has no such number.
        self._nodata = np.array([math.nan if one.nodata is None else one.nodata for one in parts], np.float32)
        self._factors = np.array([part.scale / first.scale for part in parts], np.float32)

    def __len__(self) -> int:
        return len(self.keys)

    def size(self) -> dict[str, int]:
        """Return the number of samples."""
        return {"samples": len(self)}

    def valid_size(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return height and width (N, 2) of samples (N,)."""
        return self.members["image"].shape[samples][:, -2:]

    def extra_arrays(self, samples: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return of each image `band_indices` (N, C), `factor` (N,) to the common scale, and `nodata` (N,) or NaN."""
        which = self._which(samples)
        return {
            "band_indices": torch.from_numpy(self._band_indices[which]),
            "factor": torch.from_numpy(self._factors[which]),
            "nodata": torch.from_numpy(self._nodata[which]),
        }

    def stream(self, batch: int, *, seed: int, first: int, last: int) -> Iterator[loader.BatchIndices]:
        """Yield the global batches of steps [first, last)."""
        counts = [len(source) for source in self.sources]

        def order(number: int) -> loader.BatchIndices:
            return epoch(counts, self.shares, seed=seed, number=number)

        return loader.steps(len(self), batch, order, first=first, last=last)

    def fill(self, samples: Sequence[int], targets: Mapping[str, Sequence[Array]]) -> None:
        """Decode the members of samples, as `loader.Samples.fill` does."""
        which = self._which(np.array(samples))
        for number, source in enumerate(self.sources):
            rows = np.flatnonzero(which == number).tolist()
            if rows:
                own = [samples[row] - int(self.starts[number]) for row in rows]
                source.fill(own, {name: [arrays[row] for row in rows] for name, arrays in targets.items()})

    def _which(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.starts, samples, side="right") - 1


def _member(sources: Sequence[loader.Samples]) -> member_layout.MemberLayout:
    """Return shape and type of the image of every sample; its position is left to its own source."""
    for source in sources:
        if "image" not in source.members:
            message = f"'{source.contract.dataset}' has {', '.join(source.members)}"
            raise SettingError(f"{message}: a mixture takes one 'image'; pack with --layout resampled")
    shape = np.concatenate([source.members["image"].shape for source in sources])
    stored = np.concatenate([source.members["image"].stored for source in sources])
    return member_layout.MemberLayout(
        start=[], size=[], shape=shape, stored=stored, dtype=member_layout.common_dtype(stored, "a mixture")
    )


def _together(parts: Sequence[Contract], shares: Sequence[float], splits: Sequence[str]) -> Contract:
    """Return the contract of the mixture: statistics by share in the unit of the first dataset, and no labels."""
    first = parts[0]
    identity = [[part.dataset, part.fingerprint, share] for part, share in zip(parts, shares, strict=True)]
    shapes = {part.shape for part in parts}
    factors = [part.scale / first.scale for part in parts]
    return replace(
        first,
        nodata=None,  # NaN after `upsample.images`: each dataset may have a number of its own
        dataset="+".join(part.dataset for part in parts),
        version="+".join(part.version for part in parts),
        shape=first.shape if len(shapes) == 1 else None,
        label_space=LabelSpace(name="none", task=first.label_space.task),
        statistics={
            band.name: _pooled([part.statistics[band.name] for part in parts], factors, shares) for band in first.bands
        },
        splits={splits[0]: sum(part.splits[split] for part, split in zip(parts, splits, strict=True))},
        fingerprint=files.sha256(files.canonical_json(identity)),
        hash="full" if all(part.hash == "full" for part in parts) else "fast",
    )


def _pooled(parts: Sequence[BandStatistics], factors: Sequence[float], shares: Sequence[float]) -> BandStatistics:
    """Pool statistics: mean and deviation exactly, percentiles as weighted means, since there are no histograms."""
    weight = np.array(shares) / sum(shares)

    def mean(name: str) -> float:
        return float(sum(w * f * getattr(part, name) for w, f, part in zip(weight, factors, parts, strict=True)))

    square = sum(w * f * f * (part.std**2 + part.mean**2) for w, f, part in zip(weight, factors, parts, strict=True))
    return BandStatistics(
        count=sum(part.count for part in parts),
        mean=mean("mean"),
        std=math.sqrt(max(float(square) - mean("mean") ** 2, 0.0)),
        min=min(f * part.min for f, part in zip(factors, parts, strict=True)),
        max=max(f * part.max for f, part in zip(factors, parts, strict=True)),
        **{name: mean(name) for name in ("p1", "p2", "p50", "p98", "p99")},
    )
