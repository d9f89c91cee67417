"""Divide the batch of an optimizer step among processes and parts, for training and scoring in all programs."""

from __future__ import annotations

from dataclasses import dataclass

from sgdata.errors import SettingError
from sgmodel import distributed


@dataclass(frozen=True, kw_only=True)
class BatchDivision:
    """Division of the samples of one optimizer step among processes and micro-batches.

    Attributes:
        per_process: Samples of each process.
        micro_batches: Parts of nearly equal size in which a process takes them.
    """

    per_process: int
    micro_batches: int

    @property
    def largest(self) -> int:
        """Samples in the largest part.

        Scoring takes no more images at once, and therefore no more memory than training.
        """
        return -(-self.per_process // self.micro_batches)


def divide(batch: int, accumulate: int) -> BatchDivision:
    """Divide a batch among the processes of this run.

    Args:
        batch: Samples per optimizer step, over all processes.
        accumulate: Parts of the batch, over all processes.

    Raises:
        SettingError: There are more parts than samples, or processes would get unequally many samples.
    """
    if accumulate > batch:
        message = f"training.accumulate is {accumulate}, training.batch {batch}"
        raise SettingError(f"{message}: a batch has no more parts than samples; set training.accumulate = {batch}")
    world = distributed.world_size()
    if batch % world:
        more = batch + world - batch % world
        raise SettingError(f"training.batch is {batch} on {world} processes: set training.batch = {more}, a multiple")
    per_process = batch // world
    return BatchDivision(per_process=per_process, micro_batches=min(per_process, -(-accumulate // world)))
