"""Join several folders of shards to one, whose tars are links or copies: one index, one contract, no sample twice."""

from __future__ import annotations

import math
import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, output_names, safe_names
from sgdata.errors import SettingError
from sgdata.shards import contracts, sample_hashes, shard_index, statistics, tar_format
from sgdata.types import BandStatistics, Contract

PACK_TOGETHER = "pack them as one, with 'sgdata shard segmunich --source A --source B'"


def join(folders: Sequence[Path], out: Path, *, copy: bool = False) -> Contract:
    """Write the samples of all folders as one folder of shards.

    Args:
        folders: Finished folders of shards, local.
        out: Output folder, empty or new.
        copy: Whether to copy the tars, to count the pixels of the training samples again, and to compute the sample
            hashes that a folder lacks. Otherwise tars are linked, percentiles are means over the folders, weighted
            by their pixels (mean and deviation are exact), and samples have hashes if those of all folders have.

    Returns:
        The contract of all.

    Raises:
        SettingError: Pixels, labels or members of the folders differ, or a key is in two of them.
        SourceError: A folder is damaged.
    """
    input_contracts = [contracts.read(folder) for folder in folders]
    tables = [shard_index.read_index(folder) for folder in folders]
    if copy:
        complete = [
            sample_hashes.complete(*shard_folder) for shard_folder in zip(folders, input_contracts, tables, strict=True)
        ]
        input_contracts, tables = [contract for contract, _ in complete], [table for _, table in complete]
    for folder, input_contract, table in zip(folders[1:], input_contracts[1:], tables[1:], strict=True):
        _require_same_format((folders[0], input_contracts[0], tables[0]), (folder, input_contract, table))
    _require_different_keys(folders, tables)
    digests: dict[str, str] = {}
    for number, folder in enumerate(folders):
        sums = files.read_sums(folder)
        for name in sorted(set(tables[number]["shard"].to_pylist())):
            source, target = safe_names.member(folder, name).resolve(), out / _joined_name(number, name)
            out.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            if copy:
                with files.replacing(target) as temporary:
                    shutil.copyfile(source, temporary)
            else:
                target.symlink_to(source)
            digests[target.name] = sums.get(name) or files.sha256_file(source)
    _write_index(out / output_names.INDEX, tables)
    quarantines = [(folder / output_names.QUARANTINE).read_bytes() for folder in folders if _has_quarantine(folder)]
    files.write(out / output_names.QUARANTINE, b"".join(quarantines))
    if (folders[0] / output_names.RECIPE).is_file():
        files.write(out / output_names.RECIPE, (folders[0] / output_names.RECIPE).read_bytes())
    contract = _joined_contract(input_contracts)
    contracts.write(out, contract)
    files.write_sums(out, digests)
    if copy:
        contract = replace(contract, statistics=_count_statistics(out, contract))
        contracts.write(out, contract)
        files.write_sums(out, digests)
    return contract


def _has_quarantine(folder: Path) -> bool:
    return (folder / output_names.QUARANTINE).is_file()


def _joined_name(number: int, name: str) -> str:
    return f"{number:03d}-{name}"


def _require_same_format(first: tuple[Path, Contract, Any], other: tuple[Path, Contract, Any]) -> None:
    differences = contracts.find_differences(other[1], first[1], "predict")
    if _member_format(first) != _member_format(other):
        differences.append("members")
    if differences:
        raise SettingError(
            f"{other[0]}: {', '.join(differences)} differ from those of {first[0]}; give shards of one recipe"
        )


def _member_format(inputs: tuple[Path, Contract, Any]) -> tuple[list[str], str]:
    """Return the columns of positions of a folder, and the codec by the name of a member of its first tar."""
    folder, _, table = inputs
    codec = ""
    with tarfile.open(safe_names.member(folder, table["shard"][0].as_py()), "r:") as tar:
        for member in tar:
            codec = member.name.rpartition(".")[2]
            if codec != "json":
                break
    return sorted(name for name in table.column_names if name.endswith("_offset")), codec


def _require_different_keys(folders: Sequence[Path], tables: Sequence[Any]) -> None:
    folder_of: dict[str, Path] = {}
    for folder, table in zip(folders, tables, strict=True):
        for key in table["key"].to_pylist():
            if folder_of.setdefault(key, folder) is not folder:
                raise SettingError(
                    f"{folder}: sample '{key}' is also in {folder_of[key]}; of builds without places {PACK_TOGETHER}"
                )


def _write_index(path: Path, tables: Sequence[Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    renamed = []
    all_hashed = all(shard_index.HASH in table.column_names for table in tables)
    for number, original in enumerate(tables):
        table = (
            original
            if all_hashed or shard_index.HASH not in original.column_names
            else original.drop_columns([shard_index.HASH])
        )
        names = pa.array([_joined_name(number, name) for name in table["shard"].to_pylist()], pa.string())
        renamed.append(table.set_column(table.column_names.index("shard"), "shard", names))
    with files.replacing(path) as temporary:
        pq.write_table(pa.concat_tables(renamed, promote_options="default"), temporary, compression="zstd")


def _joined_contract(input_contracts: Sequence[Contract]) -> Contract:
    """Return the contract of all folders, with pooled statistics."""
    first = input_contracts[0]
    splits = sum((Counter(contract.splits) for contract in input_contracts), Counter[str]())
    names = {
        name: "+".join(dict.fromkeys(getattr(contract, name) for contract in input_contracts))
        for name in ("dataset", "version")
    }
    # Statistics are those of training samples, and of folders without any of all their samples.
    with_training = [contract for contract in input_contracts if "train" in contract.splits] or list(input_contracts)
    return replace(
        first,
        **names,  # type: ignore[arg-type]
        shape=first.shape if len({contract.shape for contract in input_contracts}) == 1 else None,
        splits=dict(sorted(splits.items())),
        statistics={
            band.name: _pool_statistics([contract.statistics[band.name] for contract in with_training])
            for band in first.bands
            if all(band.name in contract.statistics for contract in with_training)
        },
        fingerprint=files.sha256(
            files.canonical_json([[contract.dataset, contract.fingerprint] for contract in input_contracts])
        ),
        hash="full" if all(contract.hash == "full" for contract in input_contracts) else "fast",
    )


def _pool_statistics(band_statistics: Sequence[BandStatistics]) -> BandStatistics:
    counts = np.array([band.count for band in band_statistics], float)
    weight = counts / max(counts.sum(), 1)

    def mean(name: str) -> float:
        return float(sum(w * getattr(band, name) for w, band in zip(weight, band_statistics, strict=True)))

    square = sum(w * (band.std**2 + band.mean**2) for w, band in zip(weight, band_statistics, strict=True))
    return BandStatistics(
        count=int(counts.sum()),
        mean=mean("mean"),
        std=math.sqrt(max(float(square) - mean("mean") ** 2, 0.0)),
        min=min(band.min for band in band_statistics),
        max=max(band.max for band in band_statistics),
        **{name: mean(name) for name in ("p1", "p2", "p50", "p98", "p99")},
    )


def _count_statistics(folder: Path, contract: Contract) -> dict[str, BandStatistics]:
    """Return the statistics of the training samples (of all samples where there is none), from their pixels."""
    from sgdata.rasters import resample

    counts = statistics.empty(len(contract.bands))
    for sample in tar_format.samples(folder, "train" if "train" in contract.splits else None):
        for image in tar_format.whole_images(resample.join_groups(sample, contract)):
            statistics.add_valid(image, counts, contract.nodata)
    return statistics.summarise(counts, [band.name for band in contract.bands], contract.nodata)
