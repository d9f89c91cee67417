"""Learning-rate schedules as pure functions of the step, and AdamW parameter groups."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from sgdata.errors import SettingError, SourceError
from sgmodel import distributed
from sgmodel.models import state_keys

Schedule = Callable[[int], float]
"""Optimizer step (0-based) -> learning rate."""


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """AdamW and its learning-rate schedule; durations are in epochs, which need not be whole.

    Attributes:
        lr: Peak learning rate; the papers' base rate x batch / 256 is multiplied out in the recipe.
        schedule: Shape of the schedule after the warm-up.
        warmup_epochs: Duration of the linear warm-up.
        weight_decay: Weight decay.
        decay: Which parameters decay: matrices, matrices except position tables, or all.
        betas: The two moment coefficients.
        clip_norm: Maximum norm of the gradients; 0 for none, as in the paper.
        layer_decay: Factor between the rates of a block and of the block below it; 1 for none.
    """

    lr: float
    schedule: Literal["cosine", "poly", "per epoch"]
    warmup_epochs: float
    weight_decay: float
    decay: Literal["matrices", "not tables", "all"] = "matrices"
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 0.0
    layer_decay: float = 1.0


def cosine(step: int, *, peak: float, warmup: float, total: float) -> float:
    """Linear from 0 over `warmup` steps, then half a cosine to 0 at `total` (pretraining, classification)."""
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def poly(step: int, *, peak: float, warmup: float, total: float, power: float = 0.9) -> float:
    """From peak / 1000 to peak over `warmup` steps, then (1 - progress)^power to 0 at `total` (SegMunich)."""
    if step < warmup:
        return peak * (1e-3 + (1.0 - 1e-3) * step / warmup)
    left = max(0.0, 1.0 - (step - warmup) / (total - warmup))
    return peak * math.pow(left, power)


def per_epoch(step: int, *, peak: float, steps_per_epoch: float, factor: float = 0.95) -> float:
    """`peak` in the first epoch, `factor` times the rate of the one before in every other (OSCD)."""
    return peak * math.pow(factor, step // steps_per_epoch)


def schedule(recipe: OptimizerRecipe, *, steps_per_epoch: float, total: int) -> Schedule:
    """The recipe's learning rate at each of `total` steps."""
    if recipe.schedule == "per epoch":
        return lambda step: per_epoch(step, peak=recipe.lr, steps_per_epoch=steps_per_epoch)
    # A test run may be shorter than the warm-up; the schedule then still ends.
    warmup = min(recipe.warmup_epochs * steps_per_epoch, total - 1)
    if recipe.schedule == "poly":
        return lambda step: poly(step, peak=recipe.lr, warmup=warmup, total=total)
    return lambda step: cosine(step, peak=recipe.lr, warmup=warmup, total=total)


def groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """Parameter groups of one rate and one decay each; parameters that are frozen are in none.

    1-D parameters and biases escape the decay unless `decay` is "all". Position tables are decayed in pretraining,
    as released (spec section 6), and not in classification: "not tables" (section 7).
    """
    # By name, so that blocks count wherever a wrapper has put them; a model without blocks has one layer.
    # In their order, for a pyramid (Swin, ConvNeXt) numbers its blocks anew in every stage.
    found = dict.fromkeys(_block(name) for name, _ in model.named_parameters())
    blocks = [name for name in found if name and "slow_" not in name]
    made: defaultdict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # AdamW would decay them all the same
            continue
        spared = parameter.ndim <= 1 or name.endswith(".bias") or (recipe.decay == "not tables" and _is_table(name))
        decay = 0.0 if spared and recipe.decay != "all" else recipe.weight_decay
        # From the top: the head and the final norm at the full rate, block i at factor^(blocks - i).
        made[recipe.layer_decay ** (len(blocks) + 1 - _layer(name, blocks)), decay].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale} for (scale, decay), parameters in made.items()
    ]


def _layer(name: str, blocks: list[str]) -> int:
    """0 for what makes tokens, 1 + i for block i, the last number for all else; so also for models without blocks.

    As released, a joint position table is at the bottom and a pair of tables at the full rate (spec section 7).
    """
    if _block(name) in blocks:
        return blocks.index(_block(name)) + 1
    bottom = re.search(r"(?:^|\.)(patch_embed\.|pos_embed$|cls_token$)", name)
    return 0 if blocks and bottom else len(blocks) + 1


def _block(name: str) -> str:
    """The transformer block that a parameter belongs to, by its name; "" for none."""
    found = re.match(r"((?:.*\.)?blocks\.\d+)\.", name)
    return found[1] if found else ""


def _is_table(name: str) -> bool:
    return "pos_embed" in name or name.endswith("cls_token")


def adamw(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """AdamW over `groups`; the loop sets the rate before each step. Raises SettingError."""
    try:
        return torch.optim.AdamW(groups(model, recipe), lr=recipe.lr, betas=recipe.betas, fused=True)
    except ValueError as error:
        raise SettingError(f"training.optimizer {recipe}: {error}; change that") from None


# --- the optimizer's memory ----------------------------------------------------------------


def state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """What the optimizer remembers, as `<quantity>/<parameter name>` -> tensor, in shards where the model is."""
    names: dict[torch.Tensor, str] = {parameter: key for key, parameter in state_keys.parameters(model).items()}
    return {
        f"{quantity}/{names[parameter]}": value
        for parameter, memory in optimizer.state.items()
        for quantity, value in memory.items()
    }


def restore(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Put back what `state` gave. Raises SourceError on a parameter that the model does not have."""
    parameters = state_keys.parameters(model)
    for key, value in saved.items():
        quantity, _, name = key.partition("/")
        if name not in parameters:
            raise SourceError(
                f"optimizer state for '{name}': the model has no such parameter; start again with --fresh"
            )
        parameter = parameters[name]
        # The number of steps is one for the whole parameter, in shards or not.
        one = quantity == "step"
        own = value.to(parameter.device, copy=True) if one else distributed.shard_like(value, parameter)
        optimizer.state[parameter][quantity] = own
