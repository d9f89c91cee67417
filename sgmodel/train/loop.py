"""The training loop as an iterator over optimizer steps."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from sgdata.errors import SettingError, SgdataError, SourceError
from sgmodel import distributed

if TYPE_CHECKING:
    from sgmodel import devices
    from sgmodel.data.loader import Batch
    from sgmodel.train import optim

Objective = Callable[["Batch"], dict[str, Tensor]]
"""A function from a batch on the host to scalar terms on the device, of which `loss` is minimised.

Terms are means over samples. If samples have unequal weights (such as their share of labelled pixels), a further term
WEIGHT gives the total weight of the batch, and the terms of the global batch are weighted means.
"""

WEIGHT = "weight"


class NotFiniteError(SgdataError):
    """The loss or a gradient of a step is not finite; the weights are those of the step before.

    Attributes:
        step: Index of the step.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class StepMetrics(NamedTuple):
    """Figures of a step.

    Attributes:
        terms: Means of the terms of the objective over the global batch.
        grad_norm: Norm of the gradients before clipping; None if half precision overflowed and no weight was changed.
    """

    terms: dict[str, float]
    grad_norm: float | None


class StepResult:
    """Figures of a step on their way from the device, which is not waited for until they are read.

    Args:
        figures: Values on the device, (F,).
        read: Makes the figures of the values, or raises NotFiniteError.

    Attributes:
        waited_s: Seconds that reading has waited for the device.
    """

    def __init__(self, figures: Tensor, read: Callable[[list[float]], StepMetrics]) -> None:
        self._read, self._figures = read, figures
        self._event: torch.cuda.Event | None = None
        self._known: StepMetrics | None = None
        self.waited_s = 0.0
        if figures.is_cuda:
            self._figures = torch.empty_like(figures, device="cpu", pin_memory=True).copy_(figures, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> StepMetrics:
        """Wait for the step and return its figures. Raises NotFiniteError."""
        if self._known is None:
            began = time.perf_counter()
            if self._event is not None:
                self._event.synchronize()
            self.waited_s = time.perf_counter() - began
            self._known = self._read(self._figures.tolist())
        return self._known


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step, which the device may still be computing.

    Attributes:
        index: Number of the step, from 0.
        result: Loss and gradient norm.
        failed: 1 on the device if the loss or a gradient of this step is not finite, else 0.
        lr: Learning rate.
        images: Samples in the global batch.
        wait_s: Seconds that the step waited for data.
        total_s: Seconds since the step before.
    """

    index: int
    result: StepResult
    failed: Tensor
    lr: float
    images: int
    wait_s: float
    total_s: float


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """Optimizer, schedule, gradient scaling and clipping of the training loop.

    Attributes:
        forward: The model as the objective calls it, wrapped for several ranks.
        optimizer: AdamW, fused.
        schedule: Learning rate of each step.
        scaler: Scales the gradients of half precision; does nothing if disabled.
        micro_batches: Micro-batches per step of this rank.
        clip_norm: Maximum norm of the gradients; 0 for none.
        seed: Seeds dropout together with the index of the step, so that a resumed run repeats its draws.
    """

    forward: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    micro_batches: int = 1
    clip_norm: float = 0.0
    seed: int = 0


def steps(
    objective: Objective, source: Iterable[Batch], updates: UpdateSettings, launch: devices.Runtime, *, first: int = 0
) -> Iterator[Step]:
    """Take one optimizer step per batch.

    A GPU computes a step while the host prepares the next one: each step is checked once the next is under way, and
    updates no weights if the one before has failed. A batch must stay as it is until the next but one is requested.

    Args:
        objective: Computes the terms of a batch.
        source: This rank's parts of the global batches.
        updates: Optimizer and its settings.
        launch: Device and precision.
        first: Index of the first step.

    Yields:
        Each step, whose result is read before the next is yielded.

    Raises:
        SettingError: A micro-batch is too small for the model.
        NotFiniteError: The loss or a gradient of a step is not finite; the message names the samples, and the weights
            are those of the step before.
    """
    batches, last = iter(source), None
    failed = torch.zeros((), device=launch.device)
    for index in itertools.count(first):
        began = time.perf_counter() - (last.result.waited_s if last else 0.0)  # in saving or scoring after that step
        try:
            batch = next(batches, None)
            loaded = time.perf_counter()
            if batch is None:
                break
            lr, result, failed = _update(objective, batch, updates, launch, index, failed)
        except SgdataError:
            if last:
                last.result.read()
            raise
        if last:
            last.result.read()
        last = Step(
            index=index,
            result=result,
            failed=failed,
            lr=lr,
            images=len(batch.keys) * distributed.world_size(),
            wait_s=loaded - began,
            total_s=time.perf_counter() - began,
        )
        yield last
    if last:
        last.result.read()


def _update(
    objective: Objective, batch: Batch, updates: UpdateSettings, launch: devices.Runtime, index: int, failed: Tensor
) -> tuple[float, StepResult, Tensor]:
    """Start the step of a batch; return its learning rate, its result, and whether it or one before has failed."""
    torch.manual_seed((updates.seed << 32) + index * distributed.world_size() + distributed.rank())
    lr, optimizer, scaler = updates.schedule(index), updates.optimizer, updates.scaler
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    optimizer.zero_grad(set_to_none=True)
    names, figures = _gradients(objective, batch, updates, launch)
    # Half precision overflows at times: that step is skipped, and the scale lowered.
    scaled = scaler.is_enabled()
    broken = ~figures.isfinite()
    failed = torch.maximum(failed, (broken[:-1] if scaled else broken).any().float())
    # Fused optimizers read this attribute, as GradScaler sets it, on the device, and change no weight if it is 1.
    optimizer.found_inf = torch.maximum(failed, broken[-1].float())  # type: ignore[attr-defined]
    optimizer.step()
    _update_scale(scaler, failed)

    def read(values: list[float]) -> StepMetrics:
        *means, norm = values
        terms = dict(zip(names, means, strict=True))
        finite = math.isfinite(norm)
        if not all(map(math.isfinite, means)) or not (finite or scaled):
            message = f"step {index}: loss {terms['loss']}, gradient norm {norm}"
            raise NotFiniteError(_describe_not_finite(objective, batch, launch, message), index)
        return StepMetrics(terms, norm if finite else None)

    return lr, StepResult(figures, read), failed


def _update_scale(scaler: torch.amp.GradScaler, failed: Tensor) -> None:
    """Update the scale of half precision, unless the step has failed: the scale belongs to the weights."""
    if not scaler.is_enabled():
        return
    state = [scaler._scale, scaler._growth_tracker]
    before = [value.clone() for value in state if value is not None]
    scaler.update()
    for now, old in zip([scaler._scale, scaler._growth_tracker], before, strict=True):
        if now is not None:
            now.copy_(torch.where(failed > 0, old, now))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, without gradients, and restore the mode of every submodule afterwards.

    A compiled model runs as it is written: the last batch of a scoring is often smaller, and each new shape would take
    minutes to compile.
    """
    # Per submodule: a frozen backbone stays in evaluation mode while the head is trained.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Without a compiled model the compiler is not imported, which takes seconds.
        as_written = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        with torch.no_grad(), as_written:
            yield
    finally:
        for module in training:
            module.training = True


def _gradients(
    objective: Objective, batch: Batch, updates: UpdateSettings, launch: devices.Runtime
) -> tuple[list[str], Tensor]:
    """Compute the gradients of the mean loss of the global batch, micro-batch by micro-batch.

    The total weight of the global batch is known only after all ranks have computed their parts. Gradients of sums are
    therefore accumulated and divided afterwards, which gives the same mean on any number of ranks and micro-batches.

    Returns:
        The names of the terms; their means and, last, the norm of the gradients before clipping, on the device.
    """
    micro_batches = list(batch.parts(updates.micro_batches))
    sums: list[Tensor] = []
    names: list[str] = []
    weighed = False
    for number, micro_batch in enumerate(micro_batches, 1):
        with distributed.sync_gradients(updates.forward, now=number == len(micro_batches)), launch.autocast():
            terms = _terms(objective, micro_batch)
            weighed = WEIGHT in terms
            share = terms.pop(WEIGHT, len(micro_batch.keys)) / len(batch.keys)
            with torch.autocast(launch.device.type, enabled=False):
                torch.autograd.backward(updates.scaler.scale(terms["loss"] * share))
        names = list(terms)
        weighted = [*(value.detach().float() for value in terms.values()), torch.ones_like(terms["loss"])]
        sums.append(share * torch.stack(weighted))
    if not sums:
        raise SourceError("a batch without one sample; the split is empty: choose another")
    total = distributed.mean(sum(sums[1:], sums[0]))
    parameters = [p for group in updates.optimizer.param_groups for p in group["params"] if p.grad is not None]
    if weighed:
        for parameter in parameters:  # without labelled pixels the gradients are zero, and the divisor must not be
            parameter.grad /= total[-1].clamp(min=1e-12)
    updates.scaler.unscale_(updates.optimizer)
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if updates.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, updates.clip_norm, norm)
    means = total[:-1] / total[-1].where(total[-1] != 0, 1.0) if weighed else total[:-1]
    return names, torch.cat([means, distributed.unshard(norm).double()[None]])


