"""Run a training: start or resume in a folder, take steps, save checkpoints, stop cleanly on a signal."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from sgdata import files, progress
from sgdata.errors import ServiceError, SettingError, SourceError
from sgdata.types import Contract
from sgmodel import devices, distributed
from sgmodel.data import band_selection, class_labels, loader, normalise, subset, upsample
from sgmodel.models import state_keys
from sgmodel.train import batching, ema, float8, loop, optim, run_folder, signals, wrap_model

if TYPE_CHECKING:
    from sgmodel.checkpoints.cards import ModelCard
    from sgmodel.train.run_paths import RunPaths

log = logging.getLogger("sgdata")
R = TypeVar("R")


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
        compile: Whether to compile the model for training, which takes minutes at the start and makes steps faster.
        cuda_graphs: Whether a compiled model runs as CUDA graphs, for steps that are too short for the host.
        recompute: Whether to recompute activations in the backward pass, which saves memory and takes time.
        ema_decay: Decay per step of an exponential moving average (EMA) of the weights, kept as `ema.safetensors`;
            0 for none.
        fraction: Share of the training samples that is used.
        fraction_seed: Seed that selects this share.
        budget: Label budget of the split table to train on, such as "20" or "10%"; empty for all samples.
        mixture: Share of each dataset by name, for pretraining on several.
        verify: Whether members of shards are compared with their checksums when a process first reads each, or always.
        patience: Scorings in turn without a better one after which training ends; 0 for never.
    """

    seed: int
    split: str
    epochs: float
    batch: int
    accumulate: int
    precision: devices.TrainingPrecision
    log_every: int
    optimizer: optim.OptimizerRecipe
    compile: bool = False
    cuda_graphs: bool = False
    recompute: bool = False
    ema_decay: float = 0.0
    fraction: float = 1.0
    fraction_seed: int = 0
    budget: str = ""
    mixture: dict[str, float] = field(default_factory=dict)
    verify: loader.Verify = "first"
    patience: int = 0

    def __post_init__(self) -> None:
        """Refuse a batch that cannot be divided. Raises SettingError."""
        if self.batch > 0:  # which is checked later
            batching.divide(self.batch, self.accumulate)

    @property
    def division(self) -> batching.BatchDivision:
        """Return how the batch is divided among processes and parts."""
        return batching.divide(self.batch, self.accumulate)


@dataclass(frozen=True, kw_only=True)
class TrainingSetup(Generic[R]):
    """A recipe resolved against its data and machine.

    Attributes:
        recipe: The recipe, without spectral groups that the data lack if its policy is "drop-group".
        stored: Contract of the samples as stored.
        contract: Contract of the input bands of the model.
        band_indices: Indices of the latter in the stored bands; None for all, in order.
        normalisation: Normalisation.
        launch: Device and precision.
    """

    recipe: R
    stored: Contract
    contract: Contract
    band_indices: list[int] | None
    normalisation: normalise.Normalisation
    launch: devices.Runtime

    @property
    def classes(self) -> int:
        """Return the number of classes of the data."""
        return len(self.contract.label_space.ids)

    @property
    def scored_at_once(self) -> int:
        """Return how many images are scored at once: those of the largest part of a batch in training."""
        own: Any = self.recipe
        largest: int = own.training.division.largest
        return largest

    @property
    def ignore(self) -> int:
        """Return the class index of pixels that are left out."""
        return class_labels.ignored_index(self.contract.label_space)


