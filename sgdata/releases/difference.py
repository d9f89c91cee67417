"""Compare two outputs of one kind: scenes, samples, pixels, labels, classes, splits and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, output_names
from sgdata.builds import patch_table
from sgdata.errors import SettingError
from sgdata.rasters import geotiff, grids, resample
from sgdata.scenes import lock
from sgdata.shards import contracts, shard_index, tar_format
from sgdata.types import Array, Contract, Sample

SHOWN = 20
"""Number of names to list of each kind of change."""
STRIP_ROWS = 512
# What other fields already show.
_COUNTED = frozenset({"splits", "statistics", "fingerprint"})


@dataclass(frozen=True, kw_only=True)
class ComparedOutput:
    """One of two outputs.

    Attributes:
        kind: `build` or `shards`; releases are shards.
        name: Name of the folder.
        dataset: Name of the dataset in the contract.
        version: Its version.
        fingerprint: Hash of the samples.
        samples: Number of samples or patches.
    """

    kind: str
    name: str
    dataset: str
    version: str
    fingerprint: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class OutputChange:
    """Things that changed in one way.

    Attributes:
        what: What and how, such as `samples added`.
        count: Number of them.
        of: Number of things that could have changed so; 0 if that says nothing.
        examples: At most SHOWN names.
    """

    what: str
    count: int
    of: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OutputDifference:
    """Differences of an output from an earlier one.

    Attributes:
        before: The earlier output.
        after: The later output.
        changes: Scenes, samples and pixels that were added, removed or changed.
        splits: Samples before and after by split, of the splits that changed.
        classes: Numbers before and after by name of the class, of the classes that changed.
        class_unit: What `classes` counts, `pixels` or `samples`.
        settings: Fields of contract and lock that differ, before and after as text.
    """

    before: ComparedOutput
    after: ComparedOutput
    changes: tuple[OutputChange, ...] = ()
    splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    classes: dict[str, tuple[int, int]] = field(default_factory=dict)
    class_unit: str = "samples"
    settings: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """One sentence per difference; empty if there is none."""
        lines = [
            f"{change.what}: {change.count:,}" + (f" of {change.of:,}" if change.of else "") + _examples_text(change)
            for change in self.changes
        ]
        lines += [f"samples in {split}: {old:,} before, {new:,} now" for split, (old, new) in self.splits.items()]
        lines += [
            f"{self.class_unit} of {name}: {old:,} before, {new:,} now" for name, (old, new) in self.classes.items()
        ]
        return lines + [f"{name}: {old} before, {new} now" for name, (old, new) in self.settings.items()]


def _examples_text(change: OutputChange) -> str:
    shown = ", ".join(change.examples[:3])
    return f" ({shown}{', ...' if change.count > 3 else ''})" if shown else ""


def compare(before: Path, after: Path) -> OutputDifference:
    """Compare two builds, or two folders of shards or releases.

    Every sample of the later output is found in the earlier one by its key, every scene by its id, and what both have
    is compared value by value.

    Args:
        before: The earlier output.
        after: The later output.

    Returns:
        The differences.

    Raises:
        SettingError: One is a build and the other is not, or a folder is neither.
        SourceError: An output is unfinished or damaged.
    """
    kinds = [_kind(folder) for folder in (before, after)]
    if kinds[0] != kinds[1]:
        raise SettingError(f"{after}: holds {kinds[1]}, {before} {kinds[0]}; compare outputs of one kind")
    ours, theirs = (contracts.read(folder) for folder in (after, before))
    rows = [_rows(folder, kinds[0]) for folder in (before, after)]
    sides = [
        ComparedOutput(
            kind=kinds[0], name=folder.resolve().name, dataset=contract.dataset, version=contract.version,
            fingerprint=contract.fingerprint, samples=len(samples),
        )
        for folder, contract, samples in zip((before, after), (theirs, ours), rows, strict=True)
    ]  # fmt: skip
    scenes, settings = _compare_locks(before, after)
    changed = (
        _compare_rasters(before, after)
        if kinds[0] == "build"
        else _compare_samples((before, theirs), (after, ours), rows)
    )
    unit, class_counts = _count_classes((before, after), (theirs, ours), kinds[0], rows)
    split_counts = [Counter(row["split"] for row in samples.values()) for samples in rows]
    return OutputDifference(
        before=sides[0],
        after=sides[1],
        changes=(*scenes, *_compare_keys(rows), *changed, *_compare_classes(theirs, ours)),
        splits=_differing_counts(*split_counts),
        classes=_differing_counts(*class_counts),
        class_unit=unit,
        settings={
            name: (contracts.describe_field(theirs, name), contracts.describe_field(ours, name))
            for name in contracts.find_differences(ours, theirs, "resume")
            if name not in _COUNTED
        }
        | settings,
    )


def _kind(folder: Path) -> str:
    """Return `shards` or `build`. Raises SettingError, SourceError."""
    kinds = {output_names.INDEX: "shards", output_names.IMAGE: "build"}
    for name, kind in kinds.items():
        if (folder / name).is_file():
            files.require_finished(folder)
            return kind
    raise SettingError(f"{folder}: neither a build nor shards nor a release; expected a folder that sgdata wrote")


def _rows(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Return the rows of an index, or of the patches of a build, by key."""
    if kind == "shards":
        return {row["key"]: row for row in shard_index.read_index(folder).to_pylist()}
    table = patch_table.read(folder / output_names.PATCHES)
    return {key: {"split": split} for key, split in zip(table["key"], table["split"], strict=True)}


