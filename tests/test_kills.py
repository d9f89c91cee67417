"""Test that runs killed within an epoch, alone or as one of two ranks, resume to the curve of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_shards import contract, sample, write
from test_ranks import RECIPES, SMALL, command, finished, losses, workers

from sgdata.shards import write_shards

SETTINGS = (
    *SMALL,
    "training.epochs=12",
    "training.ema_decay=0.5",
    'accept=["normalisation"]',
    "picture_every=5",
)
STAGES = """
[[stages]]
data = "toy"
image_px = 16
epochs = 6
lr = 2e-3

[[stages]]
data = "other"
image_px = 32
epochs = 6
lr = 1e-3
"""
# What is learned from, and how many steps of four samples each folder of the run then has.
KINDS = {
    "plain": {"": 21},
    "mixture": {"": 36},
    "progressive": {"stage-1-toy": 11, "stage-2-other": 8},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write the datasets `toy` (7 training samples) and `other` (5): no epoch is a whole number of steps."""
    place = tmp_path_factory.mktemp("kills")
    made = [replace(sample(n, "train" if n < 5 else "val", 32, 32), key=f"other-{n}") for n in range(6)]
    write_shards.write(made, place / "other", contract=replace(contract(32), dataset="other"))
    return [write(place / "toy", train=7, val=2), place / "other"]


def words(kind: str, folders: list[Path], out: Path, *more: str, ranks: int) -> list[str]:
    """Return the command of a run of `kind`, the same for any number of ranks."""
    mixed = ("training.mixture.toy=2", "training.mixture.other=1") if kind == "mixture" else ()
    made = command(folders[0], out, *more, ranks=ranks, overrides=(*SETTINGS, *mixed))
    if kind == "progressive":
        path = next(word for word in made if word.endswith(".toml"))
        recipe = out.parent / "progressive.toml"
        recipe.write_text(Path(path).read_text() + STAGES)
        made[made.index(path)] = str(recipe)
    return made if kind == "plain" else [*made, "--shards", str(folders[1])]


LONG = ("mixture",)  # each kind takes two minutes


@pytest.fixture(scope="module", params=[pytest.param(k, marks=pytest.mark.long) if k in LONG else k for k in KINDS])
def undisturbed(
    request: pytest.FixtureRequest, folders: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp(request.param) / "run"
    finished(words(request.param, folders, out, ranks=1))
    assert {name: len(losses(out / name)) for name in KINDS[request.param]} == KINDS[request.param]
    return request.param, out


def steps(kind: str, out: Path) -> int:
    """Return the number of loss lines written so far in all folders of the run."""
    return sum(len(losses(out / name)) for name in KINDS[kind] if (out / name / "metrics.jsonl").exists())


def disturbed(made: list[str], kind: str, out: Path, *, more: int, how: signal.Signals, ranks: int = 1) -> int:
    """Run until `more` further steps are logged, signal the process or one of its ranks, and return the exit code."""
    began = steps(kind, out)
    child = subprocess.Popen(made, cwd=RECIPES.parent, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None and steps(kind, out) < began + more:
        time.sleep(0.01)
    assert child.poll() is None, "ended before it could be disturbed"
    os.kill(child.pid if ranks == 1 or how is signal.SIGTERM else workers(child.pid)[-1], how)
    return child.wait(timeout=120)


@pytest.mark.slow
def test_one_process_killed_again_and_again_ends_with_the_same_bits(
    undisturbed: tuple[str, Path], folders: list[Path], tmp_path: Path
) -> None:
    (kind, whole), out = undisturbed, tmp_path / "run"
    made = words(kind, folders, out, "--save-minutes=0", ranks=1)
    for more, how in ((5, signal.SIGKILL), (4, signal.SIGTERM), (3, signal.SIGKILL)):
        assert disturbed(made, kind, out, more=more, how=how) == (130 if how is signal.SIGTERM else -9)
    finished(made)
    for name in KINDS[kind]:
        assert (out / name / "SHA256SUMS").read_bytes() == (whole / name / "SHA256SUMS").read_bytes()


@pytest.mark.slow
def test_one_of_two_ranks_killed_then_one_process_then_four(
    undisturbed: tuple[str, Path], folders: list[Path], tmp_path: Path
) -> None:
    (kind, whole), out = undisturbed, tmp_path / "run"
    # Each kind under one of them: testing all pairs takes minutes and finds nothing more.
    more = ("--save-minutes=0", f"--parallel={'fsdp' if kind == 'plain' else 'ddp'}")
    two, one, four = (words(kind, folders, out, *more, ranks=ranks) for ranks in (2, 1, 4))
    assert disturbed(two, kind, out, more=4, how=signal.SIGKILL, ranks=2) == 1
    assert disturbed(one, kind, out, more=4, how=signal.SIGKILL) == -signal.SIGKILL
    assert disturbed(two, kind, out, more=3, how=signal.SIGTERM, ranks=2) != 0
    finished(four)
    for name in KINDS[kind]:
        for figure in ("loss", "val_loss_token"):
            np.testing.assert_allclose(losses(out / name, figure), losses(whole / name, figure), rtol=2e-6)
        place = json.loads((out / name / "checkpoint-last" / "training.json").read_text())
        assert place["steps"] == KINDS[kind][name]
