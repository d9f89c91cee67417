"""What every training program does alike: begin or go on in a folder, step, save, stop cleanly when told to."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from sgdata import progress
from sgdata.errors import ExitCode, SettingError
from sgdata.types import Contract
from sgmodel import devices, distributed
from sgmodel.data import band_selection, loader, normalise, upsample
from sgmodel.models import state_keys, transformer
from sgmodel.train import loop, optim, run_folder

if TYPE_CHECKING:
    from sgmodel.checkpoints.cards import Card
    from sgmodel.train.run_paths import RunPaths

R = TypeVar("R")

STOPPED = ExitCode.FINDINGS
"""Exit code of a training program that was stopped early; the same command continues the run."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Duration, batch and precision of a training run.

    Attributes:
        seed: Seed of weights, sample order, augmentation, masks and dropout.
        split: Split of the training samples.
        epochs: Number of epochs, which need not be whole.
        batch: Samples per optimizer step, over all processes.
        accumulate: Number of micro-batches per optimizer step, over all processes.
        precision: Number format of matrix products.
        log_every: Steps between two lines of metrics.jsonl.
        optimizer: AdamW and its schedule.
        compile: Whether to compile the model, which takes minutes at the start and makes steps faster.
        recompute: Whether to recompute activations in the backward pass, which saves memory and takes time.
        average: Decay of the running average of the weights, kept as `average.safetensors`; 0 for none.
        fraction: Share of the training samples that is used.
        fraction_seed: Seed that selects this share.
        mixture: Share of each dataset by name, for pretraining on several.
    """

    seed: int
    split: str
    epochs: float
    batch: int
    accumulate: int
    precision: devices.Precision
    log_every: int
    optimizer: optim.OptimizerRecipe
    compile: bool = False
    recompute: bool = False
    average: float = 0.0
    fraction: float = 1.0
    fraction_seed: int = 0
    mixture: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises SettingError: of these nothing could be made, or something else than meant."""
        ranges = {"seed": (0, 2**32 - 1), "epochs": (0, 1e9), "average": (0, 1 - 1e-9)}
        for name, (low, high) in {**ranges, **dict.fromkeys(("batch", "accumulate", "log_every"), (1, 2**31))}.items():
            if not low <= getattr(self, name) <= high:
                raise SettingError(f"training.{name} is {getattr(self, name)}: expected {low} to {high:.10g}")


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[R]):
    """What a run has settled before its first step: the contract of the samples as stored, that of the bands the
    model sees, and `band_indices`, the indices of the latter among the former (None: all)."""

    recipe: R
    stored: Contract
    contract: Contract
    band_indices: list[int] | None
    how: normalise.Normalisation
    where: devices.Launch

    @property
    def classes(self) -> int:
        """How many the data have."""
        return len(self.contract.label_space.ids)

    @property
    def ignore(self) -> int:
        """The label value that is no class."""
        return self.contract.label_space.ignore_index


def resolve(recipe: R, stored: Contract, paths: RunPaths) -> Setting[R]:
    """Raises SettingError where the recipe does not fit data of the contract `stored`, or this machine. Recipes have
    `bands`, `normalise`, `training`, and an encoder under `model`."""
    # Before anything is derived from it: without data a spectral group makes no tokens, and the model has fewer.
    own: Any = band_selection.resolve(recipe, stored)
    contract = band_selection.narrowed(stored, own.bands, own.normalise.missing)
    return Setting(
        recipe=own,
        stored=stored,
        contract=contract,
        band_indices=band_selection.indices(stored, own.bands, own.normalise.missing),
        how=normalise.resolve(own.normalise, contract),
        where=devices.start(paths.device, precision=own.training.precision, threads=paths.threads),
    )


