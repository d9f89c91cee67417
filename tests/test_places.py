"""Test builds of several places by one command: folders, keys, failures of single places, resuming, a cluster."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import place_archive
import pytest
from test_cluster import cluster  # noqa: F401 - a fixture

from sgdata import cli, files, output_names, progress, terminal
from sgdata.builds import patch_table, pipeline, place_list, places
from sgdata.errors import SettingError
from sgdata.scenes import lock


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        terminal.run(cli.app, "sgdata", [str(word) for word in words], "sgdata")
    return int(ended.value.code or 0)


def build(table: Path, archive: Path, out: Path, *more: object) -> int:
    return run(
        "build", "--places", table, "--stac", archive, "--osm", "none", "--out", out, *place_archive.SETTINGS, *more
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return place_archive.write(tmp_path_factory.mktemp("places"))


def sums(out: Path, names: Sequence[str] = place_archive.NAMES) -> list[str]:
    return [(out / name / output_names.SUMS).read_text() for name in names]


def test_each_place_has_its_folder_keys_and_zone_and_a_bad_one_stops_no_other(
    tmp_path: Path, archive: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue, table = archive
    wrong = tmp_path / "wrong.tsv"
    wrong.write_text(table.read_text().replace("east\t", "nowhere\t40 10 40.02 10.02\neast\t"))
    assert build(wrong, catalogue, tmp_path / "out") == 3
    said = capsys.readouterr()
    assert "nowhere: area (39.9994" in said.err
    assert [line.split()[1] for line in said.out.splitlines() if "built" in line] == ["west", "nowhere", "east"]
    rows = json.loads((tmp_path / "out" / place_list.SUMMARY).read_bytes())["places"]
    assert [(row["place"], row["code"]) for row in rows] == [("west", 0), ("nowhere", 2), ("east", 0)]
    tables = [patch_table.read(tmp_path / "out" / name / output_names.PATCHES) for name in place_archive.NAMES]
    keys = [set(table["key"]) for table in tables]
    assert not keys[0] & keys[1]
    assert all(key.startswith("segmunich-west-r") for key in keys[0])
    assert [lock.read(tmp_path / "out" / name).grid.crs for name in place_archive.NAMES] == ["EPSG:32632", "EPSG:32633"]
    assert files.read_plain(tmp_path / "out" / "west" / output_names.RECIPE)["place"] == "west"
    assert [row["sha256"] for row in rows if row["sha256"]] == [
        files.sha256(text.encode()) for text in sums(tmp_path / "out")
    ]


def test_a_second_run_builds_only_what_is_missing_or_has_other_inputs(
    tmp_path: Path, archive: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, table = archive
    built, whole = [], pipeline.build

    def counting(recipe: places.BuildRecipe, *rest: object, **more: object) -> Path:
        built.append(recipe.place)
        return whole(recipe, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "build", counting)
    assert build(table, catalogue, tmp_path / "out") == 0
    before = sums(tmp_path / "out")
    summary = (tmp_path / "out" / place_list.SUMMARY).read_bytes()
    (tmp_path / "out" / "east" / output_names.SUMS).unlink()
    assert build(table, catalogue, tmp_path / "out") == 0
    assert built == ["west", "east", "east"]
    assert sums(tmp_path / "out") == before
    assert (tmp_path / "out" / place_list.SUMMARY).read_bytes() == summary
    # A command for one of them keeps the row of the other.
    alone = tmp_path / "alone.tsv"
    alone.write_text(
        "".join(line for line in table.read_text().splitlines(keepends=True) if not line.startswith("west"))
    )
    assert build(alone, catalogue, tmp_path / "out") == 0
    rows = json.loads((tmp_path / "out" / place_list.SUMMARY).read_bytes())["places"]
    assert [row["place"] for row in rows] == ["east", "west"]
    # Other places of the same data, in processes, and by locks: the same bytes.
    assert run("plan", "--places", table, "--stac", catalogue, "--out", tmp_path / "plan", "--allow-holes",
               *place_archive.SETTINGS) == 0  # fmt: skip
    assert build(table, catalogue, tmp_path / "locked", "--lock", tmp_path / "plan") == 0
    assert sums(tmp_path / "locked") == before


def test_a_plan_has_a_row_for_each_place_and_totals(
    tmp_path: Path, archive: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue, table = archive
    words = ("plan", "--places", table, "--stac", catalogue, "--out", tmp_path, *place_archive.SETTINGS)
    assert run(*words) == 2  # months without a scene
    assert "west: months with fewer than half" in capsys.readouterr().err
    assert run(*words, "--allow-holes", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["area"]["crs"] for row in document["places"]] == ["EPSG:32632", "EPSG:32633"]
    assert document["total"]["scenes"] == 6
    assert document["total"]["read_bytes"] == sum(row["cost"]["read_bytes"] for row in document["places"])
    assert run(*words, "--allow-holes") == 0
    assert "all 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\tbbox\n", "has no place"),
        ("name\tbbox\na\t1 2 3 4\nA\t1 2 3 4\n", "two places are named 'a' and 'A'"),
        ("name\tbbox\na\t1 2 3\n", "row 2: bbox '1 2 3'"),
        ("name\tbbox\tplace\na\t1 2 3 4\tUlm\n", "row 2: expected exactly one of"),
        ("name\tbox\na\t1 2 3 4\n", "column 'box' is unknown"),
        ("name\tbbox\n\t1 2 3 4\n", "a place has no name"),
    ],
)
def test_tables_of_places_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "places.tsv"
    path.write_text(text)
    with pytest.raises(SettingError, match=message):
        place_list.read(path)


def test_a_table_gives_places_their_own_inputs(tmp_path: Path) -> None:
    path = tmp_path / "places.csv"
    path.write_text(
        "name,bbox,aoi,place,stac,osm,dates,crs\n"
        'ulm,"9.9 48.3 10.1 48.5",,,https://stac.example/v1,ulm.osm.pbf,2019-01-01/2019-02-01,EPSG:32633\n'
        "bonn,,bonn.geojson,,,none,,\n"
        "hof,,,Hof an der Saale,,,,\n"
    )
    ulm, bonn, hof = place_list.read(path)
    assert ulm.settings == {"bbox": (9.9, 48.3, 10.1, 48.5), "dates": "2019-01-01/2019-02-01"}
    assert (ulm.paths, ulm.crs) == (
        {"stac": "https://stac.example/v1", "osm": str(tmp_path / "ulm.osm.pbf")},
        "EPSG:32633",
    )
    assert (bonn.settings, bonn.paths) == ({"aoi": str(tmp_path / "bonn.geojson")}, {"osm": "none"})
    assert hof.settings == {"place": "Hof an der Saale"}


def test_features_of_a_file_are_places(tmp_path: Path) -> None:
    square = [[[9, 48], [9.1, 48], [9.1, 48.1], [9, 48.1], [9, 48]]]
    features = [
        {"type": "Feature", "properties": {"name": name}, "geometry": {"type": "Polygon", "coordinates": square}}
        for name in ("Ulm", "../Bonn")
    ]
    path = tmp_path / "cities.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    entries = place_list.read(path)
    assert [entry.settings["feature"] for entry in entries] == ["Ulm", "../Bonn"]
    assert entries[0].folder == "Ulm"
    assert "/" not in entries[1].folder
    assert run("build", "--places", path, "--place", "Ulm", "--out", tmp_path / "o") == 2


def test_lines_of_a_place_begin_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    with progress.about("ulm") as warnings:
        progress.log.warning("%d clouds", 3)
    progress.log.warning("none")
    assert [record.getMessage() for record in caplog.records] == ["ulm: 3 clouds", "none"]
    assert warnings == ["3 clouds"]


@pytest.mark.slow
def test_places_on_a_cluster_that_loses_a_worker_have_the_same_bytes(
    tmp_path: Path,
    archive: tuple[Path, Path],
    cluster: tuple[str, list[subprocess.Popen[bytes]]],  # noqa: F811
) -> None:
    catalogue, table = archive
    assert build(table, catalogue, tmp_path / "here") == 0
    address, workers = cluster

    def kill_one() -> None:
        while not list((tmp_path / "there").glob("*/.scratch/windows/*.json")):
            time.sleep(0.002)
        workers[0].kill()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    assert build(table, catalogue, tmp_path / "there", "--cluster", address) == 0
    killer.join(1)
    assert workers[0].poll() is not None
    assert sums(tmp_path / "there") == sums(tmp_path / "here")
    summaries = [(tmp_path / name / place_list.SUMMARY).read_bytes() for name in ("here", "there")]
    assert summaries[0] == summaries[1]
