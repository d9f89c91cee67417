"""Pack the files of a dataset into a folder of shards: list the samples, group them, pack each shard, write the index.

The listing alone decides which sample goes into which shard, before any pixel is read: shards are independent, so
workers and interruptions cannot change a byte. A finished shard is recorded in `.journal/` and reused. Compressed tars
are read sequentially once; members are spooled to `.spool/` until their shard is complete.
"""

from __future__ import annotations

import base64
import gc
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sgdata import files, output_lock, output_names, pool, progress, safe_names
from sgdata.datasets import archives
from sgdata.datasets.readers import open_samples, reader
from sgdata.datasets.types import Edition, SampleListing, SampleRef, ShardRecipe
from sgdata.errors import OutputError, SourceError
from sgdata.packing import select_samples, tar_spool, tasks
from sgdata.rasters import resample
from sgdata.shards import array_codec, band_check, sample_hashes, statistics, tar_format, write_shards
from sgdata.shards.shard_index import Row
from sgdata.shards.write_shards import PackedShard, ShardTotals
from sgdata.types import Contract, Sample, Shard

JOURNAL = ".journal"
# Samples of this many bytes are packed to estimate the time of all.
TRIAL_BYTES = 2**24


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """Result of `pack`.

    Attributes:
        folder: The output folder.
        contract: The completed contract.
        shards: Number of tars.
        quarantined: Number of files or samples in the quarantine list.
        bands_plausible: Whether the pooled band means agree with the declared bands and level.
        notes: Remarks for the user, one sentence each.
    """

    folder: Path
    contract: Contract
    shards: int
    quarantined: int
    bands_plausible: bool
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every listed sample is in the shards and its bands and level are plausible."""
        return self.quarantined == 0 and self.bands_plausible


@dataclass(frozen=True, kw_only=True)
class PackCost:
    """Estimated cost of packing.

    Attributes:
        samples: Number of samples per split.
        shards: Number of tars.
        bytes_in: Bytes to read.
        bytes_out: Bytes to write, estimated.
        seconds: Time of one process in seconds, estimated by a trial; None without one.
        notes: Remarks of the reader.
    """

    samples: dict[str, int]
    shards: int
    bytes_in: int
    bytes_out: int
    seconds: float | None
    notes: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The cost in one line."""
        splits = ", ".join(f"{split} {count:,}" for split, count in sorted(self.samples.items()))
        sizes = f"{self.bytes_in / 1e9:,.2f} GB to read, about {self.bytes_out / 1e9:,.2f} GB to write"
        time_s = "" if self.seconds is None else f", about {progress.duration(self.seconds)} of one process"
        return f"{splits} samples in {self.shards} shards; {sizes}{time_s}"


