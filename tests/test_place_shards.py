"""Test one dataset of the builds of several places: keys, places, splits by places, reading and refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import place_archive
import pytest
import synthetic_shards

import sgdata
from sgdata import files, output_names, verification
from sgdata.audits import checks, collect_evidence, place_checks
from sgdata.audits.evidence import AuditEvidence, BandTotals, SampleFacts
from sgdata.errors import SettingError, SourceError
from sgdata.packing.place_sources import PlaceSplit
from sgdata.shards import contracts, shard_index, tar_format

HOME = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build two places by one command."""
    folder = tmp_path_factory.mktemp("places")
    archive, table = place_archive.write(folder)
    return place_archive.build(archive, table, folder / "cities")


def rows(shards: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = shard_index.read_index(shards).to_pylist()
    return found


def test_a_folder_of_builds_is_one_dataset_with_places(tmp_path: Path, builds: Path) -> None:
    sgdata.shard("segmunich", source=builds, out=tmp_path / "a")
    sgdata.shard("segmunich", source=[builds / "west", builds / "east"], out=tmp_path / "b", workers=2)
    assert (tmp_path / "a" / output_names.SUMS).read_text() == (tmp_path / "b" / output_names.SUMS).read_text()
    table = rows(tmp_path / "a")
    assert {row["place"] for row in table} == {"west", "east"}
    assert {row["split"] for row in table} == {"train", "val"}
    assert len({row["shard"] for row in table}) == 4  # each of one place
    for sample in tar_format.samples(tmp_path / "a", "val"):
        assert sample.key.startswith(f"segmunich-{sample.meta['place']}-r")
        # Pixels are those of the place: one has no blue under 500.
        assert (sample.arrays["image"][0].min() >= 500) == (sample.meta["place"] == "east")
    assert {row["crs"] for row in table if row["place"] == "east"} == {"EPSG:32633"}
    assert verification.verify(tmp_path / "a") == []


def test_a_build_of_one_place_keeps_its_bytes_and_one_without_a_name_gets_that_of_its_folder(
    tmp_path: Path, builds: Path
) -> None:
    for name in ("ulm", "bonn"):
        shutil.copytree(builds / "west", tmp_path / name)
        place_archive.forget_place(tmp_path / name)
    sgdata.shard("segmunich", source=tmp_path / "ulm", out=tmp_path / "one")
    assert "place" not in shard_index.read_index(tmp_path / "one").column_names
    sgdata.shard("segmunich", source=[tmp_path / "ulm", tmp_path / "bonn"], out=tmp_path / "two")
    assert {str(row["key"]).rpartition("-r")[0] for row in rows(tmp_path / "two")} == {
        "segmunich-west-ulm",
        "segmunich-west-bonn",
    }


def test_splits_by_places(tmp_path: Path, builds: Path) -> None:
    def splits(name: str, **more: object) -> set[tuple[object, object]]:
        sgdata.shard("segmunich", source=builds, out=tmp_path / name, **more)  # type: ignore[arg-type]
        return {(row["place"], row["split"]) for row in rows(tmp_path / name)}

    west = {("west", "train"), ("west", "val")}
    assert splits("a", hold_out=["east"]) == {*west, ("east", "test")}
    assert splits("b", hold_out=["val=east"]) == {("west", "train"), ("east", "val")}
    assert splits("c", fold="1/2") == splits("d", hold_out=["east"])
    assert (tmp_path / "c" / output_names.SUMS).read_text() == (tmp_path / "a" / output_names.SUMS).read_text()
    statistics = contracts.read(tmp_path / "a").statistics["B02"]
    assert statistics.min < 500  # of the places that are trained on


def test_an_audit_compares_places(tmp_path: Path, builds: Path) -> None:
    sgdata.shard("segmunich", source=builds, out=tmp_path / "a", hold_out=["east"])
    report = checks.run_checks(collect_evidence.collect_evidence(collect_evidence.detect_subject(tmp_path / "a")))
    (check,) = [one for one in report.checks if one.name == "places"]
    assert check.state == "pass"
    places = check.figures["places"]
    assert places["east"]["splits"] == {"test": places["east"]["samples"]}
    assert places["east"]["reflectance"] > places["west"]["reflectance"]


def test_a_release_of_several_places(tmp_path: Path, builds: Path) -> None:
    sgdata.shard("segmunich", source=builds, out=tmp_path / "all", hash="fast")
    assert contracts.read(tmp_path / "all").hash == "fast"
    # The release of several folders has the hashes that some of them lack.
    for name, mode in zip(place_archive.NAMES, ("fast", "full"), strict=True):
        sgdata.shard("segmunich", source=builds / name, out=tmp_path / name, hash=mode)
    catalogue = {"register": tmp_path / "catalogue"}
    one = sgdata.release("cities", "1.0", tmp_path / "all", out=tmp_path / "r", build=builds, **catalogue)
    assert verification.verify(one) == []
    for name in place_archive.NAMES:
        kept = one / "places" / name / "segmunich.lock.json"
        assert kept.read_bytes() == (builds / name / "segmunich.lock.json").read_bytes()
    # What the card names is there, and no grid stands for all.
    said = (one / "CARD.md").read_text()
    assert f"grids of {len(place_archive.NAMES)} places. `segmunich.lock.json` in the folder of each place" in said
    assert "build-recipe.toml" not in said and " m in EPSG:" not in said
    parts = [tmp_path / name for name in place_archive.NAMES]
    places = [builds / name for name in place_archive.NAMES]
    two = sgdata.release("parts", "1.0", parts, out=tmp_path / "r", build=places, **catalogue)
    assert verification.verify(two) == []
    whole, joined = contracts.read(one), contracts.read(two)
    assert {str(row["key"]): row["sha256"] for row in rows(one)} == {
        str(row["key"]): row["sha256"] for row in rows(two)
    }
    # Counted from the same pixels, in other tars.
    assert (joined.statistics, joined.splits) == (whole.statistics, whole.splits)
    assert {row["place"] for row in rows(two)} == set(place_archive.NAMES)
    with pytest.raises(SourceError, match="unknown samples"):
        sgdata.release("half", "1.0", tmp_path / "all", out=tmp_path / "r", build=places[:1], **catalogue)


def facts(place: str, split: str, *, brightness: float = 1000, classes: dict[int, int] | None = None) -> SampleFacts:
    return SampleFacts(
        key=f"{place}-{split}", split=split, pixels="", turned="", thumbnail=b"", footprint=None, date=None,
        classes=classes or {1: 90, 2: 10}, dark=0, dead=(), window_hashes=b"", nearer=(), place=place,
        brightness=brightness,
    )  # fmt: skip


def evidence(*of: SampleFacts) -> AuditEvidence:
    zero = np.zeros(1, np.int64)
    names = ("count", "total", "ones", "saturated", "equal", "pairs", "leaves", "low", "high")
    totals = BandTotals(**dict.fromkeys(names, zero))
    return AuditEvidence(kind="shards", contract=synthetic_shards.contract(8), facts=of, totals=totals)


def test_places_that_differ_are_findings() -> None:
    same = [facts("a", "train"), facts("b", "train"), facts("c", "test")]
    assert place_checks.check_places(evidence(*same))[0].state == "pass"
    assert place_checks.check_places(evidence(facts("a", "train"), facts("a", "test"))) == ()
    rare = facts("c", "test", classes={1: 90, 3: 10})
    (check,) = place_checks.check_places(evidence(*same[:2], rare))
    assert (check.state, check.where) == ("finding", ("c-test",))
    assert "c has class 3, which no training sample has" in check.message
    (check,) = place_checks.check_places(evidence(*same[:2], facts("c", "test", brightness=2000)))
    assert "mean reflectance of c is 0.200: check its offsets" in check.message


def test_folds_test_each_place_once() -> None:
    names = ["a", "b", "c", "d", "e"]
    tested = [PlaceSplit(held_out={}, fold=(k, 2)).splits(names) for k in (1, 2)]
    assert [sorted(one) for one in tested] == [["a", "c", "e"], ["b", "d"]]
    assert all(set(one.values()) == {"test"} for one in tested)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"hold_out": ["nowhere"]}, "--hold-out nowhere: no such place; known: east, west"),
        ({"hold_out": ["east", "west"]}, "all of east, west are held out"),
        ({"hold_out": ["east", "val=east"]}, "east is held out for test too"),
        ({"fold": "3/2"}, "--fold 3/2: expected 1/N to N/N"),
        ({"fold": "1/5"}, "from 2 to 2 places"),
        ({"fold": "x"}, "--fold 'x': expected K/N"),
        ({"fold": "1/2", "hold_out": ["east"]}, "--hold-out is given too"),
    ],
)
def test_splits_by_places_that_are_refused(tmp_path: Path, builds: Path, more: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        sgdata.shard("segmunich", source=builds, out=tmp_path / "o", **more)  # type: ignore[arg-type]
    assert not (tmp_path / "o").exists()


def test_sources_that_are_refused(tmp_path: Path, builds: Path) -> None:
    with pytest.raises(SettingError, match="the source is one place"):
        sgdata.shard("segmunich", source=builds / "west", out=tmp_path / "o", hold_out=["west"])
    with pytest.raises(SettingError, match="is of place 'west', as"):
        sgdata.shard("segmunich", source=[builds / "west", builds / "west"], out=tmp_path / "o")
    with pytest.raises(SettingError, match="'eurosat' takes one"):
        sgdata.shard("eurosat", source=[builds, builds], out=tmp_path / "o")
    with pytest.raises(SourceError, match="as each of several sources must be"):
        sgdata.shard("segmunich", source=[builds / "west", tmp_path / "nowhere"], out=tmp_path / "o")
    copy = tmp_path / "cities"
    shutil.copytree(builds, copy)
    shutil.rmtree(copy / "east")
    with pytest.raises(SettingError, match="'east' has no finished build"):
        sgdata.shard("segmunich", source=copy, out=tmp_path / "o")
    shutil.copytree(builds / "east", copy / "east")
    contract = files.read_plain(copy / "east" / output_names.CONTRACT)
    contract["scale"] = 0.5
    (copy / "east" / output_names.CONTRACT).write_bytes(files.pretty_json(contract))
    with pytest.raises(SourceError, match="scale differ"):
        sgdata.shard("segmunich", source=copy, out=tmp_path / "o")
