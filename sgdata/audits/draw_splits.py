"""Draw splits by ground for a published dataset, and record what is known of its published lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sgdata import progress
from sgdata.datasets import cards
from sgdata.datasets.readers import open_samples
from sgdata.errors import SettingError, SourceError
from sgdata.packing import split_lists
from sgdata.splits import ground_distance, ground_splits, split_table
from sgdata.splits.block_split import LEFT_OUT, SPLITS
from sgdata.splits.ground_distance import SampleGround
from sgdata.splits.ground_splits import DrawSettings
from sgdata.splits.split_table import PublishedList, SplitTable, SplitTableHeader
from sgdata.types import Array

if TYPE_CHECKING:
    from sgdata.audits.collect_evidence import AuditSubject


@dataclass(frozen=True, kw_only=True)
class LocatedSamples:
    """N samples and where they are.

    Attributes:
        keys: Sample keys.
        labels: (N,) class of each sample; of several the rarest, 0 without any.
        ground: Ground of each sample.
    """

    keys: tuple[str, ...]
    labels: Array
    ground: SampleGround


def locate(subject: AuditSubject) -> LocatedSamples:
    """Return the samples of shards or of a dataset as distributed, with their ground.

    Pixels are read only of a dataset whose files alone have the coordinates.

    Args:
        subject: The subject, as returned by `collect_evidence.detect_subject`.

    Raises:
        SettingError: A sample has no coordinates.
    """
    keys, boxes, shapes, geographic, labels, without = [], [], [], [], [], []
    for key, meta, shape in _described(subject):
        if not meta.get("bounds") or not meta.get("crs"):
            without.append(key)
            continue
        keys.append(key)
        boxes.append(meta["bounds"])
        shapes.append(shape)
        geographic.append(meta["crs"] == "EPSG:4326")
        labels.append(tuple(meta.get("labels") or ()))
    if without:
        raise SettingError(
            f"{len(without)} of {len(without) + len(keys)} samples have no coordinates, such as '{without[0]}'; give "
            "them with --coordinates FILE"
        )
    return LocatedSamples(
        keys=tuple(keys),
        labels=_rarest(labels),
        ground=ground_distance.from_boxes(
            np.array(boxes, float).reshape(-1, 4),
            np.array(shapes, float).reshape(-1, 2),
            subject.contract.pixel_m,
            np.array(geographic),
        ),
    )


def _described(subject: AuditSubject) -> Iterator[tuple[str, dict[str, Any], tuple[int, ...]]]:
    """Yield key, facts and (rows, columns) of every sample."""
    if subject.recipe is None:
        for row in subject.samples.to_pylist():
            bounds = None if row["west"] is None else [row[side] for side in ("west", "south", "east", "north")]
            shapes = [shape for name, shape in row.items() if name.endswith("_shape") and shape]
            yield row["key"], {**row, "bounds": bounds}, max(tuple(shape[-2:]) for shape in shapes)
        return
    shape = subject.contract.shape or cards.edition(subject.recipe.dataset, subject.recipe.edition).shape
    with open_samples(subject.recipe.dataset, subject.folder, subject.contract) as read:
        for ref in progress.track(subject.samples, label="coordinates", total=len(subject.samples)):
            if shape and ref.meta.get("bounds"):
                yield ref.key, ref.meta, shape[-2:]
                continue
            try:
                sample = read(ref)
            except SourceError as error:
                progress.log.warning("%s: left out: %s", ref.key, error)
                continue
            yield ref.key, sample.meta, max(array.shape[-2:] for array in sample.arrays.values())


def _rarest(labels: Sequence[tuple[int, ...]]) -> Array:
    """Return the position among all classes of the rarest label of each sample, 0 without labels."""
    counts = Counter(label for several in labels for label in several)
    number = {label: at for at, label in enumerate(sorted(counts))}
    chosen = [min(several, key=lambda label: (counts[label], label), default=None) for several in labels]
    return np.array([0 if label is None else number[label] for label in chosen], np.int64)


def published_lists(subject: AuditSubject, folder: Path | None) -> tuple[PublishedList, ...]:
    """Return name, count and SHA-256 of the published lists in a folder, of every complete split set."""
    contract = subject.contract
    editions = [each for each in cards.card(contract.dataset).editions if each.name == contract.version]
    lists = []
    for chosen in (each for edition in editions for each in edition.splits if folder and each.files):
        for split, path in split_lists.find_lists(chosen, (folder,) if folder else ()).items():
            keys = split_lists.read_keys(path)
            digest = split_table.digest(keys)
            lists.append(PublishedList(name=chosen.name, split=split, samples=len(keys), sha256=digest))
    return tuple(lists)


def draw(
    subject: AuditSubject, settings: DrawSettings, published: tuple[PublishedList, ...] = ()
) -> tuple[SplitTable, list[str]]:
    """Draw the splits of a table.

    Args:
        subject: Shards or a dataset as distributed.
        settings: Sizes, shares, budgets and number of draws.
        published: Published lists to record.

    Returns:
        The table, and a line of text for each draw.

    Raises:
        SettingError: Samples lack coordinates, or a part would be empty.
    """
    located = locate(subject)
    columns, lines = {}, []
    for number in range(settings.draws):
        name = f"{split_table.PREFIX}{number}"
        drawn = ground_splits.draw(located.ground, located.keys, located.labels, settings, number)
        columns[name] = split_table.cells(drawn, settings.budgets)
        counts = Counter(drawn.parts.tolist())
        held_out, train = np.isin(drawn.parts, ("val", "test")), drawn.parts == "train"
        least, _ = ground_distance.nearest(located.ground[held_out], located.ground[train])
        parts = ", ".join(f"{part} {counts[part]:,}" for part in SPLITS if counts[part])
        lines.append(
            f"{name}: {parts}, left out {counts[LEFT_OUT]:,}; {drawn.blocks} blocks; "
            f"nearest train sample {least.min(initial=np.inf):,.0f} m"
        )
    header = SplitTableHeader(
        format=split_table.FORMAT, dataset=subject.contract.dataset, settings=settings, published=published
    )
    return SplitTable(header=header, keys=located.keys, columns=columns), lines
