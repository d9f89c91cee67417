"""Hash the decoded content of samples, while they are packed or later (`hash = "fast"`), and sum up the hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, output_names, progress
from sgdata.shards import array_codec, contracts, shard_index, tar_format
from sgdata.types import Contract, Sample


def sample_hash(sample: Sample) -> str:
    """Return the SHA-256 of a sample's decoded content, which codec, effort and layout do not change.

    Args:
        sample: Sample with its arrays on their common grid.

    Returns:
        Hex digest over the arrays (name, dtype, shape, little-endian bytes) and the canonical metadata.
    """
    digest = hashlib.sha256()
    for name, array in sorted(sample.arrays.items()):
        stored = np.ascontiguousarray(array, dtype=array_codec.STORED_DTYPES[array.dtype.name])
        digest.update(files.canonical_json([name, array.dtype.name, array.shape]))
        digest.update(stored.data)
    digest.update(files.canonical_json([sample.key, sample.split, sample.meta]))
    return digest.hexdigest()


def hash_for(sample: Sample, contract: Contract) -> str | None:
    """Return the `sample_hash` of a sample of `contract`; None where its mode is to record none."""
    return sample_hash(sample) if contract.hash == "full" else None


def fingerprint(hashes: Iterable[str]) -> str:
    """Return the fingerprint of data from the hashes of their samples, or of their tars; in any order."""
    # Sorted: the order of shards and workers is no part of the data.
    return files.sha256("\n".join(sorted(hashes)).encode())


def complete(folder: Path, contract: Contract, table: Any) -> tuple[Contract, Any]:
    """Return contract and index as packing with `hash = "full"` would have made them; reads all samples.

    Args:
        folder: Folder of shards.
        contract: Its contract.
        table: Its index, a `pyarrow.Table`.

    Returns:
        The contract with the fingerprint over the hashes, and the index with the column of hashes; both as they are if
        the samples have hashes.

    Raises:
        SourceError: A sample is missing or damaged.
    """
    import pyarrow as pa

    from sgdata.rasters import resample  # here, since numba takes long to import

    if contract.hash == "full":
        return contract, table
    rows = progress.track(table.to_pylist(), label="sample hashes", total=len(table))
    hashes = [sample_hash(resample.join_groups(tar_format.read_sample(folder, row), contract)) for row in rows]
    # Before the outlines, where the index of shards with hashes has them.
    at = table.num_columns - ("geometry" in table.column_names)
    table = table.add_column(at, pa.field(shard_index.HASH, pa.string()), pa.array(hashes, pa.string()))
    return replace(contract, hash="full", fingerprint=fingerprint(hashes)), table


def complete_folder(folder: Path) -> Contract:
    """Give index and contract of shards without sample hashes these hashes; SHA256SUMS is left as it is.

    Raises:
        SourceError: A sample is missing or damaged.
        OutputError: A file cannot be written.
    """
    contract = contracts.read(folder)
    if contract.hash == "full":
        return contract
    contract, table = complete(folder, contract, shard_index.read_index(folder))
    # From rows: types of a table that was read have other names, and so other bytes.
    rows = table.select([name for name in table.column_names if name != "geometry"]).to_pylist()
    shard_index.write_index(folder / output_names.INDEX, rows)
    contracts.write(folder, contract)
    return contract
