"""Test that a wheel built from the tree and installed in another folder finds its catalogs and recipes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import synthetic_shards

ROOT = Path(__file__).resolve().parents[1]

PROBE = """
import sgdata
from sgdata import package_data
from sgdata.datasets import cards
print(sgdata.__file__)
print(package_data.folder("catalogs"))
print(*cards.names())
print(*sorted(p.name for p in (package_data.folder("recipes") / "train").glob("*.toml")))
print(package_data.table("segmunich_labels")[0]["file_value"])
"""


@pytest.mark.slow
def test_a_wheel_carries_its_catalogs_and_recipes(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "sgdata/py.typed" in names
    assert "sgmodel/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "catalogs/", "recipes/"))]
    elsewhere = tmp_path / "elsewhere"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(elsewhere)]
    subprocess.run([*install, str(wheel)], check=True, cwd=tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(elsewhere)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    where, catalogs, cards, recipes, value = done.stdout.splitlines()
    assert where.startswith(str(elsewhere))
    assert catalogs.startswith(str(elsewhere))
    assert cards.split() == sorted(path.stem for path in (ROOT / "catalogs").glob("*.toml"))
    assert recipes.split() == sorted(path.name for path in (ROOT / "recipes" / "train").glob("*.toml"))
    assert value == "0"

    def sgmodel(*arguments: str) -> str:
        """Return the output of the installed `sgmodel` script, run in another folder."""
        command = [sys.executable, str(elsewhere / "bin" / "sgmodel"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True).stdout

    listed = {line.partition(":")[0] for line in sgmodel("recipes").splitlines()}
    assert listed >= {name.removesuffix(".toml") for name in recipes.split()} | {"default", "city", "paper"}
    # A recipe by name, not by path: the folder has no recipes/.
    synthetic_shards.write(tmp_path / "shards", px=128)
    size = sgmodel("segment", "segment-demo-tiny", "--shards", "shards", "--device", "cpu", "--dry-run")
    assert "parameters" in size
    assert not (tmp_path / "out").exists()
