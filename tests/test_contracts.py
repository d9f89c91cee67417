from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sgdata import files, output_names, sentinel2
from sgdata.errors import SettingError
from sgdata.shards import contracts
from sgdata.types import CONTRACT_FORMAT, BandStatistics, Contract, LabelSpace

ONE = BandStatistics(count=1, mean=5, std=0, min=5, max=5, p1=5, p2=5, p50=5, p98=5, p99=5)
BASE = Contract(
    format=CONTRACT_FORMAT,
    dataset="segmunich",
    version="1",
    bands=sentinel2.bands(("B02", "B8A")),
    level="L2A",
    scale=1e-4,
    offset=0.0,
    nodata=0,
    resampling="bilinear",
    resampling_version=1,
    shape=(2, 8, 8),
    label_space=LabelSpace(name="x", task="segmentation", ids=(0, 1), names=("a", "b"), ignore=255),
    statistics={"B02": ONE, "B8A": ONE},
    splits={"train": 3},
    fingerprint="0" * 64,
)


def test_a_written_contract_is_read_back(tmp_path: Path) -> None:
    contracts.write(tmp_path, BASE)
    assert contracts.read(tmp_path) == BASE


def test_another_format_is_refused(tmp_path: Path) -> None:
    contracts.write(tmp_path, dataclasses.replace(BASE, format=99))
    with pytest.raises(SettingError, match="format 99"):
        contracts.read(tmp_path)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Contract)])
def test_each_field_is_compared_for_its_purposes_only(name: str) -> None:
    other = {
        "bands": sentinel2.bands(("B8A", "B02")),
        "level": "L1C",
        "shape": None,
        "nodata": None,
        "label_space": LabelSpace(name="y", task="none"),
        "statistics": {},
        "splits": {},
    }
    value = getattr(BASE, name) if name not in other else 0
    changed = dataclasses.replace(BASE, **{name: other.get(name, value * 2 if value else 1)})
    pixels = {"bands", "level", "scale", "offset"}
    assert contracts.find_differences(BASE, changed, "resume") == [name]
    assert contracts.find_differences(BASE, changed, "fine-tune") == ([name] if name in pixels else [])
    assert contracts.find_differences(BASE, changed, "predict") == ([name] if name in pixels | {"label_space"} else [])


def test_a_difference_is_refused_by_name_unless_waived() -> None:
    other = dataclasses.replace(BASE, level="L1C", bands=sentinel2.bands(("B02", "B03")))
    with pytest.raises(SettingError, match="bands is B02 B03, expected B02 B8A; level is 'L1C', expected 'L2A'"):
        contracts.require(other, BASE, "fine-tune")
    with pytest.raises(SettingError, match=r"accept = \['bands'\]"):
        contracts.require(other, BASE, "fine-tune", accept=["level"])
    contracts.require(other, BASE, "fine-tune", accept=["level", "bands"])


def test_a_misspelt_waiver_is_refused() -> None:
    with pytest.raises(SettingError, match="lvel"):
        contracts.require(BASE, BASE, "predict", accept=["lvel"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scale": 0.0}, "scale is 0.0: expected more than 0"),
        ({"shape": [2, 0, 8]}, "expected sizes of at least 1"),
        ({"splits": {"train": -1}}, "expected counts of at least 0"),
        ({"bands": []}, "expected one or more, each once"),
    ],
)
def test_numbers_that_no_data_have_are_refused(change: dict[str, object], told: str, tmp_path: Path) -> None:
    document = files.to_plain(BASE) | change
    (tmp_path / output_names.CONTRACT).write_bytes(files.pretty_json(document))
    with pytest.raises(SettingError, match=told):
        contracts.read(tmp_path)
