"""Test that the names of `sgdata.__all__` resolve to the declared objects, whatever else was imported."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import sgdata

ROOT = Path(__file__).resolve().parents[1]
# Modules of an optional extra, with the package that they need.
OPTIONAL = {"sgdata.composite.omnicloudmask": "omnicloudmask"}


def modules() -> list[str]:
    paths = sorted((ROOT / "sgdata").rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def declared() -> dict[str, str]:
    """Return the public names, and the module that each is imported from for type checkers."""
    tree = ast.parse((ROOT / "sgdata" / "__init__.py").read_text())
    homes = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sgdata."):
            homes |= {alias.asname or alias.name: f"{node.module}:{alias.name}" for alias in node.names}
    return homes


@pytest.fixture(scope="module")
def _every_module_is_imported() -> None:
    for name in modules():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != OPTIONAL.get(name):
                raise


@pytest.mark.usefixtures("_every_module_is_imported")
@pytest.mark.parametrize("name", sorted(sgdata.__all__))
def test_no_sub_package_shadows_a_public_name(name: str) -> None:
    module, _, attribute = declared()[name].partition(":")
    value = getattr(sgdata, name)
    assert value is getattr(importlib.import_module(module), attribute)
    assert callable(value)
    assert not inspect.ismodule(value)
    assert inspect.getdoc(value)


def test_type_checkers_and_python_agree_about_the_names() -> None:
    assert set(declared()) == set(sgdata.__all__)
