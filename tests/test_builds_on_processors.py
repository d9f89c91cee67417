"""Test that a build is equal on every processor: it uses integers and float sums in a fixed order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from sgdata import files
from sgdata.composite.rules import Method

ROOT = Path(__file__).resolve().parents[1]

# All rules in one process, for most of the time goes to importing and compiling.
PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
from sgdata import files, package_data
from sgdata.builds import pipeline
from sgdata.builds.build_recipe import BuildPaths, BuildRecipe
from sgdata.scenes.aoi import Area

archive, out, *methods = sys.argv[1:]
recipe = files.read(BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
recipe = replace(
    recipe,
    dates="2017-04-01/2020-04-01",
    area=Area(aoi=f"{archive}/aoi.geojson"),
    patches=replace(recipe.patches, size=32, stride=16),
    split=replace(recipe.split, block_px=48, gap_px=16),
)
for method in methods:
    paths = BuildPaths(out=Path(out, method), stac=archive, osm=f"{archive}/osm/city.osm")
    pipeline.build(replace(recipe, composite=replace(recipe.composite, method=method)), paths)
"""


def built(city: Path, out: Path, **variables: str) -> dict[str, str]:
    """Build the city by every rule in a separate process; return the SHA-256 of each file by path."""
    command = [sys.executable, "-c", PROGRAM, str(city), str(out), *get_args(Method)]
    subprocess.run(command, check=True, env=os.environ | variables, cwd=ROOT, timeout=300)
    made = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): files.sha256_file(path) for path in made}


@pytest.mark.slow
def test_generic_code_builds_the_same_bytes(tmp_path: Path, city: Path) -> None:
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])  # numpy refuses names it does not know
    cache = tmp_path / "cache"
    generic = built(
        city,
        tmp_path / "generic",
        NPY_DISABLE_CPU_FEATURES=" ".join(found),
        NUMBA_CPU_NAME="generic",
        NUMBA_CPU_FEATURES="",
        NUMBA_CACHE_DIR=str(cache),
    )
    assert list(cache.rglob("*.nbc")), "the loops were compiled anew"
    assert generic == built(city, tmp_path / "here")
    for method in get_args(Method):
        for name in ("image.tif", "labels.tif", "provenance.tif", "patches.parquet"):
            assert f"{method}/{name}" in generic
