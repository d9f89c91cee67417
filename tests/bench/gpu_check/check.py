"""Run the parts of a GPU check in order, each within the time that is left."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpu_check import results
from gpu_check.bench import Bench, Measured
from gpu_check.results import Row
from sgdata.errors import SettingError

if TYPE_CHECKING:
    from gpu_check.steps import Mode
    from gpu_check.trainings import Name

PARITY = ("pretrain_small_img32_mask75", "classify_small_sep_pos", "segment_small_img64")
TINY_SHARE = 0.1
"""Expected duration of a row with tiny models, as a share of that on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row to measure.

    Attributes:
        row: The row without figures.
        expected_s: Expected duration on an NVIDIA H200; the row is skipped where less time is left.
        measure: Returns the figures, or the reason not to measure.
    """

    row: Row
    expected_s: float
    measure: Callable[[], Measured | str]


def run(bench: Bench, out: Path, *, limit_s: float, parity: Path | None) -> list[Row]:
    """Measure what an earlier call in `out` has not finished on an equal machine; write all rows after each.

    A row whose measurement raises holds the reason, and the next one is measured.

    Args:
        bench: Sizes and device.
        out: Folder of `gpu-check.json` and `gpu-check.md`.
        limit_s: Time for the whole call in seconds.
        parity: Folder with numbers of the original code, if at hand.

    Raises:
        SourceError: `out` holds a damaged check.
        OutputError: The rows cannot be written.
    """
    began = time.monotonic()
    first = _environment(bench)
    kept = {row.key: row for row in results.read(out) if row.finished}
    if first.note not in {row.note for row in kept.values()}:
        kept = {}
    rows = [first]
    results.write(out, rows)
    for case in cases(bench, parity):
        left = limit_s - (time.monotonic() - began)
        rows.append(kept.get(case.row.key) or _measured(bench, case, left, limit_s))
        # Rows of an earlier call stay in the files until this one has come to them.
        later = [row for key, row in kept.items() if key not in {done.key for done in rows}]
        results.write(out, [*rows, *later])
    return rows


def _environment(bench: Bench) -> Row:
    from gpu_check import environment
    from sgmodel import devices

    began = time.monotonic()
    where = devices.setup_device(bench.device, precision="bf16", threads=bench.threads)
    kind = "tiny" if bench.scale.tiny else "full"
    return Row(
        part=1,
        mode=results.ENVIRONMENT,
        seconds=time.monotonic() - began,
        note=f"{environment.describe(where.device)}; {kind} sizes",
    )


def _measured(bench: Bench, case: Case, left_s: float, limit_s: float) -> Row:
    expected = max(1.0, case.expected_s * TINY_SHARE) if bench.scale.tiny else case.expected_s
    if expected > left_s:
        note = f"needs about {expected:.0f} s, {max(left_s, 0.0):.0f} s of {limit_s:.0f} s left"
        return replace(case.row, note=f"{results.SKIPPED}{note}")
    began = time.monotonic()
    try:
        found = case.measure()
    except Exception as error:
        # Any error, from a full memory to one of the compiler: it is the result of this row.
        lines = str(error).strip().splitlines() or [""]
        found = f"{results.FAILED}{type(error).__name__}: {lines[0]:.300}"
    _free()
    seconds = time.monotonic() - began
    if isinstance(found, str):
        return replace(case.row, note=found, seconds=seconds)
    return replace(case.row, **asdict(found), seconds=seconds)


def _free() -> None:
    """Release what a measurement has left in memory and in the compiler's caches."""
    if "torch._dynamo" in sys.modules:  # which takes seconds to import
        torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- the parts -----------------------------------------------------------------------------


