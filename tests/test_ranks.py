"""Compare training on two processes with one: equal curves and files, and one clear message when one is killed."""

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
from synthetic_shards import contract, sample, write, write_pairs, write_scenes

from sgdata import package_data
from sgdata.shards import shard_index, write_shards

RECIPES = package_data.folder("recipes")
SMALL = (
    "model.image_px=32",
    "model.width=32",
    "model.depth=2",
    "decoder.width=32",
    "augment.crop_area=[0.5, 1.0]",
    "training.batch=4",
    "training.accumulate=2",
)
SETTINGS = (*SMALL, "training.epochs=9", "training.log_every=1", "picture_every=1000")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("ranks") / "shards", train=6, val=2)


SEGMENT = (
    "model.encoder.image_px=32",
    "model.encoder.width=32",
    "model.encoder.depth=2",
    "model.encoder.drop_path=0.0",
    "model.head.dropout=0.0",
    "model.head.dropout_levels=0.0",
    "augment.crop_area=[0.5, 1.0]",
    "training.batch=4",
    "training.accumulate=2",
    "training.epochs=6",
    "training.log_every=1",
)


def command(
    folder: Path, out: Path, *more: str, ranks: int, program: str = "pretrain", overrides: tuple[str, ...] = SETTINGS
) -> list[str]:
    """Return the command of a run on any number of ranks, behind `python` or `torchrun`."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    settings = [f"--set={text}" for text in overrides]
    places = ["--shards", str(folder), "--out", str(out), "--device=cpu", "--threads=1", "-q"]
    recipe = str(RECIPES / "train" / f"{program}-demo-tiny.toml")
    return [sys.executable, *torchrun, "-m", f"sgmodel.recipes.{program}", recipe, *places, *settings, *more]


def run(folder: Path, out: Path, *more: str, ranks: int, expected: int = 0) -> str:
    return finished(command(folder, out, *more, ranks=ranks), expected)


def finished(words: list[str], expected: int = 0) -> str:
    done = subprocess.run(words, cwd=RECIPES.parent, capture_output=True, text=True, check=False)
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
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_mean_over_labelled_pixels_does_not_see_the_ranks(tmp_path: Path, parallel: str) -> None:
    made = [sample(number, "train" if number < 6 else "val", 32, 32) for number in range(8)]
    for number, one in enumerate(made):  # from nearly all pixels labelled to nearly none
        one.arrays["mask"][: 5 * number] = 255
    folder = tmp_path / "shards"
    write_shards.write(made, folder, contract=contract(32))
    for ranks in (1, 2):
        more = ("--parallel", parallel) if ranks == 2 else ()
        finished(command(folder, tmp_path / str(ranks), *more, ranks=ranks, program="segment", overrides=SEGMENT))
    one, two = (losses(tmp_path / str(ranks)) for ranks in (1, 2))
    assert len(one) == 9
    np.testing.assert_allclose(two, one, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["finetune", "linear-probe"])
def test_weighted_change_and_a_probe_do_not_see_the_ranks(tmp_path: Path, mode: str) -> None:
    folder, kept = write_pairs(tmp_path / "shards"), [text for text in SEGMENT[1:5] if "levels" not in text]
    more = ("model.encoder.image_px=16", "windows.px=16", "windows.stride=8", "val_split=test")
    size = ("training.batch=8", "training.epochs=1", "training.log_every=1", f"mode={mode}")
    settings = (*kept, *more, *size)
    for ranks in (1, 2):
        finished(command(folder, tmp_path / str(ranks), ranks=ranks, program="detect_change", overrides=settings))
    one, two = (losses(tmp_path / str(ranks)) for ranks in (1, 2))
    assert len(one) > 5
    np.testing.assert_allclose(two, one, rtol=1e-6)


def numbers(value: object) -> list[float]:
    """Return the numbers inside a JSON document, in the order of its keys, without losses: each rank draws dropout."""
    if isinstance(value, dict):
        kept = sorted(value.keys() - {"loss_first", "loss_last"})
        return [number for key in kept for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for one in value for number in numbers(one)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.slow
def test_two_ranks_score_every_sample_once_and_as_one_does(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write(shards / "masks", train=8, val=5)
    write_pairs(shards / "pairs")
    write_scenes(shards / "scenes", train=8, val=7)
    environment = os.environ | {"PYTHONPATH": f"{RECIPES.parent}:{RECIPES.parent / 'tests'}", "OMP_NUM_THREADS": "1"}
    for ranks, parallel in ((1, "ddp"), (2, "ddp"), (2, "fsdp")):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if ranks > 1 else []
        words = [sys.executable, *torchrun, "-m", "score_programs", shards, tmp_path / f"{ranks}{parallel}", parallel]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)  # type: ignore[arg-type]
        assert done.returncode == 0, done.stderr
    for alone in sorted((tmp_path / "1ddp").glob("*/results.json")):
        one = json.loads(alone.read_text())
        for together in ("2ddp", "2fsdp"):
            two = json.loads((tmp_path / together / alone.parent.name / alone.name).read_text())
            assert two.keys() == one.keys()
            assert two.get("confusion") == one.get("confusion")
            np.testing.assert_allclose(numbers(two), numbers(one), rtol=1e-5, atol=1e-6, err_msg=alone.parent.name)
        if alone.parent.name in ("segment", "tiles"):
            assert np.sum(one["confusion"]) == 5 * (32 * 32 - 4)
    assert len(list(tmp_path.glob("*/*/results.json"))) == 3 * 8


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_same_command_resumes(folder: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "run", ("--set=training.epochs=3000",)
    child = subprocess.Popen(
        command(folder, out, *more, ranks=2), cwd=RECIPES.parent, stderr=subprocess.PIPE, text=True
    )
    wait_for_steps(out, 8)
    os.kill(child.pid, signal.SIGTERM)
    _, said = child.communicate(timeout=120)
    assert child.returncode != 0, said  # torchrun's own exit code after a signal
    done = json.loads((out / "checkpoint-last" / "training.json").read_text())["steps"]
    assert done == (out / "metrics.jsonl").read_text().count("\n") >= 8
    run(folder, out, *more, "--stop-after=2", ranks=1, expected=3)
    assert json.loads((out / "checkpoint-last" / "training.json").read_text())["steps"] == done + 2


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_ranks(folder: Path, alone: Path, tmp_path: Path) -> None:
    # A rank that stops before its end exits with 3, which torchrun reports as its own failure, 1.
    run(folder, tmp_path / "run", "--parallel=fsdp", "--stop-after=5", ranks=2, expected=1)
    run(folder, tmp_path / "run", "--stop-after=5", ranks=1, expected=3)
    run(folder, tmp_path / "run", "--parallel=ddp", ranks=2)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-6)


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_in_one_line_and_it_resumes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ("--set=training.epochs=3000", "--save-minutes=0")
    child = subprocess.Popen(
        command(folder, out, *more, ranks=2), cwd=RECIPES.parent, stderr=subprocess.PIPE, text=True
    )
    wait_for_steps(out, 8)
    os.kill(workers(child.pid)[1], signal.SIGKILL)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 1
    assert "another process of this run has ended" in said
    assert "the same command then resumes from checkpoint-last" in said
    done = json.loads((out / "checkpoint-last" / "training.json").read_text())["steps"]
    assert done > 3
    run(folder, out, *more, "--stop-after=2", ranks=1, expected=3)
    assert json.loads((out / "checkpoint-last" / "training.json").read_text())["steps"] == done + 2


@pytest.mark.slow
@pytest.mark.parametrize(("program", "parallel", "settings", "steps"), [
    ("pretrain", "fsdp", (*SMALL, "training.epochs=9", "training.log_every=1", "picture_every=3"), 3),
    ("segment", "ddp", (*SEGMENT, "evaluate_every=2"), 3),
])  # fmt: skip
def test_a_sample_that_one_rank_cannot_score_ends_the_run_saved(
    program: str, parallel: str, settings: tuple[str, ...], steps: int, alone: Path, tmp_path: Path
) -> None:
    """Each rank scores one of two samples; the second cannot be read. Mended, the run resumes after the saved step."""
    folder, out = write(tmp_path / "shards", train=6, val=2), tmp_path / "run"
    (tar,) = folder.glob("*-val-*.tar")
    whole = tar.read_bytes()
    row = next(row for row in shard_index.read_index(folder).to_pylist() if row["key"] == "toy-00007")
    at = row["image_offset"] + row["image_size"] // 2
    tar.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    words = command(folder, out, f"--parallel={parallel}", ranks=2, program=program, overrides=settings)
    said = finished(words, expected=1)
    assert "sample 'toy-00007'" in said
    assert "sgmodel/train/" not in said  # no traceback of ours, beside that of torchrun
    saved = json.loads((out / "checkpoint-last" / "training.json").read_text())["steps"]
    assert saved == len(losses(out)) == steps
    tar.write_bytes(whole)
    finished(words)
    assert len(losses(out)) == (14 if program == "pretrain" else 9)
    if program == "pretrain":  # scoring changes nothing of the training
        np.testing.assert_allclose(losses(out), losses(alone), rtol=2e-6)


def wait_for_steps(out: Path, count: int) -> None:
    deadline, lines = time.monotonic() + 120, out / "metrics.jsonl"
    while time.monotonic() < deadline and not (lines.exists() and lines.read_text().count("\n") >= count):
        time.sleep(0.1)


def workers(launcher: int) -> list[int]:
    """Return the ids of the rank processes of a torchrun, in the order of ranks."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    found = {}
    for pid in children:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks = [word for word in words if word.startswith(b"RANK=")]
        if ranks:
            found[ranks[0]] = int(pid)
    return [found[name] for name in sorted(found)]
