"""What every training program does alike: begin or go on in a folder, step, save, stop cleanly when told to."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from sgdata import progress
from sgmodel import batches, checkpoint, command, launch, loop, optim, runs

STOPPED = 3
"""Exit code of a program that stopped before its end: the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """How long and in what portions to train. `batch` samples make one optimizer step, in `accumulate` parts."""

    seed: int
    split: str
    epochs: float
    batch: int
    accumulate: int
    precision: launch.Precision
    log_every: int
    optimizer: optim.OptimizerRecipe


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training: what is trained, on what, where, and what its checkpoints say of it."""

    training: TrainingRecipe
    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: loop.Objective
    source: batches.Samples
    where: launch.Launch
    card: checkpoint.Card

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run."""
        return math.ceil(self.training.epochs * len(self.source) / self.training.batch)

    def epoch(self, step: int) -> int:
        """Epochs completed once `step` steps are done."""
        return step * self.training.batch // len(self.source)


def outlook(task: Task) -> str:
    """One line of what the run will be."""
    parameters = sum(p.numel() for p in task.model.parameters())
    samples, epochs, batch = len(task.source), task.training.epochs, task.training.batch
    return f"{parameters:,} parameters; {samples} samples x {epochs:g} epochs = {task.total} steps of {batch}"


def begin(task: Task, recipe: Any, places: command.Places) -> int:
    """Ready the folder, fill model and optimizer from its checkpoint; the steps already done. Raises SgdataError."""
    first = runs.prepare(places.out, recipe, task.source.contract, fresh=places.fresh)
    if first:
        runs.restore(places.out, task.model, task.optimizer)
    return first


def steps(task: Task, first: int, places: command.Places) -> Iterator[loop.Step]:
    """The steps from `first` on, saved every `places.save_minutes` and before the iteration ends, for whatever
    reason: the last step, SIGTERM or SIGINT, or `places.stop_after` steps."""
    training, source = task.training, task.source
    updates = loop.Updates(
        optimizer=task.optimizer,
        schedule=optim.schedule(training.optimizer, steps_per_epoch=len(source) / training.batch, total=task.total),
        accumulate=training.accumulate,
        clip_norm=training.optimizer.clip_norm,
        seed=training.seed,
    )
    plan = batches.stream(len(source), training.batch, seed=training.seed, first=first, last=task.total)
    loaded = batches.load(source, plan, threads=places.workers)
    taken = loop.steps(task.objective, loaded, updates, task.where, first=first)
    shown = progress.track(taken, label="training steps", total=task.total - first)
    yield from _watched(shown, lambda done: _save(task, places.out, done), places)


def complete(task: Task, places: command.Places) -> bool:
    """True where the run in the folder has reached its last step."""
    return runs.read_place(places.out).steps == task.total


def _save(task: Task, out: Path, done: int) -> None:
    runs.save(out, task.model, task.card, task.optimizer, runs.Place(steps=done))


def _watched(taken: Iterator[loop.Step], save: Callable[[int], None], places: command.Places) -> Iterator[loop.Step]:
    done, saved = 0, time.monotonic()
    with told_to_stop() as told:
        for count, step in enumerate(taken, 1):
            yield step
            done = step.index + 1
            if told() or count == places.stop_after:
                break
            if time.monotonic() - saved > 60 * places.save_minutes:
                save(done)
                saved = time.monotonic()
        if done:
            save(done)


@contextmanager
def told_to_stop() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM and SIGINT end nothing, but make the yielded function answer True."""
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Python hands signals to the main thread only
        return

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
