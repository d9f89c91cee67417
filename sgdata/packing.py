"""From the files of a dataset to a folder of shards: find, cut into shards, pack each, close with the index.

What goes into which shard is settled from the listing alone, before a pixel is read: shards are independent,
so workers and interruptions cannot change a byte. A finished shard is remembered in `.journal/` and reused.
The contents of a compressed tar pass by once, in the archive's order: those of the shards under way wait in `.spool/`.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import (
    archives,
    catalog,
    contracts,
    files,
    fingerprints,
    pool,
    progress,
    resample,
    sealing,
    shards,
    statistics,
)
from sgdata.datasets import READERS
from sgdata.errors import OutputError, SettingError, SourceError
from sgdata.sealing import Packed
from sgdata.shards import Row, ShardRecipe
from sgdata.types import Contract, Edition, Found, Ref, Sample, Shard

JOURNAL = ".journal"
SPOOL = ".spool"
RECIPE = "recipe.toml"


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The outcome of `pack`: what was made, how much went to quarantine, whether the pixels are what the card says."""

    folder: Path
    contract: Contract
    shards: int
    quarantined: int
    fits: bool
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every sample that was found is in the shards, and looks like the bands and the level it is named."""
        return self.quarantined == 0 and self.fits


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One shard to be made; everything a worker needs."""

    name: str
    refs: tuple[Ref, ...]
    source: Path
    out: Path
    recipe: ShardRecipe
    contract: Contract
    fingerprint: str
    spooled: bool = False


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
    leave_out: Sequence[Path] = (),
    workers: int = 1,
    cluster: str | None = None,
    fresh: bool = False,
) -> Packing:
    """Pack a dataset by its shipped recipe, or the one given: from `source` into `out` (default: the recipe's).

    Resumes what an interrupted run left, unless `fresh`. `splits` maps a split to a list of its sample keys, one
    per line, `leave_out` are such lists of samples not to pack (snow, clouds). Without `splits`, a dataset whose
    published lists are not in or beside the source goes to the split `all`. Raises SettingError,
    SourceError, OutputError.
    """
    recipe = recipe or recipe_for(dataset)
    out = out or Path(recipe.out)
    source, found, contract = listed(recipe, source or Path(recipe.source), splits=splits, leave_out=leave_out)
    # What is written where is settled here; everything below may be interrupted anywhere.
    stream = archives.is_stream(source)
    tasks = _tasks(_groups(found.refs, recipe.shard_mb, stream=stream), recipe, contract, (source, out))
    with files.only_writer(out, shards.INDEX):
        _prepare(out, recipe, {task.name for task in tasks}, fresh=fresh)
        whole = sealing.Whole(contract)
        whole.quarantine += [{"key": "", "file": name, "reason": reason} for name, reason in found.rejected]
        # Taken over before any worker starts: hashing what is there is reading, not work.
        left = []
        for task in tasks:
            remembered = _remembered(task)
            if remembered:
                whole.add(remembered)
            else:
                left.append(task)
        done = pool.run(_pack_shard, _spool(left, source, out) if stream else left, workers=workers, cluster=cluster)
        for part in progress.track(done, label=f"packing {recipe.dataset}", total=len(left)):
            whole.add(part)
        verdict = fingerprints.judge(whole.counts, whole.rows, contract)
        files.write(out / fingerprints.NAME, files.pretty_json(verdict))
        # After the shards: a folder without recipe is one that no run has finished.
        files.write(out / RECIPE, files.toml(recipe))
        complete = sealing.finish(out, whole)
    # Airports, dumps and nine more of the 43 CORINE classes are none of the 19: 57 patches of v1 lose every label.
    unlabelled = sum(not row["labels"] for row in whole.rows) if contract.label_space.task == "multi-label" else 0
    notes = [f"{unlabelled} samples have no label of '{contract.label_space.name}': kept"] * bool(unlabelled)
    notes += _against_card(found.edition, recipe.splits, complete)
    notes += [verdict.told] * (verdict.samples >= fingerprints.LEAST)
    return Packing(
        folder=out,
        contract=complete,
        shards=len(whole.shards),
        quarantined=len(whole.quarantine),
        fits=not verdict.contradictions,
        notes=(*found.notes, *notes),
    )


