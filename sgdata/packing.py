"""From the files of a dataset to a folder of shards: find, cut into shards, pack each, close with the index.

What goes into which shard is settled from the listing alone, before a pixel is read: shards are independent,
so workers and interruptions cannot change a byte. A finished shard is remembered in `.journal/` and reused.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sgdata import catalog, contracts, files, pool, progress, resample, shards, statistics
from sgdata.datasets import READERS
from sgdata.errors import OutputError, SettingError, SourceError
from sgdata.shards import Packed, Row, ShardRecipe
from sgdata.types import Array, Contract, Found, Ref, Sample, Shard

JOURNAL = ".journal"
RECIPE = "recipe.toml"


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The outcome of `pack`: `complete` is False where something went to quarantine."""

    folder: Path
    contract: Contract
    shards: int
    quarantined: int
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every sample that was found is in the shards."""
        return self.quarantined == 0


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One shard to be made; everything a worker needs."""

    name: str
    refs: tuple[Ref, ...]
    source: Path
    out: Path
    recipe: ShardRecipe
    contract: Contract

    @property
    def fingerprint(self) -> str:
        """Equal where the same bytes would come out, short of a source file changed under the same size."""
        chosen = (self.recipe.layout, self.recipe.codec, self.recipe.kernel)
        return files.sha256(files.canonical_json([shards.FORMAT, chosen, self.contract, self.refs]))


def recipe_for(dataset: str, overrides: Sequence[str] = ()) -> ShardRecipe:
    """The shipped recipe of a dataset, with `key=value` overrides. Raises SettingError."""
    known = ", ".join(sorted(READERS))
    if dataset not in READERS:
        raise SettingError(f"no reader for dataset '{dataset}'; known: {known}")
    return files.read(ShardRecipe, catalog.folder("recipes") / "shard" / f"{dataset}.toml", overrides)


def pack(
    dataset: str,
    *,
    source: Path | None = None,
    out: Path | None = None,
    recipe: ShardRecipe | None = None,
    splits: Mapping[str, Path] | None = None,
    workers: int = 1,
    fresh: bool = False,
) -> Packing:
    """Pack a dataset by its shipped recipe, or the one given: from `source` into `out` (default: the recipe's).

    Resumes what an interrupted run left, unless `fresh`. `splits` maps a split to a list of its sample keys, one
    per line; without it, a dataset that brings no splits of its own goes to the split `all`. Raises SettingError,
    SourceError, OutputError.
    """
    recipe = recipe or recipe_for(dataset)
    source, out = source or Path(recipe.source), out or Path(recipe.out)
    found = _split(READERS[recipe.dataset].find(source, recipe), splits or {})
    contract = found.contract or contracts.expected(
        recipe.dataset,
        found.edition,
        found.labels,
        resampling=found.edition.resampling or recipe.kernel,
        resampling_version=resample.VERSION,
    )
    tasks = _tasks(_groups(found.refs, recipe.shard_mb), recipe, contract, (source, out))
    with files.only_writer(out):
        _prepare(out, recipe, {task.name for task in tasks}, fresh=fresh)
        done = pool.run(_pack_shard, tasks, workers=workers)
        whole = shards.Whole(contract)
        whole.quarantine += [{"key": "", "file": name, "reason": reason} for name, reason in found.rejected]
        for part in progress.track(done, label=f"packing {recipe.dataset}", total=len(tasks)):
            whole.add(part)
        files.write(out / RECIPE, files.toml(recipe))
        complete = shards.finish(out, whole)
    return Packing(
        folder=out,
        contract=complete,
        shards=len(whole.shards),
        quarantined=len(whole.quarantine),
        notes=found.notes,
    )


# --- before any pixel ----------------------------------------------------------------------


