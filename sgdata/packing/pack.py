"""From the files of a dataset to a folder of shards: find, cut into shards, pack each, close with the index.

What goes into which shard is settled from the listing alone, before a pixel is read: shards are independent,
so workers and interruptions cannot change a byte. A finished shard is remembered in `.journal/` and reused.
The contents of a compressed tar pass by once, in the archive's order: those of the shards under way wait in `.spool/`.
"""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, pool, progress
from sgdata.datasets import archives
from sgdata.datasets.readers import reader
from sgdata.datasets.types import Edition, Found, Ref, ShardRecipe
from sgdata.errors import OutputError, SourceError
from sgdata.packing import select
from sgdata.rasters import resample
from sgdata.shards import band_check, finish, statistics, tar_format
from sgdata.shards.finish import Packed
from sgdata.shards.tar_format import Row
from sgdata.types import Contract, Sample, Shard

JOURNAL = ".journal"
SPOOL = ".spool"
RECIPE = "recipe.toml"
TRIED_BYTES = 2**24


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


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What packing takes; bytes to write are expected, `seconds` those of one process, None where not tried."""

    samples: dict[str, int]
    shards: int
    bytes_in: int
    bytes_out: int
    seconds: float | None
    notes: tuple[str, ...]

    @property
    def told(self) -> str:
        """The cost in a line."""
        splits = ", ".join(f"{split} {count:,}" for split, count in sorted(self.samples.items()))
        sizes = f"{self.bytes_in / 1e9:,.2f} GB to read, about {self.bytes_out / 1e9:,.2f} GB to write"
        time_s = "" if self.seconds is None else f", about {progress.told(self.seconds)} of one process"
        return f"{splits} samples in {self.shards} shards; {sizes}{time_s}"


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
    recipe = recipe or select.recipe_for(dataset)
    out = out or Path(recipe.out)
    find = reader(recipe.dataset).find
    source, found, contract = select.listed(recipe, source, find, splits=splits, leave_out=leave_out)
    # What is written where is settled here; everything below may be interrupted anywhere.
    stream = archives.is_stream(source)
    groups = _groups(found.refs, recipe.shard_mb, stream=stream)
    tasks = _tasks(groups, recipe, contract, (source, out))
    progress.log.info("packing %s: %s", recipe.dataset, _cost(found, groups, source).told)
    with files.only_writer(out, tar_format.INDEX):
        _prepare(out, recipe, {task.name for task in tasks}, fresh=fresh)
        whole = finish.Whole(contract)
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
        verdict = band_check.judge(whole.statistics(whole.counts), len(whole.rows), contract)
        files.write(out / band_check.NAME, files.pretty_json(verdict))
        # After the shards: a folder without recipe is one that no run has finished.
        files.write(out / RECIPE, files.toml(recipe))
        complete = finish.finish(out, whole)
    # Airports, dumps and nine more of the 43 CORINE classes are none of the 19: 57 patches of v1 lose every label.
    unlabelled = sum(not row["labels"] for row in whole.rows) if contract.label_space.task == "multi-label" else 0
    notes = [f"{unlabelled} samples have no label of '{contract.label_space.name}': kept"] * bool(unlabelled)
    notes += _against_card(found.edition, recipe.splits, complete)
    notes += [verdict.told] * (verdict.samples >= band_check.LEAST)
    return Packing(
        folder=out,
        contract=complete,
        shards=len(whole.shards),
        quarantined=len(whole.quarantine),
        fits=not verdict.contradictions,
        notes=(*found.notes, *notes),
    )


def cost(
    dataset: str,
    *,
    source: Path | None = None,
    recipe: ShardRecipe | None = None,
    splits: Mapping[str, Path] | None = None,
    leave_out: Sequence[Path] = (),
) -> Cost:
    """What `pack` would take; writes nothing that stays. Raises SettingError, SourceError."""
    recipe = recipe or select.recipe_for(dataset)
    began = time.perf_counter()
    find = reader(recipe.dataset).find
    source, found, contract = select.listed(recipe, source, find, splits=splits, leave_out=leave_out)
    stream = archives.is_stream(source)
    groups = _groups(found.refs, recipe.shard_mb, stream=stream)
    taken = time.perf_counter() - began
    # The second pass over a compressed tar takes as long as the first.
    seconds = _tried([ref for group in groups for ref in group], recipe, contract, source) + taken * stream
    return replace(_cost(found, groups, source), seconds=seconds)


def _cost(found: Found, groups: Sequence[Sequence[Ref]], source: Path) -> Cost:
    # By the tuple: patches of a build share the rasters that they are cut from.
    sizes = {id(ref.members): sum(member.size for member in ref.members) for ref in found.refs}
    return Cost(
        samples=dict(Counter(ref.split for ref in found.refs)),
        shards=len(groups),
        bytes_in=source.stat().st_size if archives.is_stream(source) else sum(sizes.values()),
        bytes_out=sum(ref.bytes for ref in found.refs),
        seconds=None,
        notes=found.notes,
    )


def _tried(refs: Sequence[Ref], recipe: ShardRecipe, contract: Contract, source: Path) -> float:
    """Seconds to pack them all, by those of a few: spread over all, of a compressed tar the first that come by."""
    count = min(len(refs), 1 + TRIED_BYTES * len(refs) // (1 + sum(ref.bytes for ref in refs)))
    stream = archives.is_stream(source)
    some = refs[:count] if stream else [refs[i] for i in np.linspace(0, len(refs) - 1, count).astype(int)]
    with tempfile.TemporaryDirectory() as place:
        (trial,) = _tasks([tuple(some)], recipe, contract, (source, Path(place)))
        if stream:  # kept for the second time
            trial = replace(next(_spool([trial], source, Path(place))), spooled=False)
        _pack_shard(trial)  # compiles what is compiled
        began = time.perf_counter()
        _pack_shard(trial)
        return (time.perf_counter() - began) / count * len(refs)


# --- before any pixel ----------------------------------------------------------------------


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
        name = tar_format.shard_name(recipe.dataset, split, numbers[split])
        numbers[split] += 1
        # Equal where the same bytes would come out, short of a source file changed under the same size.
        told = files.sha256(files.canonical_json([tar_format.FORMAT, chosen, contract, refs]))
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
    files.mark_unfinished(out)
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
        with reader(task.recipe.dataset).reading(task.source, task.contract) as read:
            for ref in task.refs:
                try:
                    native = read(ref)
                    sample = _checked(resample.on_one_grid(native, task.contract, task.recipe.kernel), task.contract)
                    for image in tar_format.whole_images(sample):
                        statistics.add(image, counts)
                except SourceError as error:
                    file = ref.members[0].name if ref.members else ""
                    quarantine.append({"key": ref.key, "file": file, "reason": " ".join(str(error).split())})
                else:
                    stored = native if task.recipe.layout == "native" else sample
                    yield stored, tar_format.sample_hash(sample)

    shard, rows = tar_format.write_tar(
        task.out / task.name, ready(), codec=task.recipe.codec, effort=task.recipe.effort
    )
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
    if not tar_format.KEY.fullmatch(sample.key):
        raise SourceError(f"key {sample.key!r:.90} cannot be a name in a shard: {tar_format.KEY.pattern}")
    images = {name: array for name, array in sample.arrays.items() if name.startswith("image")}
    lattices = {array.shape[1:] for array in sample.arrays.values() if array.ndim == 3}
    lattices |= {array.shape for array in sample.arrays.values() if array.ndim == 2}
    if len(lattices) != 1:
        raise SourceError(f"arrays of different sizes {sorted(lattices)}: expected one")
    for name, image in images.items():
        if len(image) != len(contract.bands) or 0 in image.shape:
            raise SourceError(f"{name} is {image.shape}, expected {len(contract.bands)} bands and at least 1 x 1")
        # NaN survives a cast to uint16 as some number, and normalisation would spread it over the patch.
        if image.dtype.kind == "f" and not np.isfinite(image).all():
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
    counts = base64.b85encode(tar_format.encode(packed.counts.astype(np.int32), "blosc")).decode()
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
    counts = tar_format.decode(base64.b85decode(document["counts"]), shape, "int32", "blosc").astype(np.int64)
    rows, quarantine = tuple(document["rows"]), tuple(document["quarantine"])
    return Packed(shard=shard, split=document["split"], rows=rows, counts=counts, quarantine=quarantine)
