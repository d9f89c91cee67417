"""The recipes that come with the package: list them, and find one by name."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from sgdata import local_paths, package_data
from sgdata.errors import SettingError

FOLDERS = ("train", "predict", "ledger")
HEADER = ("What", "Needs", "Cost")


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe file of the package with the three lines of its header.

    Attributes:
        path: The TOML file.
        program: Name of the program that reads it.
        what: What it trains or computes.
        needs: Which data and weights it needs.
        cost: How long it takes, on which machine.
    """

    path: Path
    program: str
    what: str
    needs: str
    cost: str


def recipe_files(program: str | None = None) -> list[RecipeFile]:
    """Return the recipes of the package, sorted by file name; only those of `program` if given."""
    paths = [path for name in FOLDERS for path in sorted((package_data.folder("recipes") / name).glob("*.toml"))]
    headers = [_read_header(path) for path in paths]
    return [file for file in headers if program in (None, file.program)]


def _read_header(path: Path) -> RecipeFile:
    text = path.read_text(encoding="utf-8")
    header = {key: re.search(rf"^# {key}: (.*)$", text, re.MULTILINE) for key in HEADER}
    what, needs, cost = (match[1] if match else "" for match in header.values())
    program = {"predict": "predict", "ledger": "reproduce"}.get(path.parent.name, path.stem.partition("-")[0])
    return RecipeFile(path=path, program=program, what=what, needs=needs, cost=cost)


def find(text: str, program: str) -> Path:
    """Return the recipe file named by `text`: a path, or the name of a recipe of the package.

    Args:
        text: Path or name.
        program: Program that will read it.

    Raises:
        SettingError: `text` is neither, or a recipe of the package for another program.
    """
    path = _find(text)
    for file in recipe_files():
        if file.path.resolve() == path.resolve() and file.program != program:
            other = file.program.replace("_", "-")
            raise SettingError(f"{path}: is a recipe of 'sgmodel {other}'; give it to that command")
    return path


def _find(text: str) -> Path:
    local_paths.require_local(text, "recipe", writes=False)
    path = Path(text)
    if path.exists():
        return path
    recipes = {file.path.stem: file.path for file in recipe_files()}
    name = path.name.removesuffix(".toml")
    if text in (name, f"{name}.toml") and name in recipes:
        return recipes[name]
    close = difflib.get_close_matches(name, recipes, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise SettingError(f"{text}: no such file and no recipe of the package; {hint}'sgmodel recipes' lists them")