def _split(found: Found, lists: Mapping[str, Path]) -> Found:
    """Samples under the splits of the lists; a sample in no list is left out, and told."""
    if not lists:
        only_all = {ref.split for ref in found.refs} == {"all"}
        told = ("no split list: every sample went to the split 'all'",) if only_all else ()
        return replace(found, notes=found.notes + told)
    where: dict[str, str] = {}
    for split, path in lists.items():
        for key in _keys(path):
            if where.setdefault(key, split) != split:
                raise SettingError(f"{path}: '{key}' is also in the list of split '{where[key]}'")
    refs = tuple(replace(ref, split=where[ref.key]) for ref in found.refs if ref.key in where)
    absent = len(where.keys() - {ref.key for ref in refs})
    notes = [f"{len(found.refs) - len(refs)} samples are in no split list: left out"] * (len(refs) < len(found.refs))
    notes += [f"{absent} keys of the split lists are not in the source"] * bool(absent)
    return replace(found, refs=refs, notes=(*found.notes, *notes))


def _keys(path: Path) -> list[str]:
    """Sample keys of a split list: the first column of each line, without a file suffix."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: cannot be read as a split list: {error}") from None
    return [line.split(",")[0].strip().removesuffix(".jpg").removesuffix(".tif") for line in lines if line.strip()]


def _groups(refs: Iterable[Ref], shard_mb: int) -> list[tuple[Ref, ...]]:
    """Samples sorted by split and key, cut where the expected bytes reach the size of a shard."""
    groups: list[list[Ref]] = []
    filled = 0
    for ref in sorted(refs, key=lambda ref: (ref.split, ref.key)):
        if not groups or groups[-1][0].split != ref.split or filled + ref.bytes > shard_mb * 2**20:
            groups.append([])
            filled = 0
        groups[-1].append(ref)
        filled += ref.bytes
    return [tuple(group) for group in groups]


def _tasks(
    groups: Iterable[tuple[Ref, ...]], recipe: ShardRecipe, contract: Contract, places: tuple[Path, Path]
) -> list[_Task]:
    """A task per group, numbered within its split."""
    source, out = places
    numbers: Counter[str] = Counter()
    tasks = []
    for refs in groups:
        split = refs[0].split
        name = shards.shard_name(recipe.dataset, split, numbers[split])
        numbers[split] += 1
        tasks.append(_Task(name=name, refs=refs, source=source, out=out, recipe=recipe, contract=contract))
    return tasks


def _prepare(out: Path, recipe: ShardRecipe, wanted: set[str], *, fresh: bool) -> None:
    """Make `out` ready: nothing of an interrupted run, of another recipe or (if `fresh`) of an earlier run."""
    held = out / RECIPE
    if not fresh and held.exists() and held.read_bytes() != files.toml(recipe):
        raise OutputError(f"{out}: holds shards of another recipe; use --fresh to replace them, or another --out")
    (out / files.SUMS).unlink(missing_ok=True)
    ours = [*out.glob(f"{recipe.dataset}-*.tar"), *(out / JOURNAL).glob("*.json")]
    stale = [path for path in ours if fresh or path.name.removesuffix(".json") not in wanted]
    for path in [*stale, *out.glob(".*.partial-*"), *(out / JOURNAL).glob(".*.partial-*")]:
        path.unlink(missing_ok=True)


# --- one shard -----------------------------------------------------------------------------


def _pack_shard(task: _Task) -> Packed:
    """Read, check and write the samples of one shard, or take it as an earlier run left it."""
    remembered = _remembered(task)
    if remembered:
        return remembered
    quarantine: list[Row] = []
    tally = statistics.Tally(len(task.contract.bands))

    def ready() -> Iterator[tuple[Sample, str]]:
        seen: set[str] = set()
        with READERS[task.recipe.dataset].reading(task.source, task.contract) as read:
            for ref in task.refs:
                try:
                    if ref.key in seen:
                        raise SourceError("second sample of this key")
                    seen.add(ref.key)
                    native = read(ref)
                    sample = _checked(_on_one_grid(native, task.contract, task.recipe.kernel), task.contract)
                    for image in shards.whole_images(sample):
                        tally.add(image)
                except SourceError as error:
                    file = ref.members[0].name if ref.members else ""
                    quarantine.append({"key": ref.key, "file": file, "reason": " ".join(str(error).split())})
                else:
                    stored = native if task.recipe.layout == "native" else sample
                    yield stored, shards.sample_hash(sample)

    shard, rows = shards.write_tar(task.out / task.name, ready(), codec=task.recipe.codec)
    packed = Packed(
        shard=shard, split=task.refs[0].split, rows=tuple(rows), counts=tally.total(), quarantine=tuple(quarantine)
    )
    if not rows:
        (task.out / task.name).unlink()
    _remember(task, packed)
    return packed


def _on_one_grid(sample: Sample, contract: Contract, kernel: resample.Kernel) -> Sample:
    """The sample with its groups `image_10m`, `image_20m`, `image_60m` as one `image` on the finest lattice."""
    groups = {name: array for name, array in sample.arrays.items() if name.startswith("image_") and name[-1] == "m"}
    if not groups:
        return sample
    finest = min(int(name[6:-1]) for name in groups)
    planes: dict[str, Array] = {}
    for name, array in groups.items():
        gsd = int(name[6:-1])
        nodata = -1 if contract.nodata is None else contract.nodata
        fine = resample.finer(array, gsd // finest, kernel=kernel, nodata=nodata)
        held = [band.name for band in contract.bands if band.gsd_m == gsd]
        planes |= dict(zip(held, fine, strict=True))
    image = np.stack([planes[band.name] for band in contract.bands])
    rest = {name: array for name, array in sample.arrays.items() if name not in groups}
    return replace(sample, arrays={"image": image, **rest})


def _checked(sample: Sample, contract: Contract) -> Sample:
    """The sample itself. Raises SourceError where it cannot be what the contract says."""
    images = {name: array for name, array in sample.arrays.items() if name.startswith("image")}
    lattices = {array.shape[1:] for array in sample.arrays.values() if array.ndim == 3}
    lattices |= {array.shape for array in sample.arrays.values() if array.ndim == 2}
    if len(lattices) != 1:
        raise SourceError(f"arrays of different sizes {sorted(lattices)}: expected one")
    for name, image in images.items():
        if len(image) != len(contract.bands) or 0 in image.shape:
            raise SourceError(f"{name} is {image.shape}, expected {len(contract.bands)} bands and at least 1 x 1")
        if not np.isfinite(image).all():
            raise SourceError(f"{name} holds {np.count_nonzero(~np.isfinite(image))} NaN or infinite values")
        if not image.any():
            raise SourceError(f"{name} is zero everywhere")
    allowed = {*contract.label_space.ids, contract.label_space.ignore}
    held = {int(value) for value in np.unique(sample.arrays["mask"])} if "mask" in sample.arrays else set()
    held |= set(sample.meta.get("labels", ()))
    if held - allowed:
        raise SourceError(f"labels {sorted(held - allowed)} are not in the label space '{contract.label_space.name}'")
    return sample


def _remember(task: _Task, packed: Packed) -> None:
    """Journal a finished shard, its counts as a Blosc chunk: most bins are empty."""
    counts = base64.b85encode(shards.encode(packed.counts.astype(np.int32), "blosc")).decode()
    document = {"task": task.fingerprint, **vars(packed), "counts": counts}
    files.write(task.out / JOURNAL / f"{task.name}.json", files.canonical_json(document))


def _remembered(task: _Task) -> Packed | None:
    """The shard as an earlier run journalled it, if it is of this very task and its bytes are still the same."""
    journal, tar = task.out / JOURNAL / f"{task.name}.json", task.out / task.name
    try:
        document = json.loads(journal.read_bytes())
    except (OSError, ValueError):
        return None
    if document.pop("task", None) != task.fingerprint:
        return None
    shard = Shard(**document["shard"])
    if shard.samples and (not tar.is_file() or files.sha256_file(tar) != shard.sha256):
        return None
    shape = (len(task.contract.bands), statistics.BINS)
    counts = shards.decode(base64.b85decode(document["counts"]), shape, "int32", "blosc").astype(np.int64)
    rows, quarantine = tuple(document["rows"]), tuple(document["quarantine"])
    return Packed(shard=shard, split=document["split"], rows=rows, counts=counts, quarantine=quarantine)
