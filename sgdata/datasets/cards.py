"""Read the cards of published datasets: editions, bands, label spaces, licences."""

from __future__ import annotations

import difflib
from functools import cache

from sgdata import files
from sgdata.catalog import folder, table
from sgdata.datasets.types import DatasetCard, Edition
from sgdata.errors import SettingError
from sgdata.sentinel2 import MSI
from sgdata.shards.contracts import FORMAT
from sgdata.types import Contract, LabelSpace

SENSORS = {sensor.name: sensor for sensor in (MSI,)}
"""Sensors that cards may name: those of the bands that builds, shards and models know."""


def names() -> list[str]:
    """The datasets that have a card, sorted."""
    return sorted(path.stem for path in folder("catalogs").glob("*.toml"))


@cache
def card(name: str) -> DatasetCard:
    """The card `catalogs/<name>.toml`, checked. Raises SettingError, the nearest name given."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names())}"
        raise SettingError(f"no dataset '{name}' in the catalogue{hint}")
    path = folder("catalogs") / f"{name}.toml"
    return check_bands(files.read(DatasetCard, path), str(path))


def check_bands(of: DatasetCard, where: str) -> DatasetCard:
    """Return the card if its sensor is known and has all bands of its editions.

    Raises SettingError naming the sensor or the bands that are not known.
    """
    sensor = SENSORS.get(of.sensor)
    if sensor is None:
        raise SettingError(f"{where}: sensor {of.sensor!r} is not known; expected one of {', '.join(SENSORS)}")
    for each in of.editions:
        if unknown := [band for band in each.bands if band not in sensor.by_name]:
            raise SettingError(
                f"{where}: edition {each.name} has bands {', '.join(unknown)}, which {of.sensor} lacks; "
                f"expected some of {', '.join(sensor.by_name)}"
            )
    return of


def cards() -> list[DatasetCard]:
    """Every card, sorted by name."""
    return [card(name) for name in names()]


def edition(dataset: str, name: str) -> Edition:
    """The edition of this name. Raises SettingError naming those there are."""
    every = card(dataset).editions
    for known in every:
        if known.name == name:
            return known
    raise SettingError(f"{dataset} has no edition '{name}'; known: {', '.join(e.name for e in every)}")


def label_space(dataset: str, name: str) -> LabelSpace:
    """The label space of this name, its ids and names out of the fact table that the card points at."""
    every = card(dataset).label_spaces
    for known in every:
        if known.name != name:
            continue
        # Facts that came as tables stay tables; ids below 0 mark classes that a label space drops.
        if known.table:
            rows = sorted(
                (row for row in table(known.table) if int(row[known.id]) >= 0), key=lambda r: int(r[known.id])
            )
            ids = tuple(int(row[known.id]) for row in rows)
            labels = tuple(row[known.label] for row in rows)
            colours = tuple(row[known.colour] for row in rows) if known.colour else ()
        else:
            ids, labels, colours = tuple(range(len(known.classes))), known.classes, ()
        return LabelSpace(name=name, task=known.task, ids=ids, names=labels, colours=colours, ignore=known.ignore)
    raise SettingError(f"{dataset} has no labels '{name}'; known: {', '.join(s.name for s in every)}")


def describe(of: DatasetCard) -> list[tuple[str, str]]:
    """A card as (what, value) rows for people."""
    rows = [(name, getattr(of, name)) for name in ("title", "task", "sensor", "summary", "home")]
    for each in of.editions:
        # fMoW and OSCD vary in size from sample to sample.
        size = "x".join(map(str, each.shape)) if each.shape else "varying size"
        rows += [
            (
                f"edition {each.name}",
                f"{each.published}; {each.level}; {each.samples or 'unknown number of'} samples, {size}",
            ),
            ("  bands in file order", " ".join(each.bands)),
        ]
        for split in each.splits:
            counts = ", ".join(f"{name} {count:,}" for name, count in split.counts.items())
            rows.append((f"  split {split.name}", f"{counts}. {split.note}".strip()))
        for file in each.sources:
            known = f"{file.bytes:,} bytes" if file.bytes else "size not known"
            rows.append(
                (f"  file {file.file}", f"{known}, {file.algorithm or 'no digest'} {file.digest} {file.url}".rstrip())
            )
    for space in of.label_spaces:
        held = label_space(of.name, space.name)
        rows.append((f"labels {space.name}", f"{space.task}, {len(held.ids)}: {', '.join(held.names)}"))
    licence = of.licence
    rows.append(
        ("licence", f"labels {licence.labels}; pixels {licence.pixels}; redistribution: {licence.redistribution}")
    )
    rows += [("licence note", licence.note)] * bool(licence.note)
    rows += [("cite", text) for text in of.citation]
    rows += [("known defect", text) for text in of.defects]
    return rows


def contract_of(
    dataset: str, edition: Edition, labels: LabelSpace, *, resampling: str, resampling_version: int
) -> Contract:
    """The contract of an edition before any sample is read: bands in wavelength order, no statistics, no splits."""
    # Wavelength order whatever the files hold: B8A stands ninth, not last (EuroSAT) nor after B12 (by name).
    bands = tuple(band for band in SENSORS[card(dataset).sensor].bands if band.name in edition.bands)
    return Contract(
        format=FORMAT,
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
