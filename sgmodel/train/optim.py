"""Learning-rate schedules as pure functions of the step, AdamW parameter groups, and the optimizer state."""

from __future__ import annotations

import logging
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

log = logging.getLogger("sgdata")

Schedule = Callable[[int], float]
"""A function from the optimizer step (from 0) to the learning rate."""


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """AdamW and its learning-rate schedule; durations are in epochs, which need not be whole.

    Attributes:
        lr: Peak learning rate; the papers' base rate x batch / 256 is multiplied out in the recipe.
        schedule: Learning rate after the warm-up: half a cosine to 0, a polynomial of power 0.9 to 0, or "exponential",
            which has no warm-up and multiplies the rate by 0.95 after every epoch.
        warmup_epochs: Duration of the linear warm-up.
        weight_decay: Weight decay.
        weight_decay_on: Parameters that decay: all, matrices (no biases, no norms), or matrices except position
            embeddings and class token.
        betas: The two moment coefficients.
        clip_norm: Maximum norm of the gradients; 0 for none, as in the paper.
        layer_decay: Factor between the rates of a block and of the block below it; 1 for none.
    """

    lr: float
    schedule: Literal["cosine", "poly", "exponential"]
    warmup_epochs: float
    weight_decay: float
    weight_decay_on: Literal["matrices", "matrices-except-pos-embed", "all"] = "matrices"
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 0.0
    layer_decay: float = 1.0


def cosine(step: int, *, peak: float, warmup: float, total: float) -> float:
    """Rise linearly from 0 over `warmup` steps, then follow half a cosine to 0 at `total`."""
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def poly(step: int, *, peak: float, warmup: float, total: float, power: float = 0.9) -> float:
    """Rise from peak / 1000 over `warmup` steps, then fall as (1 - progress)^power to 0 at `total` (SegMunich)."""
    if step < warmup:
        return peak * (1e-3 + (1.0 - 1e-3) * step / warmup)
    left = max(0.0, 1.0 - (step - warmup) / (total - warmup))
    return peak * math.pow(left, power)


def exponential(step: int, *, peak: float, steps_per_epoch: float, factor: float = 0.95) -> float:
    """Multiply the rate by `factor` after every epoch, beginning with `peak` (OSCD)."""
    return peak * math.pow(factor, step // steps_per_epoch)


def schedule(recipe: OptimizerRecipe, *, steps_per_epoch: float, total: int) -> Schedule:
    """Return the learning rate of a recipe as a function of the step."""
    if recipe.schedule == "exponential":
        return lambda step: exponential(step, peak=recipe.lr, steps_per_epoch=steps_per_epoch)
    # A run may be shorter than the warm-up; the schedule must still be defined at its end.
    warmup = min(recipe.warmup_epochs * steps_per_epoch, total - 1)
    if recipe.schedule == "poly":
        return lambda step: poly(step, peak=recipe.lr, warmup=warmup, total=total)
    return lambda step: cosine(step, peak=recipe.lr, warmup=warmup, total=total)


def groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """Group the trained parameters by learning-rate scale and weight decay.

    1-D parameters and biases are not decayed unless `weight_decay_on` is "all". Position embeddings are decayed in
    pretraining, as in the released code, and not in classification ("matrices-except-pos-embed").
    """
    # Blocks are found by name, wherever a wrapper has put them; a model without blocks has one layer. They are ordered
    # by first occurrence, since a pyramid (Swin, ConvNeXt) restarts the numbers of its blocks in every stage.
    names = dict.fromkeys(_block(name) for name, _ in model.named_parameters())
    blocks = [name for name in names if name and "slow_" not in name]
    if recipe.layer_decay != 1.0 and not blocks:
        log.warning(
            "training.optimizer.layer_decay %g has no effect: no parameter of the model belongs to a numbered block "
            "(blocks.0, ...); set it to 1",
            recipe.layer_decay,
        )
    spared = recipe.weight_decay_on == "matrices-except-pos-embed"
    grouped: defaultdict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # AdamW would still decay them
            continue
        exempt = parameter.ndim <= 1 or name.endswith(".bias") or (spared and _is_position(name))
        decay = 0.0 if exempt and recipe.weight_decay_on != "all" else recipe.weight_decay
        # From the top: the head and the final norm at the full rate, block i at factor^(blocks - i).
        grouped[recipe.layer_decay ** (len(blocks) + 1 - _layer(name, blocks)), decay].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in grouped.items()
    ]


def _layer(name: str, blocks: list[str]) -> int:
    """Return the layer of a parameter: 0 for patch embeddings, 1 + i for block i, otherwise the last.

    As in the released code a joint position table is in layer 0 and a pair of tables in the last.
    """
    if _block(name) in blocks:
        return blocks.index(_block(name)) + 1
    bottom = re.search(r"(?:^|\.)(patch_embed\.|pos_embed$|cls_token$)", name)
    return 0 if blocks and bottom else len(blocks) + 1


def _block(name: str) -> str:
    """Return the transformer block that a parameter belongs to, by its name; "" for none."""
    match = re.match(r"((?:.*\.)?blocks\.\d+)\.", name)
    return match[1] if match else ""


def _is_position(name: str) -> bool:
    return "pos_embed" in name or name.endswith("cls_token")


def adamw(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """Create AdamW over `groups`; the loop sets the rate before each step. Raises SettingError."""
    try:
        return torch.optim.AdamW(groups(model, recipe), lr=recipe.lr, betas=recipe.betas, fused=True)
    except ValueError as error:
        raise SettingError(f"training.optimizer {recipe}: {error}; change that setting") from None


# --- optimizer state -----------------------------------------------------------------------


def state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the optimizer state as `<quantity>/<parameter name>` -> tensor, sharded where the model is."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in state_keys.parameters(model).items():
        for quantity, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{quantity}/{name}"] = value
    return tensors


def restore(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Restore the result of `state`. Raises SourceError on a parameter that the model does not have."""
    parameters = state_keys.parameters(model)
    for key, value in saved.items():
        quantity, _, name = key.partition("/")
        if name not in parameters:
            raise SourceError(
                f"optimizer state for '{name}': the model has no such parameter; start again with --fresh"
            )
        parameter = parameters[name]
        if quantity == "step":  # one number per parameter, sharded or not
            optimizer.state[parameter][quantity] = value.to(parameter.device, copy=True)
        else:
            optimizer.state[parameter][quantity] = distributed.shard_like(value, parameter)
