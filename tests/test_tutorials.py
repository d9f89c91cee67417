"""The tutorials run as they stand, one after the other, on one small simulated city; their picture is small."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from sgdata import files
from sgdata.cli import app
from sgdata.shards import tar_format

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes" / "tutorials"
# Each stands on what those before it made.
ORDER = ("new_city", "own_dataset", "continue_pretraining", "own_labels", "publish")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `sgdata` and `python` are this checkout under this Python."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, start in (("sgdata", "-m sgdata.cli "), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {start}"$@"\n')
        program.chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}


def test_every_tutorial_is_run_here_and_named_in_the_readme() -> None:
    assert {path.stem for path in FOLDER.glob("*.sh")} == set(ORDER)
    readme = (ROOT / "README.md").read_text()
    assert all(f"recipes/tutorials/{name}.sh" in readme for name in ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_the_options_of_a_tutorial_exist(name: str) -> None:
    text = (FOLDER / f"{name}.sh").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("sgdata ")]
    assert lines
    for line in lines:
        command, *words = shlex.split(line.partition("||")[0])[1:]
        parameters = get_command(app).commands[command].params  # type: ignore[attr-defined]
        known = {option for parameter in parameters for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_own_samples_become_shards(tmp_path: Path, environment: dict[str, str]) -> None:
    subprocess.run(
        [sys.executable, str(FOLDER / "own_dataset.py"), str(tmp_path / "ponds")],
        env=environment,
        check=True,
        timeout=300,
    )
    index = tar_format.read_index(tmp_path / "ponds")
    assert index.num_rows == 24
    assert files.read_plain(tmp_path / "ponds" / "contract.json")["splits"] == {"train": 16, "val": 8}


@pytest.mark.slow
def test_the_tutorials_run_one_after_the_other(tmp_path: Path, environment: dict[str, str]) -> None:
    out = tmp_path / "tutorial"
    for name in ORDER:
        done = subprocess.run(
            ["sh", str(FOLDER / f"{name}.sh"), str(out)],
            env=environment, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        # Nothing that a reader would have to wonder at.
        assert not re.search(r"Traceback|Warning", done.stderr), done.stderr
    for made in ("build-page", "ponds-page", "build-own-page", "release/my-city-1.0-page"):
        assert (out / made / "index.html").is_file(), made
    assert (out / "map" / "classes.tif").is_file()
    assert files.read_plain(out / "runs" / "own" / "results.json")["steps"] >= 1


@pytest.mark.slow
def test_the_story_of_the_readme_runs_as_it_stands(tmp_path: Path, environment: dict[str, str]) -> None:
    (story,) = re.findall(r"```sh\n(sgdata simulate out/archive .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    # As it stands but for the length of training; each command's own exit code counts: no audit finds anything.
    short = story.replace("\\\n", " ").replace("-demo-tiny.toml", "-demo-tiny.toml --set training.epochs=1")
    done = subprocess.run(
        ["sh", "-e", "-c", short],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (tmp_path / "out" / "map" / "classes.tif").is_file()
    assert "every file is as it was written" in done.stdout.splitlines()[-1]


def test_the_picture_is_small() -> None:
    assert (FOLDER / "city.png").stat().st_size < 200_000
