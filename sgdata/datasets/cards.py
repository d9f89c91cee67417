"""Read the cards of published datasets: editions, bands, label spaces, licences."""

from __future__ import annotations

import difflib
import re
from functools import cache

from sgdata import files
from sgdata.datasets.types import DatasetCard, Edition
from sgdata.errors import SettingError
from sgdata.package_data import folder, table
from sgdata.sentinel2 import MSI
from sgdata.types import CONTRACT_FORMAT, Contract, LabelSpace

OWN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}")
SENSORS = {sensor.name: sensor for sensor in (MSI,)}
"""Sensors that cards may name: those of the bands that builds, shards and models know."""


def names() -> list[str]:
    """Return the names of the datasets with a card, sorted."""
    return sorted(path.stem for path in folder("catalogs").glob("*.toml"))


@cache
def card(name: str) -> DatasetCard:
    """Read the card of a dataset from the catalogue.

    Args:
        name: Name of the dataset, see `names`.

    Returns:
        The card, whose sensor and bands are known.

    Raises:
        SettingError: There is no such dataset, or its card is malformed or names an unknown sensor or band.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names())}"
        raise SettingError(f"no dataset '{name}' in the catalogue{hint}")
    path = folder("catalogs") / f"{name}.toml"
    return check_bands(files.read(DatasetCard, path), str(path))


def check_own_name(name: str, base: str) -> str:
    """Return a name of data of one's own.

    Args:
        name: The name.
        base: Dataset whose reader or recipe makes the data.

    Returns:
        The name.

    Raises:
        SettingError: It is no name of a dataset, or that of a published one.
    """
    if not OWN_NAME.fullmatch(name):
        raise SettingError(f"--name {name!r:.90}: expected lower case letters, digits, - and _, such as my-city")
    if name in names() and name != base:
        raise SettingError(f"--name {name}: is the name of a published dataset; choose one of your own")
    return name


def check_bands(dataset_card: DatasetCard, origin: str) -> DatasetCard:
    """Return the card if its sensor is known and has all bands of its editions.

    Raises SettingError naming the sensor or the bands that are not known.
    """
    sensor = SENSORS.get(dataset_card.sensor)
    if sensor is None:
        raise SettingError(
            f"{origin}: sensor {dataset_card.sensor!r} is not known; expected one of {', '.join(SENSORS)}"
        )
    for entry in dataset_card.editions:
        if unknown := [band for band in entry.bands if band not in sensor.by_name]:
            raise SettingError(
                f"{origin}: edition {entry.name} has bands {', '.join(unknown)}, which {dataset_card.sensor} lacks; "
                f"expected some of {', '.join(sensor.by_name)}"
            )
    return dataset_card


def cards() -> list[DatasetCard]:
    """Read all cards, sorted by name. Raises SettingError if one is invalid."""
    return [card(name) for name in names()]


def edition(dataset: str, name: str) -> Edition:
    """Return an edition of a dataset.

    Args:
        dataset: Name of the dataset.
        name: Name of the edition on its card.

    Raises:
        SettingError: There is no such dataset or edition.
    """
    editions = {each.name: each for each in card(dataset).editions}
    if name not in editions:
        raise SettingError(f"{dataset} has no edition '{name}'; known: {', '.join(editions)}")
    return editions[name]


def label_space(dataset: str, name: str) -> LabelSpace:
    """Return a label space of a dataset, with ids and names from the table that the card names.

    Args:
        dataset: Name of the dataset.
        name: Name of the label space on its card.

    Raises:
        SettingError: There is no such dataset or label space.
    """
    spaces = {each.name: each for each in card(dataset).label_spaces}
    if name not in spaces:
        raise SettingError(f"{dataset} has no labels '{name}'; known: {', '.join(spaces)}")
    space = spaces[name]
    colours: tuple[str, ...] = ()
    ids, labels = tuple(range(len(space.classes))), space.classes
    if space.table:
        # Ids below 0 mark classes that the label space drops.
        rows = [row for row in table(space.table) if int(row[space.id]) >= 0]
        rows.sort(key=lambda row: int(row[space.id]))
        ids = tuple(int(row[space.id]) for row in rows)
        labels = tuple(row[space.label] for row in rows)
        colours = tuple(row[space.colour] for row in rows) if space.colour else ()
    return LabelSpace(name=name, task=space.task, ids=ids, names=labels, colours=colours, ignore=space.ignore)


def describe(dataset_card: DatasetCard) -> list[tuple[str, str]]:
    """Return a card as rows of a name and a value, for display."""
    rows = [(name, getattr(dataset_card, name)) for name in ("title", "task", "sensor", "summary", "home")]
    for entry in dataset_card.editions:
        # fMoW and OSCD vary in size from sample to sample.
        size = "x".join(map(str, entry.shape)) if entry.shape else "varying size"
        samples = f"{entry.samples or 'unknown number of'} samples, {size}"
        rows.append((f"edition {entry.name}", f"{entry.published}; {entry.level}; {samples}"))
        rows.append(("  bands in file order", " ".join(entry.bands)))
        for split in entry.splits:
            counts = ", ".join(f"{name} {count:,}" for name, count in split.counts.items())
            rows.append((f"  split {split.name}", f"{counts}. {split.note}".strip()))
        for file in entry.sources:
            length = f"{file.bytes:,} bytes" if file.bytes else "size not known"
            digest = f"{file.algorithm or 'no digest'} {file.digest}"
            rows.append((f"  file {file.file}", f"{length}, {digest} {file.url}".rstrip()))
    spaces = [label_space(dataset_card.name, entry.name) for entry in dataset_card.label_spaces]
    rows += [(f"labels {entry.name}", f"{entry.task}, {len(entry.ids)}: {', '.join(entry.names)}") for entry in spaces]
    licence = dataset_card.licence
    terms = f"labels {licence.labels}; pixels {licence.pixels}; redistribution: {licence.redistribution}"
    rows.append(("licence", terms))
    if licence.note:
        rows.append(("licence note", licence.note))
    rows += [("cite", text) for text in dataset_card.citation]
    rows += [("known defect", text) for text in dataset_card.defects]
    return rows


def contract_of(
    dataset: str, edition: Edition, labels: LabelSpace, *, resampling: str, resampling_version: int
) -> Contract:
    """Return the contract of an edition before any sample is read.

    Args:
        dataset: Name of the dataset.
        edition: Edition, with bands in the order of its files.
        labels: Label space of the shards.
        resampling: How all bands came to one grid.
        resampling_version: Version of our resampling.

    Returns:
        Contract with the bands in wavelength order and without statistics, splits and fingerprint.
    """
    # Wavelength order: B8A is ninth, not last (EuroSAT's files) nor after B12 (by name).
    bands = tuple(band for band in SENSORS[card(dataset).sensor].bands if band.name in edition.bands)
    return Contract(
        format=CONTRACT_FORMAT,
        dataset=dataset,
        version=edition.name,
        bands=bands,
        level=edition.level,
        scale=edition.scale,
        offset=edition.offset,
        nodata=edition.nodata,
        resampling=resampling,
        resampling_version=resampling_version,
        shape=None,
        label_space=labels,
        statistics={},
        splits={},
        fingerprint="",
    )