def cases(bench: Bench, parity: Path | None) -> Iterator[Case]:
    """Yield all rows after the environment, in the order of parts."""
    from gpu_check import steps

    yield Case(row=Row(part=1, mode="bf16 matmul"), expected_s=10, measure=partial(_matmul, bench))
    for name in PARITY:
        row = Row(part=1, size="small", mode=f"fp32 parity, {name.partition('_')[0]}")
        yield Case(row=row, expected_s=5, measure=partial(_parity, bench, parity, name))
    row = Row(part=1, size="base", px=bench.scale.px(128), mode="bf16 against fp32")
    yield Case(row=row, expected_s=40, measure=partial(steps.compare_losses, bench))
    for part, size, plain_s, compiled_s in ((2, "base", 20, 70), (3, "large", 25, 100), (4, "huge", 30, 120)):
        yield _pretraining(bench, part, size, 128, "plain", plain_s)
        yield _pretraining(bench, part, size, 128, "compiled", compiled_s)
    for task in ("classify", "segment", "detect_change"):
        yield _fine_tuning(bench, 5, task, "plain", 20)
    yield _fine_tuning(bench, 5, "classify", "merged tokens", 20)
    yield _fine_tuning(bench, 5, "classify", "compiled", 70)
    row = Row(part=6, size="base", px=bench.scale.px(128), mode="pretrain from shards")
    yield Case(row=row, expected_s=40, measure=partial(steps.time_data, bench))
    row = Row(part=6, size="base", px=bench.scale.px(128), mode="predict segmentation")
    yield Case(row=row, expected_s=25, measure=partial(steps.time_prediction, bench))
    yield _pretraining(bench, 7, "base", 224, "plain", 25)
    yield _pretraining(bench, 7, "base", 128, "CUDA graphs", 80)
    yield _fine_tuning(bench, 7, "classify", "CUDA graphs", 80)
    for size, expected_s in (("large", 130), ("huge", 150)):
        yield _pretraining(bench, 8, size, 128, "fp8", expected_s)


def _fine_tuning(bench: Bench, part: int, task: Name, mode: Mode, expected_s: float) -> Case:
    from gpu_check import steps

    row = Row(part=part, size="base", px=bench.scale.px(128), mode=task if mode == "plain" else f"{task}, {mode}")
    return Case(
        row=row,
        expected_s=expected_s,
        measure=partial(_where_possible, mode, steps.time_fine_tuning, bench, task, mode),
    )


def _pretraining(bench: Bench, part: int, size: str, px: int, mode: Mode, expected_s: float) -> Case:
    from gpu_check import steps

    row = Row(part=part, size=size, px=bench.scale.px(px), mode=f"pretrain, {mode}")
    return Case(
        row=row,
        expected_s=expected_s,
        measure=partial(_where_possible, mode, steps.time_pretraining, bench, size, px, mode),
    )


def _where_possible(mode: Mode, measure: Callable[..., Measured], bench: Bench, *settings: Any) -> Measured | str:
    """Measure, unless `mode` needs a GPU or a library that is not there."""
    if mode == "fp8":
        from sgmodel import devices
        from sgmodel.train import float8

        try:
            float8.check(devices.setup_device(bench.device, precision="fp8", threads=bench.threads))
        except SettingError as error:
            return f"{results.SKIPPED}{error}"
    if mode == "CUDA graphs" and not torch.cuda.is_available():
        return f"{results.SKIPPED}no CUDA device"
    return measure(bench, *settings)


def _matmul(bench: Bench) -> Measured:
    from gpu_check import environment
    from sgmodel import devices

    where = devices.setup_device(bench.device, precision="bf16", threads=bench.threads)
    tflops, peak = devices.measured_tflops(where), devices.peak_tflops(where.device)
    note = f"{tflops:.3g} TFLOP/s measured; {environment.clocks(where.device)}"
    return Measured(mfu=None if peak is None else tflops / peak, note=note)


def _parity(bench: Bench, folder: Path | None, name: str) -> Measured | str:
    from gpu_check import environment
    from sgmodel import devices

    if folder is None:
        return f"{results.SKIPPED}PARITY=DIR not given"
    device = devices.setup_device(bench.device, precision="fp32", threads=bench.threads).device
    good, note = environment.parity(folder / f"{name}.npz", device)
    return Measured(note=note) if good else f"{results.FAILED}{note}"