def resolve(recipe: R, stored: Contract, paths: RunPaths) -> TrainingSetup[R]:
    """Resolve a recipe against the contract of its data and the machine.

    Args:
        recipe: Has `bands`, `normalise`, `training`, and an encoder configuration as `model` or `model.encoder`.
        stored: Contract of the samples as stored.
        paths: Machine settings.

    Raises:
        SettingError: The recipe does not fit the data or the machine.
    """
    # First, since dropped spectral groups change the bands and the number of tokens.
    resolved: Any = band_selection.resolve(recipe, stored)
    contract = band_selection.narrow(stored, resolved.bands, resolved.normalise.missing)
    launch = devices.setup_device(paths.device, precision=resolved.training.precision, threads=paths.threads)
    float8.check(launch)
    if launch.device.type == "cpu":
        devices.keep_freed_memory()
    return TrainingSetup(
        recipe=resolved,
        stored=stored,
        contract=contract,
        band_indices=band_selection.find_indices(stored, resolved.bands, resolved.normalise.missing),
        normalisation=normalise.resolve(resolved.normalise, contract),
        launch=launch,
    )


def normalised_pixels(setup: TrainingSetup[R], batch: loader.Batch, name: str = "image") -> Tensor:
    """Return normalised images (N, C, H, W) of the input bands of the model, on the device."""
    return normalise.apply(setup.normalisation, stored_pixels(setup, batch, name), batch.valid_size)


def stored_pixels(setup: TrainingSetup[R], batch: loader.Batch, name: str = "image") -> Tensor:
    """Return images (N, C, H, W) in stored units of the input bands of the model, on the device; NaN is no data."""
    device = setup.launch.device
    if name == "image":
        images = upsample.images(batch.arrays, batch.valid_size, setup.stored, device)
    else:  # pairs are stored on one grid, never as native groups
        images = batch.arrays[name].to(device, non_blocking=True)
    masked = normalise.mask_nodata(images, setup.stored.nodata)
    return masked if setup.band_indices is None else band_selection.select(masked, setup.band_indices)


def labels(setup: TrainingSetup[R], batch: loader.Batch) -> Tensor:
    """Return the masks (N, H, W) of a batch as class indices 0..K-1, or `setup.ignore`. Raises SourceError."""
    return class_labels.checked(setup.contract.label_space, batch.arrays["mask"], batch.keys)


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """A prepared training.

    Attributes:
        training: Duration and batch.
        model: The model that is saved.
        objective: Computes the terms of a batch.
        source: Training samples.
        launch: Device and precision.
        updates: Optimizer and its settings.
        total: Number of steps.
        card: Card of its checkpoints.
        meter: Computes the speed of steps.
        averaged: Exponential moving average of the weights, by parameter name.
    """

    training: TrainingRecipe
    model: nn.Module
    objective: loop.Objective
    source: loader.SampleSource
    launch: devices.Runtime
    updates: loop.UpdateSettings
    total: int
    card: ModelCard
    meter: devices.SpeedMeter
    averaged: dict[str, torch.Tensor] = field(default_factory=dict)

    def epoch(self, step: int) -> int:
        """Return the number of epochs completed after `step` steps."""
        return step * self.training.batch // len(self.source)


def prepare_task(
    setup: TrainingSetup[Any],
    model: nn.Module,
    source: loader.SampleSource,
    objective: Callable[[nn.Module, loader.Batch], dict[str, Tensor]],
    paths: RunPaths,
    *,
    card: ModelCard,
    flops: float | None,
) -> TrainingTask:
    """Prepare the training of `model`, which is moved to its device.

    Args:
        setup: Resolved recipe.
        model: Model to train.
        source: Training samples.
        objective: Computes the terms of a batch with the model as wrapped for training.
        paths: Machine settings.
        card: Card of the checkpoints.
        flops: Model FLOPs of a sample in a step; None where they are not known.

    Raises:
        SettingError: The optimizer or the precision is refused.
    """
    training: TrainingRecipe = setup.recipe.training
    launch, epoch = setup.launch, len(source) / training.batch
    total = math.ceil(training.epochs * len(source) / training.batch)
    forward = wrap_model.wrap(
        model,
        launch,
        paths.parallel,
        compiled=training.compile,
        cuda_graphs=training.cuda_graphs,
        recompute=training.recompute,
    )
    updates = loop.UpdateSettings(
        forward=forward,
        optimizer=optim.adamw(model, training.optimizer),
        schedule=optim.schedule(training.optimizer, steps_per_epoch=epoch, total=total),
        scaler=torch.amp.GradScaler(launch.device.type, enabled=training.precision == "fp16"),
        micro_batches=training.division.micro_batches,
        clip_norm=training.optimizer.clip_norm,
        seed=training.seed,
    )
    return TrainingTask(
        training=training,
        model=model,
        objective=partial(objective, forward),
        source=source,
        launch=launch,
        updates=updates,
        total=total,
        card=card,
        meter=devices.meter(launch, flops, measure=paths.measure_peak),
    )


