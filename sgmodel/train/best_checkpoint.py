"""Keep the best checkpoint of a run, and end the run once no better one comes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from sgdata import files
from sgdata.results import training_log
from sgmodel import distributed
from sgmodel.checkpoints import checkpoint_folder
from sgmodel.train import run_folder

if TYPE_CHECKING:
    from sgmodel.checkpoints.cards import ModelCard


class BestCheckpoint:
    """The scores of a run and its best checkpoint, `checkpoint-best/`."""

    def __init__(self, out: Path, first: int, *, by: str, sign: int = 1, patience: int = 0) -> None:
        """Read the scores before step `first` from the log.

        Args:
            out: Folder of the run.
            first: Steps already done.
            by: Name of the figure that is compared; empty to keep the last checkpoint.
            sign: 1 where a greater figure is better, -1 where a smaller one is.
            patience: Scorings without a better one after which the run ends; 0 for never.
        """
        self.out, self.by, self.sign, self.patience = out, by, sign, patience
        log = out / run_folder.METRICS
        lines = training_log.read(log, unfinished=True) if first and log.exists() else []
        self.values: list[float] = [sign * line[by] for line in lines if by in line and line["step"] < first]

    def stalled(self) -> bool:
        """Return whether the last `patience` scorings were no better than one before them."""
        if not self.patience or not self.values:
            return False
        return len(self.values) - 1 - self.values.index(max(self.values)) >= self.patience

    def keep(self, model: nn.Module, card: ModelCard, scores: dict[str, float]) -> None:
        """Replace `checkpoint-best/` if these figures are better than those of the present one. All ranks must call.

        Args:
            model: Model, sharded or not.
            card: Card of the checkpoint.
            scores: Scores by name.

        Raises:
            OutputError: A file cannot be written.
        """
        weights, folder = distributed.collect(model.state_dict()), self.out / run_folder.BEST
        if self.by:
            self.values.append(self.sign * scores[self.by])
        if not distributed.is_main_process():
            return
        before = files.read_plain(folder / "figures.json") if self.by and files.is_finished(folder) else None
        if before and self.sign * before[self.by] >= self.values[-1]:
            return
        with run_folder.replacing_folder(folder) as new:
            checkpoint_folder.write(new, weights, card)
            files.write(new / "figures.json", files.pretty_json(scores))
            files.write_sums(new)
