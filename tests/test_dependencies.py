"""Compare the dependencies that pyproject.toml declares with those that the packages import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sgdata import output_names

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Distributions that are imported under another name.
IMPORTED_AS = {
    "pillow": "PIL",
    "pystac-client": "pystac_client",
    "tomli-w": "tomli_w",
    "dask": "distributed",
    "scikit-learn": "sklearn",
}
# Declared but not imported by name, each with the reason.
EXCEPTIONS = {"tensorboard": "torch.utils.tensorboard, which training imports, needs it"}
# Dependencies that the project's assignment prescribes, by package that must import them.
PRESCRIBED = {
    "sgdata": {"rasterio", "xarray", "rioxarray", "osmnx", "geopandas", "pystac_client", "webdataset"},
    "sgmodel": {"torch", "timm"},
}


def imported(package: str) -> set[str]:
    """Return the top-level names that a package imports, in functions or by `import_module` too."""
    names = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    ("package", "requirements"),
    [
        ("sgdata", PROJECT["dependencies"]),
        ("sgdata", PROJECT["optional-dependencies"]["cluster"]),
        ("sgdata", PROJECT["optional-dependencies"]["clouds"]),
        ("sgmodel", PROJECT["optional-dependencies"]["model"]),
        ("sgmodel", PROJECT["optional-dependencies"]["ledger"]),
        ("sgmodel", PROJECT["optional-dependencies"]["fp8"]),
    ],
    ids=("core", "cluster", "clouds", "model", "ledger", "fp8"),
)
def test_every_declared_dependency_is_imported(package: str, requirements: list[str]) -> None:
    declared = {re.split(r"[\[<>=~!;, ]", requirement)[0] for requirement in requirements}
    needed = {IMPORTED_AS.get(name, name) for name in declared - EXCEPTIONS.keys()}
    assert needed <= imported(package), sorted(needed - imported(package))


def test_every_exception_is_declared() -> None:
    declared = " ".join(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["model"])
    assert all(name in declared for name in EXCEPTIONS)
    assert len(EXCEPTIONS) <= 2


@pytest.mark.parametrize("package", PRESCRIBED)
def test_prescribed_packages_are_used(package: str) -> None:
    assert PRESCRIBED[package] <= imported(package)


COMMANDS = """
import contextlib, sys
from sgdata.cli import app
from sgdata.simulation import archive
archive.simulate("city", size_km=2, dates=3)
data = ["segmunich", "--aoi", "city/aoi.geojson", "--stac", "city/catalog.json", "--dates", "2019-04-01/2020-03-31"]
for arguments in (
    ["--help"],
    ["plan", *data, "--allow-holes", "--out", "plan"],
    ["build", *data, "--osm", "city/osm/city.osm", "--out", "build", "--set", "patches.size=64"],
):
    with contextlib.suppress(SystemExit):  # 3 where pixels were never seen clear
        app(arguments, standalone_mode=False)
print([name for name in ("webdataset", "torch") if name in sys.modules])
"""


def test_only_packing_imports_webdataset(tmp_path: Path) -> None:
    """Importing webdataset takes seconds where torch is installed."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plan" / output_names.LOCK).is_file() and (tmp_path / "build" / output_names.SUMS).is_file(), (
        done.stderr
    )
    assert done.stdout.splitlines()[-1] == "[]"