# --- before any pixel ----------------------------------------------------------------------


def listed(
    recipe: ShardRecipe, source: Path, *, splits: Mapping[str, Path] | None = None, leave_out: Sequence[Path] = ()
) -> tuple[Path, Found, Contract]:
    """Where the files lie, what is in them under which splits, and what its pixels should be; reads no pixel."""
    source = _archive_in(source, recipe)
    found = _without(READERS[recipe.dataset].find(source, recipe), leave_out)
    found = _once(_split(found, splits or _published_lists(found.edition, recipe.splits, source)))
    contract = found.contract or contracts.expected(
        recipe.dataset,
        found.edition,
        found.labels,
        resampling=found.edition.resampling or recipe.kernel,
        resampling_version=resample.VERSION,
    )
    return source, found, contract


def _archive_in(source: Path, recipe: ShardRecipe) -> Path:
    """The compressed tar of the card in a folder that `sgdata fetch` filled; any other source is itself."""
    edition = catalog.edition(catalog.card(recipe.dataset), recipe.edition)
    held = [source / each.file for each in edition.sources if each.part == "images"]
    return next((path for path in held if archives.is_stream(path)), source)


def _without(found: Found, lists: Sequence[Path]) -> Found:
    """What was found less the samples of the lists."""
    unwanted = {key for path in lists for key in _keys(path)}
    refs = tuple(ref for ref in found.refs if ref.key not in unwanted)
    notes = [f"{len(found.refs) - len(refs)} samples left out by --leave-out"] * bool(lists)
    return replace(found, refs=refs, notes=(*found.notes, *notes))


def _published_lists(edition: Edition, name: str, source: Path) -> dict[str, Path]:
    """The lists of the split set `name` of the card, in or beside `source`; empty where they are not all there."""
    chosen = next((each for each in edition.splits if each.name == name), None)
    if name and chosen is None:
        known = ", ".join(each.name for each in edition.splits)
        raise SettingError(f"splits = '{name}': edition {edition.name} has no such splits; known: {known}")
    # Only complete sets count: train without val would silently put val nowhere.
    listed = chosen.files if chosen else {}
    held: dict[str, Path] = {}
    for split, file in listed.items():
        names = (file, file.removesuffix(".gz"))
        for path in (folder / name for folder in (source, source.parent) for name in names):
            if path.is_file():
                held.setdefault(split, path)
    return held if len(held) == len(listed) else {}


def _against_card(edition: Edition, name: str, contract: Contract) -> list[str]:
    """A remark per split whose samples are not as many as the card says."""
    counts = next((each.counts for each in edition.splits if each.name == name), {})
    held = contract.splits
    # Splits under other names (all, or lists of the user) are not the published ones.
    if not set(counts) & set(held):
        return []
    return [
        f"split {split} holds {held.get(split, 0)} samples, the card says {count}"
        for split, count in counts.items()
        if held.get(split, 0) != count
    ]


def _split(found: Found, lists: Mapping[str, Path]) -> Found:
    """Samples under the splits of the lists; a sample in no list is left out, and told."""
    if not lists:
        only_all = {ref.split for ref in found.refs} == {"all"}
        told = ("no split list: every sample went to the split 'all'",) if only_all else ()
        return replace(found, notes=found.notes + told)
    where: dict[str, str] = {}
    for split, path in lists.items():
        for key in _keys(path):
            # A sample in two splits is a leak, and no order of the lists makes it right.
            if where.setdefault(key, split) != split:
                raise SettingError(f"{path}: '{key}' is also in the list of split '{where[key]}'")
    refs = tuple(replace(ref, split=where[ref.key]) for ref in found.refs if ref.key in where)
    absent = len(where.keys() - {ref.key for ref in refs})
    notes = [f"{len(found.refs) - len(refs)} samples are in no split list: left out"] * (len(refs) < len(found.refs))
    notes += [f"{absent} keys of the split lists are not in the source"] * bool(absent)
    return replace(found, refs=refs, notes=(*found.notes, *notes))


