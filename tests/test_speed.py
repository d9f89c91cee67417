"""Test the figures of speed: peaks of cards, MFU, medians over a run, and where they are printed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from synthetic_shards import write, write_scenes

from sgdata import files, package_data
from sgdata.pages import run
from sgdata.results import training_log
from sgmodel import devices
from sgmodel.data import augment
from sgmodel.recipes import classify, programs
from sgmodel.train import run_folder, run_paths
from sgmodel.train.loop import Step, StepMetrics, StepResult

TRAIN = package_data.folder("recipes") / "train"
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("card", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "fp16", 756),
        ("NVIDIA H100 NVL", "bf16", 835),
        ("NVIDIA H200", "fp32", 67),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA H200", "fp8", 1978),
        ("NVIDIA L4", "fp8", 242),
        ("NVIDIA A100-SXM4-80GB", "fp8", None),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA A10", "fp32", 31.2),
        ("NVIDIA A10G", "bf16", None),  # another card than the A10
        ("Tesla V100-SXM2-16GB", "fp16", None),
    ],
)
def test_the_peak_is_that_of_card_and_precision(
    monkeypatch: pytest.MonkeyPatch, card: str, precision: devices.TrainingPrecision, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2e9)
    meter = devices.meter(devices.Runtime(device=CUDA, precision=precision), 5e11, measure=False)
    assert meter.peak == peak
    found = meter.read(100, 0.5)  # 100 samples of 0.5 TFLOP in half a second
    assert found == {"tflops": 100.0, "mfu": 100 / peak if peak else None, "memory_gb": 2.0}


def test_each_card_is_found_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for card, peak in devices.PEAK.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, card=card: f"NVIDIA {card}")
        assert devices.peak_tflops(CUDA, "bf16") == peak.half
        assert peak.half > peak.tf32 >= peak.fp32


def test_several_processes_share_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    where = devices.Runtime(device=torch.device("cpu"), precision="fp32")
    meter = devices.SpeedMeter(launch=where, flops=1e12, peak=10.0)
    alone = meter.read(8, 2.0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    together = meter.read(8, 2.0)
    assert (alone["tflops"], alone["mfu"]) == (4.0, 0.4)
    assert (together["tflops"], together["mfu"]) == (1.0, 0.1)
    assert devices.SpeedMeter(launch=where, flops=None, peak=10.0).read(8, 2.0)["mfu"] is None


def test_the_peak_of_a_cpu_is_measured_on_request_alone() -> None:
    for precision in ("fp32", "bf16"):
        where = devices.Runtime(device=torch.device("cpu"), precision=precision)
        state = torch.get_rng_state()
        measured = devices.meter(where, 1.0, measure=True).peak
        assert measured is not None and 1e-3 < measured < 1e3
        assert torch.equal(torch.get_rng_state(), state)  # else the run would draw other numbers
        assert devices.meter(where, 1.0, measure=False).peak is None


def test_a_line_of_the_log_has_the_means_since_the_line_before(tmp_path: Path) -> None:
    def speed(samples: int, seconds: float) -> dict[str, float | None]:
        return {"mfu": None, "tflops": samples / seconds}

    with run_folder.TrainingLog(tmp_path, 0) as log:
        for index, (wait, total) in enumerate([(0.5, 1.0), (0.0, 1.0), (0.0, 2.0), (0.3, 3.0)]):
            times = {"images": 6, "wait_s": wait, "total_s": total}
            result = StepResult(torch.ones(1), lambda values: StepMetrics({"loss": values[0]}, 1.0))
            step = Step(index=index, result=result, failed=torch.zeros(()), lr=0.1, **times)  # type: ignore[arg-type]
            log.step(step, every=3, last=False, speed=speed)
    first, second = training_log.read(tmp_path / "timings.jsonl")
    assert (first["step"], second["step"]) == (0, 3)
    for line, (wait, total) in ((first, (0.5, 1.0)), (second, (0.1, 2.0))):
        assert (line["wait_s"], line["step_s"]) == pytest.approx((wait, total))
        assert line["images_per_s"] == line["tflops"] == pytest.approx(6 / total)
        assert line["wait_share"] == pytest.approx(wait / total)
        assert line["mfu"] is None


def test_a_run_is_summarised_by_medians_without_its_first_line() -> None:
    times = enumerate([(9, 8), (1, 0), (2, 1), (4, 0)])
    lines = [{"step": n, "step_s": s, "wait_s": w, "images_per_s": 8 / s} for n, (s, w) in times]
    found = training_log.pace(lines)
    assert found["step_s"] == 2 and found["images_per_s"] == 4
    assert found["wait_share"] == pytest.approx(1 / 7)
    assert training_log.describe(found)["MFU"] == "-"
    assert training_log.describe(found)["data wait"] == "14.3%"
    assert training_log.pace(lines[:1])["step_s"] == 9
    assert set(training_log.describe(training_log.pace([])).values()) == {"-"}


@pytest.mark.parametrize("name", ["classify", "segment"])
def test_every_training_states_its_speed(name: str, tmp_path: Path) -> None:
    program = programs.PROGRAMS[name]()
    shards = write_scenes(tmp_path / "shards") if name == "classify" else write(tmp_path / "shards", px=16)
    changes = ["model.encoder.image_px=16", "model.encoder.width=32", "model.encoder.depth=1", "training.batch=4"]
    changes += ["training.epochs=1", *(["labels_from=labels"] if name == "classify" else [])]
    recipe = files.read(program.recipe, TRAIN / f"{name}-demo-tiny.toml", changes)
    out = tmp_path / "run"
    paths = run_paths.RunPaths(shards=shards, out=out, device="cpu", threads=1, measure_peak=True)
    assert program.main(recipe, paths) == 0
    summary = json.loads((out / "summary.json").read_text())
    card = json.loads((out / "checkpoint-last" / "card.json").read_text())
    assert summary["device"].startswith("CPU ") and summary["precision"] == "fp32"
    for line in training_log.read(out / "timings.jsonl"):
        assert line["tflops"] * line["step_s"] * 1e12 == pytest.approx(4 * summary["flops_per_sample"])
        assert line["mfu"] == pytest.approx(line["tflops"] / summary["peak_tflops"])
    assert math.isfinite(summary["mfu"]) and 0 <= summary["wait_share"] <= 1
    assert "summary.json" not in (out / "SHA256SUMS").read_text()
    assert f"{summary['flops_per_sample'] / 1e9:.6g} GFLOP a sample" in (out / "card.md").read_text()
    (table,) = run.build_speed(out)
    assert dict(table.rows)["images/s"] == f"{summary['images_per_s']:.4g}"
    assert card["model"]["kind"] in ("classifier", "segmenter")


def test_windows_of_scenes_count() -> None:
    cropped = files.read(classify.ClassifyRecipe, TRAIN / "classify-demo-tiny.toml", ("zoom=1.0",))
    recipe = dataclasses.replace(cropped, augment=augment.AugmentRecipe())
    assert classify.count_views(cropped, (12, 130, 64), 64) == 1
    assert classify.count_views(recipe, (12, 130, 64), 64) == 3
    assert classify.count_views(recipe, None, 64) is None
