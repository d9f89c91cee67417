"""Several data sets as one stream, each with its share of the places: a pure function of (seed, epoch).

An epoch has as many places as all data sets have samples. Each gets its share of them, exactly, at places drawn anew
in every epoch, and fills its places from its own endless stream: no sample comes a second time before all others of
its data set have come once, however long that takes. Values are brought to the scale of the first by name.
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
from sgmodel.data import band_selection, loader, seeded_random


def quotas(counts: Sequence[int], shares: Sequence[float]) -> NDArray[np.int64]:
    """Places of each data set in an epoch: `shares` of the sum of `counts`, by largest remainders (ties: the first)."""
    exact = np.array(shares, float) / sum(shares) * sum(counts)
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: sum(counts) - whole.sum()]] += 1
    return whole


def epoch(counts: Sequence[int], shares: Sequence[float], *, seed: int, number: int) -> loader.BatchIndices:
    """All places of one epoch: samples numbered through the data sets, and how often each data set was through."""
    which = np.repeat(np.arange(len(counts)), quotas(counts, shares))
    which = which[seeded_random.order(sum(counts), seed=seed, epoch=number)]
    samples, own = np.empty_like(which), np.empty_like(which)
    for at, (count, quota) in enumerate(zip(counts, quotas(counts, shares).tolist(), strict=True)):
        # Where its own stream stands is known without walking through earlier epochs: that is what resumes exactly.
        places = number * quota + np.arange(quota)
        here = np.empty(quota, np.int64)
        for turn in np.unique(places // count):
            wanted = places // count == turn
            here[wanted] = seeded_random.order(count, seed=seed, epoch=int(turn), lane=at + 1)[places[wanted] % count]
        samples[which == at], own[which == at] = sum(counts[:at]) + here, places // count
    return loader.BatchIndices(samples=samples, epoch=own)


class Mixture:
    """Data sets by name with their shares, for `loader.load`; `bands` are picked from each by name."""

    def __init__(
        self,
        sources: Mapping[str, loader.Samples],
        shares: Mapping[str, float],
        bands: Sequence[str],
        accept: Sequence[str],
    ) -> None:
        """Raises SettingError naming what the data sets do not share; `accept` waives parts of the contract."""
        if sources.keys() != shares.keys() or any(not share > 0 for share in shares.values()):
            message = f"training.mixture is {dict(shares)}, --shards gives {', '.join(sources)}"
            raise SettingError(f"{message}; expected a share above 0 for each of them")
        self.sources = [source for _, source in sorted(sources.items())]
        self.shares = [share for _, share in sorted(shares.items())]
        parts = [band_selection.narrowed(source.contract, bands) for source in self.sources]
        first = parts[0]
        for part in parts[1:]:
            # Contracts know nothing of the normalisation, which `accept` may waive of starting weights.
            waived = [name for name in accept if name != "normalisation"]
            contracts.require(replace(part, scale=first.scale), first, "fine-tune", waived)
        self.contract = _together(parts, self.shares, [source.split for source in self.sources])
        self.keys = [key for source in self.sources for key in source.keys]
        self.starts = np.cumsum([0, *map(len, self.sources)])
        self.members = {"image": _member(self.sources)}
        band_indices = [
            band_selection.indices(source.contract, bands) or list(range(len(bands))) for source in self.sources
        ]
        self._band_indices, self._factors = (
            np.array(band_indices),
            np.array([part.scale / first.scale for part in parts], np.float32),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def valid_size(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Height and width (N, 2) of samples (N,)."""
        return self.members["image"].shape[samples][:, -2:]

    def beside(self, samples: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return `band_indices` (N, C) of each image, and the `factor` (N,) that brings it to the common scale."""
        which = self._which(samples)
        return {
            "band_indices": torch.from_numpy(self._band_indices[which]),
            "factor": torch.from_numpy(self._factors[which]),
        }

    def stream(self, batch: int, *, seed: int, first: int, last: int) -> Iterator[loader.BatchIndices]:
        """The global batches of steps [first, last)."""
        counts = [len(source) for source in self.sources]

        def turn(number: int) -> loader.BatchIndices:
            return epoch(counts, self.shares, seed=seed, number=number)

        return loader.steps(len(self), batch, turn, first=first, last=last)

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


def _member(sources: Sequence[loader.Samples]) -> loader.Member:
    """Shape and type of the image of every sample; where it lies only its own source knows."""
    for source in sources:
        if "image" not in source.members:
            message = f"'{source.contract.dataset}' has {', '.join(source.members)}"
            raise SettingError(f"{message}: a mixture takes one 'image'; pack with --layout resampled")
    shape = np.concatenate([source.members["image"].shape for source in sources])
    stored = np.concatenate([source.members["image"].stored for source in sources])
    return loader.Member(start=[], stop=[], shape=shape, stored=stored, dtype=loader.widest(stored, "a mixture"))


def _together(parts: Sequence[Contract], shares: Sequence[float], splits: Sequence[str]) -> Contract:
    """The contract of all: statistics by share, in the unit of the first; no labels, for those of two sets clash."""
    first = parts[0]
    told = [[part.dataset, part.fingerprint, share] for part, share in zip(parts, shares, strict=True)]
    shapes = {part.shape for part in parts}
    return replace(
        first,
        dataset="+".join(part.dataset for part in parts),
        version="+".join(part.version for part in parts),
        shape=first.shape if len(shapes) == 1 else None,
        label_space=LabelSpace(name="none", task=first.label_space.task),
        statistics={
            band.name: _pooled(
                [part.statistics[band.name] for part in parts], [p.scale / first.scale for p in parts], shares
            )
            for band in first.bands
        },
        splits={splits[0]: sum(part.splits[split] for part, split in zip(parts, splits, strict=True))},
        fingerprint=files.sha256(files.canonical_json(told)),
    )


def _pooled(held: Sequence[BandStatistics], factors: Sequence[float], shares: Sequence[float]) -> BandStatistics:
    """Mean and deviation of the mixture, exact; its percentiles as the means of theirs, for want of the histograms."""
    weight = np.array(shares) / sum(shares)

    def mean(name: str) -> float:
        return float(sum(w * f * getattr(one, name) for w, f, one in zip(weight, factors, held, strict=True)))

    square = sum(w * f * f * (one.std**2 + one.mean**2) for w, f, one in zip(weight, factors, held, strict=True))
    return BandStatistics(
        count=sum(one.count for one in held),
        mean=mean("mean"),
        std=math.sqrt(max(float(square) - mean("mean") ** 2, 0.0)),
        min=min(f * one.min for f, one in zip(factors, held, strict=True)),
        max=max(f * one.max for f, one in zip(factors, held, strict=True)),
        **{name: mean(name) for name in ("p1", "p2", "p50", "p98", "p99")},
    )