def _once(found: Found) -> Found:
    """The first sample of each key, the others among what is rejected: their shards may differ, an index has one."""
    first: dict[str, Ref] = {}
    again = [ref for ref in found.refs if first.setdefault(ref.key, ref) is not ref]
    rejected = tuple((ref.members[0].name, f"second sample of the key '{ref.key}'") for ref in again)
    return replace(found, refs=tuple(first.values()), rejected=found.rejected + rejected)


def _keys(path: Path) -> list[str]:
    """Sample keys of a split list: the first column of each line, without a file suffix."""
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: cannot be read as a split list: {error}") from None
    # BigEarthNet lists pairs `S2,S1`; EuroSAT lists `River_1.jpg`, of the RGB edition, for the same stems.
    return [line.split(",")[0].strip().removesuffix(".jpg").removesuffix(".tif") for line in lines if line.strip()]


def _groups(refs: Iterable[Ref], shard_mb: int, *, stream: bool) -> list[tuple[Ref, ...]]:
    """Samples sorted by split and key, cut where the expected bytes reach the size of a shard.

    Of a `stream`, sorted by split and place in it, so that few shards are under way at a time; within a shard by key
    all the same: an archive in the order of its names gives the bytes that its folder gives.
    """
    groups: list[list[Ref]] = []
    filled = 0
    place: dict[bool, Callable[[Ref], Any]] = {
        False: lambda ref: (ref.split, ref.key),
        True: lambda ref: (ref.split, min(member.offset or 0 for member in ref.members), ref.key),
    }
    for ref in sorted(refs, key=place[stream]):
        # By expected bytes, not by packed ones: the cut must not depend on what lies in quarantine.
        if not groups or groups[-1][0].split != ref.split or filled + ref.bytes > shard_mb * 2**20:
            groups.append([])
            filled = 0
        groups[-1].append(ref)
        filled += ref.bytes
    return [tuple(sorted(group, key=lambda ref: ref.key)) for group in groups]


def _tasks(
    groups: Iterable[tuple[Ref, ...]], recipe: ShardRecipe, contract: Contract, places: tuple[Path, Path]
) -> list[_Task]:
    """A task per group, numbered within its split."""
    source, out = places
    numbers: Counter[str] = Counter()
    chosen = (recipe.layout, recipe.codec, recipe.kernel, recipe.effort)
    tasks = []
    for refs in groups:
        split = refs[0].split
        name = shards.shard_name(recipe.dataset, split, numbers[split])
        numbers[split] += 1
        # Equal where the same bytes would come out, short of a source file changed under the same size.
        told = files.sha256(files.canonical_json([shards.FORMAT, chosen, contract, refs]))
        task = _Task(name=name, refs=refs, source=source, out=out, recipe=recipe, contract=contract, fingerprint=told)
        tasks.append(task)
    return tasks


def _spool(tasks: Sequence[_Task], source: Path, out: Path) -> Iterator[_Task]:
    """The tasks of a compressed tar, each as soon as the contents of its members have come by.

    They lie one behind the other in `.spool/<name>`, which the packing of the shard removes: memory holds one
    member, disk the shards under way (one a split, three a worker).
    """
    spans = np.array(
        [(m.offset or 0, m.size, at) for at, task in enumerate(tasks) for ref in task.refs for m in ref.members],
        np.int64,
    ).reshape(-1, 3)
    spans = spans[spans[:, 0].argsort(kind="stable")]
    left = np.bincount(spans[:, 2], minlength=len(tasks))
    moved: dict[int, dict[int | None, int]] = {}
    (out / SPOOL).mkdir(exist_ok=True)
    contents = archives.contents(source, ((int(offset), int(size)) for offset, size, _ in spans))
    for (offset, _, at), content in zip(spans.tolist(), contents, strict=True):
        path = out / SPOOL / tasks[at].name
        try:
            with path.open("ab") as handle:
                moved.setdefault(at, {})[offset] = handle.tell()
                handle.write(content)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}; the shards under way wait here") from None
        left[at] -= 1
        if not left[at]:
            places = moved.pop(at)
            refs = [
                replace(ref, members=tuple(replace(m, offset=places[m.offset]) for m in ref.members))
                for ref in tasks[at].refs
            ]
            yield replace(tasks[at], source=path, refs=tuple(refs), spooled=True)