def describe_run(task: TrainingTask) -> str:
    """Return one line with the size of the run."""
    parameters = sum(p.numel() for p in task.model.parameters())
    size, epochs, batch = task.source.size(), task.training.epochs, task.training.batch
    counts = " of ".join(f"{count} {name}" for name, count in reversed(size.items()))
    return f"{parameters:,} parameters; {counts} x {epochs:g} epochs = {task.total} steps of {batch}"


def open_samples(folder: Path, training: TrainingRecipe, members: Sequence[str]) -> loader.Samples:
    """Open the training samples of a folder of shards. Raises SettingError, SourceError."""
    if training.mixture:
        raise SettingError(f"training.mixture is {training.mixture}: only pretraining, which needs no labels, can mix")
    return loader.Samples(
        folder,
        training.split,
        members,
        fraction=training.fraction,
        seed=training.fraction_seed,
        verify=training.verify,
        keys=subset.within_budget(folder, training.split, training.budget) if training.budget else None,
    )


def begin(task: TrainingTask, recipe: Any, paths: RunPaths) -> int:
    """Prepare the folder of the run and load its checkpoint, if any.

    Returns:
        The number of steps already done.

    Raises:
        SgdataError: The folder holds another run, or a file cannot be read or written.
    """
    with distributed.explain_lost_ranks():
        # Parts of another size have other statistics, with which BatchNorm computes other figures.
        normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in task.model.modules())
        free = run_folder.FREE - {"training.accumulate"} if normed else run_folder.FREE
        first = run_folder.prepare(paths.out, recipe, task.source.contract, fresh=paths.fresh, free=free)
        if first:
            averaged = run_folder.restore(paths.out, task.model, task.updates.optimizer)
            names = state_keys.parameters(task.model)
            task.averaged.update({name: tensor for name, tensor in averaged.items() if name in names})
            scaler = run_folder.read_progress(paths.out).scaler
            if scaler:
                task.updates.scaler.load_state_dict(scaler)
            if distributed.is_main_process():
                log.info("%s: resumes at step %d of %d", paths.out, first, task.total)
        distributed.wait()  # until all ranks have read the checkpoint, which rank 0 may replace soon
    return first


def run(
    task: TrainingTask,
    first: int,
    paths: RunPaths,
    report: Callable[[loop.Step], None],
    flush: Callable[[], None],
    *,
    ended: Callable[[], bool] = lambda: False,
) -> None:
    """Take the steps from `first` on, and save a checkpoint every `paths.save_minutes` and at the end.

    The end is the last step, the first after which the run has `ended`, a signal to stop (`signals`),
    `paths.stop_after` steps, or samples that cannot be read or used.

    Args:
        task: The training.
        first: Number of steps already done.
        paths: Machine settings.
        report: Called after each step; may score the model.
        flush: Called before saving; writes what `report` has left to write, and so waits for the last step.
        ended: Returns whether to end before the last step, the same on all ranks.

    Raises:
        SgdataError: Samples cannot be read or used, after a checkpoint was saved; or a file cannot be written.
    """
    if ended():
        return
    training, source = task.training, task.source
    index_stream = source.stream(training.batch, seed=training.seed, first=first, last=task.total)
    rank_indices = (
        loader.rank_part(indices, rank=distributed.rank(), world=distributed.world_size()) for indices in index_stream
    )
    loaded = loader.load(source, rank_indices, threads=paths.workers, pinned=task.launch.device.type == "cuda")
    batches = distributed.agreed(loaded)
    steps = loop.steps(task.objective, batches, task.updates, task.launch, first=first)
    # One progress bar, not one per process.
    if distributed.is_main_process():
        steps = progress.track(steps, label="training steps", total=task.total - first)
    averaged = ema.update_after(steps, task.model, task.averaged, training.ema_decay)
    with distributed.explain_lost_ranks(), wrap_model.explain_compiler():
        _take_steps(averaged, task, paths, report, flush, ended)


