"""Hostile ids, splits, keys and names through the commands: no file outside the output, and no two under one name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import synthetic_shards
from stac_wrap import Wrapped, wrap
from test_segment import TINY

from sgdata import cli, files, output_names, verification
from sgdata.audits import collect_evidence
from sgdata.builds import build_recipe, pipeline
from sgdata.builds.build_recipe import BuildPaths
from sgdata.errors import SourceError
from sgdata.pages import output_page as page
from sgdata.rasters import geotiff
from sgdata.scenes import lock
from sgdata.shards import tar_format, write_shards
from sgdata.types import Sample
from sgmodel import cli as model_cli
from sgmodel.data import loader

GRID = '{crs = "EPSG:32632", origin = [600060.0, 5399940.0], gsd_m = 10.0, shape = [120, 120]}'
IDS = {
    "leads out": ("../../../leads-out", "..\\..\\leads-out", "/tmp/leads-out"),
    "dots": ("scene.1", "scene.2", "scene.1.bin"),
    "controls": ("a\nb\x1b[31m", "x" * 600, "bright"),
}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder deep in a tree of canaries, none of which may change, beside which nothing may appear."""
    deep = tmp_path / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    for parent in deep.parents:
        if parent.is_relative_to(tmp_path):
            (parent / "canary.txt").write_text(str(parent))
    before = tree(tmp_path, deep)
    yield deep
    assert tree(tmp_path, deep) == before
    assert not list(Path("/tmp").glob("leads-out*"))


def tree(root: Path, but: Path) -> dict[str, str]:
    """Return every file below `root` but those below `but`, with its hash."""
    found = {}
    for path in sorted(root.rglob("*")):
        if not path.is_relative_to(but):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found


def archive(folder: Path, ids: tuple[str, ...]) -> Path:
    """Three scenes, each of one value, under these ids."""
    scenes = []
    for number in range(len(ids)):
        layers: dict[str, tuple[Any, float]] = {
            "B04": (np.full((600, 600), 300 + 100 * number, np.uint16), 10.0),
            "SCL": (np.full((300, 300), 4, np.uint8), 20.0),
        }
        time = f"2019-0{number + 5}-01T10:00:00Z"
        scenes.append(Wrapped(id=f"S2A_32UPU_20190{number + 5}01_0_L2A", time=time, layers=layers))
    wrap(folder, scenes)
    for path, name in zip(sorted(folder.glob("*/S2A*/*.json")), ids, strict=True):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"id": name}))
    return folder


def built(home: Path, ids: tuple[str, ...], *changes: str) -> Path:
    settings = [
        f"area={{grid = {GRID}}}", 'bands=["B04"]', "patches.size=32", "patches.stride=32", "split.block_px=32",
        "split.gap_px=0", "composite.method=median", *changes,
    ]  # fmt: skip
    recipe = build_recipe.recipe_for("segmunich", {"dates": "2019-01-01/2019-12-31"}, settings)
    where = str(archive(home / "archive", ids))
    return pipeline.build(recipe, BuildPaths(out=home / "out", stac=where, osm="none", scratch=home / "scratch"))


@pytest.mark.parametrize("kind", IDS)
def test_builds_of_hostile_ids(home: Path, kind: str) -> None:
    out = built(home, IDS[kind], 'name="../../evil"')
    assert {item.scene.id for item in lock.read(out / lock.NAME).items} == set(IDS[kind])
    assert verification.verify(out) == []
    with geotiff.open_raster(str(out / output_names.IMAGE)) as image:
        # Each scene has one value: the median is that of the second, unless two of them share a file.
        assert set(np.unique(image.read(1)).tolist()) == {400}
    (item,) = (out / "stac").iterdir()
    assert item.name.endswith(".json")
    page.write(out, home / "page")


def test_two_items_of_one_id_are_refused(home: Path) -> None:
    with pytest.raises(SourceError, match="two different items have this id"):
        built(home, ("same", "same", "other"))


SPLITS = ("../../evil", "a/b", "/tmp/leads-out", "x\ny", "collection")


def shards(out: Path, splits: tuple[str, ...] = SPLITS) -> Path:
    made = [
        dataclasses.replace(synthetic_shards.sample(n, "train", 32, 32), split=split) for n, split in enumerate(splits)
    ]
    write_shards.write(made, out, contract=synthetic_shards.contract(32))
    return out