def _terms(objective: Objective, micro_batch: Batch) -> dict[str, Tensor]:
    try:
        return objective(micro_batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        message = f"a micro-batch has {len(micro_batch.keys)} samples, and the model normalises over them (BatchNorm)"
        raise SettingError(
            f"{message}: expected 2 or more; raise training.batch, or lower training.accumulate"
        ) from None


def _describe_not_finite(objective: Objective, batch: Batch, launch: devices.Runtime, message: str) -> str:
    """Return one line that names the samples whose own loss is not finite, or says that there are none."""
    # One sample at a time: all ranks have the same number, and with FSDP each pass needs all ranks.
    keys: list[str] = []
    with torch.no_grad(), launch.autocast():
        for single in batch.parts(len(batch.keys)):
            # Repeated, since a model that normalises over its batch fails on a single sample.
            if not math.isfinite(objective(_repeat_twice(single))["loss"].item()):
                keys.extend(single.keys)
    keys, total = distributed.gather_names(keys), len(batch.keys) * distributed.world_size()
    remedy = "so the weights diverged; lower training.optimizer.lr or set training.precision = 'fp32'"
    if len(keys) == total > 1:
        return f"{message}: not finite for all {total} samples ({', '.join(keys[:8])}), {remedy}"
    if keys:
        return f"{message}: not finite for {len(keys)} of {total} samples: {', '.join(keys[:8])}; exclude them"
    return f"{message}: every sample alone is finite, {remedy}"


def _repeat_twice(batch: Batch) -> Batch:
    repeated = {name: torch.cat([getattr(batch, name)] * 2) for name in ("samples", "epoch", "valid_size")}
    arrays = {name: torch.cat([array, array]) for name, array in batch.arrays.items()}
    return replace(batch, keys=batch.keys * 2, arrays=arrays, **repeated)