def pack(
    dataset: str,
    *,
    source: Path | None = None,
    out: Path | None = None,
    recipe: ShardRecipe | None = None,
    inputs: select_samples.SampleInputs | None = None,
    workers: int = 1,
    cluster: str | None = None,
    fresh: bool = False,
) -> PackResult:
    """Pack a dataset into shards, resuming an interrupted run.

    Args:
        dataset: Name of the dataset.
        source: Folder, zip or tar of the dataset; default the recipe's.
        out: Output folder; default the recipe's.
        recipe: Recipe; default the shipped one.
        inputs: Split lists, samples to leave out and coordinates. By default the published lists in or beside the
            source, or the split `all` where there are none.
        workers: Number of local processes.
        cluster: Address of a Dask scheduler to use instead of local processes.
        fresh: Replace the shards of an earlier run.

    Returns:
        The result; `complete` is False if samples are in quarantine or bands are implausible.

    Raises:
        SettingError: The recipe, a split list or a key is wrong.
        SourceError: The source does not hold the dataset, or no sample can be used.
        OutputError: The output folder is in use, holds something else or cannot be written.
    """
    recipe = recipe or select_samples.recipe_for(dataset)
    out = out or Path(recipe.out)
    inputs = inputs or select_samples.SampleInputs()
    if cluster:
        source, out = pool.absolute([source or Path(recipe.source), out])
        inputs = replace(inputs, builds=pool.absolute(dict(inputs.builds)))
    list_source = reader(recipe.dataset).list_samples
    with _garbage_collection_off():
        source, listing, contract = select_samples.list_samples(recipe, source, list_source, inputs)
        # From here on it is fixed which bytes go where: the rest may be interrupted at any point.
        stream = archives.is_stream(source)
        groups = tasks.group_samples(listing.refs, recipe.shard_mb, stream=stream)
        shard_tasks = tasks.shard_tasks(
            groups, recipe, contract, source, out, listing.shared_files, builds=inputs.builds
        )
    progress.log.info("packing %s: %s", recipe.dataset, _cost(listing, groups, source).summary)
    with output_lock.only_writer(out, output_names.INDEX):
        _prepare(out, recipe, tasks.tar_prefix(recipe, contract), {task.name for task in shard_tasks}, fresh=fresh)
        totals = ShardTotals(contract)
        totals.quarantine += [{"key": "", "file": name, "reason": reason} for name, reason in listing.rejected]
        unfinished = []
        for task in shard_tasks:
            finished = _read_journal(task)
            if finished:
                totals.add(finished)
            else:
                unfinished.append(task)
        if len(unfinished) < len(shard_tasks):
            finished_count = len(shard_tasks) - len(unfinished)
            progress.log.info("resumes with %d of %d shards already packed", finished_count, len(shard_tasks))
        prepared = tar_spool.spool_members(unfinished, source, out) if stream else unfinished
        packed_shards = pool.run(_pack_shard, prepared, workers=workers, cluster=cluster, folder=out)
        for packed in progress.track(packed_shards, label=f"packing {recipe.dataset}", total=len(unfinished)):
            totals.add(packed)
        verdict = band_check.check_band_means(totals.statistics(totals.counts), len(totals.rows), contract)
        files.write(out / output_names.BAND_CHECK, files.pretty_json(verdict))
        # Written after the shards: a folder without a recipe is unfinished.
        files.write(out / output_names.RECIPE, files.toml(recipe))
        complete = write_shards.finish(out, totals)
    return PackResult(
        folder=out,
        contract=complete,
        shards=len(totals.shards),
        quarantined=len(totals.quarantine),
        bands_plausible=not verdict.contradictions,
        notes=(*listing.notes, *_remarks(totals, listing.edition, recipe.splits, complete, verdict)),
    )


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Suspend the search for cycles, which a listing of millions of objects has none of: a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def estimate_cost(
    dataset: str,
    *,
    source: Path | None = None,
    recipe: ShardRecipe | None = None,
    inputs: select_samples.SampleInputs | None = None,
) -> PackCost:
    """Estimate the cost of `pack` by packing a few samples into a temporary folder.

    The arguments are those of `pack`. Raises SettingError, SourceError.
    """
    recipe = recipe or select_samples.recipe_for(dataset)
    began = time.perf_counter()
    list_source = reader(recipe.dataset).list_samples
    source, listing, contract = select_samples.list_samples(recipe, source, list_source, inputs)
    stream = archives.is_stream(source)
    groups = tasks.group_samples(listing.refs, recipe.shard_mb, stream=stream)
    listing_s = time.perf_counter() - began
    # Those of one place, since shards are packed from one source each.
    refs = [ref for group in groups for ref in group if ref.meta.get("place") == groups[0][0].meta.get("place")]
    seconds = _trial_seconds(refs, recipe, contract, source) / len(refs) * len(listing.refs)
    if stream:  # the second pass over a compressed tar takes as long as the first
        seconds += listing_s
    return replace(_cost(listing, groups, source), seconds=seconds)


def _cost(listing: SampleListing, groups: Sequence[Sequence[SampleRef]], source: Path) -> PackCost:
    # Keyed by the tuple: patches of a build share the rasters that they are cut from.
    sizes = {id(ref.members): sum(member.size for member in ref.members) for ref in listing.refs}
    return PackCost(
        samples=dict(Counter(ref.split for ref in listing.refs)),
        shards=len(groups),
        bytes_in=source.stat().st_size if archives.is_stream(source) else sum(sizes.values()),
        bytes_out=sum(ref.bytes for ref in listing.refs),
        seconds=None,
        notes=listing.notes,
    )


