"""Where a program runs, and in what number format: device, precision, threads."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from sgdata.errors import SettingError

Precision = Literal["fp32", "tf32", "bf16"]
"""Of matrix products: single; single with 10-bit mantissas on GPUs that have it; bfloat16 where autocast says so."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The device of this process and the number format of its matrix products."""

    device: torch.device
    precision: Precision

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which a forward pass runs."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def start(device: str, *, precision: Precision, threads: int) -> Launch:
    """Set up torch for this process. `device` is `auto`, `cpu`, `cuda` or `cuda:N`. Raises SettingError.

    On the CPU the bits of a sum depend on how many threads share it, so `threads` is fixed by the command and
    not by the machine; kernels without a deterministic form are refused there.
    """
    chosen = torch.device(_available(device))
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(chosen.type == "cpu")
    # Which also fills fresh memory, against reads of what was never written: a tenth of a step, for debugging.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return Launch(device=chosen, precision=precision)


def _available(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    if kind not in {"cpu", "cuda"}:
        raise SettingError(f"--device {device!r}: expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"--device {device!r}: this torch ({torch.__version__}) sees no GPU; use --device cpu")
    return device
