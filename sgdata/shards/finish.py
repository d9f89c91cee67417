"""Tars become a folder of shards: index, contract with statistics, quarantine list and, last, the sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sgdata import files
from sgdata.errors import SourceError
from sgdata.shards import contracts, statistics, tar_format
from sgdata.types import Array, BandStatistics, Codec, Contract, Effort, Sample, Shard


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What one written tar (none where it has no sample) adds to the whole: index rows, and counts of image values."""

    shard: Shard
    split: str
    rows: tuple[tar_format.Row, ...]
    counts: Array
    quarantine: tuple[tar_format.Row, ...] = ()


class Whole:
    """The sum of all tars of a folder; memory grows with the samples' rows, not with the histograms."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.shards: list[Shard] = []
        self.rows: list[tar_format.Row] = []
        self.quarantine: list[tar_format.Row] = []
        self.counts: dict[str, Array] = {}

    def add(self, packed: Packed) -> None:
        """Take one tar in."""
        self.quarantine += packed.quarantine
        if packed.rows:
            self.shards.append(packed.shard)
            self.rows += packed.rows
            known = self.counts.get(packed.split)
            self.counts[packed.split] = packed.counts if known is None else known + packed.counts

    def statistics(self, splits: Iterable[str]) -> dict[str, BandStatistics]:
        """Band name to the statistics of these splits together."""
        bands = [band.name for band in self.contract.bands]
        counts = sum((self.counts[split] for split in splits), statistics.empty(len(bands)))
        return statistics.summarise(counts, bands, self.contract.nodata)


def finish(out: Path, whole: Whole) -> Contract:
    """Write index, contract, quarantine list and, last, SHA256SUMS beside the tars; returns the contract.

    Its shape, statistics, splits and fingerprint are filled in here: statistics of the split `train`, of all
    splits where there is none. Raises SourceError where there is no sample.
    """
    listed = sorted(whole.quarantine, key=lambda row: (row["key"], row["file"], row["reason"]))
    files.write(out / tar_format.QUARANTINE, b"".join(files.canonical_json(row) for row in listed))
    rows = sorted(whole.rows, key=lambda row: (row["split"], row["key"]))
    if not rows:
        why = f"; the first: {listed[0]['reason']}" if listed else ""
        raise SourceError(f"{out}: not one sample to write, {len(listed)} in {tar_format.QUARANTINE}{why}")
    contract, splits = whole.contract, Counter(row["split"] for row in rows)
    # Statistics of other splits would leak into the normalisation of what they are to judge.
    judged = ["train"] if "train" in splits else sorted(splits)
    shapes = {_lattice(row) for row in rows}
    complete = replace(
        contract,
        shape=(len(contract.bands), *shapes.pop()) if len(shapes) == 1 else None,
        statistics=whole.statistics(judged),
        splits=dict(sorted(splits.items())),
        # Sorted: the order of shards and workers is no part of the data.
        fingerprint=files.sha256("\n".join(sorted(row["sha256"] for row in rows)).encode()),
    )
    tar_format.write_index(out / tar_format.INDEX, rows)
    contracts.write(out, complete)
    # The tars were hashed as they were written, or when they were taken over: not once more.
    files.write_sums(out, {shard.name: shard.sha256 for shard in whole.shards})
    return complete


def _lattice(row: tar_format.Row) -> tuple[int, int]:
    """Height and width of the finest image member."""
    shapes = [row[f"{name}_shape"] for name in tar_format.IMAGES if row.get(f"{name}_shape")]
    height, width = max(shape[1:] for shape in shapes)
    return height, width


def write(
    samples: Iterable[Sample],
    out: Path,
    *,
    contract: Contract,
    codec: Codec = "blosc",
    effort: Effort = "quick",
) -> Contract:
    """A whole folder of shards from complete samples in memory, one tar per split: for small sets and tests.

    `sgdata.packing` does the same from official files, in parallel and resumable.
    """
    parts: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.key):
        parts.setdefault(sample.split, []).append(sample)
    whole = Whole(contract)
    with files.only_writer(out):
        for split, members in sorted(parts.items()):
            counts = statistics.empty(len(contract.bands))
            for image in (image for sample in members for image in tar_format.whole_images(sample)):
                statistics.add(image, counts)
            path = out / tar_format.shard_name(contract.dataset, split, 0)
            shard, rows = tar_format.write_tar(
                path, ((sample, tar_format.sample_hash(sample)) for sample in members), codec=codec, effort=effort
            )
            whole.add(Packed(shard=shard, split=split, rows=tuple(rows), counts=counts))
        return finish(out, whole)
