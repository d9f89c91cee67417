"""Test published figures: their sources, what they were measured on, and the commands for what a ledger lacks."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from synthetic_shards import contract, write
from test_reproduce import SET, paths, recipe, shards  # noqa: F401 - fixtures

from sgdata import files, output_names, package_data
from sgdata.datasets import cards
from sgdata.errors import SettingError
from sgdata.shards import contracts, shard_index, tar_format, write_shards
from sgdata.splits import split_table
from sgmodel.ledger import costs, experiments, missing_data, published_figures, reproduce
from sgmodel.ledger.experiments import LedgerPaths, LedgerRow
from sgmodel.ledger.published_figures import PublishedProtocol
from sgmodel.recipes.programs import PROGRAMS

PROTOCOLS = [row["name"] for row in package_data.table("published_protocols")]
FIGURES = package_data.table("published_figures")


# --- the tables ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_names_what_the_card_of_its_dataset_has(name: str) -> None:
    of = published_figures.protocol(name)
    assert 0 < of.labels <= 1
    assert of.mode in ("finetune", "linear-probe")
    assert published_figures.figures(name)
    if of.dataset not in cards.names():
        return
    editions = [each for each in cards.card(of.dataset).editions if of.edition in ("", each.name)]
    assert editions
    for edition in editions:
        chosen = [each for each in edition.splits if each.name == of.splits]
        assert bool(chosen) == bool(of.splits)
        for each in chosen:
            assert of.counts.items() <= each.counts.items()


def test_every_figure_has_a_protocol_a_value_and_a_source() -> None:
    assert {row["protocol"] for row in FIGURES} == set(PROTOCOLS)
    for row in FIGURES:
        assert 0 < float(row["percent"]) < 100
        assert row["source"]
    assert len({(row["protocol"], row["model"], row["metric"]) for row in FIGURES}) == len(FIGURES)
    with pytest.raises(SettingError, match="no figure of 'DINO' under the protocol 'eurosat-paper'; known: ResNet50"):
        published_figures.of_model("eurosat-paper", "DINO")
    with pytest.raises(SettingError, match="protocol 'mine' is not in the table"):
        published_figures.protocol("mine")


def test_figures_are_those_of_the_list_they_were_taken_from(real: Path) -> None:
    source = real.parent / "spec" / "published_figures.tsv"
    with source.open(encoding="utf-8") as lines:
        known = [(row["dataset"], row["value"]) for row in csv.DictReader(lines, delimiter="\t")]
    names = {"eurosat": "eurosat", "bigearthnet": "bigearthnet", "segmunich": "segmunich", "oscd": "oscd"}
    for row in FIGURES:
        of = published_figures.protocol(row["protocol"])
        values = {
            float(found[0])
            for dataset, value in known
            if names.get(of.dataset, of.dataset) in dataset.lower().replace("-s2", "")
            and (found := re.search(r"[\d.]+", value))
        }
        # The micro averages of two rivals are differences that the list does not have.
        assert float(row["percent"]) in values or "(85.64 - " in row["source"], row


def test_the_rivals_of_the_paper_have_figures() -> None:
    rivals = {"ResNet50", "SeCo", "ViT", "ViT-22k", "SatMAE", "SpectralGPT", "SpectralGPT+"}
    assert set(published_figures.figures("eurosat-paper")) == rivals
    assert published_figures.of_model("eurosat-paper", "SeCo")["best_epoch.top1"].value == 0.9723
    ledger = files.read(experiments.LedgerRecipe, package_data.folder("recipes") / "ledger" / "paper.toml")
    for table in ledger.tables[:1] + ledger.tables[3:6]:
        shown = {row.published for row in table.rows}
        assert set(published_figures.figures(table.protocol)) - shown <= {"ViT"}, table.name


# --- differences ---------------------------------------------------------------------------


def protocol(**others: Any) -> PublishedProtocol:
    plain = {"name": "p", "dataset": "toy", "edition": "1", "splits": "official", "labels": 1.0, "mode": "finetune"}
    return PublishedProtocol(**{**plain, "counts": {"train": 6, "val": 2}, "about": "", **others})


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({}, []),
        ({"dataset": "eurosat"}, ["other data"]),
        ({"edition": "2"}, ["other edition"]),
        ({"edition": ""}, []),
        ({"counts": {"train": 6, "val": 3}}, ["other split"]),
        ({"counts": {"test": 2}}, ["other split"]),
        ({"splits": "", "counts": {}}, ["unknown split"]),
        ({"labels": 0.1}, ["more labels"]),
        ({"mode": "linear-probe"}, ["other protocol"]),
        ({"edition": "2", "mode": "linear-probe", "labels": 0.1}, ["other edition", "other protocol", "more labels"]),
    ],
)
def test_data_and_settings_are_compared_with_the_protocol(
    tmp_path: Path, others: dict[str, Any], expected: list[str]
) -> None:
    folder = write(tmp_path / "toy")
    ours = contracts.read(folder)
    assert published_figures.differences(protocol(**others), ours, folder, labels=1.0, mode="finetune") == expected
    few = published_figures.differences(protocol(), ours, folder, labels=0.5, mode="finetune")
    assert few == ["fewer labels"]


def test_a_split_set_of_another_name_is_another_split_where_no_list_is_known(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy")
    for name, expected in (("official", []), ("google", ["other split"])):
        (folder / output_names.RECIPE).write_text(f'splits = "{name}"\n')
        of = protocol(counts={})
        assert (
            published_figures.differences(of, contracts.read(folder), folder, labels=1.0, mode="finetune") == expected
        )


def test_samples_are_compared_with_a_published_list_by_their_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "toy")
    keys = [row["key"] for row in shard_index.read_index(folder).to_pylist() if row["split"] == "train"]
    table = split_table.read(package_data.folder("catalogs") / "splits" / "eurosat.tsv.gz")
    for listed, expected in ((keys, []), ([*keys[1:], "other"], ["other split"])):
        known = split_table.PublishedList(
            name="official", split="train", samples=len(keys), sha256=split_table.digest(listed)
        )
        header = dataclasses.replace(table.header, published=(known,))
        made = dataclasses.replace(table, header=header)
        monkeypatch.setattr(published_figures.split_lists, "find_table", lambda *_, made=made: made)
        found = published_figures.differences(protocol(), contracts.read(folder), folder, labels=1.0, mode="finetune")
        assert found == expected


# --- the ledger ----------------------------------------------------------------------------


def test_a_ledger_names_protocol_source_and_difference_of_each_figure(paths: LedgerPaths) -> None:  # noqa: F811
    rows = (
        LedgerRow(name="a", start="random", seeds=(1,), published="SatMAE"),
        LedgerRow(
            name="b", start="published", weights="SpectralGPT.pth", published="DOFA ViT-B", protocol="segmunich-dofa"
        ),
    )
    made = recipe(*rows, protocol="segmunich-paper", quoted=("segmunich-paper",), set=(*SET, "training.fraction=0.5"))
    assert reproduce.main(made, paths) == 0
    (table,) = json.loads((paths.out / "ledger.json").read_text())["tables"]
    first, second, *quoted = table["rows"]
    assert first["figures"]["miou"]["published"] == 0.487
    assert first["figures"]["miou"]["source"].startswith("pierreadorni")
    assert first["reasons"] == ["one seed", "other data", "fewer labels"]
    assert second["reasons"] == ["weights absent", "other data", "fewer labels"]
    assert [row["name"] for row in quoted] == list(published_figures.figures("segmunich-paper"))
    assert {(row["state"], row["figures"]["miou"]["mean"]) for row in quoted} == {("quoted", None)}
    assert [each["name"] for each in table["protocols"]] == ["segmunich-paper", "segmunich-dofa"]
    text = (paths.out / "ledger.md").read_text()
    assert "segmunich released, split released, finetune" in text
    assert "| b | miou | 0.516 | segmunich-dofa | pierreadorni" in text
    assert "| ResNet50 | quoted | 0.456 |  | segmunich-paper |  |  |  |  |  |" in text


def test_published_figures_need_a_protocol() -> None:
    with pytest.raises(SettingError, match="row 'a': published without a protocol; add protocol = NAME"):
        experiments.check(recipe(LedgerRow(name="a", start="random", published="SatMAE")))
    with pytest.raises(SettingError, match="no figure of 'MAE' under the protocol 'oscd-paper'"):
        experiments.check(recipe(LedgerRow(name="a", start="random", published="MAE"), protocol="oscd-paper"))


# --- what is on the disk -------------------------------------------------------------------


def test_the_plan_says_what_can_run_and_how_to_get_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = files.read(experiments.LedgerRecipe, package_data.folder("recipes") / "ledger" / "paper.toml")
    kept = [table for table in ledger.tables if table.name in ("EuroSAT, k nearest neighbours", "OSCD")]
    few = [dataclasses.replace(table, rows=table.rows[:1] + table.rows[4:5], compare=()) for table in kept]
    ledger = dataclasses.replace(ledger, tables=tuple(few))
    nowhere = LedgerPaths(data={}, out=tmp_path / "out", programs=PROGRAMS, weights=tmp_path / "weights")
    lines = list(reproduce.plan(ledger, nowhere))
    assert "0 of 3 rows can be run with what is here" in lines
    at = lines.index("eurosat: 1 rows need it")
    assert lines[at + 1] == "    sgdata fetch eurosat --edition ms --out data/eurosat"
    pack = "sgdata shard eurosat --source data/eurosat --edition ms --split random --out out/shards/eurosat"
    assert lines[at + 2] == f"    {pack}"
    assert f"{nowhere.weights}/SpectralGPT+.pth: 2 rows need it; from zenodo.org/records/8412455" in lines
    # Files that are there are not fetched again, and shards in the default folder count.
    (tmp_path / "data" / "oscd").mkdir(parents=True)
    assert not [line for line in reproduce.plan(ledger, nowhere) if "fetch oscd" in line]
    made = [dataclasses.replace(sample, split="train") for sample in tar_format.samples(write(tmp_path / "toy"))]
    like = dataclasses.replace(contract(32), dataset="eurosat", version="ms")
    write_shards.write(made, tmp_path / "out/shards/eurosat", contract=like)
    lines = list(reproduce.plan(ledger, nowhere))
    assert f"eurosat: on the disk; add --shards {tmp_path}/out/shards/eurosat" in lines
    assert not [line for line in lines if "shard eurosat" in line]


def test_a_list_that_cannot_be_fetched_is_named() -> None:
    ledger = files.read(experiments.LedgerRecipe, package_data.folder("recipes") / "ledger" / "paper.toml")
    lines = list(missing_data._make(ledger, "eurosat"))
    assert any(line.startswith("# put spectralgpt_train.txt, spectralgpt_val.txt into data/eurosat") for line in lines)
    assert lines[-1].endswith("--edition ms --split spectralgpt --out out/shards/eurosat")


def test_rows_that_train_nothing_have_no_steps(tmp_path: Path) -> None:
    ledger = files.read(experiments.LedgerRecipe, package_data.folder("recipes") / "ledger" / "paper.toml")
    (table,) = [table for table in ledger.tables if table.name == "EuroSAT, k nearest neighbours"]
    nowhere = LedgerPaths(data={}, out=tmp_path, programs=PROGRAMS)
    (run,) = experiments.plan_runs(ledger, table, table.rows[3], nowhere)
    assert costs.work(run, ledger, nowhere).steps == 0
