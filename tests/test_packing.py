from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import synthetic
import synthetic_shards
from test_cluster import cluster  # noqa: F401 - a fixture
from typer.testing import CliRunner

from sgdata import cli, files, output_names, verification
from sgdata.datasets import types
from sgdata.errors import ExitCode, OutputError, SettingError, SourceError
from sgdata.packing import pack, select_samples
from sgdata.shards import contracts, shard_index, tar_format, write_shards
from sgdata.types import LabelSpace


def small(dataset: str, **changes: object) -> types.ShardRecipe:
    """Return the shipped recipe with shards so small that a few samples fill several."""
    return dataclasses.replace(select_samples.recipe_for(dataset), **changes)  # type: ignore[arg-type]


def reasons(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / output_names.QUARANTINE).read_text().splitlines()]
    return {row["key"] or row["file"]: row["reason"] for row in rows}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.segmunich_build(tmp_path_factory.mktemp("built") / "build")


def test_the_patches_of_a_build_are_its_windows(build: Path, tmp_path: Path) -> None:
    result = pack.pack("segmunich", source=build, out=tmp_path / "s")
    assert result.complete
    assert result.contract.splits == {"train": 3, "val": 3}
    assert result.contract.shape == (12, 16, 16)
    with rasterio.open(build / "image.tif") as image, rasterio.open(build / "labels.tif") as labels:
        whole, classes = image.read(), labels.read(1)
    for sample in tar_format.samples(tmp_path / "s"):
        row, col, height, width = sample.meta["window"]
        at = np.s_[..., row : row + height, col : col + width]
        np.testing.assert_array_equal(sample.arrays["image"], whole[at])
        np.testing.assert_array_equal(sample.arrays["mask"], classes[at])
    train = whole[:, :16]
    band = result.contract.statistics["B02"]
    assert band.mean == pytest.approx(train[1].mean())
    assert band.count == train[1].size
    assert verification.verify(tmp_path / "s") == []