def test_shards_of_hostile_splits(home: Path) -> None:
    out = shards(home / "shards")
    assert len(list(out.glob("*.tar"))) == len(SPLITS)
    assert verification.verify(out) == []
    assert [sample.split for sample in tar_format.samples(out)] == sorted(SPLITS)
    for split in SPLITS:
        assert len(loader.Samples(out, split, ("image",))) == 1
    collect_evidence.collect_evidence(collect_evidence.detect_subject(out))
    page.write(out, home / "page")


def with_column(folder: Path, **columns: str) -> Path:
    """Write one value into columns of the index, as somebody who makes shards by hand could."""
    table = pq.read_table(folder / output_names.INDEX)
    for name, value in columns.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array([value] * len(table)))
    pq.write_table(table, folder / output_names.INDEX)
    files.write_sums(folder)
    return folder


@pytest.mark.parametrize("kind", ["leads out", "absolute", "pipe"])
def test_shards_that_name_other_files(home: Path, kind: str) -> None:
    out = shards(home / "shards", ("train", "train"))
    shutil.copyfile(next(out.glob("*.tar")), home / "secret.tar")
    os.mkfifo(out / "pipe.tar")
    name = {"leads out": "../secret.tar", "absolute": str(home / "secret.tar"), "pipe": "pipe.tar"}[kind]
    table = pq.read_table(out / output_names.INDEX)
    pq.write_table(
        table.set_column(table.column_names.index("shard"), "shard", pa.array([name] * 2)), out / output_names.INDEX
    )
    with pytest.raises(SourceError, match="expected"):
        next(tar_format.samples(out))
    with pytest.raises(SourceError, match="expected"):
        loader.Samples(out, "train", ("image",))
    with pytest.raises(SourceError, match="expected"):
        page.write(out, home / "page")


def test_hostile_keys_are_not_paths(home: Path) -> None:
    out = with_column(shards(home / "shards", ("train", "val")), key="../../../evil")
    with pytest.raises(SourceError, match=r"key '\.\./\.\./\.\./evil' cannot be that of a sample"):
        page.write(out, home / "page")


def test_a_hostile_key_is_no_member(home: Path) -> None:
    sample: Sample = dataclasses.replace(synthetic_shards.sample(0, "train", 32, 32), key="../evil")
    with pytest.raises(SourceError, match="sample key"):
        write_shards.write([sample], home / "shards", contract=synthetic_shards.contract(32))


# --- all commands, one after the other -----------------------------------------------------

HOSTILE = "../../evil"


def run(main: Callable[[], None], *words: object) -> int:
    """Run a command in this process and return its exit code; any exception but SystemExit fails the test."""
    with mock.patch.object(sys, "argv", ["command", *map(str, words)]):
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


@pytest.mark.slow
def test_every_command_with_hostile_names(home: Path) -> None:
    build = built(home, IDS["leads out"])
    catalogue = home / "archive"
    done = {
        "drift": run(cli.main, "drift", build, "--stac", catalogue),
        "show": run(cli.main, "show", build, "--out", home / "page"),
        "shard": run(cli.main, "shard", "segmunich", "--source", build, "--out", home / "packed"),
        "split": run(cli.main, "split", build, "--out", home / "split"),
        "audit": run(cli.main, "audit", home / "packed", "--build", build, "--out", home / "audit"),
    }
    assert done == {"drift": 0, "show": 0, "shard": 0, "split": 2, "audit": 3}
    words = ("--source", home / "packed", "--build", build, "--out", home / "release", "--register", home / "catalogue")
    assert run(cli.main, "release", HOSTILE, "1.0", *words) == 2
    assert run(cli.main, "release", "tiny", "../1.0", *words) == 2
    assert run(cli.main, "release", "tiny", "1.0", *words) in (0, 3)

    toy = synthetic_shards.write(home / "toy", train=6, val=3)
    document = json.loads((toy / output_names.CONTRACT).read_bytes())
    document |= {"dataset": HOSTILE, "version": "../1\x1b[31m"}
    document["label_space"]["names"][0] = "../../evil\x1b[31m"
    (toy / output_names.CONTRACT).write_bytes(files.pretty_json(document))
    files.write_sums(toy)
    sets = [word for text in TINY for word in ("--set", text)]
    checkpoint = home / "run" / "checkpoint-last"
    train = ("segment", "segment-demo-tiny", "--shards", toy, "--threads", 1, *sets)
    done = {
        "train": run(model_cli.main, *train, "--out", home / "run"),
        "show": run(cli.main, "show", home / "run", "--out", home / "run-page"),
        "predict": run(model_cli.main, "predict", "--input", toy, "--weights", checkpoint, "--out", home / "predicted"),
        "convert": run(model_cli.main, "convert", checkpoint, "--out", home / "converted"),
    }
    assert set(done.values()) == {0}, done
