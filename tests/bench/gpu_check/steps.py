"""Time the product's own training steps, data loading and prediction."""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from gpu_check import sizes, trainings
from gpu_check.bench import Bench, Measured
from sgdata.types import Array
from sgdata.types import Task as LabelTask
from sgmodel import devices
from sgmodel.data import loader, normalise
from sgmodel.models.token_reduction import TokenReduction
from sgmodel.train import loop, training

KM2_PER_PX = 1e-4
"""Area of a pixel of 10 m."""
Mode = Literal["plain", "compiled", "CUDA graphs", "merged tokens", "fp8"]
"""What differs from a plain step in bf16; "fp8" is compiled, since scaling takes longer than it gains otherwise."""
MERGED = TokenReduction(method="merge", keep=0.5, after=(1, 4))


def time_pretraining(bench: Bench, size: str, px: int, mode: Mode) -> Measured:
    """Time pretraining steps of one size."""
    batch = bench.scale.batch("pretrain", size, px)
    source, precision = bench.shards("none", bench.scale.px(px)), "fp8" if mode == "fp8" else "bf16"
    job = trainings.pretraining(bench, size, px, source, batch=batch, precision=precision)
    note = _compile(job.task, mode)
    found = _timed(bench, job, batch)
    return replace(found, note=f"{found.note}{note}")


def _compile(task: training.TrainingTask, mode: Mode) -> str:
    """Compile the model as `mode` requires; return the note for the row."""
    forward = task.updates.forward
    if mode == "CUDA graphs":
        forward.compile(mode="reduce-overhead")
    elif mode in {"compiled", "fp8"} and task.launch.device.type == "cuda":
        forward.compile()  # as `training.compile` of a recipe does
    elif mode == "fp8":
        return "; emulated (CPU)"
    elif mode == "compiled":
        # Compiling C++ takes a minute or more, which says nothing about a GPU.
        forward.compile(backend="aot_eager")
        return "; traced, without generated code (CPU)"
    return ""


def time_fine_tuning(bench: Bench, name: trainings.Name, mode: Mode) -> Measured:
    """Time fine-tuning steps of the base model."""
    tasks: dict[str, LabelTask] = {"classify": "multi-label", "segment": "segmentation", "detect_change": "change"}
    batch = bench.scale.batch(name, "base", 128)
    source = bench.shards(tasks[name], bench.scale.px(128))
    reduction = None
    if mode == "merged tokens":
        reduction = replace(MERGED, after=(0,)) if bench.scale.tiny else MERGED
    job = trainings.fine_tuning(bench, name, source, batch=batch, reduction=reduction)
    note = _compile(job.task, mode)
    found = _timed(bench, job, batch)
    return replace(found, note=f"{found.note}{note}")


def _timed(bench: Bench, job: trainings.Job, batch: int) -> Measured:
    """Time steps on one batch in host memory; each step copies it to the device, as training does."""
    source, device = job.task.source, job.task.launch.device
    pinned = device.type == "cuda"
    rows = loader.BatchIndices(samples=np.arange(batch) % len(source), epoch=np.zeros(batch, np.int64))
    loaded = next(iter(loader.load(source, iter([rows]), threads=1, pinned=pinned)))
    stream = loop.steps(job.task.objective, itertools.repeat(loaded), job.task.updates, job.task.launch)
    _reset_peak(device)
    seconds, first, _ = _run(bench, stream, device)
    peak, waits = _peak_gb(device), _count_waits(stream, device)
    rate = bench.scale.steps * batch / seconds
    return Measured(
        batch=batch,
        images_per_s=rate,
        mfu=_mfu(device, job.flops * rate, job.task.launch.precision),
        peak_gb=peak,
        note=f"{seconds / bench.scale.steps:.4f} s a step, the first {first:.1f} s; {waits}; "
        f"{job.flops / 1e9:.4g} GFLOP a sample, at most {job.memory.total(batch) / 1e9:.1f} GB counted",
    )


def _run(bench: Bench, stream: Iterator[loop.Step], device: torch.device) -> tuple[float, float, list[loop.Step]]:
    """Return the seconds of the timed steps, those of the first step, and the timed steps.

    The product's steps run one ahead of the device; nothing else here waits for it but both ends.
    """
    began = time.perf_counter()
    next(stream)
    first = time.perf_counter() - began
    for _ in range(bench.scale.warmup - 1):
        next(stream)
    _synchronise(device)
    began = time.perf_counter()
    taken = list(itertools.islice(stream, bench.scale.steps))
    _synchronise(device)
    return time.perf_counter() - began, first, taken


def _count_waits(stream: Iterator[loop.Step], device: torch.device) -> str:
    """Take two more steps and say how often torch waited for the device in them, which the timed steps do not count."""
    if device.type != "cuda":
        return "waits for the device not counted (CPU)"
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in itertools.islice(stream, 2):
                pass
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return f"{sum('synchroniz' in str(each.message) for each in caught)} waits for the device in two steps"