def test_a_build_without_labels_gives_images_only(build: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(build, tmp_path / "build")
    (bare / "labels.tif").unlink()
    unlabelled = dataclasses.replace(contracts.read(bare), label_space=LabelSpace(name="none", task="none"))
    contracts.write(bare, unlabelled)
    assert pack.pack("segmunich", source=bare, out=tmp_path / "s").complete
    assert {tuple(sample.arrays) for sample in tar_format.samples(tmp_path / "s")} == {("image",)}


def test_workers_folders_and_interruptions_do_not_change_bytes(build: Path, tmp_path: Path) -> None:
    recipe = small("segmunich", shard_mb=0)
    one = pack.pack("segmunich", source=build, out=tmp_path / "one", recipe=recipe)
    assert one.shards == 6
    copy = shutil.copytree(build, tmp_path / "elsewhere" / "build")
    pack.pack("segmunich", source=copy, out=tmp_path / "two", recipe=recipe, workers=2)
    expected = (tmp_path / "one" / output_names.SUMS).read_bytes()
    assert (tmp_path / "two" / output_names.SUMS).read_bytes() == expected

    out = tmp_path / "two"
    (out / output_names.SUMS).unlink()
    (out / output_names.INDEX).unlink()
    (out / "segmunich-train-000001.tar").unlink()
    (out / "segmunich-val-000000.tar").write_bytes(b"cut")
    (out / pack.JOURNAL / "segmunich-val-000001.tar.json").write_bytes(b'{"task": "')
    (out / ".segmunich-val-000002.tar.partial-77").write_bytes(b"half")
    (out / "segmunich-val-000099.tar").write_bytes(b"of an older cut")
    pack.pack("segmunich", source=build, out=out, recipe=recipe)
    assert (out / output_names.SUMS).read_bytes() == expected
    assert verification.verify(out) == []
    assert not list(out.glob(".*partial*"))


def foreign_journals(journal: Path) -> list[bytes]:
    """Return journals that this version did not write: mutated, of other keys and types, though their sum is right."""
    content = json.loads(journal.read_bytes())["content"]
    changes: list[dict[str, object]] = [{"shard": {"name": "x"}}, {"counts": "{{{"}, {"counts": 3}, {"rows": None}]
    changes += [{"shard": None}, {"quarantine": 1}, {"counts": base64.b85encode(b"\2\1\1\1" * 9).decode()}]
    made = [files.checked_json({**content, **change}) for change in changes]
    made += [
        files.checked_json({"task": content["task"]}),
        files.checked_json([content]),
        files.canonical_json(content),
    ]
    return [*made, journal.read_bytes().replace(b'"rows"', b'"r0ws"'), b"", b"\xff", b"[" * 100_000, b"null"]


def test_shards_of_foreign_journals_are_packed_again(build: Path, tmp_path: Path) -> None:
    recipe = small("segmunich", shard_mb=0)
    pack.pack("segmunich", source=build, out=tmp_path, recipe=recipe)
    expected = (tmp_path / output_names.SUMS).read_bytes()
    journals = sorted((tmp_path / pack.JOURNAL).glob("*.json"))
    contents = foreign_journals(journals[0])
    for first in range(0, len(contents), len(journals)):
        (tmp_path / output_names.SUMS).unlink()
        for journal, content in zip(journals, contents[first:], strict=False):
            journal.write_bytes(content)
        pack.pack("segmunich", source=build, out=tmp_path, recipe=recipe)
        assert (tmp_path / output_names.SUMS).read_bytes() == expected


def test_a_date_that_is_no_text_costs_one_sample(tmp_path: Path) -> None:
    """JSON can express half of a surrogate pair, which Parquet cannot hold: it ended the run after the last shard."""
    source = synthetic.bigearthnet_v1(tmp_path / "source", count=3)
    path = sorted(source.rglob("*_labels_metadata.json"))[1]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"acquisition_date": "\ud800"}))
    words = ["shard", "bigearthnet", "--edition", "v1", "--source", str(source), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == ExitCode.FINDINGS, done.output
    (reason,) = reasons(tmp_path / "out").values()
    assert "which is no character" in reason
    assert len(shard_index.read_index(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    "meta",
    [
        {"date": 20190401}, {"crs": ["EPSG:32632"]}, {"bounds": [0, 0, 1]}, {"bounds": [0.0, 0.0, float("nan"), 1.0]},
        {"bounds": ["0", "0", "1", "1"]}, {"labels": [2**40]}, {"labels": ["forest"]},
    ],
)  # fmt: skip
def test_metadata_that_the_index_cannot_hold(meta: dict[str, object]) -> None:
    one = dataclasses.replace(synthetic_shards.sample(0, "train", 16, 16), meta=meta)
    with pytest.raises(SourceError, match=r"sample 'toy-00000': metadata"):
        write_shards.storable(one, synthetic_shards.contract(16))


def test_a_finished_shard_is_not_packed_again(build: Path, tmp_path: Path) -> None:
    recipe = small("segmunich", shard_mb=0)
    pack.pack("segmunich", source=build, out=tmp_path, recipe=recipe)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    pack.pack("segmunich", source=build, out=tmp_path, recipe=recipe)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")} == before
    pack.pack("segmunich", source=build, out=tmp_path, recipe=recipe, fresh=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")} != before


def test_an_output_of_another_recipe_is_not_mixed(build: Path, tmp_path: Path) -> None:
    pack.pack("segmunich", source=build, out=tmp_path)
    with pytest.raises(OutputError, match="another recipe"):
        pack.pack("segmunich", source=build, out=tmp_path, recipe=small("segmunich", codec="npy"))
    pack.pack("segmunich", source=build, out=tmp_path, recipe=small("segmunich", codec="npy"), fresh=True)
    assert verification.verify(tmp_path) == []


def test_codecs_and_readers_agree(build: Path, tmp_path: Path) -> None:
    for codec in ("blosc", "npy"):
        pack.pack("segmunich", source=build, out=tmp_path / codec, recipe=small("segmunich", codec=codec))
    assert contracts.read(tmp_path / "blosc") == contracts.read(tmp_path / "npy")


def test_split_lists_choose_and_are_checked(build: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("munich-r00000-c00000.tif\nmunich-r00016-c00016,other\nnowhere\n")
    result = pack.pack(
        "segmunich",
        source=build,
        out=tmp_path / "s",
        inputs=select_samples.SampleInputs(split_lists={"test": tmp_path / "mine.txt"}),
    )
    assert result.contract.splits == {"test": 2}
    assert [note.split()[0] for note in result.notes] == ["4", "1"]
    with pytest.raises(SettingError, match="also in the list"):
        both = {"train": tmp_path / "mine.txt", "val": tmp_path / "mine.txt"}
        pack.pack("segmunich", source=build, out=tmp_path / "t", inputs=select_samples.SampleInputs(split_lists=both))


def test_a_wrong_source_or_dataset_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no reader for dataset 'eurosta'"):
        pack.pack("eurosta", source=tmp_path, out=tmp_path / "o")
    with pytest.raises(SourceError, match="no such file or folder"):
        pack.pack("segmunich", source=tmp_path / "missing", out=tmp_path / "o")
    with pytest.raises(SourceError, match="neither a build"):
        pack.pack("segmunich", source=tmp_path, out=tmp_path / "o")


def test_a_damaged_block_of_a_build_is_quarantined(build: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(build, tmp_path / "build")
    with rasterio.open(broken / "labels.tif", "r+") as labels:
        labels.write(np.full((1, 16, 16), 77, np.uint8), window=rasterio.windows.Window(0, 0, 16, 16))
    result = pack.pack("segmunich", source=broken, out=tmp_path / "s")
    assert not result.complete
    assert "labels [77] are not in the label space" in reasons(tmp_path / "s")["munich-r00000-c00000"]
    assert result.contract.splits == {"train": 2, "val": 3}


def test_options_of_the_command_choose_edition_labels_and_splits(tmp_path: Path) -> None:
    source = synthetic.bigearthnet_v1(tmp_path / "source")
    command = ["shard", "bigearthnet", "--source", str(source), "--out", str(tmp_path / "out"), "-q"]
    chosen = ["--edition", "v1", "--labels", "bigearthnet-43-official", "--split", "google", "--layout", "native"]
    done = CliRunner().invoke(cli.app, [*command, *chosen])
    assert done.exit_code == 0, done.output
    contract = contracts.read(tmp_path / "out")
    assert (contract.version, contract.label_space.name) == ("v1", "bigearthnet-43-official")
    next(source.rglob("*_B8A.tif")).unlink()
    (tmp_path / "out" / output_names.SUMS).unlink()
    done = CliRunner().invoke(cli.app, [*command, *chosen])
    assert done.exit_code == ExitCode.FINDINGS
    assert "1 files or samples in" in done.output
    assert list(reasons(tmp_path / "out").values()) == ["band B8A is missing, expected one file a band"]


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes(tmp_path: Path, cluster: tuple[str, object]) -> None:  # noqa: F811
    source, recipe = synthetic.bigearthnet_v1(tmp_path / "source"), small("bigearthnet", edition="v1", shard_mb=0)
    with tarfile.open(tmp_path / "it.tar.gz", "w:gz") as tar:
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            tar.add(file, file.relative_to(source))
    pack.pack("bigearthnet", source=source, out=tmp_path / "here", recipe=recipe)
    for name, at in {"there": source, "streamed": tmp_path / "it.tar.gz"}.items():
        pack.pack("bigearthnet", source=at, out=tmp_path / name, recipe=recipe, cluster=cluster[0])
        assert (tmp_path / name / output_names.SUMS).read_bytes() == (
            tmp_path / "here" / output_names.SUMS
        ).read_bytes()


def test_the_cost_is_printed_first_and_the_result_as_json(build: Path, tmp_path: Path) -> None:
    command = ["shard", "segmunich", "--source", str(build), "--out", str(tmp_path / "s"), "-q"]
    output = CliRunner().invoke(cli.app, [*command, "--dry-run"]).stdout
    assert "train 3, val 3 samples in 2 shards; 0.00 GB to read, about 0.00 GB to write, about 0 s" in output
    cost = json.loads(CliRunner().invoke(cli.app, [*command, "--dry-run", "--json"]).stdout)
    assert cost["samples"] == {"train": 3, "val": 3}
    assert cost["bytes_in"] == sum((build / name).stat().st_size for name in ("image.tif", "labels.tif"))
    assert cost["bytes_out"] > 0 < cost["seconds"] < 10
    assert not (tmp_path / "s").exists()
    done = json.loads(CliRunner().invoke(cli.app, [*command, "--json"]).stdout)
    assert (done["shards"], done["quarantined"], done["contract"]["splits"]) == (2, 0, {"train": 3, "val": 3})


def test_the_cost_of_a_compressed_tar_is_found_at_its_start(tmp_path: Path) -> None:
    source = synthetic.bigearthnet_v1(tmp_path / "source")
    with tarfile.open(tmp_path / "it.tar.gz", "w:gz") as tar:
        tar.add(source, ".")
    cost = pack.estimate_cost("bigearthnet", source=tmp_path / "it.tar.gz", recipe=small("bigearthnet", edition="v1"))
    assert cost.bytes_in == (tmp_path / "it.tar.gz").stat().st_size
    assert cost.seconds is not None
    assert 0 < cost.seconds < 20
    assert sum(cost.samples.values()) == len(list(source.rglob("*_B01.tif")))
