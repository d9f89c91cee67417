"""Test that commands on a full disk end with one line that names file and space, and complete when they are repeated.

Files have a limit of size in a child process, and the disk is a tmpfs where mounting is allowed; no write is patched.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import synthetic_shards
from test_hostile_names import GRID, archive
from test_segment import TINY

from sgdata import output_names

SETTINGS = (
    f"area={{grid = {GRID}}}", 'bands=["B04"]', "patches.size=32", "patches.stride=32", "split.block_px=32",
    "split.gap_px=0", "composite.method=median",
)  # fmt: skip
NAMES = ("build", "shard", "release", "train", "convert", "predict")
# Runs one command again and again in one process, each time with another limit of file sizes; 0 for none.
CHILD = """
import io, json, resource, sys
words, sizes = json.loads(sys.argv[1]), json.loads(sys.argv[2])
if words[0] in ("segment", "convert", "predict"):
    from sgmodel import cli
else:
    from sgdata import cli
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for size in sizes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size or most, most))
    sys.argv[1:], sys.stdout, sys.stderr = words, io.StringIO(), io.StringIO()
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    message, sys.stdout, sys.stderr = sys.stderr.getvalue(), sys.__stdout__, sys.__stderr__
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    print(json.dumps([code or 0, message]))
"""


def command(name: str, home: Path, out: Path) -> list[str]:
    """Return the words of a command that reads what `made` made and writes `out`."""
    checkpoint = str(home / "train" / "checkpoint-last")
    sets = [word for text in SETTINGS for word in ("--set", text)]
    tiny = [word for text in TINY for word in ("--set", text)]
    commands = {
        "build": ["build", "segmunich", "--dates", "2019-01-01/2019-12-31", "--osm", "none", *sets, "--quiet",
                  "--stac", str(home / "archive"), "--scratch", str(out / ".scratch")],
        "shard": ["shard", "segmunich", "--source", str(home / "build"), "--quiet"],
        "release": ["release", "tiny", "1.0", "--source", str(home / "shard"), "--build", str(home / "build"),
                    "--register", str(out / "catalog")],
        "train": ["segment", "segment-demo-tiny", "--threads", "1", "--shards", str(home / "toy"), "-q",
                  "--save-minutes", "0", *tiny],
        "convert": ["convert", checkpoint],
        "predict": ["predict", "--input", str(home / "toy"), "--weights", checkpoint, "--threads", "1", "--quiet"],
    }  # fmt: skip
    return [*commands[name], "--out", str(out)]


def outcomes(name: str, home: Path, out: Path, sizes: Sequence[int] = (0,)) -> list[tuple[int, str]]:
    """Return exit code and messages of a command for each limit of file sizes."""
    words = [sys.executable, "-c", CHILD, json.dumps(command(name, home, out)), json.dumps(sizes)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write what the commands read, and the output of each on a disk with enough space."""
    home = tmp_path_factory.mktemp("disks")
    archive(home / "archive", ("one", "two", "three"))
    synthetic_shards.write(home / "toy", train=6, val=3)
    for name in NAMES:
        ((code, message),) = outcomes(name, home, home / name)
        assert code in (0, 3), message
    return home


def sums(out: Path) -> dict[str, bytes]:
    """Return every SHA256SUMS below a folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob(output_names.SUMS))}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_files_that_may_not_grow(name: str, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    largest = max(path.stat().st_size for path in (made / name).rglob("*") if path.is_file())
    sizes = (1000, largest // 2, largest - 1)
    *refused, whole = outcomes(name, made, out, (*sizes, 0))
    for size, (code, message) in zip(sizes, refused, strict=True):
        assert code == 2, (size, code, message)
        *before, line = message.splitlines()
        assert not [text for text in before if "Traceback" in text or "Error" in text]
        assert "cannot be written: " in line, (size, message)
        assert "MB are free on the disk of" in line
        assert str(out) in line
    assert whole[0] in (0, 3), whole
    assert sums(out) == sums(made / name) != {}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 40 KB."""
    disk = tmp_path / "small"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(words, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no command mount")
    if done.returncode:
        pytest.skip("mounting is not allowed")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shard", "train"])
def test_a_small_disk(name: str, made: Path, small: Path) -> None:
    out = small / "out"
    ((code, message),) = outcomes(name, made, out)
    assert code == 2, message
    (line,) = message.splitlines()
    assert "No space left on device" in line
    assert "0.0 MB are free on the disk of" in line
    subprocess.run(["mount", "-o", "remount,size=40m", str(small)], check=True)
    ((code, message),) = outcomes(name, made, out)
    assert code in (0, 3), message
    assert sums(out) == sums(made / name)
