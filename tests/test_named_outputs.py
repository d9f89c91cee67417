"""Test names of one's own and versions: named builds, shards and releases, and what changed between two of them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import test_release
from synthetic_shards import contract as shard_contract
from test_hostile_commands import CONTROL, HIDDEN
from typer.testing import CliRunner

from sgdata import cli, files, output_names, sentinel2, verification
from sgdata.builds import build_folder, build_recipe
from sgdata.datasets import cards
from sgdata.errors import OutputError, SettingError
from sgdata.packing import pack, select_samples
from sgdata.rasters import cog, geotiff
from sgdata.releases import difference, versions
from sgdata.scenes import lock
from sgdata.shards import contracts, shard_index, write_shards
from sgdata.types import Sample, Window


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write `build/`, `shards/` and the release `out/ulm-1.0`; then `build2/` and `shards2/` after a change."""
    home = tmp_path_factory.mktemp("series")
    test_release.finished_build(home / "build")
    name(home / "build", "ulm")
    pack.pack("segmunich", source=home / "build", out=home / "shards")
    shutil.copytree(home / "build", home / "build2")
    planned = lock.read(home / "build2" / lock.NAME)
    items = (*planned.items[1:], test_release.scene("2019-08-01"))
    lock.write(home / "build2" / lock.NAME, replace(planned, items=items, dates="2018-01-01/2020-01-01"))
    paint(home / "build2")
    shutil.copytree(home / "shards", home / "shards2", ignore=shutil.ignore_patterns("*.tar", ".*", "SHA256SUMS"))
    pack.pack("segmunich", source=home / "build2", out=home / "shards2", fresh=True)
    test_release.release(ordered(home, "1.0"))
    return home


def name(build: Path, text: str) -> None:
    contracts.write(build, replace(contracts.read(build), dataset=text))
    files.write_sums(build)


def paint(build: Path) -> None:
    """Change a corner of the image, and one of the labels."""
    with geotiff.open_raster(str(build / "image.tif")) as dataset:
        image, grid = dataset.read(), geotiff.read_header(dataset).grid
    with geotiff.open_raster(str(build / "labels.tif")) as dataset:
        labels = dataset.read()
    image[:, :4, :4] += 7
    labels[:, -4:, -4:] = (labels[:, -4:, -4:] + 1) % 3
    whole = Window(row=0, col=0, height=grid.shape[0], width=grid.shape[1])
    cog.write(build / "image.tif", grid, [(whole, image)], style=build_folder.image_style(sentinel2.L2A_BANDS))
    cog.write(
        build / "labels.tif", grid, [(whole, labels)], style=cog.RasterStyle(descriptions=("labels",), dtype="uint8")
    )
    files.write_sums(build)


def ordered(home: Path, version: str, **changes: Any) -> Any:
    number = "" if version == "1.0" else "2"
    made = test_release.order(home, home / "out", name="ulm", version=version)
    paths = {"source": home / f"shards{number}", "build": home / f"build{number}", "register": home / "catalogs"}
    return replace(made, **(paths | changes))


# --- names ---------------------------------------------------------------------------------


def test_shards_have_the_name_of_their_build(home: Path) -> None:
    assert contracts.read(home / "shards").dataset == "ulm"
    assert sorted(path.name for path in (home / "shards").glob("*.tar")) == [
        "ulm-train-000000.tar", "ulm-val-000000.tar"
    ]  # fmt: skip