def time_data(bench: Bench) -> Measured:
    """Time pretraining of the base model on shards read by the product's loader."""
    px = bench.scale.px(128)
    batch = bench.scale.batch("pretrain", "base", 128)
    source = bench.shards("none", px, count=bench.scale.stored)
    job = trainings.pretraining(bench, "base", 128, source, batch=batch)
    device = job.task.launch.device
    workers = min(16, os.cpu_count() or 1)
    plan = source.stream(batch, seed=0, first=0, last=bench.scale.warmup + bench.scale.steps)
    loaded = loader.load(source, plan, threads=workers, pinned=device.type == "cuda")
    _reset_peak(device)
    stream = loop.steps(job.task.objective, loaded, job.task.updates, job.task.launch)
    seconds, _, taken = _run(bench, stream, device)
    rate = bench.scale.steps * batch / seconds
    wait = sum(step.wait_s for step in taken) / sum(step.total_s for step in taken)
    codec = source.codec if source.codec == "blosc" else "npy (imagecodecs is not installed: not compressed)"
    return Measured(
        batch=batch,
        images_per_s=rate,
        mfu=_mfu(device, job.flops * rate),
        peak_gb=_peak_gb(device),
        note=f"data wait {wait:.1%} of a step; {workers} threads, codec {codec}, {len(source)} samples in page cache",
    )


def time_prediction(bench: Bench) -> Measured:
    """Time segmentation of a scene in memory by overlapping tiles, answers blended on the host."""
    from sgmodel.inference import tiling
    from sgmodel.inference.predictor import Predictor

    scale, px = bench.scale, bench.scale.px(128)
    source = bench.shards("segmentation", px)
    job = trainings.fine_tuning(bench, "segment", source, batch=1)
    model = job.task.model.eval()
    how = normalise.resolve(trainings.MINMAX, source.contract)
    predictor = Predictor(
        model=model, contract=source.contract, normalisation=how, launch=job.task.launch, ground_px=px, px=px, zoom=1.0
    )
    height, width = scale.scene
    rng = np.random.default_rng(0)
    scene = rng.integers(400, 4000, (len(source.contract.bands), height, width), dtype=np.uint16)
    seen = np.ones((height, width), bool)

    def read(row: int, rows: int) -> tuple[Array, Array]:
        return scene[:, row : row + rows], seen[row : row + rows]

    device = job.task.launch.device
    batch = scale.batch("predict", "base", 128)
    plan = tiling.plan(scale.scene, px=px, output_shape=predictor.output_shape, overlap=0.5)
    _reset_peak(device)
    predictor.predict(np.stack([scene[:, :px, :px]] * min(batch, len(plan.cols))))
    began = time.perf_counter()
    for _ in tiling.blend(plan, read, predictor.predict, batch=batch):
        pass
    seconds = time.perf_counter() - began
    rate = len(plan.rows) * len(plan.cols) / seconds
    return Measured(
        batch=min(batch, len(plan.cols)),
        images_per_s=rate,
        mfu=_mfu(device, job.flops / 3 * rate),
        peak_gb=_peak_gb(device),
        note=f"{height * width * KM2_PER_PX / seconds:.4g} km2/s at 10 m; tiles overlap by half, without reading and "
        "writing of files",
    )


def compare_losses(bench: Bench) -> Measured:
    """Train the base model on the same batches in fp32 and in bf16 and compare the losses."""
    batch = max(sizes.TINY_BATCH, bench.scale.batch("pretrain", "base", 128) // 16)
    source = bench.shards("none", bench.scale.px(128), count=4 * batch)
    losses = {}
    for precision in ("fp32", "bf16"):
        job = trainings.pretraining(bench, "base", 128, source, batch=batch, precision=precision)
        _reset_peak(job.task.launch.device)
        plan = source.stream(batch, seed=0, first=0, last=bench.scale.loss_steps)
        loaded = loader.load(source, plan, threads=1, pinned=job.task.launch.device.type == "cuda")
        stream = loop.steps(job.task.objective, loaded, job.task.updates, job.task.launch)
        losses[precision] = np.array([step.result.read().terms["loss"] for step in stream])
    furthest = float(np.max(np.abs(losses["bf16"] / losses["fp32"] - 1)))
    ends = ", ".join(f"{name} {values[0]:.4f} to {values[-1]:.4f}" for name, values in losses.items())
    return Measured(
        batch=batch,
        peak_gb=_peak_gb(job.task.launch.device),
        note=f"{bench.scale.loss_steps} steps: {ends}; largest relative difference {furthest:.2%}",
    )


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def _mfu(device: torch.device, flops_per_s: float, precision: devices.TrainingPrecision = "bf16") -> float | None:
    peak = devices.peak_tflops(device, precision)
    return None if peak is None else flops_per_s / (peak * 1e12)
