"""`CARD.md`: what a person reads first, made from the index, the contract, the lock and the audit; nothing is typed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgdata.release.shipment import Shipment


# Of the hub: its words for the tasks that we know, and its ids for the licences of a build.
_TASKS = {
    "segmentation": "image-segmentation",
    "change": "image-segmentation",
    "single-label": "image-classification",
    "multi-label": "image-classification",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def text(shipment: Shipment, *, previews: Sequence[str], software: str) -> str:
    """The card as Markdown, with the front matter that a hub reads."""
    contract, card = shipment.contract, shipment.card
    splits = ", ".join(f"{split} {number:,}" for split, number in contract.splits.items())
    shape = " x ".join(map(str, contract.shape)) if contract.shape else "varying size"
    parts = [
        _front(shipment),
        f"# {shipment.title}\n",
        *(["**Private copy: the terms of its makers do not let it be passed on.**\n"] * shipment.private),
        f"{shipment.summary}\n",
        *(f"![samples]({name})\n" for name in previews),
        f"{len(shipment.rows):,} samples ({splits}) of {shape}, {contract.level}, reflectance = (DN + "
        f"{contract.offset:g}) x {contract.scale:g}, no data = {contract.nodata}. Fingerprint of the samples: "
        f"`{contract.fingerprint}`.\n",
        "## Use\n",
        "```python\nimport webdataset\nfrom sgdata.shards import decode_member\n\n"
        f'samples = webdataset.WebDataset("{next(iter(shipment.shards))}").decode(decode_member)\n```\n',
        "`sgdata verify .` recomputes every hash; `index.parquet` (GeoParquet where samples have places) tells where "
        "each member lies; `croissant.json` and `stac/` say the same to programs.\n",
        "## Bands\n",
        _table(
            ("band", "nm", "native m", "mean", "std", "p1", "p99"),
            (
                (
                    b.name,
                    f"{b.wavelength_nm:g}",
                    b.gsd_m,
                    *(f"{getattr(s, n):.1f}" for n in ("mean", "std", "p1", "p99")),
                )
                for b, s in ((b, contract.statistics[b.name]) for b in contract.bands)
            ),
        ),
        *_labels(shipment),
        "## Sources\n",
        *_sources(shipment),
        "## Audit\n",
        f"{shipment.report.findings} findings.\n",
        _table(("check", "state", "what was found"), ((c.name, c.state, c.told) for c in shipment.report.checks)),
        *(["## Known defects of the source\n", "".join(f"- {d}\n" for d in card.defects)] if not shipment.ours else []),
        "## Licence\n",
        _table(("part", "licence", "notice"), ((part, *terms) for part, terms in shipment.terms.items())),
        "`LICENSES/files.tsv` says it file by file. Image and label members are separate works in one collection.\n",
        "## Cite\n",
        "".join(f"- {cited}\n" for cited in card.citation),
        f"Made with sgdata {software}.\n",
    ]
    return "\n".join(parts)


def _front(shipment: Shipment) -> str:
    most = next((name for bound, name in _SIZES if len(shipment.rows) < bound), "n>1M")
    lines = [
        "license: other" if not shipment.ours else "license: [cc-by-4.0, odbl]",
        f"pretty_name: {shipment.title}",
        "library_name: webdataset",
        "tags: [webdataset, sentinel-2, remote-sensing, earth-observation, geospatial, croissant]",
        f"size_categories: [{most}]",
        "configs:\n- config_name: default\n  data_files:",
        *(f'  - split: {_hub(split)}\n    path: "*-{split}-*.tar"' for split in shipment.contract.splits),
    ]
    task = _TASKS.get(shipment.contract.label_space.task)
    lines += [f"task_categories: [{task}]"] * bool(task)
    return "---\n" + "\n".join(lines) + "\n---\n"


def _hub(split: str) -> str:
    # The hub's own word.
    return "validation" if split == "val" else split


def _labels(shipment: Shipment) -> list[str]:
    space = shipment.contract.label_space
    shown = next((c.figures for c in shipment.report.checks if c.name == "class coverage"), {})
    if not space.ids:
        return []
    held = Counter(label for row in shipment.rows for label in row["labels"])
    splits = [split for split in shipment.contract.splits if split in shown]
    counts = {name: [shown[split].get(name, 0) for split in splits] for name in space.names}
    rows = [
        (number, name, *(counts[name] or [held[number] or ""]))
        for number, name in zip(space.ids, space.names, strict=True)
    ]
    columns = ("id", "class", *([f"samples in {split}" for split in splits] or ["samples"]))
    ignored = f"{space.ignore} is not a class: unmapped, ignored.\n" if space.ignore is not None else ""
    return [f"## Labels: {space.name} ({space.task})\n", _table(columns, rows), ignored]


def _sources(shipment: Shipment) -> Iterable[str]:
    lock = shipment.lock
    if lock is None:
        contract = shipment.contract
        yield f"Edition {contract.version} of {shipment.card.home}. Resampling: {contract.resampling}.\n"
        return
    days = shipment.days or ("", "")
    yield (
        f"{len(lock.items)} scenes of `{lock.collection}` from {days[0]} to {days[1]} ({len(lock.dropped)} left out by "
        f"name), OpenStreetMap as of {lock.osm_date}, on {lock.grid.shape[1]} x {lock.grid.shape[0]} pixels of "
        f"{lock.grid.gsd_m:g} m in {lock.grid.crs}. `segmunich.lock.json` names every scene and its offset, "
        f"`build-recipe.toml` every choice.\n"
    )
    yield "Software: " + ", ".join(f"{name} {version}" for name, version in sorted(lock.versions.items())) + ".\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)
