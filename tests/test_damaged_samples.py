"""Test packing with hundreds of damaged samples, and with killed processes."""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic

from sgdata import output_names, verification
from sgdata.errors import SourceError
from sgdata.packing import pack, select_samples, tar_spool
from sgdata.shards import shard_index, tar_format

SOURCES: dict[str, tuple[str, Callable[[Path], Path], str, float]] = {
    "eurosat": ("eurosat", lambda to: synthetic.eurosat(to, each=1), "ms", 0.55),
    "bigearthnet": ("bigearthnet", lambda to: synthetic.bigearthnet_v1(to, count=1), "v1", 0.2),
    "fmow": ("fmow", lambda to: synthetic.fmow(to, surplus=False), "1", 0.13),
    "segmunich": ("segmunich", lambda to: synthetic.segmunich_released(to, [("train", 1)]), "released", 0.1),
    "oscd": ("oscd", synthetic.oscd, "rect", 0.02),
}
MEMORY = 300 * 1024
"""KiB that a thousand damaged samples may add to the process: the largest image a reader takes is a part of it."""

JSON = [b'{"labels": [["Vineyards"]], "acquisition_date": 1, "tile_source": []}', b"[" * 100_000, b'{"labels": null}']


def _damaged(path: Path, rng: random.Random) -> None:
    """Damage a file: overwrite bytes (mostly of the header), truncate, replace, extend or remove it."""
    content = bytearray(path.read_bytes())
    how = rng.randrange(7)
    if how < 3:
        for _ in range(rng.randrange(1, 6)):
            content[rng.randrange(min(len(content), 600) if how else len(content))] = rng.randrange(256)
    elif how == 3:
        del content[rng.randrange(len(content)) :]
    elif how == 4:
        content[:] = rng.choice([b"", b"II*\0", b"version https://git-lfs", rng.randbytes(300), *JSON])
    elif how == 5:
        content += rng.randbytes(rng.randrange(1, 999))
    else:
        path.unlink()
        return
    path.write_bytes(content)


def _copies(name: str, folder: Path, count: int, rng: random.Random) -> set[str]:
    """Write `count` samples, each a copy of a valid one with one damaged file, and return their stems."""
    model = SOURCES[name][1](folder / "model")
    stems = set()
    for number in range(count):
        if name == "eurosat":
            first = folder / f"source/River/River_{number}.tif"
            first.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(model / "EuroSAT_MS/River/River_1.tif", first)
        elif name == "bigearthnet":
            (patch,) = (model / "BigEarthNet-v1.0").iterdir()
            key = f"S2B_MSIL2A_20170924T93020_{number % 90}_{number // 90}"
            first = folder / "source" / key
            first.mkdir(parents=True)
            for file in patch.iterdir():
                shutil.copy(file, first / file.name.replace(patch.name, key))
        elif name == "fmow":
            first = folder / f"source/train/zoo/zoo_{number}/zoo_{number}_100.tif"
            first.parent.mkdir(parents=True)
            shutil.copy(rng.choice(sorted(model.rglob("*.tif"))), first)
        elif name == "segmunich":
            first = folder / f"source/train/img/{number}.tif"
            for kind in ("img", "label"):
                (folder / f"source/train/{kind}").mkdir(parents=True, exist_ok=True)
                shutil.copy(model / f"TUM_128/train/{kind}/0.tif", folder / f"source/train/{kind}/{number}.tif")
        else:
            first = folder / "source"
            shutil.copytree(model, first, dirs_exist_ok=True)
        found = [first] if first.is_file() else sorted(file for file in first.rglob("*.*") if file.is_file())
        _damaged(rng.choice(found), rng)
        stems.add(first.stem)
    return stems


@pytest.mark.parametrize("total", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SOURCES)
def test_damaged_samples_are_listed_or_whole(name: str, total: int, tmp_path: Path) -> None:
    dataset, _, edition, share = SOURCES[name]
    rng = random.Random(f"{name} {total}")
    _copies(name, tmp_path, max(1, int(total * share)), rng)
    recipe = replace(select_samples.recipe_for(dataset), edition=edition, shard_mb=4)
    found = pack.reader(dataset).list_samples(tmp_path / "source", recipe)
    importlib.import_module("webdataset")  # and torch, whose 200 MB do not count here
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        result = pack.pack(dataset, source=tmp_path / "source", out=tmp_path / "out", recipe=recipe)
        packed = set(shard_index.read_index(tmp_path / "out")["key"].to_pylist())
        assert verification.verify(result.folder) == []
        assert len(list(tar_format.samples(result.folder))) == len(packed)
    except SourceError:  # not one sample was left
        packed = set()
    rows = [json.loads(line) for line in (tmp_path / "out" / output_names.QUARANTINE).read_text().splitlines()]
    assert all(row["reason"] and "\n" not in row["reason"] for row in rows)
    assert packed.isdisjoint(row["key"] for row in rows)
    assert packed | {row["key"] for row in rows if row["key"]} == {ref.key for ref in found.refs}
    assert {path.name for path in tmp_path.iterdir()} == {"model", "source", "out"}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEMORY, f"{grown} KiB"


PACK = """
import sys
from dataclasses import replace
from pathlib import Path
from sgdata.packing import pack, select_samples
if __name__ == "__main__":
    recipe = replace(select_samples.recipe_for("bigearthnet"), edition="v1", shard_mb=1)
    pack.pack("bigearthnet", source=Path(sys.argv[1]), out=Path(sys.argv[2]), recipe=recipe, workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", pytest.param("tar.gz", marks=pytest.mark.long)])
def test_ten_kills_do_not_change_bytes(kind: str, tmp_path: Path) -> None:
    """`kill -9` of parent and workers at ten moments; each run resumes the previous one."""
    source = synthetic.bigearthnet_v1(tmp_path / "source", count=5)
    (model,) = sorted((source / "BigEarthNet-v1.0").iterdir())[:1]
    for number in range(400):
        key = f"S2B_MSIL2A_20170924T93020_{number % 90}_{number // 90}"
        (source / "BigEarthNet-v1.0" / key).mkdir()
        for file in model.iterdir():
            (source / "BigEarthNet-v1.0" / key / file.name.replace(model.name, key)).hardlink_to(file)
    if kind == "tar.gz":
        subprocess.run(["tar", "--hard-dereference", "-czf", tmp_path / "it.tar.gz", "-C", source, "."], check=True)
        source = tmp_path / "it.tar.gz"
    script = tmp_path / "pack.py"
    script.write_text(PACK)

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, script, source, out], start_new_session=True)

    def tars(out: Path) -> int:
        return len(list((out / pack.JOURNAL).glob("*.json")))

    assert start(tmp_path / "calm").wait() == 0
    assert tars(tmp_path / "calm") > 30
    rng, disturbed, killed = random.Random(9), tmp_path / "disturbed", 0
    while killed < 10:
        held = tars(disturbed)
        process = start(disturbed)
        while tars(disturbed) < held + 2 and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        assert process.poll() is None, f"ended before kill {killed + 1}"
        assert not (disturbed / output_names.SUMS).exists()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    assert start(disturbed).wait() == 0
    assert (disturbed / output_names.SUMS).read_bytes() == (tmp_path / "calm" / output_names.SUMS).read_bytes()
    assert verification.verify(disturbed) == []
    left = [path.name for path in disturbed.rglob("*") if "partial" in path.name]
    assert not left
    assert not list((disturbed / tar_spool.SPOOL).glob("*"))
