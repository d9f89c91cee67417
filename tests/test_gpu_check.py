"""Test the GPU check with tiny models on a CPU: all rows, time limits, failures, a second call, no heavy imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_check import __main__ as gpu_check
from gpu_check import check, environment, results, sizes, steps

from sgdata.errors import ExitCode
from sgmodel.models import transformer

# The check in a Python that finds none of the libraries that a machine with torch, numpy and safetensors may lack.
BARE = """
import importlib.machinery, runpy, sys
sys.path.insert(0, "tests/bench")
HIDDEN = {"pydantic", "pyarrow", "rasterio", "imagecodecs", "timm", "rich", "pyproj", "scipy", "PIL", "requests",
          "webdataset", "torchao"}
class Visible(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Visible
runpy.run_module("gpu_check", run_name="__main__")
"""
KEYS = {"part", "size", "px", "mode", "batch", "images_per_s", "mfu", "peak_gb", "seconds", "note"}


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / results.JSON).read_text())
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a check in a Python without the other libraries of this environment."""
    out = tmp_path_factory.mktemp("gpu-check")
    command = [sys.executable, "-c", BARE, "--out", str(out), "--device", "cpu", "--threads", "1"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=root)
    assert done.returncode == ExitCode.FINDINGS, done.stderr  # without parity files and CUDA
    assert done.stdout.strip() == (out / results.MARKDOWN).read_text().strip()
    return out


@pytest.mark.slow
def test_all_parts_are_measured_without_other_libraries(bare: Path) -> None:
    found = rows(bare)
    assert all(set(row) == KEYS for row in found)
    assert [row["part"] for row in found] == sorted(row["part"] for row in found)
    assert {row["part"] for row in found} == set(range(1, 9))
    assert "torch" in found[0]["note"]
    without = {row["mode"]: row["note"] for row in found if row["note"].startswith((results.SKIPPED, results.FAILED))}
    parity = {f"fp32 parity, {name}": "skipped: PARITY=DIR not given" for name in ("pretrain", "classify", "segment")}
    graphs = {f"{step}, CUDA graphs": "skipped: no CUDA device" for step in ("pretrain", "classify")}
    fp8 = without.pop("pretrain, fp8")
    assert without == parity | graphs
    assert "torchao cannot be loaded" in fp8 and "pip install 'sgdata[fp8]'" in fp8
    timed = [row for row in found if row["part"] > 1 and row["mode"] not in {*without, "pretrain, fp8"}]
    assert len(timed) == 14
    assert all(row["images_per_s"] > 0 and row["batch"] == sizes.TINY_BATCH for row in timed if row["part"] != 6)
    assert all(row["mfu"] is None and row["peak_gb"] is None for row in found)  # unknown on a CPU
    assert "| - | - |" in (bare / results.MARKDOWN).read_text().splitlines()[-3]
    notes = {row["mode"]: row["note"] for row in found}
    assert "data wait" in notes["pretrain from shards"]
    assert all("waits for the device" in notes[mode] for mode in ("pretrain, plain", "pretrain, compiled"))
    assert "codec npy" in notes["pretrain from shards"]
    assert "km2/s" in notes["predict segmentation"]
    assert "largest relative difference 0." in notes["bf16 against fp32"]


@pytest.mark.slow
def test_a_second_call_keeps_finished_rows(bare: Path, parity: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {row["mode"] + row["size"]: row for row in rows(bare)}
    options = ["--out", str(bare), "--device", "cpu", "--threads", "1", "--parity", str(parity)]
    assert gpu_check.program(options) == ExitCode.FINDINGS
    assert "fp32 parity" in capsys.readouterr().out
    after = {row["mode"] + row["size"]: row for row in rows(bare)}
    skipped = {"environment-", "pretrain, CUDA graphsbase", "classify, CUDA graphsbase"}
    changed = {name for name in after if after[name] != before[name]} - skipped
    parities = {f"fp32 parity, {name}small" for name in ("pretrain", "classify", "segment")}
    emulated = {"pretrain, fp8large", "pretrain, fp8huge"}  # torchao is hidden from the first call alone
    assert changed == parities | emulated
    assert all(after[name]["note"].startswith("relative error outputs") for name in parities)
    assert all(after[name]["note"].endswith("; emulated (CPU)") for name in emulated)


def test_another_environment_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--out", str(tmp_path), "--device", "cpu", "--limit", "0"]
    old = [
        results.Row(part=1, mode=results.ENVIRONMENT, note="another machine"),
        results.Row(part=1, mode="bf16 matmul", note="9 TFLOP/s measured"),
    ]
    results.write(tmp_path, old)
    assert gpu_check.program(options) == ExitCode.FINDINGS
    assert rows(tmp_path)[1]["note"].startswith(results.SKIPPED)


def test_rows_that_do_not_fit_the_limit_are_skipped(tmp_path: Path) -> None:
    assert gpu_check.program(["--out", str(tmp_path), "--device", "cpu", "--limit", "0"]) == ExitCode.FINDINGS
    first, *others = rows(tmp_path)
    assert first["mode"] == results.ENVIRONMENT
    assert len(others) == 23
    assert all(row["note"].startswith("skipped: needs about ") for row in others)
    assert all("0 s of 0 s left" in row["note"] for row in others)


@pytest.mark.slow
def test_a_failing_row_records_its_reason_and_the_next_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> steps.Measured:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nsecond line")

    def measured(*arguments: object) -> steps.Measured:
        return steps.Measured(batch=1, images_per_s=2.0)

    monkeypatch.setattr(steps, "time_pretraining", full)
    for name in ("compare_losses", "time_fine_tuning", "time_data", "time_prediction"):
        monkeypatch.setattr(steps, name, measured)
    assert gpu_check.program(["--out", str(tmp_path), "--device", "cpu"]) == ExitCode.FINDINGS
    found = {(row["part"], row["mode"]): row for row in rows(tmp_path)}
    reason = "failed: OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"
    assert found[2, "pretrain, plain"]["note"] == found[4, "pretrain, compiled"]["note"] == reason
    assert found[5, "segment"]["images_per_s"] == 2.0


def test_a_wrong_number_fails_parity(parity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cpu = parity / f"{check.PARITY[0]}.npz", torch.device("cpu")
    assert environment.parity(file, cpu)[0]
    monkeypatch.setattr(transformer, "LAYER_NORM_EPS", 1e-5)
    assert not environment.parity(file, cpu)[0]


def test_batches_follow_the_memory() -> None:
    h200, a100 = (sizes.Scale(tiny=False, memory_gb=memory) for memory in (151.0, 42.4))
    assert h200.batch("pretrain", "base", 128) == 512
    assert a100.batch("pretrain", "base", 128) == 152
    assert sizes.Scale(tiny=False, memory_gb=1.0).batch("pretrain", "huge", 128) == sizes.STEP


def test_a_wrong_option_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.program(["--out", str(tmp_path), "--limit", "-1"]) == ExitCode.REFUSED
    (tmp_path / results.JSON).write_text("{}1")
    assert gpu_check.program(["--out", str(tmp_path), "--device", "cpu", "--limit", "0"]) == ExitCode.REFUSED
    lines = capsys.readouterr().err.splitlines()
    assert "--limit -1" in lines[0]
    assert "expected rows of a GPU check" in lines[1]
