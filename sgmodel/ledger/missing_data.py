"""Find what a ledger lacks: shards on the disk that were not given, and the commands that fetch and pack the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from sgdata import files, output_names
from sgdata.datasets import cards
from sgdata.datasets.types import Edition, ShardRecipe
from sgdata.packing import select_samples
from sgmodel.ledger import experiments, published_figures
from sgmodel.ledger.experiments import LedgerPaths, LedgerRecipe


def on_disk(recipe: LedgerRecipe, given: Mapping[str, Path]) -> dict[str, Path]:
    """Return finished shards in the default folders of datasets that the ledger needs and that were not given."""
    found = {}
    for name in _needed(recipe):
        if name not in given and name in cards.names():
            folder = Path(select_samples.recipe_for(name).out)
            if (folder / output_names.INDEX).is_file() and files.is_finished(folder):
                found[name] = folder.resolve()
    return found


def commands(recipe: LedgerRecipe, paths: LedgerPaths, found: Mapping[str, Path]) -> Iterator[str]:
    """Yield what to do for the rows whose data or weights are absent: lines of text and of commands.

    Args:
        recipe: The ledger.
        paths: Paths, with the shards that were given.
        found: Shards on the disk that were not given.
    """
    for name, folder in found.items():
        yield f"{name}: on the disk; add --shards {folder}"
    rows = [(table, row) for table in recipe.tables for row in table.rows]
    for name, count in _needed(recipe).items():
        if name not in paths.data and name not in found:
            yield f"{name}: {count} rows need it"
            yield from (f"    {line}" for line in _make(recipe, name))
    absent = Counter(row.weights for _, row in rows if row.weights and not (paths.weights / row.weights).exists())
    for weights, count in absent.items():
        yield f"{paths.weights / weights}: {count} rows need it; from {experiments.source(weights)['where']}"


def _needed(recipe: LedgerRecipe) -> Counter[str]:
    """Return how many rows need each dataset, in the order of the tables."""
    counts: Counter[str] = Counter()
    for table in recipe.tables:
        for row in table.rows:
            before = [each.data or table.data for each in row.before]
            counts.update(dict.fromkeys([*experiments.datasets(table, row), *before], 1))
    return counts


def _make(recipe: LedgerRecipe, name: str) -> Iterator[str]:
    """Yield the commands that fetch and pack a dataset as its published figures were measured on it."""
    if name not in cards.names():
        yield f"# no reader for '{name}'; give its shards"
        return
    default = select_samples.recipe_for(name)
    edition, splits = _as_published(recipe, default)
    source = default.source
    if any(each.url for each in edition.sources):
        source = str(select_samples.download_folder(default))
        if not Path(source).exists():
            yield f"sgdata fetch {name} --edition {edition.name} --out {source}"
    chosen = next((each for each in edition.splits if each.name == splits), None)
    fetched = {each.file for each in edition.sources if each.url}
    lists = [] if chosen is None else [file for file in chosen.files.values() if file not in fetched]
    if chosen and lists and not all((Path(source) / file).exists() for file in lists):
        yield f"# put {', '.join(lists)} into {source}: {chosen.source}"
    options = f"--edition {edition.name}" + (f" --split {splits}" if splits else "")
    yield f"sgdata shard {name} --source {source} {options} --out {default.out}"


def _as_published(recipe: LedgerRecipe, default: ShardRecipe) -> tuple[Edition, str]:
    """Return the edition and split set of the figures published on a dataset, by default those of its recipe."""
    for table in recipe.tables:
        if table.data == default.dataset and table.protocol:
            of = published_figures.protocol(table.protocol)
            if of.dataset == default.dataset and of.edition:
                return cards.edition(default.dataset, of.edition), of.splits
    return cards.edition(default.dataset, default.edition), default.splits
