"""Test that paths given as URLs are refused before anything is read or written, for every path of every command."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from test_release import finished_build
from typer.main import get_command

from sgdata import cli, local_paths, output_lock, terminal
from sgdata.errors import SettingError
from sgmodel import cli as model_cli

APPS = {"sgdata": cli.app, "sgmodel": model_cli.app}


def has_path(hint: Any) -> bool:
    return hint is Path or any(has_path(part) for part in get_args(hint))


def paths() -> list[tuple[str, str, str]]:
    """Return program, command and parameter of every path that a command takes, by the signatures of its function."""
    found = []
    for program, app in APPS.items():
        for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
            assert command.callback is not None
            hints = get_type_hints(command.callback)
            assert set(inspect.signature(command.callback).parameters) == {each.name for each in command.params}
            found += [(program, name, param.name) for param in command.params if has_path(hints[param.name])]
    return found


def said(program: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        terminal.run(APPS[program], program, words)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, ""), err
    assert err.startswith(f"{program}: ") and err.count("\n") == 1, err
    return err.removeprefix(f"{program}: ").rstrip("\n")


def test_the_commands_take_many_paths() -> None:
    assert len(paths()) > 50
    assert {("sgdata", "build", "out"), ("sgdata", "show", "layer"), ("sgmodel", "segment", "cache")} <= set(paths())


@pytest.mark.parametrize("address", ["s3://bucket/x?X-Amz-Signature=0a1b", "/vsigs/bucket/x"])
def test_every_path_refuses_an_address(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for program, command, parameter in paths():
        params = get_command(APPS[program]).commands[command].params  # type: ignore[attr-defined]
        (param,) = [each for each in params if each.name == parameter]
        option = param.opts[0] if param.opts[0].startswith("-") else ""
        before = [each for each in params[: params.index(param)] if not each.opts[0].startswith("-")]
        words = [option, address] if option else [*("x" for _ in before), address]
        line = said(program, [command, *words], capsys)
        assert line.startswith(f"{option or parameter.upper()} '"), (command, line)
        assert "is an address, expected a local path; " in line and "0a1b" not in line
        written = "give a local folder and copy it there afterwards" in line
        assert written == (parameter in terminal.WRITTEN), (command, parameter, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("sgdata", "plan segmunich --bbox 11 48 11.1 48.1 --dates 2020-01-01/2020-02-01 --stac {}"),
        ("sgdata", "drift toy.lock.json --stac {}"),
        ("sgdata", "build segmunich --bbox 11 48 11.1 48.1 --dates 2020-01-01/2020-02-01 --stac x --osm {}"),
        ("sgdata", 'build segmunich --set out="{}"'),
        ("sgdata", 'shard eurosat --set source="{}"'),
        ("sgdata", 'shard eurosat --set out="{}"'),
        ("sgdata", 'fetch eurosat --out "{}"'),
        ("sgdata", "shard eurosat --split-list train={}"),
        ("sgmodel", "segment {} --shards toy"),
        ("sgmodel", "predict --input toy --weights {}"),
        ("sgmodel", "convert {} --out o"),
        ("sgmodel", "reproduce city --shards toy={}"),
    ],
)
def test_texts_that_are_paths_refuse_an_address(
    program: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "drift" in words:
        finished_build(tmp_path / "toy")
        words = words.replace("toy.lock.json", "toy")
    line = said(program, [word.replace("{}", "s3://bucket/x").replace('"', "") for word in words.split(" ")], capsys)
    assert "is an address, expected a local path; " in line
    assert "aws s3 cp" in line
    assert {path.name for path in tmp_path.iterdir()} <= {"toy"}


def test_names_with_colons_are_local_paths(tmp_path: Path) -> None:
    for text in ("out:1", "C:/data", "./s3:/x", "hf:owner/name", "2020:01/x", "", "/vsi"):
        local_paths.require_local(text, "--out", writes=True)
    with pytest.raises(SettingError, match="give the path without file://"):
        local_paths.require_local("file:///data", "--out", writes=True)


def test_outputs_of_python_refuse_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(SettingError, match="--out 's3:/bucket/x': is an address"),
        output_lock.only_writer(Path("s3://bucket/x")),
    ):
        pass
    assert not list(tmp_path.iterdir())
