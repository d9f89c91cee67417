"""Complete a folder of shards: index, contract with statistics, quarantine list and, last, SHA256SUMS."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, output_lock, output_names
from sgdata.errors import SourceError
from sgdata.shards import array_codec, contracts, sample_hashes, shard_index, statistics, tar_format
from sgdata.types import Array, BandStatistics, Codec, Contract, Effort, Sample, Shard


@dataclass(frozen=True, kw_only=True)
class PackedShard:
    """One written tar.

    Attributes:
        shard: Name, hash and size of the tar; of no file where it has no sample.
        split: Split of all its samples.
        rows: Index rows, one per sample.
        counts: (C, 65536) histogram of the image values of each band.
        quarantine: Rows of the quarantine list.
    """

    shard: Shard
    split: str
    rows: tuple[shard_index.Row, ...]
    counts: Array
    quarantine: tuple[shard_index.Row, ...] = ()


class ShardTotals:
    """Sum of all tars of a folder; memory grows with the number of samples, with one histogram per split."""

    def __init__(self, contract: Contract) -> None:
        """Start without any tar, for samples that satisfy `contract`."""
        self.contract = contract
        self.shards: list[Shard] = []
        self.rows: list[shard_index.Row] = []
        self.quarantine: list[shard_index.Row] = []
        self.counts: dict[str, Array] = {}

    def add(self, packed: PackedShard) -> None:
        """Add one tar."""
        self.quarantine += packed.quarantine
        if packed.rows:
            self.shards.append(packed.shard)
            self.rows += packed.rows
            previous = self.counts.get(packed.split)
            self.counts[packed.split] = packed.counts if previous is None else previous + packed.counts

    def statistics(self, splits: Iterable[str]) -> dict[str, BandStatistics]:
        """Return the statistics of each band over the samples of `splits`."""
        bands = [band.name for band in self.contract.bands]
        counts = sum((self.counts[split] for split in splits), statistics.empty(len(bands)))
        return statistics.summarise(counts, bands, self.contract.nodata)


def finish(out: Path, totals: ShardTotals) -> Contract:
    """Write index, contract, quarantine list and, last, SHA256SUMS beside the tars.

    Returns:
        The contract, completed by the shape, statistics (of the split `train`, or of all splits without one), sample
        counts per split and fingerprint.

    Raises:
        SourceError: There is no sample.
    """
    quarantine = sorted(totals.quarantine, key=lambda row: (row["key"], row["file"], row["reason"]))
    files.write(out / output_names.QUARANTINE, b"".join(files.canonical_json(row) for row in quarantine))
    rows = sorted(totals.rows, key=lambda row: (row["split"], row["key"]))
    if not rows:
        why = f"; the first: {quarantine[0]['reason']}" if quarantine else ""
        raise SourceError(
            f"{out}: not one sample to write, {len(quarantine)} in {output_names.QUARANTINE}{why}; correct the source"
        )
    contract, splits = totals.contract, Counter(row["split"] for row in rows)
    # Statistics of other splits would leak into the normalisation of what they evaluate.
    statistics_splits = ["train"] if "train" in splits else sorted(splits)
    shapes = {_finest_shape(row) for row in rows}
    hashes = [row[shard_index.HASH] for row in rows] if contract.hash == "full" else [t.sha256 for t in totals.shards]
    complete = replace(
        contract,
        shape=(len(contract.bands), *shapes.pop()) if len(shapes) == 1 else None,
        statistics=totals.statistics(statistics_splits),
        splits=dict(sorted(splits.items())),
        fingerprint=sample_hashes.fingerprint(hashes),
    )
    shard_index.write_index(out / output_names.INDEX, rows)
    contracts.write(out, complete)
    # The tars were hashed while they were written, or when their journal was read.
    files.write_sums(out, {shard.name: shard.sha256 for shard in totals.shards})
    return complete


def _finest_shape(row: shard_index.Row) -> tuple[int, int]:
    """Return height and width of the finest image member."""
    height, width = max(shape[1:] for name in _SHAPES if (shape := row.get(name)))
    return height, width


_SHAPES = tuple(f"{name}_shape" for name in tar_format.IMAGES)
_TEXTS = ("crs", "date", "place")


def _unstorable_metadata(meta: Mapping[str, Any]) -> str:
    """Return which value of the metadata of a sample the index cannot hold; "" if it can hold all of them."""
    bounds, labels = meta.get("bounds"), meta.get("labels", ())
    texts_fit = all(isinstance(meta.get(name), str | None) for name in _TEXTS)
    bounds_fit = bounds is None or (len(bounds) == 4 and all(isinstance(x, Real) and math.isfinite(x) for x in bounds))
    labels_fit = all(isinstance(label, Integral) and abs(int(label)) < 2**31 for label in labels)
    if not (texts_fit and bounds_fit and labels_fit):
        values = {name: meta[name] for name in (*_TEXTS, "bounds", "labels") if name in meta}
        return (
            f"metadata {values!s:.200}: expected {', '.join(_TEXTS)} as text, four finite bounds, and labels as numbers"
        )
    try:
        "".join(meta.get(name) or "" for name in _TEXTS).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can express
        return f"metadata contain {error.object[error.start]!a}, which is no character"
    return ""


def storable(sample: Sample, contract: Contract) -> Sample:
    """Return the sample with every array in a type that shards store, and one mark of no data in each.

    Masked pixels of masked arrays become the contract's `nodata` in images (NaN in floats without one) and the value to
    ignore in masks, as NaN does there. Types are narrowed where no value changes: integers to the first of uint8,
    uint16 and int32 that represents all of them, floats to float32, and masks of floats to integers.

    Raises:
        SourceError: An array has values that none of these types represents, or masked pixels without a `nodata`; or
            the index cannot hold a value of the metadata.
    """
    if problem := _unstorable_metadata(sample.meta):
        raise SourceError(f"sample '{sample.key}': {problem}")
    arrays = {}
    for name, array in sample.arrays.items():
        nodata = contract.label_space.ignore_index if name == "mask" else contract.nodata
        try:
            arrays[name] = _narrow(name, _fill_masked(array, nodata, labels=name == "mask"))
        except SourceError as error:
            raise SourceError(f"sample '{sample.key}': {name} {error}") from None
    return replace(sample, arrays=arrays)


def _fill_masked(array: Array, nodata: int | None, *, labels: bool) -> Array:
    """Return a plain array with `nodata` in place of masked values, and of NaN in labels."""
    values, masked = np.ma.getdata(array), np.ma.getmask(array)
    if labels and values.dtype.kind == "f":
        masked = masked | ~np.isfinite(values)
    if not masked.any():
        return values
    if nodata is None and values.dtype.kind == "f":
        return np.where(masked, np.nan, values)
    if nodata is None:
        raise SourceError("has masked pixels, the contract no number for them; set nodata in the contract")
    return np.where(masked, np.array(nodata, np.result_type(np.min_scalar_type(nodata), values.dtype)), values)


def _narrow(name: str, array: Array) -> Array:
    labels = name == "mask"
    array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if array_codec.dtype_name(array.dtype) in array_codec.STORED_DTYPES and not (labels and array.dtype.kind == "f"):
        return array
    # An image keeps at least 16 bits, so that the samples of a dataset do not differ in type by chance.
    integers = ("uint16", "int32") if name in tar_format.IMAGES else ("uint8", "uint16", "int32")
    kinds = {"f": integers if labels else ("float32",), "i": integers, "u": integers, "b": ("uint8",)}
    for dtype in kinds.get(array.dtype.kind, ()):
        with np.errstate(over="ignore", invalid="ignore"):
            stored = array.astype(dtype)
        if np.array_equal(stored, array, equal_nan=array.dtype.kind == "f"):
            return stored
    raise SourceError(
        f"is {array.dtype} with values that no type of shards ({', '.join(array_codec.STORED_DTYPES)}) represents; "
        "convert it"
    )


def write(
    samples: Iterable[Sample], out: Path, *, contract: Contract, codec: Codec = "blosc", effort: Effort = "quick"
) -> Contract:
    """Write samples in memory as a folder of shards, one tar per split; for small datasets and tests.

    `sgdata.packing` packs official files, in parallel and resumable.

    Args:
        samples: Samples that satisfy `contract`.
        out: Output folder.
        contract: Contract without shape, statistics, splits and fingerprint.
        codec: Codec of the arrays.
        effort: `quick` or `dense` compression.

    Returns:
        The completed contract.

    Raises:
        SourceError: No sample, or one that the format does not allow.
        OutputError: The folder is in use or cannot be written.
    """
    if contract.nodata is not None and not math.isfinite(contract.nodata):
        contract = replace(contract, nodata=None)  # NaN is no data in any case
    by_split: dict[str, list[Sample]] = {}
    for sample in sorted((storable(sample, contract) for sample in samples), key=lambda sample: sample.key):
        by_split.setdefault(sample.split, []).append(sample)
    totals = ShardTotals(contract)
    with output_lock.only_writer(out):
        for split, members in sorted(by_split.items()):
            counts = statistics.empty(len(contract.bands))
            for sample in members:
                for image in tar_format.whole_images(sample):
                    statistics.add_valid(image, counts, contract.nodata)
            path = out / tar_format.shard_name(contract.dataset, split, 0)
            shard, rows = tar_format.write_tar(
                path,
                ((sample, sample_hashes.hash_for(sample, contract)) for sample in members),
                codec=codec,
                effort=effort,
            )
            totals.add(PackedShard(shard=shard, split=split, rows=tuple(rows), counts=counts))
        return finish(out, totals)
