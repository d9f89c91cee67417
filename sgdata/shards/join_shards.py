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
            hashes that a folder lacks. Otherwise tars are linked, percentiles are means of those of the parts, weighted
            by their pixels (mean and deviation are exact), and samples have hashes if those of all folders have.

    Returns:
        The contract of all.

    Raises:
        SettingError: Pixels, labels or members of the folders differ, or a key is in two of them.
        SourceError: A folder is damaged.
    """
    parts = [contracts.read(folder) for folder in folders]
    tables = [shard_index.read_index(folder) for folder in folders]
    if copy:
        complete = [sample_hashes.complete(*part) for part in zip(folders, parts, tables, strict=True)]
        parts, tables = [contract for contract, _ in complete], [table for _, table in complete]
    for folder, part, table in zip(folders[1:], parts[1:], tables[1:], strict=True):
        _require_alike((folders[0], parts[0], tables[0]), (folder, part, table))
    _require_different_keys(folders, tables)
    digests: dict[str, str] = {}
    for number, folder in enumerate(folders):
        sums = files.read_sums(folder)
        for name in sorted(set(tables[number]["shard"].to_pylist())):
            source, target = safe_names.member(folder, name).resolve(), out / _named(number, name)
            out.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            if copy:
                with files.replacing(target) as temporary:
                    shutil.copyfile(source, temporary)
            else:
                target.symlink_to(source)
            digests[target.name] = sums.get(name) or files.sha256_file(source)
    _write_index(out / output_names.INDEX, tables)
    held = [(folder / output_names.QUARANTINE).read_bytes() for folder in folders if _has_quarantine(folder)]
    files.write(out / output_names.QUARANTINE, b"".join(held))
    if (folders[0] / output_names.RECIPE).is_file():
        files.write(out / output_names.RECIPE, (folders[0] / output_names.RECIPE).read_bytes())
    contract = _together(parts)
    contracts.write(out, contract)
    files.write_sums(out, digests)
    if copy:
        contract = replace(contract, statistics=_counted(out, contract))
        contracts.write(out, contract)
        files.write_sums(out, digests)
    return contract


def _has_quarantine(folder: Path) -> bool:
    return (folder / output_names.QUARANTINE).is_file()


def _named(number: int, name: str) -> str:
    return f"{number:03d}-{name}"


def _require_alike(first: tuple[Path, Contract, Any], other: tuple[Path, Contract, Any]) -> None:
    differences = contracts.find_differences(other[1], first[1], "predict")
    if _members(first) != _members(other):
        differences.append("members")
    if differences:
        raise SettingError(
            f"{other[0]}: {', '.join(differences)} differ from those of {first[0]}; give shards of one recipe"
        )


def _members(part: tuple[Path, Contract, Any]) -> tuple[list[str], str]:
    """Return the columns of positions of a folder, and the codec by the name of a member of its first tar."""
    folder, _, table = part
    codec = ""
    with tarfile.open(safe_names.member(folder, table["shard"][0].as_py()), "r:") as tar:
        for member in tar:
            codec = member.name.rpartition(".")[2]
            if codec != "json":
                break
    return sorted(name for name in table.column_names if name.endswith("_offset")), codec


def _require_different_keys(folders: Sequence[Path], tables: Sequence[Any]) -> None:
    first: dict[str, Path] = {}
    for folder, table in zip(folders, tables, strict=True):
        for key in table["key"].to_pylist():
            if first.setdefault(key, folder) is not folder:
                raise SettingError(
                    f"{folder}: sample '{key}' is also in {first[key]}; of builds without places {PACK_TOGETHER}"
                )


def _write_index(path: Path, tables: Sequence[Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    renamed = []
    hashed = all(shard_index.HASH in table.column_names for table in tables)
    for number, part in enumerate(tables):
        table = part if hashed or shard_index.HASH not in part.column_names else part.drop_columns([shard_index.HASH])
        names = pa.array([_named(number, name) for name in table["shard"].to_pylist()], pa.string())
        renamed.append(table.set_column(table.column_names.index("shard"), "shard", names))
    with files.replacing(path) as temporary:
        pq.write_table(pa.concat_tables(renamed, promote_options="default"), temporary, compression="zstd")


def _together(parts: Sequence[Contract]) -> Contract:
    """Return the contract of all parts, with pooled statistics."""
    first = parts[0]
    splits = sum((Counter(part.splits) for part in parts), Counter[str]())
    named = {name: "+".join(dict.fromkeys(getattr(part, name) for part in parts)) for name in ("dataset", "version")}
    # Statistics are those of training samples, and of parts without any of all their samples.
    counted = [part for part in parts if "train" in part.splits] or list(parts)
    return replace(
        first,
        **named,  # type: ignore[arg-type]
        shape=first.shape if len({part.shape for part in parts}) == 1 else None,
        splits=dict(sorted(splits.items())),
        statistics={
            band.name: _pooled([part.statistics[band.name] for part in counted])
            for band in first.bands
            if all(band.name in part.statistics for part in counted)
        },
        fingerprint=files.sha256(files.canonical_json([[part.dataset, part.fingerprint] for part in parts])),
        hash="full" if all(part.hash == "full" for part in parts) else "fast",
    )


def _pooled(parts: Sequence[BandStatistics]) -> BandStatistics:
    counts = np.array([part.count for part in parts], float)
    weight = counts / max(counts.sum(), 1)

    def mean(name: str) -> float:
        return float(sum(w * getattr(part, name) for w, part in zip(weight, parts, strict=True)))

    square = sum(w * (part.std**2 + part.mean**2) for w, part in zip(weight, parts, strict=True))
    return BandStatistics(
        count=int(counts.sum()),
        mean=mean("mean"),
        std=math.sqrt(max(float(square) - mean("mean") ** 2, 0.0)),
        min=min(part.min for part in parts),
        max=max(part.max for part in parts),
        **{name: mean(name) for name in ("p1", "p2", "p50", "p98", "p99")},
    )


def _counted(folder: Path, contract: Contract) -> dict[str, BandStatistics]:
    """Return the statistics of the training samples (of all samples where there is none), from their pixels."""
    from sgdata.rasters import resample

    counts = statistics.empty(len(contract.bands))
    for sample in tar_format.samples(folder, "train" if "train" in contract.splits else None):
        for image in tar_format.whole_images(resample.join_groups(sample, contract)):
            statistics.add_data(image, counts, contract.nodata)
    return statistics.summarise(counts, [band.name for band in contract.bands], contract.nodata)
