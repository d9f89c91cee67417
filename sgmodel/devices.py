"""Set up torch for a program: device, number format, threads."""

from __future__ import annotations

import ctypes
import math
import platform
import re
import resource
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from sgdata.errors import SettingError
from sgmodel import distributed

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""Number format of matrix products: single precision; single with 10-bit mantissas (on GPUs that have it); bfloat16
under autocast; half precision under autocast, with scaled gradients, as in the released code."""
TrainingPrecision = Literal[Precision, "fp8"]
"""Number format of matrix products in training: as `Precision`, or FP8 as in `sgmodel.train.float8`."""

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""The 16-bit formats of matrix products; with FP8, of those that are not in it."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The device of this process and the number format of its matrix products.

    Attributes:
        device: The device.
        precision: The number format.
    """

    device: torch.device
    precision: TrainingPrecision

    @property
    def half(self) -> torch.dtype | None:
        """16-bit format of matrix products; None for single precision."""
        return HALF.get(self.precision)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which to run a forward pass."""
        return torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None)


def setup_device(device: str, *, precision: TrainingPrecision, threads: int) -> Runtime:
    """Set up torch for this process, and join the other processes of a run.

    On the CPU, kernels without a deterministic form raise an error.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: Number format of matrix products.
        threads: Threads on the CPU. The bits of a sum depend on their number, so it does not follow the machine.

    Raises:
        SettingError: `device` is not of that form, or there is no such GPU.
    """
    chosen = _device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # pinned memory and collectives of objects use the current device
    distributed.join(chosen)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(chosen.type == "cpu")
    # Deterministic mode also fills uninitialised memory, which takes a tenth of a step and only helps debugging.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return Runtime(device=chosen, precision=precision)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory for later allocations of this process.

    It otherwise returns each large block to the system, which clears its pages again at the next allocation: in steps
    of a training on a CPU, which allocate the same blocks each time, an eighth of the time.

    Returns:
        Whether the C library can: glibc on Linux.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


class PeakRate(NamedTuple):
    """Dense peak of a GPU in TFLOP/s.

    Attributes:
        half: 16-bit formats, with sums in float32.
        tf32: TF32.
        fp32: float32 without tensor cores.
        has_fp8: Whether the GPU multiplies FP8 with sums in float32, at twice the rate of `half` by the same sources.
    """

    half: float
    tf32: float
    fp32: float
    has_fp8: bool = True


# From NVIDIA's data sheets and whitepapers, which often state twice as much, for sparse matrices. The first name that
# occurs in the GPU's as whole words counts, so slower variants come first. GPUs without bf16 are not listed.
PEAK = {
    "B200": PeakRate(2250, 1125, 75),
    "H200 NVL": PeakRate(835, 417, 60),
    "H200": PeakRate(989, 494, 67),
    "GH200": PeakRate(989, 494, 67),
    "H100 PCIe": PeakRate(756, 378, 51),
    "H100 NVL": PeakRate(835, 417, 60),
    "H100": PeakRate(989, 494, 67),
    "A100": PeakRate(312, 156, 19.5, has_fp8=False),
    "A40": PeakRate(149.7, 74.8, 37.4, has_fp8=False),
    "A30": PeakRate(165, 82, 10.3, has_fp8=False),
    "A10": PeakRate(125, 62.5, 31.2, has_fp8=False),
    "L40S": PeakRate(362, 183, 91.6),
    "L40": PeakRate(181, 90.5, 90.5),
    "L4": PeakRate(121, 60, 30.3),
    "RTX 6000 Ada": PeakRate(364, 182, 91.1),
    "RTX A6000": PeakRate(154.8, 77.4, 38.7, has_fp8=False),
    "RTX 5090": PeakRate(209.5, 104.8, 104.8),
    "RTX 4090": PeakRate(165, 82.6, 82.6),
    "RTX 3090": PeakRate(71, 35.6, 35.6, has_fp8=False),
}
_MATMUL = {"cuda": (8192, 20), "cpu": (768, 1)}
"""Side of the matrices with which `measured_tflops` fills a device, and how many products it times together."""


def name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor's architecture with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def peak_tflops(device: torch.device, precision: TrainingPrecision = "bf16") -> float | None:
    """Return the dense peak of `device` in TFLOP/s (see `PEAK`), or None where it is not known."""
    if device.type != "cuda":
        return None
    gpu = name(device)
    peak = next((peak for model, peak in PEAK.items() if re.search(rf"\b{model}\b", gpu)), None)
    if peak is None:
        return None
    if precision == "fp8":  # the rate of the fastest products of the step, as those of attention stay in bf16
        return 2 * peak.half if peak.has_fp8 else None
    return peak.half if precision in HALF else peak.tf32 if precision == "tf32" else peak.fp32


def measured_tflops(launch: Runtime) -> float:
    """Return the TFLOP/s that square matrix products reach on this device; takes a second at most.

    Args:
        launch: Device and number format.

    Raises:
        SettingError: The number format is FP8, which plain matrix products do not take.
    """
    if launch.precision == "fp8":
        message = "--measure-peak, training.precision 'fp8': products in FP8 alone are not measured"
        raise SettingError(f"{message}; leave out --measure-peak")
    side, products = _MATMUL[launch.device.type]
    # No random numbers, which would change those of the run; nor zeros, which a GPU multiplies with less power.
    ramp = torch.linspace(-1, 1, side, device=launch.device, dtype=launch.half)
    a, b = ramp[:, None] + ramp, ramp[:, None] - ramp
    best = math.inf
    for _ in range(4):  # the first prepares kernels
        wait(launch.device)
        began = time.perf_counter()
        for _ in range(products):
            a @ b
        wait(launch.device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 * products / best / 1e12


def wait(device: torch.device) -> None:
    """Wait for all work on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, kw_only=True)