def _prepare(out: Path, recipe: ShardRecipe, wanted: set[str], *, fresh: bool) -> None:
    """Make `out` ready: nothing of an interrupted run, of another recipe or (if `fresh`) of an earlier run."""
    held = out / RECIPE
    if not fresh and held.exists() and held.read_bytes() != files.toml(recipe):
        raise OutputError(f"{out}: holds shards of another recipe; use --fresh to replace them, or another --out")
    # Without SHA256SUMS a folder is unfinished: a run that dies from here on is not mistaken for a whole one.
    (out / files.SUMS).unlink(missing_ok=True)
    # Journals of other groupings or editions would be counted again.
    ours = [*out.glob(f"{recipe.dataset}-*.tar"), *(out / JOURNAL).glob("*.json")]
    stale = [path for path in ours if fresh or path.name.removesuffix(".json") not in wanted]
    for path in [*stale, *out.glob(".*.partial-*"), *(out / JOURNAL).glob(".*.partial-*"), *(out / SPOOL).glob("*")]:
        path.unlink(missing_ok=True)


# --- one shard -----------------------------------------------------------------------------


def _pack_shard(task: _Task) -> Packed:
    """Read, check and write the samples of one shard."""
    remembered = _remembered(task) if task.spooled and not task.source.exists() else None
    if remembered:  # a cluster runs a task again whose worker died between the last file and the answer
        return remembered
    quarantine: list[Row] = []
    counts = statistics.empty(len(task.contract.bands))

    def ready() -> Iterator[tuple[Sample, str]]:
        with READERS[task.recipe.dataset].reading(task.source, task.contract) as read:
            for ref in task.refs:
                try:
                    native = read(ref)
                    sample = _checked(resample.on_one_grid(native, task.contract, task.recipe.kernel), task.contract)
                    for image in shards.whole_images(sample):
                        statistics.add(image, counts)
                except SourceError as error:
                    file = ref.members[0].name if ref.members else ""
                    quarantine.append({"key": ref.key, "file": file, "reason": " ".join(str(error).split())})
                else:
                    stored = native if task.recipe.layout == "native" else sample
                    yield stored, shards.sample_hash(sample)

    shard, rows = shards.write_tar(task.out / task.name, ready(), codec=task.recipe.codec, effort=task.recipe.effort)
    packed = Packed(
        shard=shard, split=task.refs[0].split, rows=tuple(rows), counts=counts, quarantine=tuple(quarantine)
    )
    # An empty tar is no shard; its journal still tells what went to quarantine.
    if not rows:
        (task.out / task.name).unlink()
    _remember(task, packed)
    if task.spooled:
        task.source.unlink()
    return packed


def _checked(sample: Sample, contract: Contract) -> Sample:
    """The sample itself. Raises SourceError where it cannot be what the contract says."""
    if not shards.KEY.fullmatch(sample.key):
        raise SourceError(f"key {sample.key!r:.90} cannot be a name in a shard: {shards.KEY.pattern}")
    images = {name: array for name, array in sample.arrays.items() if name.startswith("image")}
    lattices = {array.shape[1:] for array in sample.arrays.values() if array.ndim == 3}
    lattices |= {array.shape for array in sample.arrays.values() if array.ndim == 2}
    if len(lattices) != 1:
        raise SourceError(f"arrays of different sizes {sorted(lattices)}: expected one")
    for name, image in images.items():
        if len(image) != len(contract.bands) or 0 in image.shape:
            raise SourceError(f"{name} is {image.shape}, expected {len(contract.bands)} bands and at least 1 x 1")
        # NaN survives a cast to uint16 as some number, and normalisation would spread it over the patch.
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
    # The tar is hashed again: a disk that filled up or a hand that edited is found before it is shipped.
    shard = Shard(**document["shard"])
    if shard.samples and (not tar.is_file() or files.sha256_file(tar) != shard.sha256):
        return None
    shape = (len(task.contract.bands), statistics.BINS)
    counts = shards.decode(base64.b85decode(document["counts"]), shape, "int32", "blosc").astype(np.int64)
    rows, quarantine = tuple(document["rows"]), tuple(document["quarantine"])
    return Packed(shard=shard, split=document["split"], rows=rows, counts=counts, quarantine=quarantine)
