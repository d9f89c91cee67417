"""Blocks of the page of shards and releases: samples, class shares, locations, bands, contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sgdata.pages import charts, html, tables
from sgdata.safe_names import file_name
from sgdata.shards import contracts, sample_pictures, shard_index, tar_format
from sgdata.types import Bounds, Contract, Sample

# Number of samples to show: enough for an impression, few enough for a browser.
CARDS = 240
# Number of masks to count: a thousand estimate a share of 5 % to half a percent.
MASKS = 1000
BOXES = 4000


def build_blocks(source: Path, folder: Path) -> list[html.Block]:
    """Return the blocks of a folder of shards; write the pictures of its samples into `folder`."""
    contract, rows = contracts.read(source), shard_index.read_index(source).to_pylist()
    cards = tuple(_card(tar_format.read_sample(source, row), row, contract, folder) for row in spread(rows, CARDS))
    space = contract.label_space
    shown = html.Gallery(
        title=f"Samples: {len(cards):,} of {len(rows):,}",
        cards=cards,
        filters=("split", "class"),
        keys=tuple(zip(space.palette.values(), space.names, strict=True)) if "mask_offset" in rows[0] else (),
        caption="Sampled evenly from each split. True colour, stretched to percentiles 1 to 99 of the train split.",
    )
    return [
        shown,
        *_shares(source, rows, contract),
        *_outlines(rows),
        tables.build_statistics(contract),
        tables.build_contract(contract, {"shards": str(len({row["shard"] for row in rows}))}),
    ]


def spread(rows: Sequence[shard_index.Row], limit: int) -> list[shard_index.Row]:
    """Return about `limit` rows, evenly from each split, with a minimum for small splits."""
    by_split: dict[str, list[shard_index.Row]] = {}
    for row in rows:
        by_split.setdefault(row["split"], []).append(row)
    chosen = []
    for members in by_split.values():
        wanted = min(len(members), max(limit // 10, limit * len(members) // len(rows)))
        chosen += [members[at] for at in np.linspace(0, len(members) - 1, wanted).round().astype(int)]
    return chosen


def _card(sample: Sample, row: shard_index.Row, contract: Contract, folder: Path) -> html.SampleEntry:
    names = dict(zip(contract.label_space.ids, contract.label_space.names, strict=True))
    mask = sample.arrays.get("mask")
    present = row["labels"] if mask is None else np.unique(mask).tolist()
    classes = tuple(names[value] for value in present if value in names)
    paths = []
    for name, rgb in sample_pictures.pictures(sample, mask, contract):
        file = f"samples/{file_name(sample.key)}-{name}.png"
        html.write_png(folder / file, rgb)
        paths.append((file, f"{name} of {sample.key}: {', '.join(classes) or 'no class'}"))
    # The classes of a mask are visible in its picture.
    title = f"{sample.key}, {sample.split}" + (f": {', '.join(classes)}" if mask is None and classes else "")
    return html.SampleEntry(title=title, pictures=tuple(paths), values={"split": (sample.split,), "class": classes})


def _shares(source: Path, rows: Sequence[shard_index.Row], contract: Contract) -> list[html.Block]:
    """Return class shares per split: of pixels if the samples have masks, else of samples."""
    counts: dict[str, Counter[int]] = {}
    masked = "mask_offset" in rows[0]
    for row in spread(rows, MASKS) if masked else rows:
        values = tar_format.read_sample(source, row).arrays["mask"] if masked else np.array(row["labels"], int)
        classes, numbers = np.unique(values, return_counts=True)
        split = counts.setdefault(row["split"], Counter())
        split.update(dict(zip(classes.tolist(), numbers.tolist(), strict=True)))
    if not any(counts.values()):
        return []
    of = f"Of the pixels of {min(len(rows), MASKS):,} samples." if masked else "Of the labels given."
    return [tables.build_shares(contract.label_space, counts, caption=of)]


def _outlines(rows: Sequence[shard_index.Row]) -> list[html.Block]:
    """Return a chart of the locations of the samples that have coordinates."""
    boxes: dict[str, list[Bounds]] = {}
    for row in spread([row for row in rows if row["west"] is not None], BOXES):
        boxes.setdefault(row["split"], []).append((row["west"], row["south"], row["east"], row["north"]))
    if not boxes:
        return []
    edges = np.array([box for windows in boxes.values() for box in windows])
    (west, south), (east, north) = edges[:, :2].min(axis=0), edges[:, 2:].max(axis=0)
    keys = tuple((charts.colour(split), split) for split in boxes)
    label = f"Outlines by split, {west:.3f} to {east:.3f} degrees east, {south:.3f} to {north:.3f} degrees north"
    return [html.Chart(title="Locations of the samples", figure=charts.extents(boxes), label=label, keys=keys)]