def _differing_counts(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    names = dict.fromkeys((*before, *after))
    counts = {name: (int(before.get(name, 0)), int(after.get(name, 0))) for name in names}
    return {name: (old, new) for name, (old, new) in counts.items() if old != new}


def _list_change(what: str, names: list[str], total: int = 0) -> tuple[OutputChange, ...]:
    """Return a change that lists some names; none if there are no names."""
    return (
        (OutputChange(what=what, count=len(names), of=total, examples=tuple(sorted(names)[:SHOWN])),) if names else ()
    )


# --- scenes and keys -----------------------------------------------------------------------


def _compare_locks(before: Path, after: Path) -> tuple[tuple[OutputChange, ...], dict[str, tuple[str, str]]]:
    """Return changes of scenes, and fields of locks of one place that differ; nothing unless both have locks."""
    old_locks, new_locks = (_locks(folder) for folder in (before, after))
    if not old_locks or not new_locks:
        return (), {}
    old, new = (
        {item.scene.id: item for build_lock in locks.values() for item in build_lock.items}
        for locks in (old_locks, new_locks)
    )
    common = [name for name in new if name in old]
    other_offset = [name for name in common if old[name].offset != new[name].offset]
    changes = (
        *_list_change("scenes added", [name for name in new if name not in old], len(new)),
        *_list_change("scenes removed", [name for name in old if name not in new], len(old)),
        *_list_change("scenes with another offset", other_offset, len(common)),
    )
    fields = ("collection", "dates", "osm_date", "tag_table_sha256", "grid")
    texts = {
        f"{path}{name}": (f"{getattr(old_locks[path], name)!s:.80}", f"{getattr(new_locks[path], name)!s:.80}")
        for path in old_locks
        if path in new_locks
        for name in fields
    }
    return changes, {name: (old_text, new_text) for name, (old_text, new_text) in texts.items() if old_text != new_text}


def _locks(folder: Path) -> dict[str, lock.Lock]:
    """Return the locks of an output by the path before their name: "", or that of a place."""
    # Not by SHA256SUMS: a release that is being assembled has that of its shards.
    names = [name for name in files.list_covered(folder) if name.rpartition("/")[2] == lock.NAME]
    return {name.removesuffix(lock.NAME): lock.read(folder / name) for name in names}


def _compare_keys(rows: list[dict[str, dict[str, Any]]]) -> tuple[OutputChange, ...]:
    old, new = rows
    common = [key for key in new if key in old]
    return (
        *_list_change("samples added", [key for key in new if key not in old], len(new)),
        *_list_change("samples removed", [key for key in old if key not in new], len(old)),
        *_list_change(
            "samples moved to another split",
            [key for key in common if old[key]["split"] != new[key]["split"]],
            len(common),
        ),
    )


def _compare_classes(theirs: Contract, ours: Contract) -> tuple[OutputChange, ...]:
    """Return classes that came, went, or have another value in the labels."""
    old, new = (
        dict(zip(contract.label_space.names, contract.label_space.ids, strict=True)) for contract in (theirs, ours)
    )
    common = [name for name in new if name in old]
    return (
        *_list_change("classes added", [name for name in new if name not in old], len(new)),
        *_list_change("classes removed", [name for name in old if name not in new], len(old)),
        *_list_change("classes with another value", [name for name in common if old[name] != new[name]], len(common)),
    )


# --- pixels and labels ---------------------------------------------------------------------


def _compare_samples(
    before: tuple[Path, Contract], after: tuple[Path, Contract], rows: list[dict[str, dict[str, Any]]]
) -> tuple[OutputChange, ...]:
    """Compare the samples that both have: arrays on their common grid, labels and the rest of their metadata."""
    old, new = rows
    common = [key for key in new if key in old]
    pixels, labels, metadata = [], [], []
    for key in (key for key in common if not _have_equal_hashes(old[key], new[key])):
        old_sample, new_sample = _read_joined(*before, old[key]), _read_joined(*after, new[key])
        names = {
            name
            for name in old_sample.arrays.keys() | new_sample.arrays.keys()
            if not _equal(old_sample.arrays, new_sample.arrays, name)
        }
        if names - {"mask"}:
            pixels.append(key)
        if "mask" in names or old_sample.meta.get("labels") != new_sample.meta.get("labels"):
            labels.append(key)
        elif not names and old_sample.meta != new_sample.meta:
            metadata.append(key)
    return (
        *_list_change("samples with other pixels", pixels, len(common)),
        *_list_change("samples with other labels", labels, len(common)),
        *_list_change("samples with other metadata alone", metadata, len(common)),
    )


def _read_joined(folder: Path, contract: Contract, row: dict[str, Any]) -> Sample:
    return resample.join_groups(tar_format.read_sample(folder, row), contract)


def _have_equal_hashes(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether two samples have equal hashes; False where one has none, so that they are read and compared."""
    return shard_index.HASH in old and old[shard_index.HASH] == new.get(shard_index.HASH)


def _equal(old: Mapping[str, Array], new: Mapping[str, Array], name: str) -> bool:
    return name in old and name in new and np.array_equal(old[name], new[name], equal_nan=old[name].dtype.kind == "f")


def _compare_rasters(before: Path, after: Path) -> tuple[OutputChange, ...]:
    """Count the pixels of image and labels of two builds that differ, where both cover the same grid."""
    changes = []
    for name in (output_names.IMAGE, output_names.LABELS):
        if not all((folder / name).is_file() for folder in (before, after)):
            continue
        with geotiff.open_raster(str(before / name)) as old, geotiff.open_raster(str(after / name)) as new:
            if (old.crs, old.transform, old.shape, old.count) != (new.crs, new.transform, new.shape, new.count):
                changes.append(OutputChange(what=f"{name} with another grid or other bands", count=1))
                continue
            different = 0
            for window in grids.cut_tiles(old.shape, STRIP_ROWS, old.shape[1]):
                different += int((old.read(window=window.slices) != new.read(window=window.slices)).any(axis=0).sum())
        if different:
            changes.append(
                OutputChange(what=f"pixels that differ in {name}", count=different, of=old.width * old.height)
            )
    return tuple(changes)


# --- classes -------------------------------------------------------------------------------


def _count_classes(
    folders: tuple[Path, Path], contract: tuple[Contract, Contract], kind: str, rows: list[dict[str, dict[str, Any]]]
) -> tuple[str, list[dict[str, int]]]:
    """Return what is counted, and the numbers by class of both outputs."""
    counts: list[dict[str, int]] = []
    unit = "samples"
    for folder, output_contract, samples in zip(folders, contract, rows, strict=True):
        space = output_contract.label_space
        names = dict(zip(space.ids, space.names, strict=True))
        if kind == "build" or any("mask_size" in row for row in samples.values()):
            unit = "pixels"
            values = _label_pixels(folder, kind, samples)
        else:
            values = Counter(label for row in samples.values() for label in row["labels"])
        counts.append({name: values[value] for value, name in names.items()})
    return unit, counts


def _label_pixels(folder: Path, kind: str, rows: Mapping[str, Mapping[str, Any]]) -> Counter[int]:
    total: Counter[int] = Counter()
    for mask in _masks(folder, kind, rows):
        values, counts = np.unique(mask, return_counts=True)
        total.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return total


def _masks(folder: Path, kind: str, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Array]:
    if kind == "shards":
        for row in rows.values():
            arrays = tar_format.read_sample(folder, dict(row)).arrays
            if "mask" in arrays:
                yield arrays["mask"]
    elif (folder / output_names.LABELS).is_file():
        with geotiff.open_raster(str(folder / output_names.LABELS)) as dataset:
            for window in grids.cut_tiles(dataset.shape, STRIP_ROWS, dataset.shape[1]):
                yield dataset.read(1, window=window.slices)