def scored_batches(
    setup: TrainingSetup[Any], source: loader.SampleSource, plan: Iterator[loader.BatchIndices]
) -> Iterator[loader.Batch]:
    """Yield the batches of `plan` to score; a sample that one rank cannot read is an error on all of them."""
    return distributed.agreed(loader.load(source, plan, threads=1))


def complete(task: TrainingTask, paths: RunPaths, *, ended: Callable[[], bool] = lambda: False) -> bool:
    """Return whether the run in the folder has reached its last step, or `ended` before."""
    return run_folder.read_progress(paths.out).steps == task.total or ended()


def _save(task: TrainingTask, out: Path, steps_done: int) -> None:
    metrics, log_sha256 = out / run_folder.METRICS, ""
    if distributed.is_main_process():
        files.sync(metrics)  # a checkpoint that survives a power failure needs its metrics
        log_sha256 = files.sha256_file(metrics)
    state = run_folder.RunProgress(
        steps=steps_done,
        log_sha256=log_sha256,
        scaler=task.updates.scaler.state_dict(),  # empty for a disabled scaler
    )
    run_folder.save(out, task.model, task.card, task.updates.optimizer, state, task.averaged)


def _take_steps(
    steps: Iterator[loop.Step],
    task: TrainingTask,
    paths: RunPaths,
    report: Callable[[loop.Step], None],
    flush: Callable[[], None],
    ended: Callable[[], bool],
) -> None:
    """Report the steps until the last, `ended`, a signal or `paths.stop_after`; save on the way and at the end."""
    steps_done, saved = 0, time.monotonic()
    with signals.deferred_signals() as stopped:
        try:
            for count, step in enumerate(steps, 1):
                steps_done = step.index + 1
                report(step)
                # By the clock of rank 0 alone, since either all ranks save or none.
                due = distributed.is_main_process() and time.monotonic() - saved > 60 * paths.save_minutes
                stop, due = distributed.agree([stopped(), due])
                if stop or count == paths.stop_after or ended():
                    break
                if due:
                    flush()
                    _save(task, paths.out, steps_done)
                    saved = time.monotonic()
            flush()
        except (SourceError, ServiceError, loop.NotFiniteError) as error:
            if isinstance(error, loop.NotFiniteError):  # of the last step, or of the one before
                steps_done = min(steps_done, error.step)
            else:
                flush()
            # Samples that one rank cannot read are an error on all ranks, which saving takes. A checkpoint of a
            # diverged model would replace one that can be used.
            if not _is_finite(task.model):
                raise
            _save_last(task, paths.out, steps_done)
            if not stopped():
                raise
            return
        _save_last(task, paths.out, steps_done)


def _save_last(task: TrainingTask, out: Path, steps_done: int) -> None:
    if steps_done:
        _save(task, out, steps_done)
        distributed.wait()  # until rank 0 has written the checkpoint


def _is_finite(model: nn.Module) -> bool:
    # Whole on every rank, so that all decide the same.
    weights = (distributed.unshard(weight.detach()) for weight in model.state_dict().values())
    return all(bool(weight.isfinite().all()) for weight in weights)
