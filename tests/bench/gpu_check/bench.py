"""Device, folder and sizes of a GPU check, and the figures of one measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_check import samples, sizes
    from sgdata.types import Task
    from sgmodel.train.run_paths import RunPaths

STORED = 16
"""Samples behind the repeated batch of a timed step."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Device, scratch folder and sizes of a GPU check.

    Attributes:
        scale: Sizes of models, batches and samples.
        device: As `--device` of the training programs.
        folder: Scratch folder for shards.
        threads: Threads of the CPU's arithmetic.
    """

    scale: sizes.Scale
    device: str
    folder: Path
    threads: int

    @property
    def paths(self) -> RunPaths:
        """Paths and device as a training program gets them."""
        from sgmodel.train.run_paths import RunPaths

        return RunPaths(shards=self.folder, out=self.folder, device=self.device, threads=self.threads)

    def shards(self, task: Task, px: int, *, count: int = STORED) -> samples.MemoryIndexed:
        """Write `count` synthetic samples of `px` pixels for `task` and open them."""
        from gpu_check import samples

        return samples.write(self.folder / f"{task}-{px}-{count}", task, count=count, px=px)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures of one row; see `results.Row`."""

    batch: int | None = None
    images_per_s: float | None = None
    mfu: float | None = None
    peak_gb: float | None = None
    note: str = ""
