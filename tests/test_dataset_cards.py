from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sgdata import datasets, files, package_data, sentinel2
from sgdata.datasets import cards
from sgdata.datasets.readers import reader
from sgdata.datasets.types import DatasetCard
from sgdata.errors import SettingError
from sgdata.packing import select_samples

CARDS = {card.name: card for card in cards.cards()}


def test_every_dataset_has_a_reader_a_card_and_a_recipe() -> None:
    package = Path(datasets.__file__).parent
    defining_find = {path.stem for path in package.glob("*.py") if "\ndef list_samples(" in path.read_text()}
    recipes = {path.stem for path in (package_data.folder("recipes") / "shard").glob("*.toml")}
    assert set(CARDS) == defining_find == recipes


@pytest.mark.parametrize("name", CARDS)
def test_the_parts_of_a_dataset_fit_together(name: str) -> None:
    for function in ("list_samples", "open_source"):
        assert callable(getattr(reader(name), function))
    recipe = select_samples.recipe_for(name)
    assert recipe.dataset == name
    assert cards.edition(name, recipe.edition)
    space = cards.label_space(name, recipe.labels)
    assert space.names or space.task == "none"  # a table of one's own names its classes


def test_a_card_with_bands_of_another_sensor_is_refused() -> None:
    card = CARDS["eurosat"]
    edition = replace(card.editions[0], bands=("B02", "SR_B5", "VV"))
    with pytest.raises(SettingError, match="SR_B5, VV"):
        cards.check_bands(replace(card, editions=(edition,)), "landsat.toml")
    with pytest.raises(SettingError, match="sensor 'OLI' is not known; expected one of Sentinel-2 MSI"):
        cards.check_bands(replace(card, sensor="OLI"), "landsat.toml")


def test_a_dataset_without_a_card_has_no_reader() -> None:
    with pytest.raises(SettingError, match="did you mean 'eurosat'"):
        reader("eurosatt")


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_consistent(name: str) -> None:
    card = CARDS[name]
    assert card.citation
    assert card.defects
    for edition in card.editions:
        assert len(set(edition.bands)) == len(edition.bands)
        assert set(edition.bands) <= set(sentinel2.BAND)
        assert ("B10" in edition.bands) == (edition.level == "L1C")
        assert edition.shape is None or edition.shape[0] == len(edition.bands)
        for file in edition.sources:
            assert bool(file.digest) == bool(file.algorithm)
            assert len(file.digest) in {0, 32, 64}
    for space in card.label_spaces:
        held = cards.label_space(name, space.name)
        assert len(set(held.names)) == len(held.names) == len(held.ids)
        assert held.ids == tuple(range(len(held.ids)))
        assert not held.colours or len(held.colours) == len(held.ids)
        assert tuple(held.palette) == held.ids
        assert len(set(held.palette.values())) == len(held.ids)
        assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in held.palette.values())


def test_digests_and_sizes_agree_with_the_table_of_checksums() -> None:
    table = {row["digest"]: row["bytes"] for row in package_data.table("checksums")}
    for card in CARDS.values():
        for file in (file for edition in card.editions for file in edition.sources if file.digest):
            assert file.digest in table, f"{file.file} of {card.name}"
            assert file.bytes is None or table[file.digest] == str(file.bytes)


def test_splits_add_up_to_the_published_counts() -> None:
    def total(name: str, edition: str, split: str) -> int:
        held = cards.edition(name, edition)
        return sum(next(s for s in held.splits if s.name == split).counts.values())

    assert total("bigearthnet", "v1", "official") == 519_284
    assert total("bigearthnet", "v1", "google") == cards.edition("bigearthnet", "v1").samples
    assert total("bigearthnet", "v2", "official") + total("bigearthnet", "v2", "snow and cloud") == 549_488
    assert total("eurosat", "ms", "random") == 27_000
    assert total("fmow", "1", "official") == 882_779
    facts = package_data.document("oscd_cities")
    assert total("oscd", "rect", "official") == len(facts["cities"])
    for split, held in facts["pixel_totals"].items():
        sizes = [city["width"] * city["height"] for city in facts["cities"] if city["split"] == split]
        assert sum(sizes) == held["all"] == held["change"] + held["no_change"]
        assert f"{held['change']:,} of {held['all']:,}" in CARDS["oscd"].editions[0].splits[0].note


@pytest.mark.parametrize(
    ("dataset", "space", "index", "label"),
    [
        ("bigearthnet", "bigearthnet-19-official", 18, "Marine waters"),
        ("bigearthnet", "bigearthnet-19-alphabetical", 0, "Agro-forestry areas"),
        ("bigearthnet", "bigearthnet-43-official", 28, "Transitional woodland/shrub"),
        ("eurosat", "eurosat", 9, "SeaLake"),
        ("fmow", "fmow", 61, "zoo"),
        ("segmunich", "segmunich-osm", 0, "Street network"),
        ("segmunich", "segmunich-released", 12, "Industrial, commercial and transport units"),
        ("oscd", "oscd", 1, "change"),
    ],
)
def test_label_spaces_name_their_ids(dataset: str, space: str, index: int, label: str) -> None:
    assert cards.label_space(dataset, space).names[index] == label


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingError, match="did you mean 'eurosat'"):
        cards.card("eurosta")
    with pytest.raises(SettingError, match="known: bigearthnet, eurosat"):
        cards.card("xyz")
    with pytest.raises(SettingError, match="known: v1, v2"):
        cards.edition("bigearthnet", "v3")
    with pytest.raises(SettingError, match="known: oscd"):
        cards.label_space("oscd", "x")
    with pytest.raises(SettingError, match="no fact table"):
        package_data.table("nothing")


def test_a_misspelt_key_of_a_card_is_refused(tmp_path: Path) -> None:
    text = (package_data.folder("catalogs") / "oscd.toml").read_text()
    (tmp_path / "oscd.toml").write_text(text.replace("nodata = 0", "no_data = 0"))
    with pytest.raises(SettingError, match=r"'editions\[0\].no_data' is not .*did you mean 'editions\[0\].nodata'"):
        files.read(DatasetCard, tmp_path / "oscd.toml")


@pytest.mark.parametrize("name", CARDS)
def test_a_card_can_be_described_as_text(name: str) -> None:
    rows = cards.describe(CARDS[name])
    assert len(rows) > 10
    assert all(isinstance(value, str) and value for what, value in rows if not what.startswith("labels"))


def test_every_fact_table_is_rectangular() -> None:
    for path in sorted((package_data.folder("catalogs") / "tables").glob("*.tsv")):
        rows = package_data.table(path.stem)
        assert rows, path
        assert all(None not in row and None not in row.values() for row in rows), path
