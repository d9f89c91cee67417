"""Training on two processes against one: the same curve, the same files, a clear end when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic_shards import write

from sgdata import catalog

RECIPES = catalog.folder("recipes")
SETTINGS = (
    "model.image_px=32",
    "model.width=32",
    "model.depth=2",
    "decoder.width=32",
    "augment.crop_area=[0.5, 1.0]",
    "training.batch=4",
    "training.accumulate=2",
    "training.epochs=9",
    "training.log_every=1",
    "picture_every=1000",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("ranks") / "shards", train=6, val=2)


def command(folder: Path, out: Path, *more: str, ranks: int) -> list[str]:
    """The same words for any number of ranks, behind `python` or `torchrun`."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    program = ["-m", "sgmodel.recipes.pretrain", str(RECIPES / "train" / "pretrain-demo-tiny.toml")]
    settings = [f"--set={text}" for text in SETTINGS]
    places = ["--shards", str(folder), "--out", str(out), "--device=cpu", "--threads=1", "-q"]
    return [sys.executable, *torchrun, *program, *places, *settings, *more]


def run(folder: Path, out: Path, *more: str, ranks: int, expected: int = 0) -> str:
    done = subprocess.run(
        command(folder, out, *more, ranks=ranks), cwd=RECIPES.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == expected, done.stderr
    return done.stderr


def losses(out: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run(folder, out, ranks=1)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_have_the_curve_of_one(folder: Path, alone: Path, tmp_path: Path, parallel: str) -> None:
    run(folder, tmp_path / "run", "--parallel", parallel, ranks=2)
    assert len(losses(alone)) == 14
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-6)
    np.testing.assert_allclose(losses(tmp_path / "run", "grad_norm"), losses(alone, "grad_norm"), rtol=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(folder: Path, alone: Path, tmp_path: Path) -> None:
    # A rank that stops before its end exits with 3, which torchrun reports as its own failure, 1.
    run(folder, tmp_path / "run", "--parallel=fsdp", "--stop-after=5", ranks=2, expected=1)
    run(folder, tmp_path / "run", "--stop-after=5", ranks=1, expected=3)
    run(folder, tmp_path / "run", "--parallel=ddp", ranks=2)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-6)


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_in_one_line_and_it_goes_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ("--set=training.epochs=3000", "--save-minutes=0")
    child = subprocess.Popen(
        command(folder, out, *more, ranks=2), cwd=RECIPES.parent, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (out / "metrics.jsonl").exists():
        time.sleep(0.1)
    while time.monotonic() < deadline and (out / "metrics.jsonl").read_text().count("\n") < 8:
        time.sleep(0.1)
    os.kill(workers(child.pid)[1], signal.SIGKILL)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 1
    assert "another process of this run has gone" in said
    assert "the same command goes on from checkpoint-last" in said
    done = json.loads((out / "checkpoint-last" / "training.json").read_text())["steps"]
    assert done > 3
    run(folder, out, *more, "--stop-after=2", ranks=1, expected=3)
    assert json.loads((out / "checkpoint-last" / "training.json").read_text())["steps"] == done + 2


def workers(launcher: int) -> list[int]:
    """The rank processes below a torchrun, in order of rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    found = {}
    for pid in children:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks = [word for word in words if word.startswith(b"RANK=")]
        if ranks:
            found[ranks[0]] = int(pid)
    return [found[name] for name in sorted(found)]
