"""Collect facts about every sample of shards, of a build or of a dataset as distributed, for the checks of an audit.

Samples are read in chunks; a few hundred bytes of facts are kept of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sgdata import files, output_names, pool, progress
from sgdata.audits import duplicates, findings
from sgdata.audits.evidence import NEARER, AuditEvidence, BandTotals, Days, SampleFacts
from sgdata.datasets import archives, cards
from sgdata.datasets.readers import open_samples, reader
from sgdata.datasets.types import SampleRef, ShardRecipe
from sgdata.errors import SettingError, SourceError
from sgdata.packing import select_samples
from sgdata.rasters import dihedral, resample
from sgdata.scenes import lock
from sgdata.shards import contracts, shard_index, statistics, tar_format, write_shards
from sgdata.shards.shard_index import Row
from sgdata.splits.shared_ground import Footprint
from sgdata.types import DISPLAY, Array, Contract, Sample

CHUNK = 64
# Green, near infrared and short-wave infrared differ most from each other.
COMPARED_BANDS = ("B03", "B08", "B11")
# Reflectance from which a value counts as saturated: no surface reflects twice the incident light.
BRIGHTEST = 2.0
# Smaller differences of two correlations may be noise.
SLIGHT = 0.001


@dataclass(frozen=True, kw_only=True)
class AuditSubject:
    """Data to audit.

    Attributes:
        kind: Kind of the data.
        folder: Its folder.
        recipe: Recipe of the shards; None for shards and builds.
        contract: Contract of the pixels and labels.
        samples: Index rows of shards, or references of the dataset reader of `recipe`.
        unread: Keys or files that cannot be read, with the reason.
        days: Days of images and labels, if a lock has them.
    """

    kind: findings.Kind
    folder: Path
    recipe: ShardRecipe | None
    contract: Contract
    samples: Any
    unread: tuple[tuple[str, str], ...] = ()
    days: Days | None = None


def detect_subject(
    path: Path,
    *,
    dataset: str | None = None,
    edition: str | None = None,
    split: str | None = None,
    inputs: select_samples.SampleInputs | None = None,
    lock_of: Path | None = None,
) -> AuditSubject:
    """Detect what `path` is, without reading pixels.

    Args:
        path: Shards, a build, a release, or a dataset as distributed.
        dataset: Dataset to read `path` as; by default all are tried.
        edition: Edition of the dataset; by default all are tried.
        split: Split set of a dataset as distributed; default that of its recipe.
        inputs: Lists and tables beside a dataset as distributed.
        lock_of: Build that shards were packed from, for the dates in its lock; a release contains its lock.

    Returns:
        The subject for `collect_evidence`: its kind, contract and samples, and the files that cannot be used.

    Raises:
        SettingError: It is nothing that can be audited.
        SourceError: It is missing or damaged.
    """
    files.require_file(path, "shards, a build, or a dataset as distributed")
    kind: findings.Kind = "build" if (path / output_names.PATCHES).is_file() else "raw"
    is_shards = (path / output_names.INDEX).is_file()
    if (is_shards or kind == "build") and (dataset is not None or edition is not None):
        option = f"--edition {edition}" if dataset is None else f"--dataset {dataset}"
        raise SettingError(f"{option}: {path} is an output of sgdata, which names its dataset itself; leave it out")
    if lock_of is not None:
        if not is_shards:
            raise SettingError(f"--build {lock_of}: {path} is no folder of shards; leave it out")
        files.require_file(lock_of / lock.NAME, "the lock of the build that the shards were packed from")
    if is_shards:
        contract = contracts.read(path)
        return AuditSubject(
            kind="shards",
            folder=path,
            recipe=None,
            contract=contract,
            samples=shard_index.read_index(path),
            days=_days(lock_of or path),
        )
    if kind == "build":
        files.require_finished(path)
    if archives.is_stream(path):
        raise SettingError(f"{path}: a compressed tar cannot be audited; shard it and audit the shards")
    tried = []
    recipes = [select_samples.recipe_for("segmunich")] if kind == "build" else _recipes(dataset, edition, split)
    for recipe in recipes:
        try:
            source, listing, contract = select_samples.list_samples(
                recipe, path, reader(recipe.dataset).list_samples, inputs
            )
        except (SourceError, SettingError) as error:
            tried.append(f"{recipe.dataset} {recipe.edition}: {error!s:.120}")
            continue
        return AuditSubject(
            kind=kind, folder=source, recipe=recipe, contract=contract, samples=listing.refs, unread=listing.rejected,
            days=_days(path if kind == "build" else None),
        )  # fmt: skip
    # The messages of all readers would be too long; that of the requested one is what helps.
    why = "; ".join(tried) if dataset else f"tried {', '.join(cards.names())}; give --dataset to see why one fails"
    raise SettingError(f"{path}: neither shards nor a build nor a known dataset: {why}; give the folder of one")


def _recipes(dataset: str | None, edition: str | None, split: str | None) -> Iterator[ShardRecipe]:
    """Yield the recipe of each dataset and edition to try, with the split set `split` or published splits."""
    for name in [dataset] if dataset else cards.names():
        recipe = select_samples.recipe_for(name)
        for each in cards.card(name).editions:
            if edition in (None, each.name):
                published = [split.name for split in each.splits]
                splits = recipe.splits if recipe.splits in published else next(iter(published), "")
                yield replace(recipe, edition=each.name, splits=splits if split is None else split)


def _days(build: Path | None) -> Days | None:
    if build is None or not (build / lock.NAME).is_file():
        return None
    planned = lock.read(build / lock.NAME)
    # Dates of the scenes used, not of the requested period.
    days = sorted(item.scene.time[:10] for item in planned.items)
    return Days(first=days[0], last=days[-1], labels=planned.osm_date[:10])


def collect_evidence(subject: AuditSubject, *, workers: int = 1) -> AuditEvidence:
    """Read every sample once and collect the facts that the checks need.

    Args:
        subject: The subject, as returned by `detect_subject`.
        workers: Number of processes.

    Returns:
        The facts of every readable sample, sums over all of their pixels, and each unreadable sample with the reason.

    Raises:
        SourceError: None of the samples can be read.
    """
    total = -(-len(subject.samples) // CHUNK)
    tasks = (replace(subject, samples=part, unread=()) for part in _chunks(subject.samples))
    facts: list[SampleFacts] = []
    unread = list(subject.unread)
    totals = None
    results = pool.run(_examine, tasks, workers=workers)
    for examined, sums, failed in progress.track(results, label="audit", total=total):
        facts += examined
        unread += failed
        totals = sums if totals is None else totals + sums
    if totals is None or not facts:
        raise SourceError(
            f"{subject.folder}: none of {len(subject.samples)} samples can be read: {unread[:1]}; "
            "fetch or make them again"
        )
    return AuditEvidence(
        kind=subject.kind,
        contract=subject.contract,
        facts=tuple(facts),
        totals=totals,
        unread=tuple(unread),
        days=subject.days,
    )


def _chunks(samples: Any) -> Iterator[Sequence[SampleRef | Row]]:
    """Yield chunks of samples; index rows become dicts per chunk, since those of a million samples need much memory."""
    for at in range(0, len(samples), CHUNK):
        yield samples[at : at + CHUNK] if isinstance(samples, tuple) else samples.slice(at, CHUNK).to_pylist()


def _examine(subject: AuditSubject) -> tuple[list[SampleFacts], BandTotals, list[tuple[str, str]]]:
    facts, unread = [], []
    totals = _totals(np.zeros((len(subject.contract.bands), 1, 0), np.uint16), subject.contract)
    with _reading(subject) as read:
        for each in subject.samples:
            key = each["key"] if isinstance(each, dict) else each.key
            try:
                sample = resample.join_groups(read(each), subject.contract)
                images = tar_format.whole_images(sample)
                facts.append(_facts(sample, images, subject.contract))
            except SourceError as error:
                unread.append((key, " ".join(str(error).split())))
                continue
            for image in images:
                totals += _totals(image, subject.contract)
    return facts, totals, unread


@contextmanager
def _reading(subject: AuditSubject) -> Iterator[Callable[[Any], Sample]]:
    if subject.recipe is None:
        yield lambda row: tar_format.read_sample(subject.folder, row)
    else:
        with open_samples(subject.recipe.dataset, subject.folder, subject.contract) as read:
            yield lambda ref: write_shards.storable(read(ref), subject.contract)


def _facts(sample: Sample, images: Sequence[Array], contract: Contract) -> SampleFacts:
    names = [band.name for band in contract.bands]
    valid = statistics.valid_mask(images[0], contract.nodata)
    images = [np.nan_to_num(image) for image in images]  # what is NaN is not valid
    both = np.concatenate(images)
    pixels, turned = dihedral.hashes(both)
    chosen = [names.index(name) for name in COMPARED_BANDS if name in names]
    if len(chosen) < 2:  # one band alone would call many samples alike
        chosen = list(range(min(3, len(names))))
    thumbnail = duplicates.make_thumbnail(images[0][chosen])
    under = ((images[0] + contract.offset) * contract.scale < 0.1) & valid
    shares = under.sum(axis=(1, 2)) / np.maximum(valid.sum(axis=(1, 2)), 1)
    flat = [image.reshape(len(image), -1).min(axis=1) == image.reshape(len(image), -1).max(axis=1) for image in images]
    still = np.any(flat, axis=0)
    thirds = ([images[0][names.index(name)] for name in three if name in names] for three in NEARER)
    return SampleFacts(
        key=sample.key,
        split=sample.split,
        pixels=pixels,
        turned=turned,
        thumbnail=b"" if thumbnail is None else thumbnail.tobytes(),
        footprint=_footprint(sample.meta, images[0].shape[1:], contract.pixel_m),
        date=sample.meta.get("date"),
        classes=_classes(sample),
        dark=float(shares.max()),
        # A sample that is constant in every band does not indicate a dead band.
        dead=() if still.all() else tuple(name for name, dead in zip(names, still, strict=True) if dead),
        window_hashes=duplicates.hash_windows(images[0][chosen]),
        nearer=tuple(_nearer(planes, np.logical_and.reduce(valid)) for planes in thirds),
        place=str(sample.meta.get("place") or ""),
        brightness=float(images[0].mean(where=valid)) if valid.any() else 0.0,
    )


def _nearer(planes: Sequence[Array], valid: Array) -> bool | None:
    """Return whether the first of three (H, W) planes correlates more with the third than the second does."""
    values = np.array([plane[valid] for plane in planes], float)
    if len(values) < 3 or values.shape[1] < 2 or not np.ptp(values, axis=1).all():
        return None
    first, second, _ = np.corrcoef(values)[2]
    return None if abs(first - second) < SLIGHT else bool(first > second)


def _classes(sample: Sample) -> dict[int, int]:
    if "mask" in sample.arrays:
        values, counts = np.unique(sample.arrays["mask"], return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    return dict.fromkeys(sample.meta.get("labels", ()), 1)


def _footprint(meta: dict[str, Any], shape: Sequence[int], pixel_m: float) -> Footprint | None:
    height, width = shape
    if "window" in meta:
        row, col = meta["window"][:2]
        box = (col * pixel_m, row * pixel_m, (col + width) * pixel_m, (row + height) * pixel_m)
        return Footprint(crs="", box=box, size_m=(width * pixel_m, height * pixel_m))
    if not meta.get("bounds") or not meta.get("crs"):
        return None
    west, south, east, north = meta["bounds"]
    size = (width * pixel_m, height * pixel_m)
    if meta["crs"] == "EPSG:4326":
        # Pixels in degrees are not square on the ground.
        size = (size[1] * (east - west) / max(north - south, 1e-9) * float(np.cos(np.radians(south))), size[1])
    return Footprint(crs=meta["crs"], box=(west, south, east, north), size_m=size)


def _totals(image: Array, contract: Contract) -> BandTotals:
    """Compute the sums of one (C, H, W) image; those of an empty image are neutral."""
    valid = statistics.valid_mask(image, contract.nodata)
    both = valid[:, :, 1:] & valid[:, :, :-1]

    def counted(where: Array) -> Array:
        sums: Array = where.sum(axis=(1, 2), dtype=np.int64)
        return sums

    values = np.rint(np.where(valid, image, 0)).astype(np.int64)
    brightest = 255 if contract.level == DISPLAY else BRIGHTEST
    names = [each.name for each in contract.bands]
    leaves = np.zeros(2, np.int64)
    if {"B03", "B04", "B08"} <= set(names):
        green, red, near = (image[names.index(name)] + contract.offset for name in ("B03", "B04", "B08"))
        # Symmetric in green and red, so that a swap does not change which pixels count.
        vegetated = (near > 2 * (green + red)) & valid[names.index("B08")]
        leaves[:] = vegetated.sum(), (vegetated & (green > red)).sum()
    return BandTotals(
        leaves=leaves,
        count=counted(valid),
        total=np.where(valid, values, 0).sum(axis=(1, 2)),
        ones=counted(values == 1),
        saturated=counted(valid & ((image + contract.offset) * contract.scale >= brightest)),
        equal=counted(both & (image[:, :, 1:] == image[:, :, :-1])),
        pairs=counted(both),
        low=np.where(valid, values, 2**40).min(axis=(1, 2), initial=2**40),
        high=np.where(valid, values, -1).max(axis=(1, 2), initial=-1),
    )
