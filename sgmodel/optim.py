"""Learning-rate schedules as pure functions of the step, and AdamW parameter groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from sgdata.errors import SourceError
from sgmodel import ranks

Schedule = Callable[[int], float]
"""Optimizer step (0-based) -> learning rate."""


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """AdamW and its schedule; times in epochs, which need not be whole.

    The peak rate is `lr` as it stands: the papers' base rate x batch / 256 is multiplied out in the recipe.
    `clip_norm` 0 leaves gradients alone, as the paper does.
    """

    lr: float
    schedule: Literal["cosine", "poly"]
    warmup_epochs: float
    weight_decay: float
    decay: Literal["matrices", "all"] = "matrices"
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 0.0


def cosine(step: int, *, peak: float, warmup: float, total: float, floor: float = 0.0) -> float:
    """Linear from 0 over `warmup` steps, then half a cosine to `floor` at `total` (pretraining, classification)."""
    if step < warmup:
        return peak * step / warmup
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def poly(step: int, *, peak: float, warmup: float, total: float, power: float = 0.9) -> float:
    """From peak / 1000 to peak over `warmup` steps, then (1 - progress)^power to 0 at `total` (SegMunich)."""
    if step < warmup:
        return peak * (1e-3 + (1.0 - 1e-3) * step / warmup)
    left = max(0.0, 1.0 - (step - warmup) / (total - warmup))
    return peak * math.pow(left, power)


def schedule(recipe: OptimizerRecipe, *, steps_per_epoch: float, total: int) -> Schedule:
    """The recipe's learning rate at each of `total` steps."""
    # A test run may be shorter than the warm-up; the schedule then still ends.
    warmup = min(recipe.warmup_epochs * steps_per_epoch, total - 1)
    if recipe.schedule == "poly":
        return lambda step: poly(step, peak=recipe.lr, warmup=warmup, total=total)
    return lambda step: cosine(step, peak=recipe.lr, warmup=warmup, total=total)


def groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """Parameter groups: 1-D parameters and biases escape the decay unless `decay` is "all".

    Position tables and the mask token are decayed, as released (spec section 6).
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        spared = recipe.decay == "matrices" and (parameter.ndim <= 1 or name.endswith(".bias"))
        (others if spared else matrices).append(parameter)
    return [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """AdamW over `groups`; the loop sets the rate before each step."""
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups(model, recipe), lr=recipe.lr, betas=recipe.betas, fused=fused)


# --- the optimizer's memory ----------------------------------------------------------------


def state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """What the optimizer remembers, as `<quantity>/<parameter name>` -> whole tensor on the CPU. All ranks call."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{quantity}/{names[parameter]}": ranks.whole(value.detach()).cpu().contiguous()
        for parameter, memory in optimizer.state.items()
        for quantity, value in memory.items()
    }


def restore(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Put back what `state` gave. Raises SourceError on a parameter that the model does not have."""
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        quantity, _, name = key.partition("/")
        if name not in parameters:
            raise SourceError(
                f"optimizer state for '{name}': the model has no such parameter; start again with --fresh"
            )
        parameter = parameters[name]
        if quantity == "step":  # one number, which only the fused kernel wants on the device
            optimizer.state[parameter][quantity] = value.to(parameter.device if _fused(optimizer) else "cpu", copy=True)
        else:
            optimizer.state[parameter][quantity] = ranks.like(value, parameter)


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("fused"))
