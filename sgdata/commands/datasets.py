"""Commands that find, download and pack datasets: `catalog`, `fetch`, `shard`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgdata import local_paths, log_lines
from sgdata.commands import printing
from sgdata.commands.options import (
    Cluster,
    Coordinates,
    Dataset,
    DryRun,
    Edition,
    OutOrRecipe,
    Overrides,
    Quiet,
    SplitSet,
    SplitsFolder,
    Workers,
    settings_of,
)
from sgdata.errors import SettingError
from sgdata.public_commands import Outcome, command

if TYPE_CHECKING:
    from sgdata.packing.pack import PackCost, PackResult

app = typer.Typer()


@command(app, epilog="Example: sgdata catalog eurosat")
def catalog(
    name: Annotated[str | None, typer.Argument(help="A dataset, or 'weights' (default: list all datasets).")] = None,
) -> Outcome[dict[str, str]]:
    """Describe a dataset (bands, splits, labels, licence, files, known defects) or list published weights."""
    from sgdata import package_data as facts
    from sgdata.datasets import cards

    if name == "weights":
        rows = [(row["name"], _describe_weights(row)) for row in facts.table("published_weights")]
    elif name:
        rows = [*cards.describe(cards.card(name)), *_describe_table(name)]
    else:
        rows = [(card.name, card.title) for card in cards.cards()]
    return Outcome(value={key.strip(): text for key, text in rows}, show=partial(printing.show_table, (), rows))


def _describe_table(dataset: str) -> list[tuple[str, str]]:
    """Return a row that describes the split table of a dataset, none if the catalogue has none."""
    from sgdata.packing import split_lists

    table = split_lists.find_table(dataset, None)
    if table is None:
        return []
    how = table.header.settings
    text = (
        f"{', '.join(table.columns)}: {len(table.keys):,} samples in blocks of {how.block_m / 1000:g} km with a gap of "
    )
    text += f"{how.gap_m / 1000:g} km; label budgets {', '.join(how.budgets)} per class"
    return [("splits by ground", text)]


def _describe_weights(row: dict[str, str]) -> str:
    return "\n".join(f"{key}: {text}" for key, text in row.items() if text and key != "name")


@command(app, epilog="Example: sgdata fetch bigearthnet --edition v2 --part splits --out data/bigearthnet")
def fetch(
    dataset: Dataset,
    out: OutOrRecipe = None,
    edition: Edition = None,
    part: Annotated[
        list[str] | None,
        typer.Option("--part", help="Part of the dataset to download (default: images and splits); repeatable."),
    ] = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> Outcome[Path]:
    """Download the official files of a dataset. Resumes interrupted downloads and verifies published checksums."""
    from sgdata.datasets import download
    from sgdata.packing import select_samples

    log_lines.listen(quiet)
    recipe = select_samples.recipe_for(dataset)
    folder = out or select_samples.download_folder(recipe)
    need = download.plan(dataset, edition or recipe.edition, folder, part or ())
    sizes = [f"{source.bytes:,} bytes" if source.bytes else "size not known" for source in need.sources]
    lines = [f"{source.file}: {size}, {source.url}" for source, size in zip(need.sources, sizes, strict=True)]
    unknown = f"{need.unsized} files of unknown size"
    lines.append(f"{need.bytes:,} bytes and {unknown} to fetch, {need.free:,} bytes free in {folder}")
    if not dry_run:
        print("\n".join(lines), file=sys.stderr)
        download.fetch(need, folder)
        lines = [str(folder)]
    about = {"folder": folder, "files": need.sources, "bytes": need.bytes, "unsized": need.unsized, "free": need.free}
    return Outcome(value=folder, show=partial(print, "\n".join(lines)), document=about)


Sources = Annotated[
    list[Path] | None,
    typer.Option(
        "--source",
        help="The dataset as distributed, or a build (default: from the recipe); repeated, or the folder of several "
        "builds: one dataset of many places.",
    ),
]
HoldOut = Annotated[
    list[str] | None,
    typer.Option("--hold-out", metavar="[SPLIT=]PLACE", help="Place to test on (or val=PLACE); repeatable."),
]
Fold = Annotated[
    str | None, typer.Option("--fold", metavar="K/N", help="Test on the places of fold K of N, from 1/N to N/N.")
]


@command(app, epilog="Example: sgdata shard eurosat --source EuroSAT_MS.zip --out out/eurosat")
def shard(
    dataset: Dataset,
    source: Sources = None,
    out: OutOrRecipe = None,
    hold_out: HoldOut = None,
    fold: Fold = None,
    changes: Overrides = None,
    settings: Annotated[bool, settings_of("sgdata.datasets.types", "ShardRecipe")] = False,
    split_list: Annotated[
        list[str] | None,
        typer.Option("--split-list", metavar="SPLIT=FILE", help="File with the samples of a split; repeatable."),
    ] = None,
    leave_out: Annotated[
        list[Path] | None,
        typer.Option("--leave-out", help="File with samples to exclude, such as snow patches; repeatable."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the shards (default: of dataset or build).")
    ] = None,
    split: SplitSet = None,
    splits: SplitsFolder = None,
    coordinates: Coordinates = None,
    edition: Edition = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Label space by name; 'sgdata catalog NAME' lists them.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option("--layout", help="resampled: all bands on one 10 m grid; native: their own grids.")
    ] = None,
    codec: Annotated[str | None, typer.Option("--codec", help="Array encoding: blosc or npy.")] = None,
    hash: Annotated[  # noqa: A002 - the name of the option
        str | None,
        typer.Option(
            "--hash", help="full: SHA-256 of every sample; fast: checksums of members and the SHA-256 of tars only."
        ),
    ] = None,
    workers: Workers = 1,
    cluster: Cluster = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> Outcome[PackResult | PackCost]:
    """Pack a dataset into WebDataset shards with an index, and a contract with band statistics.

    Exits with 3 if samples were quarantined.
    """
    from sgdata import output_names
    from sgdata.packing import pack, place_sources, select_samples

    log_lines.listen(quiet)
    options = {"edition": edition, "splits": split, "labels": labels, "layout": layout, "codec": codec, "name": name}
    options["hash"] = hash
    # After --set, so that the named option wins; quoted, or an edition such as 2 would be read as a number.
    extra = [f'{key}="{value}"' for key, value in options.items() if value]
    recipe = select_samples.recipe_for(dataset, [*(changes or ()), *extra])
    builds = _builds(dataset, source or ())
    inputs = select_samples.SampleInputs(
        split_lists=_split_lists(split_list or ()), leave_out=tuple(leave_out or ()), coordinates=coordinates,
        splits=splits, builds=builds, places=place_sources.parse_split(hold_out or (), fold, len(builds)),
    )  # fmt: skip
    single = source[0] if source else None
    if dry_run:
        cost = pack.estimate_cost(dataset, source=single, recipe=recipe, inputs=inputs)
        return Outcome(value=cost, show=partial(print, "\n".join((*cost.notes, cost.summary))))
    packed = pack.pack(
        dataset, source=single, out=out, recipe=recipe, inputs=inputs, workers=workers, cluster=cluster, fresh=fresh
    )
    for note in packed.notes:  # to stderr, so that stdout has only the folder
        print(note, file=sys.stderr)
    if not packed.bands_plausible:
        print("the pixels contradict the card; see the spectral fingerprints above", file=sys.stderr)
    doubts = []
    if packed.quarantined:
        doubts.append(f"{packed.quarantined} files or samples in {packed.folder / output_names.QUARANTINE}")
    if not packed.bands_plausible:
        doubts.append("bands are implausible")
    return Outcome(value=packed, show=partial(printing.show_folder, packed.folder, doubts), findings=tuple(doubts))


def _builds(dataset: str, sources: Sequence[Path]) -> dict[str, Path]:
    """Return the builds of several places, none for a single source. Raises SettingError, SourceError."""
    from sgdata.packing import place_sources

    if dataset == "segmunich" and sources:
        return place_sources.find_builds(sources)
    if len(sources) > 1:
        raise SettingError(f"--source: {len(sources)} given; '{dataset}' takes one, only segmunich several builds")
    return {}


def _split_lists(texts: Sequence[str]) -> dict[str, Path]:
    """Parse `SPLIT=FILE` texts. Raises SettingError."""
    lists = {}
    for text in texts:
        split, _, path = text.partition("=")
        if not split or not path:
            raise SettingError(f"--split-list {text!r}: expected SPLIT=FILE such as train=train.txt")
        local_paths.require_local(path, f"--split-list {split}", writes=False)
        lists[split] = Path(path)
    return lists
