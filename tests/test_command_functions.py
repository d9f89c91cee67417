"""Test that every command has one public function with the same arguments, and prints its result as JSON."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import synthetic_shards
from model_commands import sgmodel as run_sgmodel
from typer.main import get_command
from typer.testing import CliRunner

import sgdata
import sgmodel
from sgdata import cli, files
from sgdata.commands.builds import chosen_recipe
from sgdata.errors import SettingError
from sgmodel import cli as model_cli

COMMANDS: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]
MODEL_COMMANDS: dict[str, Any] = get_command(model_cli.app).commands  # type: ignore[attr-defined]
RENAMED = {"catalog": "list_catalog", "demo": "run_demo", "status": "list_status", "recipes": "list_recipes"}
PRINTING = {"as_json", "log_format"}


def function_of(package: Any, command: str) -> Any:
    return getattr(package, RENAMED.get(command, command.replace("-", "_")))


@pytest.mark.parametrize(
    ("package", "command"),
    [*((sgdata, name) for name in COMMANDS), *((sgmodel, name) for name in MODEL_COMMANDS)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_command_has_a_function_with_the_same_arguments(package: Any, command: str) -> None:
    options = (COMMANDS if package is sgdata else MODEL_COMMANDS)[command].params
    function = function_of(package, command)
    assert {each.name for each in options} - PRINTING == set(inspect.signature(function).parameters)
    required = {each.name for each in options if each.required}
    empty = inspect.Parameter.empty
    assert {each.name for each in inspect.signature(function).parameters.values() if each.default is empty} == required
    assert "--json" in {option for each in options for option in each.opts}
    assert "--log-format" in {option for each in options for option in each.opts}
    assert function.__name__ in {command.replace("-", "_")}
    assert str(function.__module__).startswith(package.__name__)


def test_functions_take_texts_and_return_results(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files.write(tmp_path / "a", b"a")
    files.write_sums(tmp_path)
    assert sgdata.verify(str(tmp_path)) == []  # type: ignore[arg-type]
    files.write(tmp_path / "b", b"b")
    with caplog.at_level(logging.WARNING, "sgdata"):
        differences = sgdata.verify(tmp_path)
    assert len(differences) == 1 and caplog.messages == differences
    assert sgdata.list_catalog("eurosat")["bands in file order"]
    assert "city" in sgmodel.list_recipes()
    with pytest.raises(AttributeError, match="it has classify"):
        _ = sgmodel.pretrian


def test_a_single_item_is_taken_where_several_are_allowed(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="expected SPLIT=FILE"):
        sgdata.shard("eurosat", split_list="train", source=tmp_path)  # type: ignore[arg-type]


def test_a_recipe_is_taken_in_place_of_its_name() -> None:
    made = sgdata.build_recipe("segmunich", {"bbox": (11.5, 48.1, 11.6, 48.2)}, ["patches.stride=32"])
    assert chosen_recipe(made, None, {}, None) == made
    assert chosen_recipe(made, None, {"composite": "median"}, None).composite.method == "median"


def run(*words: str) -> tuple[int, Any]:
    done = CliRunner().invoke(cli.app, [*words, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_results_are_printed_as_json(tmp_path: Path) -> None:
    files.write(tmp_path / "a", b"a")
    files.write_sums(tmp_path)
    assert run("verify", str(tmp_path)) == (0, {"findings": [], "folder": str(tmp_path), "remarks": []})
    files.write(tmp_path / "b", b"b")
    code, document = run("verify", str(tmp_path))
    assert (code, document["findings"]) == (3, ["b: not listed"])
    assert run("catalog")[1].keys() >= {"fmow", "eurosat"}
    code, document = run("fetch", "eurosat", "--dry-run", "--out", str(tmp_path / "data"))
    assert code == 0 and document["folder"] == str(tmp_path / "data") and document["files"]


def test_what_a_program_prints_is_a_member_of_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = synthetic_shards.write(tmp_path / "shards")
    words = ("segment", "segment-demo-tiny", "--shards", shards, "--out", tmp_path / "run", "--dry-run", "--json")
    assert run_sgmodel(*words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == str(tmp_path / "run") and not document["finished"]
    assert "parameters" in document["printed"][0]