class SpeedMeter:
    """Computes the speed of training steps.

    Attributes:
        launch: Device and number format.
        flops: Model FLOPs of a sample in a step; None where they are not known.
        peak: Rate that the device can reach in TFLOP/s; None where it is not known.
    """

    launch: Runtime
    flops: float | None
    peak: float | None

    def read(self, samples: int, seconds: float) -> dict[str, float | None]:
        """Return the speed of steps, per process.

        Args:
            samples: Samples of the steps, of all processes.
            seconds: Duration of the steps.

        Returns:
            `tflops` in TFLOP/s; `mfu`, their share of the peak; `memory_gb`, the largest memory use of this process so
            far. None for what is not known.
        """
        rate = None if self.flops is None else self.flops * samples / distributed.world_size() / seconds / 1e12
        if self.launch.device.type == "cuda":
            memory_gb = torch.cuda.max_memory_allocated(self.launch.device) / 1e9
        else:
            # Linux counts in KiB, macOS in bytes.
            memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 1e9
        return {
            "tflops": rate,
            "mfu": rate / self.peak if rate is not None and self.peak else None,
            "memory_gb": memory_gb,
        }


def meter(launch: Runtime, flops: float | None, *, measure: bool) -> SpeedMeter:
    """Return the meter of this device, with its peak from the table, or with `measure` as measured."""
    peak = measured_tflops(launch) if measure else peak_tflops(launch.device, launch.precision)
    return SpeedMeter(launch=launch, flops=flops, peak=peak)


def _device(text: str) -> torch.device:
    """Return the device that `--device` names; each of several processes on one machine has a GPU of its own."""
    kind, _, number = text.partition(":")
    count = torch.cuda.device_count()
    if kind not in {"auto", "cpu", "cuda"} or (number and kind != "cuda"):
        raise SettingError(f"--device {text!r}: expected auto, cpu, cuda or cuda:N")
    if kind == "cpu" or (kind == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise SettingError(f"--device {text!r}: this torch ({torch.__version__}) sees no GPU; use --device cpu")
    index = str(distributed.local_rank()) if distributed.world_size() > 1 else number or "0"
    if index not in map(str, range(count)):
        raise SettingError(
            f"--device {text!r}: GPU {index} is wanted, this machine has {count}; "
            f"expected cuda:N for N below {count}, and at most as many processes"
        )
    return torch.device("cuda", int(index))