def pixels(setting: Setting[R], batch: loader.Batch, name: str = "image") -> Tensor:
    """Normalised images (N, C, H, W) of the bands that the model sees, on the device."""
    device = setting.where.device
    # Native groups exist for single images only: pairs are stored on one lattice.
    whole = (
        upsample.image(batch.arrays, batch.valid_size, setting.stored, device)
        if name == "image"
        else batch.arrays[name]
    )
    return normalise.apply(setting.how, whole.to(device, non_blocking=True), batch.valid_size, setting.band_indices)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training: what is trained, on what, where, how, in how many steps, and what its checkpoints say of it."""

    training: TrainingRecipe
    model: nn.Module
    objective: loop.Objective
    source: loader.Source
    where: devices.Launch
    updates: loop.Updates
    total: int
    card: Card
    averaged: dict[str, torch.Tensor] = field(default_factory=dict)

    def epoch(self, step: int) -> int:
        """Epochs completed once `step` steps are done."""
        return step * self.training.batch // len(self.source)


def task(
    setting: Setting[Any],
    model: nn.Module,
    source: loader.Source,
    objective: Callable[[nn.Module, loader.Batch], dict[str, Tensor]],
    paths: RunPaths,
    *,
    card: Card,
) -> Task:
    """The training of `model`, which is moved to its device; `objective` gets it as training calls it."""
    training: TrainingRecipe = setting.recipe.training
    where, epoch = setting.where, len(source) / training.batch
    total = math.ceil(training.epochs * len(source) / training.batch)
    forward = _ready(model, training, where, paths.parallel)
    updates = loop.Updates(
        forward=forward,
        optimizer=optim.adamw(model, training.optimizer),
        schedule=optim.schedule(training.optimizer, steps_per_epoch=epoch, total=total),
        scaler=torch.amp.GradScaler(where.device.type, enabled=training.precision == "fp16"),
        accumulate=training.accumulate,
        clip_norm=training.optimizer.clip_norm,
        seed=training.seed,
    )
    return Task(
        training=training,
        model=model,
        objective=partial(objective, forward),
        source=source,
        where=where,
        updates=updates,
        total=total,
        card=card,
    )


def outlook(task: Task) -> str:
    """One line of what the run will be."""
    parameters = sum(p.numel() for p in task.model.parameters())
    samples, epochs, batch = len(task.source), task.training.epochs, task.training.batch
    return f"{parameters:,} parameters; {samples} samples x {epochs:g} epochs = {task.total} steps of {batch}"


def samples(folder: Path, training: TrainingRecipe, members: Sequence[str]) -> loader.Samples:
    """What is learned from. Raises SettingError, SourceError."""
    if training.mixture:
        raise SettingError(f"training.mixture is {training.mixture}: only pretraining, which needs no labels, can mix")
    return loader.Samples(folder, training.split, members, fraction=training.fraction, seed=training.fraction_seed)


def _ready(
    model: nn.Module, training: TrainingRecipe, where: devices.Launch, parallel: distributed.Parallel
) -> nn.Module:
    """Move `model` to its device and give what training calls in its place. Make the optimizer afterwards."""
    # Before spreading: FSDP wraps the blocks as they then are.
    if training.recompute:
        transformer.recompute_activations(model)
    if training.precision == "fp16" and parallel == "fsdp" and distributed.world() > 1:
        raise SettingError("precision is 'fp16', --parallel 'fsdp': the gradient scaler sees one shard; use 'bf16'")
    forward = distributed.parallelise(
        model.to(where.device), parallel, where.device, block=transformer.Block, half=where.half
    )
    # Compiled in place: the wrapper of torch.compile would hide what tells DDP and FSDP when to exchange gradients.
    if training.compile:
        forward.compile()
    return forward


def begin(task: Task, recipe: Any, paths: RunPaths) -> int:
    """Ready the folder, fill model and optimizer from its checkpoint; the steps already done. Raises SgdataError."""
    with distributed.explain_lost_ranks():
        first = run_folder.prepare(paths.out, recipe, task.source.contract, fresh=paths.fresh)
        if first:
            averaged = run_folder.restore(paths.out, task.model, task.updates.optimizer)
            names = state_keys.parameters(task.model)
            task.averaged.update({name: tensor for name, tensor in averaged.items() if name in names})
            scaler = run_folder.read_place(paths.out).scaler
            if scaler:
                task.updates.scaler.load_state_dict(scaler)
        distributed.wait()  # until all have read: the lead may be about to replace the folder
    return first


def steps(task: Task, first: int, paths: RunPaths) -> Iterator[loop.Step]:
    """The steps from `first` on, saved every `paths.save_minutes` and before the iteration ends, for whatever
    reason: the last step, SIGTERM or SIGINT, or `paths.stop_after` steps."""
    training, source = task.training, task.source
    plan = source.stream(training.batch, seed=training.seed, first=first, last=task.total)
    mine = (loader.share(whole, rank=distributed.rank(), world=distributed.world()) for whole in plan)
    loaded = loader.load(source, mine, threads=paths.workers, pinned=task.where.device.type == "cuda")
    taken = loop.steps(task.objective, loaded, task.updates, task.where, first=first)
    # One bar, not one per process.
    if distributed.lead():
        taken = progress.track(taken, label="training steps", total=task.total - first)
    with distributed.explain_lost_ranks():
        yield from _watched(_averaging(taken, task), lambda done: _save(task, paths.out, done), task.where, paths)


def _averaging(taken: Iterator[loop.Step], task: Task) -> Iterator[loop.Step]:
    """The steps, the running average of the weights kept up after each."""
    decay, weights = task.training.average, state_keys.parameters(task.model)
    if decay and not task.averaged:
        task.averaged.update({name: weight.detach().clone() for name, weight in weights.items()})
    for name, tensor in task.averaged.items():
        task.averaged[name] = (
            tensor if type(tensor) is type(weights[name].data) else distributed.shard_like(tensor, weights[name])
        )
    for step in taken:
        with torch.no_grad():
            for name, tensor in task.averaged.items():
                tensor.lerp_(weights[name].detach(), 1.0 - decay)
        yield step


def complete(task: Task, paths: RunPaths) -> bool:
    """True where the run in the folder has reached its last step."""
    return run_folder.read_place(paths.out).steps == task.total


def _save(task: Task, out: Path, done: int) -> None:
    place = run_folder.Place(steps=done, scaler=task.updates.scaler.state_dict())  # empty for one that does nothing
    run_folder.save(out, task.model, task.card, task.updates.optimizer, place, task.averaged)


def _watched(
    taken: Iterator[loop.Step], save: Callable[[int], None], where: devices.Launch, paths: RunPaths
) -> Iterator[loop.Step]:
    done, saved = 0, time.monotonic()
    with told_to_stop() as told:
        for count, step in enumerate(taken, 1):
            yield step
            done = step.index + 1
            # The lead's clock alone counts, for saving is done by all or by none.
            due = distributed.lead() and time.monotonic() - saved > 60 * paths.save_minutes
            stop, due = distributed.agree([told(), due], where.device)
            if stop or count == paths.stop_after:
                break
            if due:
                save(done)
                saved = time.monotonic()
        if done:
            save(done)
            distributed.wait()  # so that whoever reads the folder next finds it there


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
    except Exception:
        if distributed.world() > 1:  # torchrun tells the others to end when one has gone: not before they have said why
            before.pop(signal.SIGTERM)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
