"""Test the templates for Slurm: syntax, the commands that they start, and that stopped jobs are requeued."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from typer.main import get_command

from sgdata.cli import app
from sgmodel.cli import app as model_app

TEMPLATES = Path(__file__).resolve().parents[1] / "recipes" / "slurm"
PLACES = "ulm\t--place\tUlm\t--dates\t2023-04-01/2024-03-31\ntoelz\t--place\tBad Toelz\nno options\n"


def start(words: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", *words], cwd=folder, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def run(words: list[str], folder: Path, **environment: str) -> tuple[int, list[str], str]:
    process = start(words, folder, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, shlex.split(out), err


def options(command: object, words: list[str]) -> None:
    known = {option for each in command.params for option in each.opts}  # type: ignore[attr-defined]
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*.sbatch")), ids=lambda path: path.name)
def test_the_syntax_is_that_of_bash(template: Path, tmp_path: Path) -> None:
    assert run(["-n", str(template)], tmp_path) == (0, [], "")
    assert "#SBATCH --signal=B:USR1@300" in template.read_text()


def test_a_task_of_the_array_builds_its_place(tmp_path: Path) -> None:
    (tmp_path / "places.tsv").write_text(PLACES)
    words = [str(TEMPLATES / "build-array.sbatch"), "places.tsv", "builds"]
    code, made, _ = run(words, tmp_path, SLURM_ARRAY_TASK_ID="2", SLURM_CPUS_PER_TASK="3", DRY_RUN="1")
    assert code == 0
    (tmp_path / "places.tsv").write_bytes(PLACES.replace("\n", "\r\n").encode())
    assert run(words, tmp_path, SLURM_ARRAY_TASK_ID="2", SLURM_CPUS_PER_TASK="3", DRY_RUN="1") == (0, made, "")
    assert made[:3] == ["sgdata", "build", "segmunich"]
    assert made[3:] == [
        "--place", "Bad Toelz", "--out", "builds/toelz", "--workers", "3", "--log-format", "json",
    ]  # fmt: skip
    options(get_command(app).commands["build"], made)  # type: ignore[attr-defined]
    for number in ("3", "9"):
        code, _, err = run(words, tmp_path, SLURM_ARRAY_TASK_ID=number, DRY_RUN="1")
        assert code == 2 and f"line {number} is" in err


def test_the_training_is_one_torchrun_a_node(tmp_path: Path) -> None:
    words = [str(TEMPLATES / "train.sbatch"), "pretrain", "pretrain-fmow-huge", "shards", "out", "--parallel", "fsdp"]
    code, made, _ = run(words, tmp_path, SLURM_NNODES="4", SLURM_JOB_ID="7", DRY_RUN="1")
    assert code == 0
    assert made[:3] == ["torchrun", "--nnodes", "4"]
    at = made.index("-m")
    assert made[at + 1 : at + 3] == ["sgmodel.recipes.pretrain", "pretrain-fmow-huge"]
    assert "localhost:20007" in made
    options(get_command(model_app).commands["pretrain"], made[at + 1 :])  # type: ignore[attr-defined]


@pytest.mark.parametrize(("code", "ends", "requeued"), [(130, 130, True), (3, 0, False), (0, 0, False), (2, 2, False)])
def test_a_build_that_is_stopped_is_requeued(code: int, ends: int, requeued: bool, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    # Slurm cannot run here, nor a build until the end of its time: programs that note what they are asked.
    texts = {
        "sgdata": f"trap 'exit {code}' USR1; touch started; while :; do sleep 0.1; done",
        "scontrol": 'echo "$@" > requeued',
    }
    for name, text in texts.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "places.tsv").write_text(PLACES)
    process = start(
        [str(TEMPLATES / "build-array.sbatch"), "places.tsv", "builds"], tmp_path,
        PATH=f"{programs}:{os.environ['PATH']}", SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="5",
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == ends, err
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 5_1\n"
