"""Test several --shards: all samples of all folders, in every program, or a refusal by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import synthetic_shards
from model_commands import sgmodel

from sgdata import files
from sgdata.errors import SettingError
from sgdata.shards import contracts, join_shards, tar_format, write_shards
from sgmodel.data import loader
from sgmodel.train import run_paths

TINY = ("--threads", "1", "--set", "training.epochs=1")


def shards(out: Path, place: str, *, splits: tuple[str, ...] = ("train", "val"), px: int = 32) -> Path:
    made = []
    for number in range(8):
        sample = synthetic_shards.sample(number + 100 * len(place), splits[number % len(splits)], px, px)
        made.append(dataclasses.replace(sample, key=f"{place}-{number}", meta={**sample.meta, "place": place}))
    write_shards.write(made, out, contract=synthetic_shards.contract(px))
    return out


def test_samples_of_all_folders_in_one(tmp_path: Path) -> None:
    folders = [shards(tmp_path / name, name) for name in ("ulm", "bonn")]
    for copy in (False, True):
        contract = join_shards.join(folders, tmp_path / f"all-{copy}", copy=copy)
        assert contract == contracts.read(tmp_path / f"all-{copy}")
        assert contract.splits == {"train": 8, "val": 8}
        found = list(tar_format.samples(tmp_path / f"all-{copy}"))
        assert sorted({sample.meta["place"] for sample in found}) == ["bonn", "ulm"]
        stack = np.concatenate([sample.arrays["image"][0].ravel() for sample in found if sample.split == "train"])
        band = contract.statistics[contract.bands[0].name]
        assert (band.count, band.min, band.max) == (stack.size, stack.min(), stack.max())
        assert band.mean == pytest.approx(stack.mean())
        assert band.std == pytest.approx(stack.std(), rel=1e-6)
        source = loader.Samples(tmp_path / f"all-{copy}", "train", ("image", "mask"))
        assert {key.partition("-")[0] for key in source.keys} == {"ulm", "bonn"}
        last = next(sample for sample in found if sample.key == source.keys[7])
        assert np.array_equal(source.read(7, "image"), last.arrays["image"])
    assert (tmp_path / "all-True" / "000-toy-train-000000.tar").is_file()
    assert not (tmp_path / "all-True" / "000-toy-train-000000.tar").is_symlink()


def test_folders_that_do_not_go_together(tmp_path: Path) -> None:
    one = shards(tmp_path / "one", "ulm")
    with pytest.raises(SettingError, match="sample 'ulm-0' is also in"):
        join_shards.join([one, shards(tmp_path / "again", "ulm")], tmp_path / "a")
    other = shards(tmp_path / "other", "bonn")
    contract = dataclasses.replace(contracts.read(other), scale=0.5)
    contracts.write(other, contract)
    with pytest.raises(SettingError, match="scale differ from those of"):
        join_shards.join([one, other], tmp_path / "b")
    npy = tmp_path / "npy"
    sample = synthetic_shards.sample(1, "train", 32, 32)
    write_shards.write([sample], npy, contract=synthetic_shards.contract(32), codec="npy")
    with pytest.raises(SettingError, match="members differ"):
        join_shards.join([one, npy], tmp_path / "c")


def test_names_of_several_folders_of_one_dataset(tmp_path: Path) -> None:
    ulm, bonn = shards(tmp_path / "ulm", "ulm"), shards(tmp_path / "bonn", "bonn")
    named = run_paths.shard_folders([str(ulm), f"b={bonn}"], tmp_path, 1, 0)
    assert named == {"ulm": ulm, "b": bonn}
    with pytest.raises(SettingError, match="gives 'ulm' twice"):
        run_paths.shard_folders([str(ulm), str(ulm)], tmp_path, 1, 0)
    with pytest.raises(SettingError, match="the folder holds 'toy', expected 'x'"):
        run_paths.shard_folders([f"x={ulm}"], tmp_path, 1, 0)
    joined = run_paths.RunPaths(shards=ulm, named=named, out=tmp_path / "o").joined
    assert contracts.read(joined).splits == {"train": 8, "val": 8}


@pytest.mark.parametrize("program", ["segment", "pretrain"])
def test_a_program_reads_every_folder(tmp_path: Path, program: str) -> None:
    folders = [shards(tmp_path / name, name) for name in ("ulm", "bonn")]
    given = [word for folder in folders for word in ("--shards", folder)]
    assert sgmodel(program, f"{program}-demo-tiny", *given, "--out", tmp_path / "run", *TINY, "--dry-run") == 0


def test_segment_scores_each_place(tmp_path: Path) -> None:
    folders = [shards(tmp_path / name, name) for name in ("ulm", "bonn")]
    given = [word for folder in folders for word in ("--shards", folder)]
    assert sgmodel("segment", "segment-demo-tiny", *given, "--out", tmp_path / "run", *TINY) == 0
    results = files.read_plain(tmp_path / "run" / "results.json")
    assert results["samples"] == 8
    places = results["per_place"]
    assert sorted(places) == ["bonn", "ulm"]
    assert all(places[name]["samples"] == 4 for name in places)
    assert min(p["miou"] for p in places.values()) <= 1
