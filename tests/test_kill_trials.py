"""Kill builds, sharding, releases and training with `kill -9` at many moments: resumed, they end with the same bytes.

`KILL_TRIALS` in the environment is the number of kills in all, a quarter of them for each stage. A run is killed after
a random number of changes to its files, started again, killed again, until it ends; then its bytes are compared with
those of a run that was left alone, and a new one begins.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import synthetic
from synthetic_shards import write
from test_ranks import SMALL
from test_release import finished_build

from sgdata import files, output_names, verification
from sgdata.packing import pack
from sgdata.simulation import archive

TRIALS = int(os.environ.get("KILL_TRIALS", "64"))
DEADLINE_S = 600
Words = Callable[[Path], list[str]]


def build(home: Path) -> Words:
    """Two kilometres of four dates on two workers."""
    city = archive.simulate(home / "city", seed=2, size_km=2, dates=4)
    chosen = ["--aoi", "aoi.geojson", "--stac", "catalog.json", "--osm", "osm/city.osm"]
    places = [word if word.startswith("--") else str(city / word) for word in chosen]
    small = ["patches.size=32", "patches.stride=32", "split.block_px=64", "split.gap_px=0"]
    sets = [f"--set={text}" for text in small]
    dates = ["--dates", "2019-04-01/2020-03-31", "--workers", "2"]
    return lambda out: ["sgdata", "build", "segmunich", *places, *dates, *sets, "--out", str(out)]


def shard(home: Path) -> Words:
    """Two hundred patches in shards of 1 MB on two workers."""
    source = synthetic.bigearthnet_v1(home / "source", count=5)
    patches = source / "BigEarthNet-v1.0"
    (model,) = sorted(patches.iterdir())[:1]
    for number in range(200):
        key = f"S2B_MSIL2A_20170924T93020_{number % 90}_{number // 90}"
        (patches / key).mkdir()
        for file in model.iterdir():
            (patches / key / file.name.replace(model.name, key)).hardlink_to(file)
    words = ["sgdata", "shard", "bigearthnet", "--edition", "v1", "--set", "shard_mb=1", "--workers", "2"]
    return lambda out: [*words, "--source", str(source), "--out", str(out)]


def release(home: Path) -> Words:
    """A release with its archive and its entry in a catalogue."""
    pack.pack("segmunich", source=finished_build(home / "build"), out=home / "shards")
    words = ["sgdata", "release", "tiny", "1.0", "--archive", "--date", "2026-11-21"]
    places = ["--source", str(home / "shards"), "--build", str(home / "build")]
    return lambda out: [*words, *places, "--out", str(out), "--register", str(out / "register")]


def train(home: Path) -> Words:
    """Some twenty steps, of which every one is saved."""
    shards = write(home / "shards", train=6, val=2)
    sets = [f"--set={text}" for text in (*SMALL, "training.epochs=12", "training.ema_decay=0.5", "picture_every=5")]
    words = ["sgmodel", "pretrain", "pretrain-demo-tiny", "--shards", str(shards), "--save-minutes", "0"]
    return lambda out: [*words, "--device", "cpu", "--threads", "1", *sets, "--out", str(out)]


STAGES = {"build": build, "shard": shard, "release": release, "train": train}


def start(words: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"{words[0]}.cli", *words[1:], "-q"]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def state(out: Path) -> int:
    """Return a number that changes with every file that is made, moved or extended below `out`."""
    found = []
    for folder, _, names in os.walk(out):
        for name in names:
            try:
                about = Path(folder, name).stat()
            except FileNotFoundError:  # moved meanwhile
                continue
            found.append((folder, name, about.st_size, about.st_ino))
    return hash(tuple(sorted(found)))


def watch(process: subprocess.Popen[bytes], out: Path, most: int) -> int:
    """Wait until the files below `out` have changed `most` times or the process has ended; return the changes."""
    seen, last, deadline = 0, state(out), time.monotonic() + DEADLINE_S
    while process.poll() is None and seen < most:
        assert time.monotonic() < deadline, "a run without an end"
        time.sleep(0.005)
        now = state(out)
        seen, last = seen + (now != last), now
    return seen


def contents(out: Path) -> dict[str, str]:
    """Return the hash of every file of an output; those that hold times or begin with a dot are left out."""
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    parts = {name: name.split("/") for name in names}
    kept = [
        name for name in names if not any(part.startswith(".") or part in output_names.TIMED for part in parts[name])
    ]
    return {name: files.sha256_file(out / name) for name in kept if not name.endswith(files.LOG)}


def check_end(process: subprocess.Popen[bytes], out: Path, expected: dict[str, str]) -> None:
    """Check that a run that ended on its own is as one that was never killed."""
    _, error = process.communicate(timeout=DEADLINE_S)
    assert process.returncode in (0, 3), error.decode()
    assert contents(out) == expected
    for sums in out.rglob(output_names.SUMS):
        assert verification.verify(sums.parent) == []
    assert not [path for path in out.rglob("*") if "partial" in path.name]


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_killed_runs_end_with_the_same_bytes(stage: str, tmp_path: Path) -> None:
    words = STAGES[stage](tmp_path)
    calm = start(words(tmp_path / "calm"))
    changes = watch(calm, tmp_path / "calm", sys.maxsize)
    expected = contents(tmp_path / "calm")
    check_end(calm, tmp_path / "calm", expected)
    assert changes > 4
    rng, out, kills, ends, wanted = random.Random(stage), tmp_path / "out", 0, 0, -(-TRIALS // len(STAGES))
    while kills < wanted or out.exists():
        process = start(words(out))
        # A run has some four kills, at any of its moments; after the last one it may end.
        most = rng.randint(1, max(changes // 2, 1)) if kills < wanted else sys.maxsize
        watch(process, out, most)
        time.sleep(rng.random() * 0.02)
        if process.poll() is None and most < sys.maxsize:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
        else:
            check_end(process, out, expected)
            shutil.rmtree(out)
            ends += 1
    assert ends
    print(f"{stage}: {kills} kills, {ends} runs, all with the same bytes")
