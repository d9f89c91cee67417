"""One training step at a time, as an iterator: the program decides what to do with each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgdata.errors import SourceError
from sgmodel import batches, launch, optim

Objective = Callable[[batches.Batch], dict[str, Tensor]]
"""A batch on the host -> scalar terms on the device; `loss` is the one that is minimised."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step: figures of its global batch, and where the time went (seconds)."""

    index: int
    terms: dict[str, float]
    lr: float
    grad_norm: float
    images: int
    wait_s: float
    total_s: float


@dataclass(frozen=True, kw_only=True)
class Updates:
    """What turns gradients into new weights: AdamW, its rate per step, micro-batches per step, norm limit; `seed`
    and the step's index seed dropout, so that a resumed run draws what an uninterrupted one does."""

    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    accumulate: int = 1
    clip_norm: float = 0.0
    seed: int = 0


def steps(
    objective: Objective, source: Iterable[batches.Batch], updates: Updates, where: launch.Launch, *, first: int = 0
) -> Iterator[Step]:
    """One Step per batch of `source`, the first of which has index `first`.

    Raises SourceError where the loss or a gradient is not a finite number, naming the samples; the weights are
    then still those of the step before.
    """
    began = time.perf_counter()
    for index, batch in enumerate(source, first):
        loaded = time.perf_counter()
        torch.manual_seed((updates.seed << 32) + index)
        lr = _set_rate(updates, index)
        updates.optimizer.zero_grad(set_to_none=True)
        terms: dict[str, float] = {}
        for part in batch.parts(updates.accumulate):
            for name, value in _backward(objective, part, where, share=len(part.keys) / len(batch.keys)).items():
                terms[name] = terms.get(name, 0.0) + value
        norm = _limit(updates)
        if not all(map(_finite, (*terms.values(), norm))):
            raise SourceError(
                _blame(objective, batch, where, f"step {index}: loss {terms['loss']}, gradient norm {norm}")
            )
        updates.optimizer.step()
        ended = time.perf_counter()
        yield Step(
            index=index,
            terms=terms,
            lr=lr,
            grad_norm=norm,
            images=len(batch.keys),
            wait_s=loaded - began,
            total_s=ended - began,
        )
        began = time.perf_counter()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model drops nothing out and keeps no gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _set_rate(updates: Updates, index: int) -> float:
    lr = updates.schedule(index)
    for group in updates.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


def _backward(objective: Objective, part: batches.Batch, where: launch.Launch, share: float) -> dict[str, float]:
    """Add the gradients of `share` x loss; the terms, each times `share`."""
    with where.autocast():
        terms = objective(part)
    torch.autograd.backward(terms["loss"] * share)
    return {name: value.item() * share for name, value in terms.items()}


def _limit(updates: Updates) -> float:
    """The gradient's norm before it is limited to `clip_norm` (0: it is not)."""
    parameters = [p for group in updates.optimizer.param_groups for p in group["params"]]
    return torch.nn.utils.clip_grad_norm_(parameters, updates.clip_norm or float("inf")).item()


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _blame(objective: Objective, batch: batches.Batch, where: launch.Launch, what: str) -> str:
    """One line naming the samples whose own loss is not finite, or saying that there is none."""
    bad: list[str] = []
    with torch.no_grad(), where.autocast():
        for one in batch.parts(len(batch.keys)):
            if not _finite(objective(one)["loss"].item()):
                bad.extend(one.keys)
    if bad:
        return f"{what}: not finite for {len(bad)} of {len(batch.keys)} samples: {', '.join(bad[:8])}; leave them out"
    return (
        f"{what}: every sample alone is finite, so the weights diverged; lower optimizer.lr or set precision = 'fp32'"
    )