def test_shards_may_have_a_name_of_their_own(home: Path, tmp_path: Path) -> None:
    words = ["shard", "segmunich", "--source", home / "build", "--out", tmp_path / "s", "--name", "ulm-small"]
    for _ in range(2):  # resumed, and with the same bytes
        done = CliRunner().invoke(cli.app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        assert contracts.read(tmp_path / "s").dataset == "ulm-small"
        assert {path.name for path in (tmp_path / "s").glob("*.tar")} == {
            "ulm-small-train-000000.tar", "ulm-small-val-000000.tar"
        }  # fmt: skip
        assert 'name = "ulm-small"' in (tmp_path / "s" / "recipe.toml").read_text()
        assert verification.verify(tmp_path / "s") == []
    # The keys are those of the build, so that two sets of it can be compared.
    found = difference.compare(home / "shards", tmp_path / "s")
    assert found.lines == ["dataset: 'ulm' before, 'ulm-small' now"]


def test_a_build_takes_a_name(tmp_path: Path) -> None:
    assert build_recipe.recipe_for("segmunich", {"name": "ulm"}).name == "ulm"
    assert build_recipe.recipe_for("segmunich", {"name": None}).name == "segmunich"


@pytest.mark.parametrize("text", ["", "Ulm", "ulm town", "../ulm", "x" * 62, "eurosat", f"a{CONTROL}", 'a"b'])
def test_names_that_cannot_be_one_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--name"):
        cards.check_own_name(text, "segmunich")
    if text and text != "eurosat":
        with pytest.raises(SettingError):
            select_samples.recipe_for("eurosat", [f'name="{text}"'])
    assert cards.check_own_name("segmunich", "segmunich") == "segmunich"


# --- differences ---------------------------------------------------------------------------


def test_what_changed_between_two_builds_is_counted(home: Path) -> None:
    found = difference.compare(home / "build", home / "build2")
    assert found.before.kind == "build" and found.before.dataset == "ulm"
    changes = {change.what: change for change in found.changes}
    assert changes["scenes added"].examples == ("S2A_32UPU_20190801_0_L2A",)
    assert changes["scenes removed"].examples == ("S2A_32UPU_20180506_0_L2A",)
    assert (changes["pixels that differ in image.tif"].count, changes["pixels that differ in labels.tif"].count) == (
        16,
        16,
    )
    assert found.class_unit == "pixels"
    assert sum(two - one for one, two in found.classes.values()) == 0 and found.classes
    assert found.settings["dates"] == ("2018-01-01/2019-12-31", "2018-01-01/2020-01-01")
    assert difference.compare(home / "build", home / "build").lines == []


def test_what_changed_between_two_sets_of_shards_is_counted(home: Path) -> None:
    found = difference.compare(home / "shards", home / "shards2")
    changes = {change.what: (change.count, change.of) for change in found.changes}
    total = len(shard_index.read_index(home / "shards"))
    assert changes["samples with other pixels"] == (1, total)
    assert changes["samples with other labels"] == (1, total)
    assert set(changes) == {"samples with other pixels", "samples with other labels"}


def shards(out: Path, samples: list[Sample]) -> Path:
    write_shards.write(samples, out, contract=shard_contract(8))
    return out


def test_samples_that_come_go_and_move_are_named(tmp_path: Path) -> None:
    def sample(key: str, split: str, **meta: Any) -> Sample:
        image, mask = np.full((12, 8, 8), 5, np.uint16), np.full((8, 8), 1, np.uint8)
        return Sample(key=key, split=split, arrays={"image": image, "mask": mask}, meta=meta)

    old = shards(tmp_path / "a", [sample("a", "train"), sample("b", "train"), sample("c", "val")])
    new = shards(tmp_path / "b", [sample("b", "val"), sample("c", "val", date="2020-01-01"), sample("d", "train")])
    found = difference.compare(old, new)
    listed = {change.what: (change.count, change.of, change.examples) for change in found.changes}
    assert listed["samples added"] == (1, 3, ("d",))
    assert listed["samples removed"] == (1, 3, ("a",))
    assert listed["samples moved to another split"] == (1, 2, ("b",))
    assert listed["samples with other metadata alone"][2] == ("c",)
    assert found.splits == {"train": (2, 1), "val": (1, 2)}
    assert found.classes == {}


def test_classes_that_come_go_and_change_their_value_are_named(tmp_path: Path) -> None:
    mask = np.full((8, 8), 1, np.uint8)
    sample = Sample(key="a", split="train", arrays={"image": np.full((12, 8, 8), 5, np.uint16), "mask": mask})
    old = shards(tmp_path / "a", [sample])
    space = replace(shard_contract(8).label_space, names=("dark", "right", "lake", "bright"), colours=())
    write_shards.write([sample], tmp_path / "b", contract=replace(shard_contract(8), label_space=space))
    found = difference.compare(old, tmp_path / "b")
    listed = {change.what: (change.count, change.of, change.examples) for change in found.changes}
    assert listed == {
        "classes added": (1, 4, ("lake",)),
        "classes removed": (1, 4, ("left",)),
        "classes with another value": (1, 3, ("right",)),
    }
    assert found.classes == {"left": (64, 0), "right": (0, 64)} and found.class_unit == "pixels"


def test_locks_of_several_places_are_compared(home: Path, tmp_path: Path) -> None:
    for name in ("shards", "shards2"):
        shutil.copytree(home / name, tmp_path / name)
        for place in ("ulm", "new") if name == "shards2" else ("ulm",):
            (tmp_path / name / "places" / place).mkdir(parents=True)
            build = home / name.replace("shards", "build")
            shutil.copyfile(build / lock.NAME, tmp_path / name / "places" / place / lock.NAME)
        files.write_sums(tmp_path / name)
    found = difference.compare(tmp_path / "shards", tmp_path / "shards2")
    assert [change.what for change in found.changes][:2] == ["scenes added", "scenes removed"]
    assert found.settings["places/ulm/dates"] == ("2018-01-01/2019-12-31", "2018-01-01/2020-01-01")
    assert "places/new/dates" not in found.settings


def test_diff_prints_lines_and_json_and_ends_with_3(home: Path) -> None:
    same = CliRunner().invoke(cli.app, ["diff", str(home / "build"), str(home / "build")])
    assert (same.exit_code, "holds the same data" in same.output) == (0, True)
    words = ["diff", str(home / "build"), str(home / "build2")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 3
    assert "pixels that differ in labels.tif: 16 of " in done.output
    document = json.loads(CliRunner().invoke(cli.app, [*words, "--json"]).stdout)
    assert document["after"]["name"] == "build2" and document["changes"][0]["what"] == "scenes added"


def test_outputs_of_other_kinds_are_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="compare outputs of one kind"):
        difference.compare(home / "build", home / "shards")
    with pytest.raises(SettingError, match="neither a build nor shards nor a release"):
        difference.compare(home / "build", tmp_path)


# --- releases ------------------------------------------------------------------------------


def test_a_release_has_its_own_card_and_citation(home: Path) -> None:
    card = (home / "out/ulm-1.0/CARD.md").read_text()
    croissant = json.loads((home / "out/ulm-1.0/croissant.json").read_text())
    cited = card[card.index("## Cite") :]
    own = "ulm, version 1.0 (2026): composite of Sentinel-2 scenes from 2018-05-06 to 2019-06-30 with labels as of 2020"
    assert own in croissant["citeAs"] and re.search(r"\n- ulm, version 1\\?\.0", cited)
    assert "Made after SegMunich: Hong et al." in croissant["citeAs"]
    assert croissant["creator"]["name"] == "made with sgdata from ulm-1.0"
    assert "huggingface.co" not in croissant["url"]
    assert "GDAL-type readers" not in croissant["rai:dataBiases"]  # a defect of the published files


def test_a_citation_of_ones_own_is_text(home: Path, tmp_path: Path) -> None:
    text = f"Doe, J. (2026): <script>alert(1)</script> [x](y)\n# Ulm{CONTROL}"
    wanted = replace(ordered(home, "1.0", out=tmp_path, register=tmp_path, cite=text), home="https://example.org/ulm")
    folder, _ = test_release.release(wanted)
    card = (folder / "CARD.md").read_text()
    assert not HIDDEN.search(card) and "<script>" not in card and "\n# Ulm" not in card
    assert "Doe, J" in card
    assert json.loads((folder / "croissant.json").read_text())["url"] == "https://example.org/ulm"
    with pytest.raises(SettingError, match="expected an address"):
        test_release.release(replace(wanted, home="javascript:alert(1)"))


def test_a_second_version_states_what_changed(home: Path) -> None:
    first = home / "out/ulm-1.0"
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    folder, _ = test_release.release(ordered(home, "1.1", previous=first))
    assert verification.verify(folder) == []
    changes = json.loads((folder / "changes.json").read_text())
    assert (changes["before"]["name"], changes["after"]["name"]) == ("ulm-1.0", "ulm-1.1")
    what = {change["what"] for change in changes["changes"]}
    assert what == {"scenes added", "scenes removed", "samples with other pixels", "samples with other labels"}
    card = (folder / "CARD.md").read_text()
    section = card[card.index("## Changes since ulm-1.0") : card.index("## Sources")]
    assert "scenes added: 1 of 2" in section and "samples with other labels: 1 of" in section
    assert "changes.json" in (folder / "LICENSES/files.tsv").read_text()
    summary = json.loads((home / "catalogs/releases/ulm-1.1.json").read_text())
    assert summary["previous"] == "ulm-1.0"
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    again, _ = test_release.release(ordered(home, "1.1", previous=first))
    assert again == folder
    with pytest.raises(OutputError, match="this version exists with other content"):
        test_release.release(ordered(home, "1.1", source=home / "shards", build=home / "build"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "1.0"}, "is version 1.0, expected one before 1.0"),
        ({"version": "0.9"}, "is version 1.0, expected one before 0.9"),
        ({"name": "augsburg"}, "is a release of 'ulm', expected 'augsburg'"),
    ],
)
def test_a_wrong_release_before_is_refused(home: Path, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    wanted = replace(ordered(home, "1.1", previous=home / "out/ulm-1.0", out=tmp_path / "o"), **changes)
    with pytest.raises(SettingError, match=re.escape(message)):
        test_release.release(wanted)
    assert not (tmp_path / "o").exists()


def test_a_damaged_release_before_is_refused(home: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(home / "out/ulm-1.0", tmp_path / "ulm-1.0")
    (damaged / "CARD.md").write_text("x")
    with pytest.raises(OutputError, match="differ from its SHA256SUMS"):
        test_release.release(ordered(home, "1.1", previous=damaged, out=tmp_path))


def test_versions_are_ordered_by_their_numbers() -> None:
    expected = ["0.9", "1.0rc1", "1.0", "1.9", "1.10", "2"]
    assert sorted(["2", *expected[:-1]], key=versions._numbers) == expected
    assert versions._numbers("1") == versions._numbers("1.0.0")


def test_a_name_in_the_index_is_not_the_dataset_whose_licence_counts(home: Path, tmp_path: Path) -> None:
    """Shards of a published dataset keep its licence under any name."""
    renamed = shutil.copytree(home / "shards", tmp_path / "s")
    contracts.write(renamed, replace(contracts.read(renamed), dataset="mine", version="released"))
    files.write_sums(renamed)
    with pytest.raises(SettingError, match="segmunich: redistribution is 'unclear'"):
        test_release.release(ordered(home, "1.0", source=renamed, out=tmp_path))
    assert pq.read_table(renamed / output_names.INDEX).num_rows == 8
