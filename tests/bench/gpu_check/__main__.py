"""Check and time the product's own steps on one machine.

    python -m gpu_check --out DIR

Needs torch, numpy and safetensors, for the part in FP8 torchao too; downloads and installs nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from gpu_check import check, results, sizes
from gpu_check.bench import Bench
from sgdata.errors import ExitCode, SettingError, SgdataError


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gpu_check",
        description="Check numbers and time pretraining, fine-tuning, data loading and prediction on this machine. "
        f"Writes {results.JSON} and {results.MARKDOWN} after each row. A second call with the same --out keeps the "
        "rows that are finished, if Python, torch, device and sizes are the same, and measures those that were "
        "skipped or failed; otherwise it starts anew.",
        epilog="Example: python -m gpu_check --out out/gpu-check --limit 480",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the results")
    add("--limit", type=float, default=480.0, metavar="S", help="seconds; rows that would need more are skipped (480)")
    add("--parity", type=Path, metavar="DIR", help="numbers of the original code; without it parity is skipped")
    add("--sizes", choices=("auto", "full", "tiny"), default="auto", help="auto: tiny models on a CPU, else full ones")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--threads", type=int, default=2, help="threads of the CPU's arithmetic")
    return parser.parse_args(argv)


def program(argv: Sequence[str] | None = None) -> int:
    """Run the check and return the exit code: FINDINGS where a row was skipped or failed."""
    options = parsed(argv)
    try:
        if options.limit < 0 or options.threads < 1:
            note = f"--limit {options.limit:g}, --threads {options.threads}"
            raise SettingError(f"{note}: expected a limit of 0 or more seconds, 1 thread or more")
        scale = _scale(options.sizes, options.device)
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
            bench = Bench(scale=scale, device=options.device, folder=Path(folder), threads=options.threads)
            rows = check.run(bench, options.out, limit_s=options.limit, parity=options.parity)
    except SgdataError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return ExitCode.REFUSED
    print(results.markdown(rows))
    return ExitCode.DONE if all(row.finished for row in rows) else ExitCode.FINDINGS


def _scale(kind: str, device: str) -> sizes.Scale:
    on_gpu = device != "cpu" and torch.cuda.is_available()
    memory_gb = torch.cuda.get_device_properties(0).total_memory / 1e9 if on_gpu else 0.0
    return sizes.Scale(tiny=kind == "tiny" or (kind == "auto" and not on_gpu), memory_gb=memory_gb)


if __name__ == "__main__":
    raise SystemExit(program())
