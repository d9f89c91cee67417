"""Set up torch for a program: device, number format, threads."""

from __future__ import annotations

import resource
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from sgdata.errors import SettingError
from sgmodel import distributed

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""Number format of matrix products: single precision; single with 10-bit mantissas (on GPUs that have it); bfloat16
under autocast; half precision under autocast, with scaled gradients, as in the released code."""

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The device of this process and the number format of its matrix products.

    Attributes:
        device: The device.
        precision: The number format.
    """

    device: torch.device
    precision: Precision

    @property
    def half(self) -> torch.dtype | None:
        """16-bit format of matrix products; None for single precision."""
        return _HALF.get(self.precision)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which to run a forward pass."""
        return torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None)


def start(device: str, *, precision: Precision, threads: int) -> Launch:
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
    return Launch(device=chosen, precision=precision)


# Dense tensor-core peak of bf16 and fp16 in TFLOP/s, from NVIDIA's data sheets. The first name that fits counts, so
# slower variants of a card come before it.
PEAK = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "RTX 4090": 165,
}


def peak_tflops(device: torch.device) -> float | None:
    """Return the dense bf16 peak of `device` in TFLOP/s (see `PEAK`), or None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for model, peak in PEAK.items() if model in name), None)


def speed(where: Launch, flops: float, seconds: float) -> dict[str, float]:
    """Measure the speed of a training step on this rank.

    Args:
        where: Device and number format.
        flops: Floating-point operations of the step on this rank.
        seconds: Duration of the step.

    Returns:
        `tflops` in TFLOP/s; `mfu`, their share of the peak, if the peak is known and the precision has 16 bits;
        `memory_gb`, the largest memory use of the process so far.
    """
    figures = {"tflops": flops / seconds / 1e12}
    if where.device.type == "cuda":
        peak = peak_tflops(where.device)
        if peak and where.half:
            figures["mfu"] = figures["tflops"] / peak
        figures["memory_gb"] = torch.cuda.max_memory_allocated(where.device) / 1e9
    else:
        # Linux counts in KiB, macOS in bytes.
        figures["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 1e9
    return figures


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
    index = str(distributed.local()) if distributed.world() > 1 else number or "0"
    if index not in map(str, range(count)):
        raise SettingError(
            f"--device {text!r}: GPU {index} is wanted, this machine has {count}; "
            f"expected cuda:N for N below {count}, and at most as many processes"
        )
    return torch.device("cuda", int(index))
