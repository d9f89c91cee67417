"""The training loop as an iterator over optimizer steps."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sgdata.errors import SettingError, SourceError
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


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step.

    Attributes:
        index: Number of the step, from 0.
        terms: Means of the terms of the objective over the global batch.
        lr: Learning rate.
        grad_norm: Norm of the gradients before clipping; None if half precision overflowed and no weight was changed.
        images: Samples in the global batch.
        wait_s: Seconds that the step waited for data.
        total_s: Seconds of the whole step.
    """

    index: int
    terms: dict[str, float]
    lr: float
    grad_norm: float | None
    images: int
    wait_s: float
    total_s: float


@dataclass(frozen=True, kw_only=True)
class Updates:
    """How gradients become new weights.

    Attributes:
        forward: The model as the objective calls it, wrapped for several ranks.
        optimizer: AdamW.
        schedule: Learning rate of each step.
        scaler: Scales the gradients of half precision; does nothing if disabled.
        parts: Micro-batches per step of this rank.
        clip_norm: Maximum norm of the gradients; 0 for none.
        seed: Seeds dropout together with the index of the step, so that a resumed run repeats its draws.
    """

    forward: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    parts: int = 1
    clip_norm: float = 0.0
    seed: int = 0


def steps(
    objective: Objective, source: Iterable[Batch], updates: Updates, launch: devices.Launch, *, first: int = 0
) -> Iterator[Step]:
    """Take one optimizer step per batch.

    Args:
        objective: Computes the terms of a batch.
        source: This rank's parts of the global batches.
        updates: Optimizer and its settings.
        launch: Device and precision.
        first: Index of the first step.

    Yields:
        The figures of each step.

    Raises:
        SettingError: a micro-batch is too small for the model.
        SourceError: the loss or a gradient is not finite; the message names the samples, and the weights are those of
            the previous step.
    """
    began = time.perf_counter()
    for index, batch in enumerate(source, first):
        loaded = time.perf_counter()
        torch.manual_seed((updates.seed << 32) + index * distributed.world_size() + distributed.rank())
        lr = updates.schedule(index)
        for group in updates.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        updates.optimizer.zero_grad(set_to_none=True)
        terms, norm = _gradients(objective, batch, updates, launch)
        # Half precision overflows at times: the scaler then skips the step and lowers the scale.
        overflow = updates.scaler.is_enabled() and not math.isfinite(norm)
        if not all(map(math.isfinite, terms.values())) or not (math.isfinite(norm) or overflow):
            raise SourceError(
                _blame(objective, batch, launch, f"step {index}: loss {terms['loss']}, gradient norm {norm}")
            )
        updates.scaler.step(updates.optimizer)
        updates.scaler.update()
        ended = time.perf_counter()
        yield Step(
            index=index,
            terms=terms,
            lr=lr,
            grad_norm=None if overflow else norm,
            images=len(batch.keys) * distributed.world_size(),
            wait_s=loaded - began,
            total_s=ended - began,
        )
        began = time.perf_counter()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, without gradients, and restore the mode of every submodule afterwards.

    A compiled model runs as it is written: the last batch of a scoring is often smaller, and each new shape would take
    minutes to compile.
    """
    # Per submodule: a frozen backbone stays in evaluation mode while the head is trained.
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        # Without a compiled model the compiler is not imported, which takes seconds.
        as_written = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        with torch.no_grad(), as_written:
            yield
    finally:
        for part in training:
            part.training = True


def _gradients(
    objective: Objective, batch: Batch, updates: Updates, launch: devices.Launch
) -> tuple[dict[str, float], float]:
    """Compute the gradients of the mean loss of the global batch, micro-batch by micro-batch.

    The total weight of the global batch is known only after all ranks have computed their parts. Gradients of sums are
    therefore accumulated and divided afterwards, which gives the same mean on any number of ranks and micro-batches.

    Returns:
        The means of the terms, and the norm of the gradients before clipping.
    """
    parts = list(batch.parts(updates.parts))
    sums: list[Tensor] = []
    names: list[str] = []
    weighed = False
    for number, part in enumerate(parts, 1):
        with distributed.sync_gradients(updates.forward, now=number == len(parts)), launch.autocast():
            terms = _terms(objective, part)
            weighed = WEIGHT in terms
            share = terms.pop(WEIGHT, len(part.keys)) / len(batch.keys)
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
    # Copying a value to the host waits for all pending work of the device: done once per step for all values.
    *means, weight, length = torch.cat([total, distributed.unshard(norm).double()[None]]).tolist()
    if weighed and weight:
        means = [mean / weight for mean in means]
    return dict(zip(names, means, strict=True)), length


def _terms(objective: Objective, part: Batch) -> dict[str, Tensor]:
    try:
        return objective(part)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        message = f"a micro-batch has {len(part.keys)} samples, and the model normalises over them (BatchNorm)"
        raise SettingError(
            f"{message}: expected 2 or more; raise training.batch, or lower training.accumulate"
        ) from None


def _blame(objective: Objective, batch: Batch, launch: devices.Launch, what: str) -> str:
    """Return one line that names the samples whose own loss is not finite, or says that there are none."""
    # One sample at a time: all ranks have the same number, and with FSDP each pass needs all ranks.
    bad: list[str] = []
    with torch.no_grad(), launch.autocast():
        for one in batch.parts(len(batch.keys)):
            # Repeated, since a model that normalises over its batch fails on a single sample.
            if not math.isfinite(objective(_twice(one))["loss"].item()):
                bad.extend(one.keys)
    bad, total = distributed.gather_names(bad), len(batch.keys) * distributed.world_size()
    remedy = "so the weights diverged; lower training.optimizer.lr or set training.precision = 'fp32'"
    if len(bad) == total > 1:
        return f"{what}: not finite for all {total} samples ({', '.join(bad[:8])}), {remedy}"
    if bad:
        return f"{what}: not finite for {len(bad)} of {total} samples: {', '.join(bad[:8])}; exclude them"
    return f"{what}: every sample alone is finite, {remedy}"


def _twice(one: Batch) -> Batch:
    repeated = {name: torch.cat([getattr(one, name)] * 2) for name in ("samples", "epoch", "valid_size")}
    arrays = {name: torch.cat([array, array]) for name, array in one.arrays.items()}
    return replace(one, keys=one.keys * 2, arrays=arrays, **repeated)
