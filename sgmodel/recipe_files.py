"""The recipes that come with the package: list them, find one by name, describe the settings of a recipe class."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgdata import catalog
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
    paths = [path for name in FOLDERS for path in sorted((catalog.folder("recipes") / name).glob("*.toml"))]
    found = [_read_header(path) for path in paths]
    return [file for file in found if program in (None, file.program)]


def _read_header(path: Path) -> RecipeFile:
    text = path.read_text(encoding="utf-8")
    header = {key: re.search(rf"^# {key}: (.*)$", text, re.MULTILINE) for key in HEADER}
    what, needs, cost = (match[1] if match else "" for match in header.values())
    program = {"predict": "predict", "ledger": "reproduce"}.get(path.parent.name, path.stem.partition("-")[0])
    return RecipeFile(path=path, program=program, what=what, needs=needs, cost=cost)


def find(text: str) -> Path:
    """Return the recipe file named by `text`: a path, or the name of a recipe of the package.

    Raises:
        SettingError: `text` is neither.
    """
    path = Path(text)
    if path.exists():
        return path
    known = {file.path.stem: file.path for file in recipe_files()}
    name = path.name.removesuffix(".toml")
    if text in (name, f"{name}.toml") and name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise SettingError(f"{text}: no such file and no recipe of the package; {hint}'sgmodel recipes' lists them")


# --- settings ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key of a recipe.

    Attributes:
        key: Dotted name, as `--set` takes it.
        type: Type in TOML terms.
        default: Default in TOML spelling, "required" if there is none.
        meaning: Description from the class docstring.
    """

    key: str
    type: str
    default: str
    meaning: str


def settings(kind: type[Any], prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a recipe dataclass and of the dataclasses inside it."""
    hints, meanings = typing.get_type_hints(kind), _meanings(kind)
    for field in dataclasses.fields(kind):
        key, hint = prefix + field.name, hints[field.name]
        inner = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
        yield Setting(key=key, type=_type_name(hint), default=_default(field), meaning=meanings.get(field.name, ""))
        for part in inner:
            repeated = typing.get_origin(hint) is tuple
            yield from settings(typing.cast("type[Any]", part), f"{key}[]." if repeated else f"{key}.")


def _meanings(kind: type[Any]) -> dict[str, str]:
    """Return the descriptions in the `Attributes:` sections of a class and its bases, by field name."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", section, re.MULTILINE):
            meanings[name] = " ".join(text.split())
    return meanings


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(repr(value) for value in arguments)
    if origin is tuple:
        inner = dict.fromkeys(_type_name(part) for part in arguments if part is not Ellipsis)
        return f"list of {' | '.join(inner)}"
    if origin is dict:
        return f"table of {_type_name(arguments[1])}"
    if arguments:
        return " | ".join(_type_name(part) for part in arguments if part is not type(None))
    return "table" if dataclasses.is_dataclass(hint) else str(getattr(hint, "__name__", hint))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "empty" if field.default_factory in (dict, tuple) else "defaults of the table"
    if field.default is dataclasses.MISSING:
        return "required"
    return (
        "unset"
        if field.default is None
        else repr(list(field.default) if isinstance(field.default, tuple) else field.default)
    )
