"""The README is true: its commands exist with the options it shows, its files are there, its Python names import."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import sgdata
from sgdata.cli import app

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in joined.splitlines() if line.strip() and line.strip()[0] != "#"]


def test_there_are_commands_to_check() -> None:
    assert len(shell_lines()) >= 8


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("sgdata ")])
def test_sgdata_commands_parse(line: str) -> None:
    name, *words = shlex.split(line)[1:]
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("python -m sgmodel")])
def test_programs_and_their_recipes_exist(line: str) -> None:
    words = shlex.split(line)
    assert importlib.util.find_spec(words[2]), line
    assert all((ROOT / word).exists() for word in words if word.startswith("recipes/")), line


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("make ")])
def test_make_targets_exist(line: str) -> None:
    target = shlex.split(line)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("sh ")])
def test_scripts_exist(line: str) -> None:
    assert (ROOT / shlex.split(line)[1]).is_file(), line


def test_every_command_of_the_readme_is_of_a_kind_that_is_checked() -> None:
    known = ("sgdata ", "python -m sgmodel", "make ", "sh ", "python3 -m venv", ".venv/bin/pip", "torchrun ")
    assert [line for line in shell_lines() if not line.startswith(known)] == []


def test_links_and_pictures_are_there() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_citation_has_what_the_format_wants() -> None:
    """Citation File Format 1.2.0: its four required keys, and a version that is that of the package."""
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^cff-version: 1\.2\.0$", text, re.MULTILINE)
    for key in ("message", "title", "authors", "license", "version"):
        assert re.search(rf"^{key}:", text, re.MULTILINE), key
    assert f"version: {sgdata.__version__}" in text
    assert re.search(r"^  - (name|family-names): ", text, re.MULTILINE)


def test_python_blocks_compile() -> None:
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        compile(block, "README.md", "exec")


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"^(RESULTS|BENCH|TODO|TBD)\b", TEXT, re.MULTILINE)
