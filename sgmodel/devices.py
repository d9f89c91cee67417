"""Where a program runs, and in what number format: device, precision, threads."""

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
"""Of matrix products: single; single with 10-bit mantissas on GPUs that have it; bfloat16 where autocast says so; or
half precision there, with scaled gradients, as the paper's code has it."""

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The device of this process and the number format of its matrix products."""

    device: torch.device
    precision: Precision

    @property
    def half(self) -> torch.dtype | None:
        """The 16-bit format of matrix products, if they have one."""
        return _HALF.get(self.precision)

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which a forward pass runs."""
        return torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None)


def start(device: str, *, precision: Precision, threads: int) -> Launch:
    """Set up torch for this process. `device` is `auto`, `cpu`, `cuda` or `cuda:N`. Raises SettingError.

    On the CPU the bits of a sum depend on how many threads share it, so `threads` is fixed by the command and
    not by the machine; kernels without a deterministic form are refused there.
    """
    chosen = _device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # where memory is pinned for, and what collectives of objects use
    distributed.join(chosen)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(chosen.type == "cpu")
    # Which also fills fresh memory, against reads of what was never written: a tenth of a step, for debugging.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return Launch(device=chosen, precision=precision)


# Dense tensor-core peak of bf16 and fp16 in TFLOP/s, from the maker's data sheets; the first name that fits counts, so
# that the slower cards of a kind stand before it.
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
    """Figures of a step of `flops` on this rank: TFLOP/s, their share of the peak where that is known, memory."""
    found = {"tflops": flops / seconds / 1e12}
    if where.device.type == "cuda":
        peak = peak_tflops(where.device)
        if peak and where.half:
            found["mfu"] = found["tflops"] / peak
        found["memory_gb"] = torch.cuda.max_memory_allocated(where.device) / 1e9
    else:
        # The process's largest so far; Linux counts in KiB, macOS in bytes.
        found["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 1e9
    return found


def _device(text: str) -> torch.device:
    """As the command says; of several processes on one machine each has a GPU of its own."""
    kind, _, number = text.partition(":")
    count = torch.cuda.device_count()
    if kind not in {"auto", "cpu", "cuda"} or (number and kind != "cuda"):
        raise SettingError(f"--device {text!r}: expected auto, cpu, cuda or cuda:N")
    if kind == "cpu" or (kind == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise SettingError(f"--device {text!r}: this torch ({torch.__version__}) sees no GPU; use --device cpu")
    wanted = str(distributed.local()) if distributed.world() > 1 else number or "0"
    if wanted not in map(str, range(count)):
        told = f"GPU {wanted} is wanted, this machine has {count}"
        raise SettingError(f"--device {text!r}: {told}; expected cuda:N for N below {count}, as many processes at most")
    return torch.device("cuda", int(wanted))
