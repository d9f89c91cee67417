"""Test that every option of every command which takes one value is refused if it is given twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.main import get_command

from sgdata import cli, terminal
from sgmodel import cli as model_cli
from sgmodel.recipes import pretrain

APPS = {"sgdata": cli.app, "sgmodel": model_cli.app}


def options(app: typer.Typer) -> Iterator[tuple[str, Any]]:
    group: Any = get_command(app)
    for name, command in sorted(group.commands.items()):
        yield from ((name, each) for each in command.params if each.param_type_name == "option")


def twice(app: typer.Typer, program: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        terminal.run(app, program, words, program)
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("program", sorted(APPS))
def test_an_option_of_one_value_is_refused_if_it_is_given_twice(program: str) -> None:
    tried = 0
    group: Any = get_command(APPS[program])
    terminal.refuse_repeated_options(group)
    for command, option in options(APPS[program]):
        if option.multiple or option.is_eager:  # which ends the program where it is read
            continue
        value = [] if option.is_flag else ["3"] * option.nargs
        words = [option.opts[-1], *value]
        with pytest.raises(typer.BadParameter.__base__, match=re.escape(f"'{option.opts[0]}' was given 2 times")):
            group([command, *words, *words], standalone_mode=False)
        tried += 1
    assert tried > 40


def test_the_same_value_by_both_spellings_and_in_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = twice(cli.app, "sgdata", ["shard", "eurosat", "-q", "--quiet"], capsys)
    assert code == 2
    assert "'-q' was given 2 times" in err
    from sgmodel import commands

    with pytest.raises(SystemExit) as ended:
        commands.run_training(pretrain.PROGRAM, ["pretrain-demo-tiny", "--out", "a", "--out", "b"])
    assert ended.value.code == 2
    assert "'--out' was given 2 times" in capsys.readouterr().err
    code, err = twice(cli.app, "sgdata", ["shard", "nowhere", "--set", "a=1", "--set", "b=2"], capsys)
    assert "no reader for dataset 'nowhere'" in err
