"""One training step at a time, as an iterator: the program decides what to do with each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
"""A batch on the host -> scalar terms on the device; `loss` is the one that is minimised.

Terms are means. Where not all samples count alike, a further term WEIGHT says how many samples' worth (a share of the
labelled pixels, say) they are means over: the global batch's terms are then means over all that counts in it.
"""

WEIGHT = "weight"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step: figures of its global batch, and where the time went (seconds).

    `grad_norm` is None where half precision overflowed and the weights were left as they were."""

    index: int
    terms: dict[str, float]
    lr: float
    grad_norm: float | None
    images: int
    wait_s: float
    total_s: float


@dataclass(frozen=True, kw_only=True)
class Updates:
    """What turns gradients into new weights: AdamW, its rate per step, micro-batches per step, norm limit; `seed`
    and the step's index seed dropout, so that a resumed run draws what an uninterrupted one does.

    `forward` is the model as the objective calls it, which on several ranks must know when to exchange gradients;
    `scaler` keeps the gradients of half precision in range (a disabled one does nothing)."""

    forward: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    accumulate: int = 1
    clip_norm: float = 0.0
    seed: int = 0


def steps(
    objective: Objective, source: Iterable[Batch], updates: Updates, where: devices.Launch, *, first: int = 0
) -> Iterator[Step]:
    """One Step per batch of `source` (this rank's part of a global batch), the first of which has index `first`.

    Raises SettingError where a part is too small for the model; SourceError where the loss or a gradient is not a
    finite number, naming the samples: the weights are then still those of the step before.
    """
    began = time.perf_counter()
    for index, batch in enumerate(source, first):
        loaded = time.perf_counter()
        torch.manual_seed((updates.seed << 32) + index * distributed.world() + distributed.rank())
        lr = updates.schedule(index)
        for group in updates.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        updates.optimizer.zero_grad(set_to_none=True)
        terms, norm = _gradients(objective, batch, updates, where)
        # Half precision overflows now and then: its scaler then leaves this step out and lowers the scale.
        overflow = updates.scaler.is_enabled() and not math.isfinite(norm)
        if not all(map(math.isfinite, terms.values())) or not (math.isfinite(norm) or overflow):
            raise SourceError(
                _blame(objective, batch, where, f"step {index}: loss {terms['loss']}, gradient norm {norm}")
            )
        updates.scaler.step(updates.optimizer)
        updates.scaler.update()
        ended = time.perf_counter()
        yield Step(
            index=index,
            terms=terms,
            lr=lr,
            grad_norm=None if overflow else norm,
            images=len(batch.keys) * distributed.world(),
            wait_s=loaded - began,
            total_s=ended - began,
        )
        began = time.perf_counter()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model drops nothing out and keeps no gradients."""
    # Part by part: a frozen backbone stays in evaluation while the head is trained.
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


def _gradients(
    objective: Objective, batch: Batch, updates: Updates, where: devices.Launch
) -> tuple[dict[str, float], float]:
    """Gradients of the mean loss of the global batch, micro-batch by micro-batch; the terms' means over it, and the
    gradients' norm before it was limited.

    What a part weighs in the whole is known only when all ranks have seen theirs: gradients are gathered of sums, and
    divided afterwards. So it is the same mean on any number of ranks and micro-batches.

    A recipe's `accumulate` cuts the global batch, so on more ranks each has fewer parts, of the same size.
    """
    parts = list(batch.parts(-(-updates.accumulate // distributed.world())))
    sums: list[Tensor] = []
    names: list[str] = []
    weighed = False
    for number, part in enumerate(parts, 1):
        with distributed.exchange(updates.forward, now=number == len(parts)), where.autocast():
            terms = _asked(objective, part)
            weighed = WEIGHT in terms
            share = terms.pop(WEIGHT, len(part.keys)) / len(batch.keys)
            with torch.autocast(where.device.type, enabled=False):
                torch.autograd.backward(updates.scaler.scale(terms["loss"] * share))
        names = list(terms)
        weighted = [*(value.detach().float() for value in terms.values()), torch.ones_like(terms["loss"])]
        sums.append(share * torch.stack(weighted))
    if not sums:
        raise SourceError("a batch without one sample; the split is empty")
    total = distributed.mean(sum(sums[1:], sums[0]))
    parameters = [p for group in updates.optimizer.param_groups for p in group["params"] if p.grad is not None]
    if weighed:
        for parameter in parameters:  # with nothing labelled the gradients are zero, whatever they are divided by
            parameter.grad /= total[-1].clamp(min=1e-12)
    updates.scaler.unscale_(updates.optimizer)
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if updates.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, updates.clip_norm, norm)
    # Fetching a figure waits for all that was asked of the device before: once per step, for all of them.
    *means, weight, length = torch.cat([total, distributed.unshard(norm).double()[None]]).tolist()
    if weighed and weight:
        means = [mean / weight for mean in means]
    return dict(zip(names, means, strict=True)), length


def _asked(objective: Objective, part: Batch) -> dict[str, Tensor]:
    try:
        return objective(part)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        message = f"{len(part.keys)} samples go through the model at once, and it normalises over them (BatchNorm)"
        raise SettingError(
            f"{message}: expected 2 or more; raise training.batch, or lower training.accumulate"
        ) from None


def _blame(objective: Objective, batch: Batch, where: devices.Launch, what: str) -> str:
    """One line naming the samples whose own loss is not finite, or saying that there is none."""
    # One sample at a time, as ranks have equally many: with FSDP each pass needs all of them.
    bad: list[str] = []
    with torch.no_grad(), where.autocast():
        for one in batch.parts(len(batch.keys)):
            # Beside itself: a model that normalises over its batch can do nothing with a single sample.
            if not math.isfinite(objective(_twice(one))["loss"].item()):
                bad.extend(one.keys)
    bad, total = distributed.gather(bad), len(batch.keys) * distributed.world()
    if len(bad) == total > 1:
        message = f"{what}: not finite for all {total} samples ({', '.join(bad[:8])}), so the weights diverged"
        return f"{message}; lower optimizer.lr or set precision = 'fp32'"
    if bad:
        return f"{what}: not finite for {len(bad)} of {total} samples: {', '.join(bad[:8])}; leave them out"
    return (
        f"{what}: every sample alone is finite, so the weights diverged; lower optimizer.lr or set precision = 'fp32'"
    )


def _twice(one: Batch) -> Batch:
    alike = {name: torch.cat([getattr(one, name)] * 2) for name in ("samples", "epoch", "valid_size")}
    return replace(one, keys=one.keys * 2, arrays={name: torch.cat([a, a]) for name, a in one.arrays.items()}, **alike)