def _trial_seconds(refs: Sequence[SampleRef], recipe: ShardRecipe, contract: Contract, source: Path) -> float:
    """Estimate the seconds to pack all samples from a few: evenly spaced ones, the first ones of a compressed tar."""
    count = min(len(refs), 1 + TRIAL_BYTES * len(refs) // (1 + sum(ref.bytes for ref in refs)))
    stream = archives.is_stream(source)
    trial_refs = refs[:count] if stream else [refs[i] for i in np.linspace(0, len(refs) - 1, count).astype(int)]
    with tempfile.TemporaryDirectory() as folder:
        (trial,) = tasks.shard_tasks([tuple(trial_refs)], recipe, contract, source, Path(folder))
        if stream:  # not marked as spooled, so that the first run leaves the members for the second
            trial = replace(next(tar_spool.spool_members([trial], source, Path(folder))), spooled=False)
        _pack_shard(trial)  # not timed: compiles the kernels
        began = time.perf_counter()
        _pack_shard(trial)
        return (time.perf_counter() - began) / count * len(refs)


def _remarks(
    totals: ShardTotals, edition: Edition, split_set: str, contract: Contract, verdict: band_check.BandVerdict
) -> list[str]:
    """Return sentences about missing labels, sample counts that differ from the card, and the bands."""
    remarks = []
    # Airports, dumps and nine more of the 43 CORINE classes are not among the 19: 57 patches of v1 lose every label.
    unlabelled = sum(not row["labels"] for row in totals.rows)
    if unlabelled and contract.label_space.task == "multi-label":
        remarks.append(f"{unlabelled} samples have no label of '{contract.label_space.name}': kept")
    published = next((candidate.counts for candidate in edition.splits if candidate.name == split_set), {})
    # Splits under other names (all, or lists of the user) are not the published ones.
    if set(published) & set(contract.splits):
        for split, count in published.items():
            actual = contract.splits.get(split, 0)
            if actual != count:
                remarks.append(f"split {split} holds {actual} samples, the card says {count}")
    if verdict.samples >= band_check.LEAST_SAMPLES:
        remarks.append(verdict.summary)
    return remarks


def _prepare(out: Path, recipe: ShardRecipe, prefix: str, task_names: set[str], *, fresh: bool) -> None:
    """Remove what an interrupted run left, shards of other groupings and, if `fresh`, all shards of an earlier run."""
    earlier = out / output_names.RECIPE
    if not fresh and earlier.exists() and earlier.read_bytes() != files.toml(recipe):
        different = ", ".join(_different_settings(earlier, recipe))
        raise OutputError(
            f"{out}: holds shards of another recipe ({different}); use --fresh to replace them, or another --out"
        )
    # A folder without SHA256SUMS is unfinished: a run that ends early from here on leaves none.
    files.mark_unfinished(out)
    ours = [*out.glob(f"{prefix}-*.tar"), *(out / JOURNAL).glob("*.json")]
    stale = [path for path in ours if fresh or path.name.removesuffix(".json") not in task_names]
    partial = [*out.glob(".*.partial-*"), *(out / JOURNAL).glob(".*.partial-*")]
    for path in [*stale, *partial, *(out / tar_spool.SPOOL).glob("*")]:
        path.unlink(missing_ok=True)


def _different_settings(earlier: Path, recipe: ShardRecipe) -> list[str]:
    """Return the settings of a recipe that differ from those of an earlier one, with both values."""
    before, now = files.read_plain(earlier), files.to_plain(recipe)
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return [f"{name} {before.get(name, 'default')!s:.40}, now {now.get(name, 'default')!s:.40}" for name in names]


# --- one shard -----------------------------------------------------------------------------


def _pack_shard(task: tasks.ShardTask) -> PackedShard:
    """Read, check and write the samples of one shard."""
    if task.spooled and not task.source.exists():
        # A cluster repeats a task if its worker dies after the last file is written and before it answers.
        finished = _read_journal(task)
        if finished:
            return finished
    quarantine: list[Row] = []
    counts = statistics.empty(len(task.contract.bands))

    def samples() -> Iterator[tuple[Sample, str | None]]:
        with open_samples(task.recipe.dataset, task.source, task.contract) as read:
            for ref in task.refs:
                try:
                    native = write_shards.storable(read(ref), task.contract)
                    sample = resample.resample_groups(native, task.contract, task.recipe.kernel)
                    _check_sample(sample, task.contract)
                    for image in tar_format.whole_images(sample):
                        statistics.add_valid(image, counts, task.contract.nodata)
                except SourceError as error:
                    file = ref.members[0].name if ref.members else ""
                    quarantine.append({"key": ref.key, "file": file, "reason": " ".join(str(error).split())})
                else:
                    stored = native if task.recipe.layout == "native" else sample
                    yield stored, sample_hashes.hash_for(sample, task.contract)

    shard, rows = tar_format.write_tar(
        task.out / task.name, samples(), codec=task.recipe.codec, effort=task.recipe.effort
    )
    packed = PackedShard(
        shard=shard, split=task.refs[0].split, rows=tuple(rows), counts=counts, quarantine=tuple(quarantine)
    )
    # An empty tar is not kept; the journal records its quarantined samples.
    if not rows:
        (task.out / task.name).unlink()
    _write_journal(task, packed)
    if task.spooled:
        task.source.unlink()
    return packed


def _check_sample(sample: Sample, contract: Contract) -> None:
    """Raise SourceError if a sample does not satisfy the contract."""
    if not safe_names.KEY.fullmatch(sample.key):
        raise SourceError(f"key {sample.key!r:.90} cannot be a name in a shard, expected {safe_names.KEY.pattern}")
    images = {name: array for name, array in sample.arrays.items() if name.startswith("image")}
    sizes = {array.shape[-2:] for array in sample.arrays.values() if array.ndim in (2, 3)}
    if len(sizes) != 1:
        raise SourceError(f"arrays of different sizes {sorted(sizes)}: expected one")
    for name, image in images.items():
        if len(image) != len(contract.bands) or 0 in image.shape:
            raise SourceError(f"{name} is {image.shape}, expected {len(contract.bands)} bands and at least 1 x 1")
        # NaN survives a cast to uint16 as some number, and normalisation would spread it over the patch.
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise SourceError(
                f"{name} holds {np.count_nonzero(~np.isfinite(image))} NaN or infinite values, expected none"
            )
        if not (image[:, 0].any() or image.any()):  # the first row, since one value is enough
            raise SourceError(f"{name} is zero everywhere, expected an image")
    allowed = {*contract.label_space.ids, contract.label_space.ignore}
    labels = set(sample.meta.get("labels", ()))
    if "mask" in sample.arrays:
        labels |= set(np.unique(sample.arrays["mask"]).tolist())
    if labels - allowed:
        raise SourceError(
            f"labels {sorted(labels - allowed)} are not in the label space '{contract.label_space.name}': correct them"
        )


def _write_journal(task: tasks.ShardTask, packed: PackedShard) -> None:
    """Record a finished shard; its counts are a Blosc chunk, since most bins are empty."""
    counts = base64.b85encode(array_codec.encode(packed.counts.astype(np.int32), "blosc")).decode()
    document = {"task": task.fingerprint, **vars(packed), "counts": counts}
    files.write(task.out / JOURNAL / f"{task.name}.json", files.checked_json(document))


def _read_journal(task: tasks.ShardTask) -> PackedShard | None:
    """Return the shard that an earlier run recorded, if it has the fingerprint of `task` and its tar is unchanged."""
    journal, tar = task.out / JOURNAL / f"{task.name}.json", task.out / task.name
    document = files.read_checked_json(journal)
    if document is None or document.pop("task", None) != task.fingerprint:
        return None
    shape = (len(task.contract.bands), statistics.BINS)
    try:
        shard = Shard(**document["shard"])
        # Hashed again, to find a tar that was truncated by a full disk or edited.
        if shard.samples and (not tar.is_file() or files.sha256_file(tar) != shard.sha256):
            return None
        counts = array_codec.decode(base64.b85decode(document["counts"]), shape, "int32", "blosc").astype(np.int64)
        rows, quarantine = tuple(document["rows"]), tuple(document["quarantine"])
        return PackedShard(shard=shard, split=document["split"], rows=rows, counts=counts, quarantine=quarantine)
    except (KeyError, TypeError, ValueError, SourceError):  # of another version
        return None
