"""Test the command line of the training programs: lists, refusals in one line, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_shards import write

from sgdata import package_data, terminal
from sgmodel import cli, commands
from sgmodel.recipes import pretrain

DEMO = str(package_data.folder("recipes") / "train" / "pretrain-demo-tiny.toml")


def call(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        commands.run_training(pretrain.PROGRAM, argv)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_without_a_recipe_it_lists_those_it_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    assert "pretrain-demo-tiny: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([DEMO], "--shards is missing: give the folder that 'sgdata shard' wrote"),
        (["segment-demo-tiny", "--shards", "x"], "is a recipe of 'sgmodel segment'; give it to that command"),
        (["nowhere.toml", "--shards", "x"], "nowhere.toml: no such file"),
        (
            [DEMO, "--shards", "nowhere"],
            "--shards nowhere: no index.parquet there; give a folder that 'sgdata shard' wrote",
        ),
        ([DEMO, "--shards", "x", "--threads", "0"], "--threads '0': expected greater than or equal to 1"),
        ([DEMO, "--shards", "x", "--set", "training.learning=1"], "'training.learning' is not a setting"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(argv: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*argv) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert line in said[0]


@pytest.mark.parametrize(
    "words",
    [
        "convert x --out y --at-least 2", "convert x --out y --at-least nan", "predict --threads 0",
        "reproduce city --workers 0", "segment segment-demo-tiny --save-minutes -1", "segment x --stop-after 0",
        "classify x --cache-gb -1", "classify x --retry-minutes inf",
    ],
)  # fmt: skip
def test_numbers_of_options_out_of_range_are_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        terminal.run(cli.app, "sgmodel", words.split(), "sgmodel")
    *_, option, value = words.split()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"sgmodel: {option} '{value}': expected ")


def test_a_named_folder_must_contain_that_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, train=2, val=1)
    assert call(DEMO, "--shards", f"fmow={folder}") == 2
    assert "the folder holds 'toy', expected 'fmow'" in capsys.readouterr().err
    assert call(DEMO, "--shards", f"toy={folder}", "--dry-run", "--set", "model.image_px=32") == 0


def test_an_unknown_device_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, train=2, val=1)
    assert call(DEMO, "--shards", str(folder), "--device", "tpu") == 2
    assert "--device 'tpu': expected auto, cpu, cuda or cuda:N" in capsys.readouterr().err
